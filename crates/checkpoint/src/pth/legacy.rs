//! The legacy format before PyTorch 1.6: pickles of a magic number, the format's version, properties of the machine, the
//! object, and the list of storage keys; then each storage as its number of elements and its bytes.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use fnet_common::{Error, Result};

use crate::lazy::Storage;
use crate::pickle::{self, MAX_PICKLE, NoStorages, StorageId, Storages};
use crate::value::Value;

/// LONG1 of ten bytes, at the start of every such file after the two bytes of the protocol.
const MAGIC: [u8; 12] = [0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// Version of the format.
const VERSION: i64 = 1001;

pub(super) fn read(file: &Arc<File>, len: u64) -> Result<Value> {
    let head = head(file, len)?;
    // From protocol 4 on, a frame of at most eleven bytes precedes the number.
    if !head.get(..32.min(head.len())).is_some_and(|start| start.windows(MAGIC.len()).any(|part| part == MAGIC)) {
        return Err(Error::data(
            "a pickle, but not one that torch.save wrote (its magic number is missing): give a .pth or .pt file",
        ));
    }
    let mut position = 0;
    let (_, version, machine) =
        (plain(&head, &mut position)?, plain(&head, &mut position)?, plain(&head, &mut position)?);
    if version.as_int() != Some(VERSION) {
        return Err(Error::data(format!("version {} of the legacy format, expected {VERSION}", describe(&version))));
    }
    if machine.get("little_endian").is_some_and(|little| little.as_int() == Some(0)) {
        return Err(Error::data(
            "the tensors are stored as big-endian: save the file again on a little-endian machine",
        ));
    }
    // The positions of the storages are only known after the object, so the object is read twice.
    let object = head.get(position..).unwrap_or_default();
    let mut sizes = Sizes::default();
    let (_, used) = pickle::read(object, &mut Survey { file, len, sizes: &mut sizes })?;
    position += used;
    let keys = plain(&head, &mut position)?;
    let places = places(file, len, position as u64, &keys, &sizes)?;
    let (value, _) = pickle::read(object, &mut Placed { file, places: &places })?;
    Ok(value)
}

/// The part of the file that may contain the pickles.
fn head(file: &File, len: u64) -> Result<Vec<u8>> {
    let mut head = vec![0; len.min(MAX_PICKLE) as usize];
    file.read_exact_at(&mut head, 0).map_err(|error| Error::data(format!("cannot read the file: {error}")))?;
    Ok(head)
}

/// Reads the next pickle, which must not refer to a storage.
fn plain(head: &[u8], position: &mut usize) -> Result<Value> {
    let (value, used) = pickle::read(head.get(*position..).unwrap_or_default(), &mut NoStorages)?;
    *position += used;
    Ok(value)
}

fn describe(value: &Value) -> String {
    value.as_int().map_or_else(|| value.describe(), |value| value.to_string())
}

/// Bytes of an element and number of elements, by key.
type Sizes = HashMap<Arc<str>, (u64, u64)>;

/// Collects the sizes of all storages.
struct Survey<'a> {
    file: &'a Arc<File>,
    len: u64,
    sizes: &'a mut Sizes,
}

impl Storages for Survey<'_> {
    fn find(&mut self, id: &StorageId) -> Result<Storage> {
        let width = id.kind.elt_size_in_bytes() as u64;
        self.sizes.insert(Arc::clone(&id.key), (width, id.count));
        let bytes = id.count.checked_mul(width).filter(|&bytes| bytes <= self.len).ok_or_else(|| cut_off(&id.key))?;
        view(Storage::in_file(self.file, 0, bytes), id)
    }
}

/// The position of each storage: first byte and number of bytes.
fn places(file: &File, len: u64, start: u64, keys: &Value, sizes: &Sizes) -> Result<HashMap<Arc<str>, (u64, u64)>> {
    let keys = keys.as_items().ok_or_else(|| Error::data("the list of storages is missing after the object"))?;
    let mut places = HashMap::new();
    let mut position = start;
    for key in keys {
        let key: Arc<str> = match key {
            Value::Str(key) => Arc::clone(key),
            Value::Int(key) => key.to_string().into(),
            other => return Err(Error::data(format!("{} is not a valid storage key", other.describe()))),
        };
        let &(width, count) =
            sizes.get(&key).ok_or_else(|| Error::data(format!("storage {key:?} is listed, but nothing uses it")))?;
        let mut stored = [0; 8];
        file.read_exact_at(&mut stored, position).map_err(|_| cut_off(&key))?;
        if u64::from_le_bytes(stored) != count {
            return Err(Error::data(format!(
                "storage {key:?} has {} elements, expected {count}: the file is damaged",
                u64::from_le_bytes(stored)
            )));
        }
        let bytes = count.checked_mul(width).ok_or_else(|| cut_off(&key))?;
        let begin = position + 8;
        position = begin.checked_add(bytes).filter(|&end| end <= len).ok_or_else(|| cut_off(&key))?;
        places.insert(key, (begin, bytes));
    }
    Ok(places)
}

struct Placed<'a> {
    file: &'a Arc<File>,
    places: &'a HashMap<Arc<str>, (u64, u64)>,
}

impl Storages for Placed<'_> {
    fn find(&mut self, id: &StorageId) -> Result<Storage> {
        let &(start, bytes) = self
            .places
            .get(&id.key)
            .ok_or_else(|| Error::data(format!("storage {:?} is used, but not in the file", id.key)))?;
        view(Storage::in_file(self.file, start, bytes), id)
    }
}

/// The part of `storage` that `id` refers to.
fn view(storage: Storage, id: &StorageId) -> Result<Storage> {
    let Some((first, count)) = id.view else { return Ok(storage) };
    let width = id.kind.elt_size_in_bytes() as u64;
    let part = first.checked_mul(width).zip(count.checked_mul(width));
    part.and_then(|(start, len)| storage.part(start, len))
        .ok_or_else(|| Error::data(format!("a view of storage {:?} is outside it: the file is damaged", id.key)))
}

fn cut_off(key: &str) -> Error {
    Error::data(format!("the file ends before the end of storage {key:?}: it is incomplete. Copy or download it again"))
}
