//! The stack machine of pickle, with one function per group of opcodes.

use std::collections::HashMap;
use std::sync::Arc;

use fnet_common::{Error, Result};

use super::arena::{Arena, Id, Object};
use super::classes;
use super::storages::Storages;

/// State of the machine.
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    position: usize,
    storages: &'a mut dyn Storages,
    pub(super) arena: Arena,
    stack: Vec<Id>,
    /// The stack height at each open MARK.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    pub(super) fn new(bytes: &'a [u8], storages: &'a mut dyn Storages) -> Self {
        Self {
            bytes,
            position: 0,
            storages,
            arena: Arena::default(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Runs until STOP and returns the object on top.
    pub(super) fn run(&mut self) -> Result<Id> {
        loop {
            let opcode = self.byte()?;
            if opcode == b'.' {
                return self.pop();
            }
            self.step(opcode)?;
        }
    }

    fn step(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            0x80 => self.protocol(),
            // FRAME only says how much to read at once.
            0x95 => self.take(8).map(drop),
            b'(' => {
                self.marks.push(self.stack.len());
                self.arena.spend(1)
            }
            b'0' => self.pop_or_unmark(),
            b'1' => self.pop_to_mark().map(drop),
            b'2' => {
                let top = self.top()?;
                self.push_id(top)
            }
            b'N' | 0x88 | 0x89 | b'J' | b'K' | b'M' | 0x8a | 0x8b | b'G' => self.number(opcode),
            b'X' | 0x8c | 0x8d | b'T' | b'U' | b'B' | b'C' | 0x8e | 0x96 => self.text(opcode),
            b']' | b')' | b'}' | 0x8f | b'l' | b't' | b'd' | 0x91 | 0x85 | 0x86 | 0x87 => self.container(opcode),
            b'a' | b'e' | 0x90 | b's' | b'u' => self.fill(opcode),
            b'h' | b'j' | b'q' | b'r' | 0x94 => self.memo(opcode),
            b'c' | 0x93 => self.global(opcode),
            b'R' | 0x81 | 0x92 | b'b' | b'Q' => self.object(opcode),
            other => Err(Error::data(format!(
                "PyTorch does not write opcode {other:#04x}: this is not a PyTorch file, or it is damaged"
            ))),
        }
    }

    fn protocol(&mut self) -> Result<()> {
        match self.byte()? {
            2..=5 => Ok(()),
            other => Err(Error::data(format!("pickle protocol {other}, expected 2 to 5"))),
        }
    }

    fn number(&mut self, opcode: u8) -> Result<()> {
        let object = match opcode {
            b'N' => Object::None,
            0x88 => Object::Bool(true),
            0x89 => Object::Bool(false),
            b'J' => Object::Int(i32::from_le_bytes(self.array()?).into()),
            b'K' => Object::Int(self.byte()?.into()),
            b'M' => Object::Int(u16::from_le_bytes(self.array()?).into()),
            b'G' => Object::Float(f64::from_be_bytes(self.array()?)),
            _ => {
                let len = if opcode == 0x8a { self.byte()?.into() } else { self.length(4)? };
                long(self.take(len)?)
            }
        };
        self.push(object)
    }

    fn text(&mut self, opcode: u8) -> Result<()> {
        let len = match opcode {
            0x8c | b'U' | b'C' => self.length(1)?,
            b'X' | b'T' | b'B' => self.length(4)?,
            _ => self.length(8)?,
        };
        let bytes = self.take(len)?;
        self.push(match opcode {
            b'B' | b'C' | 0x8e | 0x96 => Object::Bytes(bytes.into()),
            // A Python 2 string may be text or bytes; latin1 keeps every byte.
            _ => match std::str::from_utf8(bytes) {
                Ok(text) => Object::Str(text.into()),
                Err(_) if opcode == b'T' || opcode == b'U' => {
                    Object::Str(bytes.iter().copied().map(char::from).collect::<String>().into())
                }
                // Python encodes lone surrogates, which are invalid in UTF-8.
                Err(_) => Object::Str(String::from_utf8_lossy(bytes).into()),
            },
        })
    }

    fn container(&mut self, opcode: u8) -> Result<()> {
        let object = match opcode {
            b']' | 0x8f => Object::List(Vec::new()),
            b')' => Object::Tuple(Vec::new()),
            b'}' => Object::Dict(Vec::new()),
            b'l' | 0x91 => Object::List(self.pop_to_mark()?),
            b't' => Object::Tuple(self.pop_to_mark()?),
            b'd' => {
                let items = self.pop_to_mark()?;
                Object::Dict(pairs(&items)?)
            }
            _ => {
                let count = usize::from(opcode - 0x84);
                let floor = self.marks.last().copied().unwrap_or(0);
                let start = self.stack.len().checked_sub(count).filter(|&start| start >= floor).ok_or_else(empty)?;
                Object::Tuple(self.stack.split_off(start))
            }
        };
        self.push(object)
    }

    /// APPEND, APPENDS, ADDITEMS, SETITEM, SETITEMS.
    fn fill(&mut self, opcode: u8) -> Result<()> {
        let items = match opcode {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.pop_to_mark()?,
        };
        let target = self.top()?;
        let target = self.arena.get_mut(target);
        let keyed = matches!(opcode, b's' | b'u');
        // An unknown class that is filled like a dictionary or list is treated as a subclass of it.
        if matches!(target, Object::Opaque(_)) {
            *target = if keyed { Object::Dict(Vec::new()) } else { Object::List(Vec::new()) };
        }
        match target {
            Object::List(list) if !keyed => list.extend(items),
            Object::Dict(dict) if keyed => dict.extend(pairs(&items)?),
            _ => return Err(Error::data("an item is added to an object that is not a container")),
        }
        Ok(())
    }

    fn memo(&mut self, opcode: u8) -> Result<()> {
        let index = match opcode {
            b'h' | b'q' => u32::from(self.byte()?),
            b'j' | b'r' => u32::from_le_bytes(self.array()?),
            _ => self.memo.len() as u32,
        };
        if matches!(opcode, b'h' | b'j') {
            let id = self.memo.get(&index).copied();
            return self.push_id(id.ok_or_else(|| Error::data(format!("memo entry {index} does not exist")))?);
        }
        let top = self.top()?;
        self.memo.insert(index, top);
        self.arena.spend(1)
    }

    fn global(&mut self, opcode: u8) -> Result<()> {
        let name = if opcode == b'c' {
            let module = self.line()?;
            format!("{module}.{}", self.line()?)
        } else {
            let name = self.pop()?;
            let module = self.pop()?;
            match (self.arena.text(module), self.arena.text(name)) {
                (Some(module), Some(name)) if module.len() + name.len() < MAX_NAME => format!("{module}.{name}"),
                _ => return Err(Error::data("the name of a class is too long or not text")),
            }
        };
        let id = self.arena.add_name(name)?;
        self.stack.push(id);
        Ok(())
    }

    fn object(&mut self, opcode: u8) -> Result<()> {
        if opcode == b'Q' {
            return self.persistent();
        }
        // The keyword arguments of NEWOBJ_EX are on top.
        if opcode == 0x92 {
            self.pop()?;
        }
        let argument = self.pop()?;
        if opcode == b'b' {
            let target = self.top()?;
            return classes::build(&mut self.arena, target, argument);
        }
        let function = self.pop()?;
        let id = if opcode == b'R' {
            classes::call(&mut self.arena, function, argument)?
        } else {
            classes::create(&mut self.arena, function)?
        };
        self.push_id(id)
    }

    /// BINPERSID: ("storage", class, key, location, count[, view]).
    fn persistent(&mut self) -> Result<()> {
        let id = self.pop()?;
        let storage = match classes::storage_id(&self.arena, id)? {
            Some(id) => {
                let storage = self.storages.find(&id)?;
                Object::Storage(id.kind, Box::new(storage))
            }
            None => Object::Opaque("torch storage".into()),
        };
        self.push(storage)
    }

    fn push(&mut self, object: Object) -> Result<()> {
        let id = self.arena.add(object)?;
        self.stack.push(id);
        Ok(())
    }

    fn push_id(&mut self, id: Id) -> Result<()> {
        self.stack.push(id);
        self.arena.spend(1)
    }

    fn top(&self) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack.get(floor..).and_then(<[Id]>::last).copied().ok_or_else(empty)
    }

    fn pop(&mut self) -> Result<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_or_unmark(&mut self) -> Result<()> {
        if self.marks.last() == Some(&self.stack.len()) {
            self.marks.pop();
            return Ok(());
        }
        self.pop().map(drop)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(empty)?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let end = self.position.checked_add(len).filter(|&end| end <= self.bytes.len()).ok_or_else(cut_off)?;
        let bytes = &self.bytes[self.position..end];
        self.position = end;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8> {
        self.array().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| cut_off())
    }

    /// Reads a length of `width` bytes.
    fn length(&mut self, width: usize) -> Result<usize> {
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(self.take(width)?);
        usize::try_from(u64::from_le_bytes(bytes)).map_err(|_| cut_off())
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.position..];
        let end = rest.iter().take(MAX_NAME).position(|&byte| byte == b'\n').ok_or_else(cut_off)?;
        self.position += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| Error::data("the name of a class is not text"))
    }
}

/// Maximum length of the name of a class.
const MAX_NAME: usize = 1024;

/// A two's complement, little-endian integer of any length.
fn long(bytes: &[u8]) -> Object {
    if bytes.len() > 16 {
        return Object::Opaque(Arc::from("builtins.int"));
    }
    let sign = if bytes.last().is_some_and(|&last| last >= 0x80) { 0xff } else { 0 };
    let mut wide = [sign; 16];
    wide[..bytes.len()].copy_from_slice(bytes);
    Object::Int(i128::from_le_bytes(wide))
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>> {
    if !items.len().is_multiple_of(2) {
        return Err(Error::data("a dictionary has a key without a value"));
    }
    Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

fn empty() -> Error {
    Error::data("an object is missing from the stack: the pickle is damaged")
}

fn cut_off() -> Error {
    Error::data("the pickle ends too early: the file is damaged or incomplete")
}
