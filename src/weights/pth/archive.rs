//! The zip archive: `NAME/data.pkl` holds the pickle, `NAME/data/KEY` the bytes of each storage.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::sync::Arc;

use zip::{CompressionMethod, ZipArchive};

use super::length;
use crate::error::{Error, Result};
use crate::weights::lazy::Storage;
use crate::weights::pickle::{self, MAX_PICKLE, StorageId, Storages};
use crate::weights::value::Value;

/// PyTorch stores entries as they are. Archives packed anew may be compressed, but weights shrink by little: all
/// entries together may unpack to this many times the file, and [`SLACK`] more.
const MAX_EXPANSION: u64 = 16;
const SLACK: u64 = 1 << 20;
/// Most entries; each tensor is one.
const MAX_ENTRIES: usize = 1 << 20;

/// Reads the archive.
pub(super) fn read(file: &Arc<File>) -> Result<Value> {
    let entries = entries(file)?;
    let root = root(&entries)?;
    let pickle = &entries[&format!("{root}data.pkl")];
    if let Some(order) = entries.get(&format!("{root}byteorder")) {
        let order = order.storage(file)?.read(0, order.len.min(16))?;
        if order != b"little" {
            return Err(Error::data("the tensors are stored big-endian: save the file anew on an ordinary machine"));
        }
    }
    if pickle.len > MAX_PICKLE {
        return Err(Error::data(format!("data.pkl has {} bytes, expected at most {MAX_PICKLE}", pickle.len)));
    }
    let bytes = pickle.storage(file)?.read(0, pickle.len)?;
    // `torch.save` can leave the checksums out, for all entries alike; then none of them means anything.
    let checksums = crc32fast::hash(&bytes) == pickle.checksum;
    let (value, _) = pickle::read(&bytes, &mut Entries { file, entries: &entries, root, checksums })?;
    Ok(value)
}

/// An entry of the archive.
#[derive(Debug)]
struct Entry {
    start: u64,
    compressed: u64,
    len: u64,
    checksum: u32,
    method: CompressionMethod,
}

impl Entry {
    fn storage(&self, file: &Arc<File>) -> Result<Storage> {
        match self.method {
            CompressionMethod::Stored => Ok(Storage::in_file(file, self.start, self.len)),
            CompressionMethod::Deflated => Ok(Storage::deflated(file, self.start, self.compressed, self.len)),
            other => Err(Error::data(format!(
                "an entry is compressed by {other}, expected none, as torch.save writes: pack the file anew (zip -0)"
            ))),
        }
    }
}

/// The entries by name, once their places and sizes fit the file.
fn entries(file: &Arc<File>) -> Result<HashMap<String, Entry>> {
    let len = length(file)?;
    let mut archive = ZipArchive::new(BufReader::new(file.as_ref())).map_err(|error| damaged(&error.to_string()))?;
    if archive.len() > MAX_ENTRIES {
        return Err(Error::data(format!("{} entries, expected at most {MAX_ENTRIES}", archive.len())));
    }
    if archive.has_overlapping_files().map_err(|error| damaged(&error.to_string()))? {
        return Err(Error::data(
            "entries of the archive share their bytes: no program writes that, the file is hostile",
        ));
    }
    let mut entries = HashMap::with_capacity(archive.len());
    let mut unpacked = 0_u64;
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(|error| damaged(&error.to_string()))?;
        let name = entry.name().map_err(|error| damaged(&error.to_string()))?.into_owned();
        let start = entry.data_start().ok_or_else(|| damaged("an entry has no data"))?;
        let (compressed, size) = (entry.compressed_size(), entry.size());
        let method = entry.compression();
        if entry.encrypted() {
            return Err(Error::data(format!("entry {name:?} is encrypted: decrypt the file first")));
        }
        if start.checked_add(compressed).is_none_or(|end| end > len)
            || (method == CompressionMethod::Stored && size != compressed)
        {
            return Err(damaged(&format!("entry {name:?} does not lie inside the file")));
        }
        unpacked = unpacked.saturating_add(size);
        let entry = Entry { start, compressed, len: size, checksum: entry.crc32(), method };
        entries.insert(name, entry);
    }
    if unpacked > len.saturating_mul(MAX_EXPANSION).saturating_add(SLACK) {
        return Err(Error::data(format!(
            "the archive of {len} bytes would unpack to {unpacked}: no weights shrink so much, the file is hostile"
        )));
    }
    Ok(entries)
}

/// The folder of the archive that holds `data.pkl`, with its slash.
fn root(entries: &HashMap<String, Entry>) -> Result<String> {
    let root = entries.keys().filter_map(|name| name.strip_suffix("data.pkl")).min_by_key(|root| root.len());
    let root = root.filter(|root| root.is_empty() || root.ends_with('/')).ok_or_else(|| {
        Error::data("the zip archive holds no data.pkl, so torch.save did not write it: give a .pth or .pt file")
    })?;
    if entries.contains_key(&format!("{root}constants.pkl")) {
        return Err(Error::data(
            "the file holds a TorchScript program, not weights: in Python, torch.save(module.state_dict(), ...)",
        ));
    }
    Ok(root.to_owned())
}

fn damaged(what: &str) -> Error {
    Error::data(format!("the zip archive is damaged or incomplete ({what}): copy or download the file again"))
}

struct Entries<'a> {
    file: &'a Arc<File>,
    entries: &'a HashMap<String, Entry>,
    root: String,
    checksums: bool,
}

impl Storages for Entries<'_> {
    fn find(&mut self, id: &StorageId) -> Result<Storage> {
        let name = format!("{}data/{}", self.root, id.key);
        let entry = self.entries.get(&name).ok_or_else(|| damaged(&format!("there is no entry {name:?}")))?;
        let wanted = id.count.checked_mul(id.kind.elt_size_in_bytes() as u64);
        if wanted.is_none_or(|wanted| wanted > entry.len) {
            return Err(damaged(&format!(
                "storage {:?} should have {} elements of type {:?}, but its entry has {} bytes",
                id.key, id.count, id.kind, entry.len
            )));
        }
        Ok(entry.storage(self.file)?.with_checksum(self.checksums.then_some(entry.checksum)))
    }
}
