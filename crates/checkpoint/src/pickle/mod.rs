//! A reader for pickles of PyTorch and NumPy. It builds plain data and never executes anything.
//!
//! A pickle is a program for a small stack machine, which may name any function of Python. This machine knows containers,
//! tensors and NumPy values by name; anything else that a pickle names or calls becomes [`Value::Opaque`]. Objects are in
//! one arena and refer to each other by number, so a pickle that shares or contains itself costs no more than its bytes. The
//! numbers of objects and copies are limited.

mod arena;
mod classes;
mod dtype;
mod machine;
mod numpy;
mod storages;
mod tree;

use fnet_common::Result;

use super::value::Value;

pub(super) use classes::KINDS;
pub(super) use storages::{NoStorages, StorageId, Storages};

/// Maximum size of a pickle; those of large models with optimizer state have a few MB.
pub(super) const MAX_PICKLE: u64 = 64 << 20;

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

#[cfg(test)]
mod tests;
