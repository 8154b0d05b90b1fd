//! A reader for pickles of PyTorch and NumPy. It builds plain data and never executes anything.
//!
//! A pickle is a program for a small stack machine, which may name any function of Python. This machine knows containers,
//! tensors and NumPy values by name; anything else that a pickle names or calls becomes [`Value::Opaque`]. Objects are in
//! one arena and refer to each other by number, so a pickle that shares or contains itself costs no more than its bytes. The
//! numbers of objects and copies are limited.

mod classes;
mod machine;
mod numpy;
mod tree;

use std::sync::Arc;

use tch::Kind;

use fnet_common::{Error, Result};

use super::lazy::{LazyTensor, Storage};
use super::value::Value;

/// A reference of the pickle to a storage.
#[derive(Debug, Clone)]
pub(super) struct StorageId {
    /// Its name inside the file.
    pub key: Arc<str>,
    /// Type of its elements; bytes if it is untyped.
    pub kind: Kind,
    /// Number of elements.
    pub count: u64,
    /// First element and number of elements of a view; only in the legacy format.
    pub view: Option<(u64, u64)>,
}

/// Finds the storages that a pickle refers to.
pub(super) trait Storages {
    /// The bytes of `id`.
    fn find(&mut self, id: &StorageId) -> Result<Storage>;
}

/// For pickles that must not refer to a storage.
pub(super) struct NoStorages;

impl Storages for NoStorages {
    fn find(&mut self, id: &StorageId) -> Result<Storage> {
        Err(Error::data(format!("unexpected reference to storage {:?}", id.key)))
    }
}

/// Maximum size of a pickle; those of large models with optimizer state have a few MB.
pub(super) const MAX_PICKLE: u64 = 64 << 20;
/// Maximum number of objects of a pickle, and of copied references.
const MAX_OBJECTS: usize = 500_000;
/// Approximate size of an object, to count other memory in objects.
const BYTES_OF_AN_OBJECT: usize = 32;
/// Maximum nesting depth.
const MAX_DEPTH: usize = 64;

/// Reads the pickle at the start of `bytes`; returns its value and its length in bytes.
/// Errors: if it is damaged or too large, or a tensor does not fit its storage.
pub(super) fn read(bytes: &[u8], storages: &mut dyn Storages) -> Result<(Value, usize)> {
    let mut machine = machine::Machine::new(bytes, storages);
    let root = machine.run().map_err(|error| {
        let position = machine.position();
        error.context(format!("byte {position} of the pickle"))
    })?;
    let value = tree::build(machine.arena(), root)?;
    Ok((value, machine.position()))
}

/// Number of an object in the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Id(u32);

/// An object of the pickle.
#[derive(Debug, Clone)]
enum Object {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Arc<str>),
    Bytes(Arc<[u8]>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// The full name of a class or function.
    Global(Arc<str>),
    Storage(Kind, Box<Storage>),
    Tensor(Arc<LazyTensor>),
    Dtype(numpy::Dtype),
    /// A NumPy array before BUILD sets its contents.
    EmptyArray,
    /// An instance of the named class.
    Opaque(Arc<str>),
}

/// All objects of a pickle.
#[derive(Debug, Default)]
struct Arena {
    objects: Vec<Object>,
    copied: usize,
}

impl Arena {
    fn add(&mut self, object: Object) -> Result<Id> {
        let id = u32::try_from(self.objects.len()).map_err(|_| too_large())?;
        self.objects.push(object);
        self.spend(1)?;
        Ok(Id(id))
    }

    /// Adds the name of a class or function. Its length counts, because a short pickle can create a long name many times.
    fn add_name(&mut self, name: String) -> Result<Id> {
        self.spend(name.len() / BYTES_OF_AN_OBJECT)?;
        self.add(Object::Global(name.into()))
    }

    /// Counts `count` copied references towards the limit.
    fn spend(&mut self, count: usize) -> Result<()> {
        self.copied = self.copied.saturating_add(count);
        if self.copied > MAX_OBJECTS { Err(too_large()) } else { Ok(()) }
    }

    fn get(&self, id: Id) -> &Object {
        &self.objects[id.0 as usize]
    }

    fn get_mut(&mut self, id: Id) -> &mut Object {
        &mut self.objects[id.0 as usize]
    }

    /// The items of a list or tuple.
    fn items(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Object::List(items) | Object::Tuple(items) => Some(items),
            _ => None,
        }
    }

    fn text(&self, id: Id) -> Option<&Arc<str>> {
        match self.get(id) {
            Object::Str(text) => Some(text),
            _ => None,
        }
    }

    fn int(&self, id: Id) -> Option<i64> {
        match *self.get(id) {
            Object::Int(value) => i64::try_from(value).ok(),
            Object::Bool(value) => Some(value.into()),
            _ => None,
        }
    }

    /// A tuple of integers, such as a shape.
    fn ints(&self, id: Id) -> Option<Vec<i64>> {
        let items = self.items(id).filter(|items| items.len() <= 64)?;
        items.iter().map(|&item| self.int(item)).collect()
    }
}

fn too_large() -> Error {
    Error::data(format!("more than {MAX_OBJECTS} objects: no checkpoint has that many"))
}

#[cfg(test)]
mod tests;
