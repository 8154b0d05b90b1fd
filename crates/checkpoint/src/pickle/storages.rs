//! What a pickle refers to outside itself.

use std::sync::Arc;

use tch::Kind;

use fnet_common::{Error, Result};

use crate::lazy::Storage;

/// A reference of the pickle to a storage.
#[derive(Debug, Clone)]
pub(crate) struct StorageId {
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
pub(crate) trait Storages {
    /// The bytes of `id`.
    fn find(&mut self, id: &StorageId) -> Result<Storage>;
}

/// For pickles that must not refer to a storage.
pub(crate) struct NoStorages;

impl Storages for NoStorages {
    fn find(&mut self, id: &StorageId) -> Result<Storage> {
        Err(Error::data(format!("unexpected reference to storage {:?}", id.key)))
    }
}
