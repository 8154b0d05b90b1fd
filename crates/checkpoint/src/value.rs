//! The contents of a pickle as plain data.

use std::sync::Arc;

use super::lazy::LazyTensor;

/// A value of a pickle. Text and bytes are shared, so repeated references take memory once.
#[derive(Debug, Clone)]
pub enum Value {
    /// `None`.
    None,
    /// A Boolean.
    Bool(bool),
    /// An integer; one beyond 64 bits is [`Value::Opaque`].
    Int(i64),
    /// A floating-point number.
    Float(f64),
    /// Text.
    Str(Arc<str>),
    /// Bytes.
    Bytes(Arc<[u8]>),
    /// A list or a set.
    List(Vec<Value>),
    /// A tuple.
    Tuple(Vec<Value>),
    /// A dictionary of any class, in order.
    Dict(Vec<(Value, Value)>),
    /// A tensor or a NumPy array; its data stays in the file until [`LazyTensor::load`].
    Tensor(Arc<LazyTensor>),
    /// An object of an unknown class; the full name of the class.
    Opaque(Arc<str>),
}

impl Value {
    /// The value at `key` of a dictionary; the last one if the key is repeated, as in Python.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries().iter().rev().find(|(name, _)| name.as_str() == Some(key)).map(|(_, value)| value)
    }

    /// Follows `keys` through nested dictionaries.
    pub fn at(&self, keys: &[&str]) -> Option<&Value> {
        keys.iter().try_fold(self, |value, key| value.get(key))
    }

    /// The entries of a dictionary; none for anything else.
    pub fn entries(&self) -> &[(Value, Value)] {
        match self {
            Value::Dict(entries) => entries,
            _ => &[],
        }
    }

    /// The items of a list or tuple.
    pub fn as_items(&self) -> Option<&[Value]> {
        match self {
            Value::List(items) | Value::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// The text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The integer; Booleans and numbers without a fraction count as integers.
    pub fn as_int(&self) -> Option<i64> {
        match *self {
            Value::Int(value) => Some(value),
            Value::Bool(value) => Some(value.into()),
            Value::Float(value) if value.fract() == 0.0 && value.abs() < 9e15 => Some(value as i64),
            _ => None,
        }
    }

    /// The number.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::Float(value) => Some(value),
            Value::Int(value) => Some(value as f64),
            _ => None,
        }
    }

    /// The tensor.
    pub fn as_tensor(&self) -> Option<&LazyTensor> {
        match self {
            Value::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }

    /// A description of the value, for messages.
    pub fn describe(&self) -> String {
        match self {
            Value::None => "None".into(),
            Value::Bool(_) => "a Boolean".into(),
            Value::Int(_) => "an integer".into(),
            Value::Float(_) => "a number".into(),
            Value::Str(_) => "text".into(),
            Value::Bytes(_) => "bytes".into(),
            Value::List(items) => format!("a list of {}", items.len()),
            Value::Tuple(items) => format!("a tuple of {}", items.len()),
            Value::Dict(entries) => format!("a dictionary of {}", entries.len()),
            Value::Tensor(tensor) => format!("a tensor of shape {:?}", tensor.size()),
            Value::Opaque(class) => format!("an object of class {class}"),
        }
    }
}
