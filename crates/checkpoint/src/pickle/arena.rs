//! The objects of a pickle, with limits for their number.

use std::sync::Arc;

use tch::Kind;

use fnet_common::{Error, Result};

use super::dtype::Dtype;
use crate::lazy::{LazyTensor, Storage};

/// Maximum number of objects of a pickle, and of copied references.
pub(super) const MAX_OBJECTS: usize = 500_000;
/// Approximate size of an object, to count other memory in objects.
pub(super) const BYTES_OF_AN_OBJECT: usize = 32;

/// Number of an object in the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Id(u32);

/// An object of the pickle.
#[derive(Debug, Clone)]
pub(super) enum Object {
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
    Dtype(Dtype),
    /// A NumPy array before BUILD sets its contents.
    EmptyArray,
    /// An instance of the named class.
    Opaque(Arc<str>),
}

/// All objects of a pickle.
#[derive(Debug, Default)]
pub(super) struct Arena {
    objects: Vec<Object>,
    copied: usize,
}

impl Arena {
    pub(super) fn add(&mut self, object: Object) -> Result<Id> {
        let id = u32::try_from(self.objects.len()).map_err(|_| too_large())?;
        self.objects.push(object);
        self.spend(1)?;
        Ok(Id(id))
    }

    /// Adds the name of a class or function. Its length counts, because a short pickle can create a long name many times.
    pub(super) fn add_name(&mut self, name: String) -> Result<Id> {
        self.spend(name.len() / BYTES_OF_AN_OBJECT)?;
        self.add(Object::Global(name.into()))
    }

    /// Counts `count` copied references towards the limit.
    pub(super) fn spend(&mut self, count: usize) -> Result<()> {
        self.copied = self.copied.saturating_add(count);
        if self.copied > MAX_OBJECTS { Err(too_large()) } else { Ok(()) }
    }

    pub(super) fn get(&self, id: Id) -> &Object {
        &self.objects[id.0 as usize]
    }

    pub(super) fn get_mut(&mut self, id: Id) -> &mut Object {
        &mut self.objects[id.0 as usize]
    }

    /// The items of a list or tuple.
    pub(super) fn items(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Object::List(items) | Object::Tuple(items) => Some(items),
            _ => None,
        }
    }

    pub(super) fn text(&self, id: Id) -> Option<&Arc<str>> {
        match self.get(id) {
            Object::Str(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn int(&self, id: Id) -> Option<i64> {
        match *self.get(id) {
            Object::Int(value) => i64::try_from(value).ok(),
            Object::Bool(value) => Some(value.into()),
            _ => None,
        }
    }

    /// A tuple of integers, such as a shape.
    pub(super) fn ints(&self, id: Id) -> Option<Vec<i64>> {
        let items = self.items(id).filter(|items| items.len() <= 64)?;
        items.iter().map(|&item| self.int(item)).collect()
    }
}

pub(super) fn too_large() -> Error {
    Error::data(format!("more than {MAX_OBJECTS} objects: no checkpoint has that many"))
}
