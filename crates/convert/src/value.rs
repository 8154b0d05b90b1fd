//! Values of a Python config, with their places in the file.

use std::cell::RefCell;
use std::fmt;
use std::ops::Deref;
use std::rc::Rc;

use indexmap::IndexMap;

use fnet_common::{Error, Result};

/// The key that replaces a dict of a base instead of merging with it.
const DELETE: &str = "_delete_";
/// Dicts and lists may be nested this deep. MMDetection's configs reach 12.
pub const DEEPEST: usize = 64;
/// Values of one config, dicts and lists counted every time that they are used.
const MOST: usize = 200_000;

/// A place in a file, line and column from 1.
#[derive(Debug, Clone)]
pub struct SourceLocation {
    /// The file, as the user named it.
    pub file: Rc<str>,
    pub line: usize,
    /// Column in characters.
    pub column: usize,
}

impl fmt::Display for SourceLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// A value and where it was written.
#[derive(Debug, Clone)]
pub struct Item {
    pub value: Value,
    /// Where it was written.
    pub place: SourceLocation,
}

/// The values of a dict by their keys.
pub type Dict = IndexMap<String, Item>;

/// A value. Dicts and lists are shared, as in Python: a change is seen wherever they are used.
#[derive(Debug, Clone)]
pub enum Value {
    /// `None`
    None,
    /// `True` or `False`
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number with a fraction.
    Float(f64),
    Text(Rc<str>),
    /// A list or tuple.
    List(Rc<Shared<Vec<Item>>>),
    Dict(Rc<Shared<Dict>>),
    /// An expression without a value, because that would need Python: what it is.
    Unknown(Rc<str>),
}

/// The content of a dict or list, and how deep it was when it was made.
#[derive(Debug)]
pub struct Shared<T> {
    depth: usize,
    content: RefCell<T>,
}

impl<T> Deref for Shared<T> {
    type Target = RefCell<T>;

    fn deref(&self) -> &RefCell<T> {
        &self.content
    }
}

impl Value {
    pub fn text(text: impl Into<Rc<str>>) -> Self {
        Self::Text(text.into())
    }

    pub fn list(items: Vec<Item>) -> Self {
        Self::List(Rc::new(Shared { depth: depth_of(items.iter()), content: RefCell::new(items) }))
    }

    pub fn dict(dict: Dict) -> Self {
        Self::Dict(Rc::new(Shared { depth: depth_of(dict.values()), content: RefCell::new(dict) }))
    }

    /// An expression that only Python can evaluate; `what` it is.
    pub fn unknown(what: impl Into<Rc<str>>) -> Self {
        Self::Unknown(what.into())
    }

    /// The value of a key, if this is a dict that has it.
    pub fn get(&self, key: &str) -> Option<Item> {
        match self {
            Self::Dict(dict) => dict.try_borrow().ok()?.get(key).cloned(),
            _ => None,
        }
    }

    /// The string, if this is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A number, if this is one.
    pub fn as_number(&self) -> Option<f64> {
        match self {
            Self::Int(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            _ => None,
        }
    }

    /// The items of a list; none of anything else.
    pub fn items(&self) -> Vec<Item> {
        match self {
            Self::List(items) => items.try_borrow().map(|items| items.clone()).unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    /// What the value is, for messages.
    pub fn kind(&self) -> &str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "True or False",
            Self::Int(_) | Self::Float(_) => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dict",
            Self::Unknown(what) => what,
        }
    }

    /// How many dicts and lists are nested here. What was put into them later does not count.
    pub fn depth(&self) -> usize {
        match self {
            Self::List(items) => items.depth,
            Self::Dict(dict) => dict.depth,
            _ => 0,
        }
    }
}

fn depth_of<'a>(items: impl Iterator<Item = &'a Item>) -> usize {
    1 + items.map(|item| item.value.depth()).max().unwrap_or(0)
}

/// As in Python, on one line.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Bool(true) => f.write_str("True"),
            Self::Bool(false) => f.write_str("False"),
            Self::Int(number) => write!(f, "{number}"),
            Self::Float(number) => write!(f, "{number:?}"),
            Self::Text(text) => write!(f, "'{}'", fnet_common::text::printable(text)),
            Self::List(items) => {
                f.write_str("[")?;
                for (index, item) in items.borrow().iter().enumerate() {
                    write!(f, "{}{}", if index == 0 { "" } else { ", " }, item.value)?;
                }
                f.write_str("]")
            }
            Self::Dict(dict) => {
                f.write_str("dict(")?;
                for (index, (key, item)) in dict.borrow().iter().enumerate() {
                    write!(f, "{}{key}={}", if index == 0 { "" } else { ", " }, item.value)?;
                }
                f.write_str(")")
            }
            Self::Unknown(what) => write!(f, "({what})"),
        }
    }
}

/// Refuses values that are nested too deeply, contain themselves, or are too many to walk through.
/// Errors: a usage error with the place.
pub fn check_size(dict: &Dict) -> Result<()> {
    fn visit(item: &Item, depth: usize, left: &mut usize) -> Result<()> {
        if depth == 0 || *left == 0 {
            return Err(Error::usage(format!(
                "{}: the values are nested more than {DEEPEST} deep, contain themselves, or are more than {MOST}; a \
                 config of MMDetection is expected",
                item.place
            )));
        }
        *left -= 1;
        match &item.value {
            Value::List(items) => items.borrow().iter().try_for_each(|item| visit(item, depth - 1, left)),
            Value::Dict(dict) => dict.borrow().values().try_for_each(|item| visit(item, depth - 1, left)),
            _ => Ok(()),
        }
    }
    let mut left = MOST;
    dict.values().try_for_each(|item| visit(item, DEEPEST, &mut left))
}

/// Merges `over` into `under`, as MMDetection merges a config into its bases: dicts are merged key by key unless they have
/// `_delete_=True`, everything else is replaced. Neither is changed where other values share it.
/// Errors: a usage error if a dict would be merged into something else, as in MMDetection.
pub fn merge(under: &Dict, over: &Dict) -> Result<Dict> {
    let mut merged = under.clone();
    for (key, item) in over {
        let Value::Dict(above) = &item.value else {
            merged.insert(key.clone(), item.clone());
            continue;
        };
        let above = above.borrow();
        let deletes = matches!(above.get(DELETE), Some(Item { value: Value::Bool(true), .. }));
        let value = match under.get(key) {
            Some(below) if !deletes => match &below.value {
                Value::Dict(below) => Value::dict(merge(&below.borrow(), &above)?),
                other => {
                    return Err(Error::usage(format!(
                        "{}: `{key}` is a dict, but the base has {} ({}); expected a dict there too, or `_delete_=True` in \
                         this one to replace what the base has",
                        item.place,
                        other.kind(),
                        below.place
                    )));
                }
            },
            _ => Value::dict(above.clone()),
        };
        merged.insert(key.clone(), Item { value, place: item.place.clone() });
    }
    Ok(merged)
}

/// The value without the `_delete_` keys, which have done their work.
pub fn without_delete(item: &Item) -> Item {
    let value = match &item.value {
        Value::Dict(dict) => Value::dict(
            dict.borrow()
                .iter()
                .filter(|(key, _)| *key != DELETE)
                .map(|(key, item)| (key.clone(), without_delete(item)))
                .collect(),
        ),
        Value::List(items) => Value::list(items.borrow().iter().map(without_delete).collect()),
        other => other.clone(),
    };
    Item { value, place: item.place.clone() }
}

/// Several fields of fnet, as one value.
pub fn fields<const N: usize>(fields: [(&str, toml::Value); N]) -> toml::Value {
    toml::Value::Table(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}
