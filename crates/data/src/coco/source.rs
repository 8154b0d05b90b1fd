//! Reads the text of an annotation file in pieces.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::SystemTime;

/// Bytes per read.
const BLOCK: usize = 1 << 18;

/// The text of an annotation file in UTF-8. Offsets are in bytes.
#[derive(Debug)]
pub(super) struct AnnotationSource {
    text: Text,
    /// Offset of the text after a byte-order mark.
    pub start: u64,
    /// The original encoding, if it is not UTF-8 without a byte-order mark.
    pub repaired: Option<&'static str>,
}

#[derive(Debug)]
enum Text {
    File { file: File, stamp: Stamp },
    Memory(Vec<u8>),
}

/// Detects whether the file was changed after it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    length: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { length: metadata.len(), modified: metadata.modified().ok() })
    }
}

/// Detects encodings other than UTF-8 by the first bytes. Without a mark, JSON starts with an ASCII character.
fn wide_encoding(head: &[u8]) -> Option<(&'static str, usize)> {
    match head {
        [0xff, 0xfe, 0, 0, ..] => Some(("UTF-32", 4)),
        [0, 0, 0xfe, 0xff, ..] => Some(("UTF-32 (big-endian)", 4)),
        [0xff, 0xfe, ..] => Some(("UTF-16", 2)),
        [0xfe, 0xff, ..] => Some(("UTF-16 (big-endian)", 2)),
        [b'{' | b'[', 0, 0, 0, ..] => Some(("UTF-32", 0)),
        [0, 0, 0, b'{' | b'[', ..] => Some(("UTF-32 (big-endian)", 0)),
        [b'{' | b'[', 0, ..] => Some(("UTF-16", 0)),
        [0, b'{' | b'[', ..] => Some(("UTF-16 (big-endian)", 0)),
        _ => None,
    }
}

fn decode_wide(bytes: &[u8], encoding: &str) -> io::Result<Vec<u8>> {
    let invalid =
        || io::Error::new(io::ErrorKind::InvalidData, format!("it starts like {encoding} but is not valid {encoding}"));
    let big = encoding.ends_with("(big-endian)");
    let text: Option<String> = if encoding.starts_with("UTF-16") {
        let units = bytes.chunks_exact(2).map(|pair| {
            let pair = [pair[0], pair[1]];
            if big { u16::from_be_bytes(pair) } else { u16::from_le_bytes(pair) }
        });
        char::decode_utf16(units).collect::<Result<_, _>>().ok()
    } else {
        let units = bytes.chunks_exact(4).map(|four| {
            let four = [four[0], four[1], four[2], four[3]];
            if big { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) }
        });
        units.map(char::from_u32).collect()
    };
    text.map(String::into_bytes).ok_or_else(invalid)
}

impl AnnotationSource {
    /// Opens the file at `path`. Text in UTF-16 or UTF-32 is converted to UTF-8 in memory.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Check before opening, because opening a pipe may block forever.
        let metadata = std::fs::metadata(path)?;
        if !metadata.is_file() {
            let kind = if metadata.is_dir() { "it is a folder" } else { "it is not a regular file" };
            return Err(io::Error::other(kind));
        }
        let file = File::open(path)?;
        let mut head = [0; 4];
        let length = file.read_at(&mut head, 0)?;
        if let Some((encoding, mark)) = wide_encoding(&head[..length]) {
            let mut bytes = Vec::new();
            (&file).read_to_end(&mut bytes)?;
            let text = decode_wide(bytes.get(mark..).unwrap_or_default(), encoding)?;
            return Ok(Self { text: Text::Memory(text), start: 0, repaired: Some(encoding) });
        }
        let marked = head[..length].starts_with(&[0xef, 0xbb, 0xbf]);
        let stamp = Stamp::of(&file)?;
        Ok(Self {
            text: Text::File { file, stamp },
            start: if marked { 3 } else { 0 },
            repaired: marked.then_some("UTF-8 with a byte-order mark"),
        })
    }

    #[cfg(test)]
    pub fn memory(text: Vec<u8>) -> Self {
        Self { text: Text::Memory(text), start: 0, repaired: None }
    }

    /// Length of the text in bytes.
    pub fn length(&self) -> u64 {
        match &self.text {
            Text::File { stamp, .. } => stamp.length,
            Text::Memory(text) => text.len() as u64,
        }
    }

    /// Reads the text sequentially from `offset`.
    pub fn reader(&self, offset: u64) -> Pieces<'_> {
        Pieces { source: self, offset }
    }

    /// Fills `buffer` from `offset`.
    /// Errors: if the file cannot be read, or was changed since it was opened.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.text {
            Text::File { file, stamp } => {
                if Stamp::of(file)? != *stamp {
                    return Err(io::Error::other("it was changed after it was opened; restart the job"));
                }
                file.read_exact_at(buffer, offset)
            }
            Text::Memory(text) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
                let piece = text[start..].get(..buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
                buffer.copy_from_slice(piece);
                Ok(())
            }
        }
    }

    /// The line, from 1, of the byte at `offset`.
    pub fn line(&self, offset: u64) -> u64 {
        let mut line = 1;
        let mut at = 0;
        let mut block = vec![0; BLOCK];
        while at < offset {
            let Ok(length) = self.read_at(&mut block, at) else { break };
            if length == 0 {
                break;
            }
            let wanted = usize::try_from(offset - at).unwrap_or(usize::MAX).min(length);
            line += memchr::memchr_iter(b'\n', &block[..wanted]).count() as u64;
            at += length as u64;
        }
        line
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match &self.text {
            Text::File { file, .. } => file.read_at(buffer, offset),
            Text::Memory(text) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
                let length = buffer.len().min(text.len() - start);
                buffer[..length].copy_from_slice(&text[start..start + length]);
                Ok(length)
            }
        }
    }
}

/// The text of an [`AnnotationSource`] in pieces.
pub(super) struct Pieces<'s> {
    source: &'s AnnotationSource,
    /// Offset of the next piece.
    offset: u64,
}

impl Pieces<'_> {
    /// Appends the next bytes to `buffer`. Returns `false` at the end of the text.
    pub fn append_to(&mut self, buffer: &mut Vec<u8>) -> io::Result<bool> {
        let length = buffer.len();
        buffer.resize(length + BLOCK, 0);
        let read = loop {
            match self.source.read_at(&mut buffer[length..], self.offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        buffer.truncate(length + read.as_ref().copied().unwrap_or(0));
        let read = read?;
        self.offset += read as u64;
        Ok(read > 0)
    }
}
