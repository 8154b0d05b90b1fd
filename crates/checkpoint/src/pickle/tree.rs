//! Turns the objects of a pickle into a tree of plain values.

use std::sync::Arc;

use fnet_common::{Error, Result};

use super::arena::{Arena, Id, MAX_OBJECTS, Object, too_large};
use crate::value::Value;

/// Maximum nesting depth.
const MAX_DEPTH: usize = 64;

/// The tree below `root`. An object that is referenced more than once is repeated, within the limit of objects.
pub(super) fn build(arena: &Arena, root: Id) -> Result<Value> {
    Builder { arena, left: MAX_OBJECTS }.value(root, 0)
}

struct Builder<'a> {
    arena: &'a Arena,
    left: usize,
}

impl Builder<'_> {
    fn value(&mut self, id: Id, depth: usize) -> Result<Value> {
        if depth > MAX_DEPTH {
            return Err(Error::data(format!("objects are nested more than {MAX_DEPTH} deep, or in themselves")));
        }
        self.left = self.left.checked_sub(1).ok_or_else(too_large)?;
        Ok(match self.arena.get(id) {
            Object::None => Value::None,
            Object::Bool(value) => Value::Bool(*value),
            Object::Int(value) => i64::try_from(*value).map_or_else(|_| opaque("builtins.int"), Value::Int),
            Object::Float(value) => Value::Float(*value),
            Object::Str(text) => Value::Str(Arc::clone(text)),
            Object::Bytes(bytes) => Value::Bytes(Arc::clone(bytes)),
            Object::List(items) => Value::List(self.items(items, depth)?),
            Object::Tuple(items) => Value::Tuple(self.items(items, depth)?),
            Object::Dict(entries) => {
                let mut values = Vec::new();
                for &(key, value) in entries {
                    values.push((self.value(key, depth + 1)?, self.value(value, depth + 1)?));
                }
                Value::Dict(values)
            }
            Object::Tensor(tensor) => Value::Tensor(Arc::clone(tensor)),
            Object::Global(name) | Object::Opaque(name) => Value::Opaque(Arc::clone(name)),
            Object::Storage(..) => opaque("torch storage"),
            Object::Dtype(_) => opaque("numpy.dtype"),
            Object::EmptyArray => opaque("numpy.ndarray"),
        })
    }

    fn items(&mut self, items: &[Id], depth: usize) -> Result<Vec<Value>> {
        items.iter().map(|&item| self.value(item, depth + 1)).collect()
    }
}

fn opaque(class: &str) -> Value {
    Value::Opaque(class.into())
}
