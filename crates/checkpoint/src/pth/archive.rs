//! The zip archive: `NAME/data.pkl` is the pickle, `NAME/data/KEY` the bytes of each storage.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::sync::Arc;

use zip::read::Config;
use zip::result::ZipError;
use zip::unstable::read::ZipIterable;
use zip::{CompressionMethod, HasZipMetadata};

use fnet_common::{Error, Result};

use crate::lazy::Storage;
use crate::pickle::{self, MAX_PICKLE, StorageId, Storages};
use crate::value::Value;

/// PyTorch does not compress entries. Repacked archives may be compressed, but weights compress badly: all entries together
/// may decompress to this many times the size of the file, plus [`SLACK`].
const MAX_EXPANSION: u64 = 16;
const SLACK: u64 = 1 << 20;
/// Maximum number of entries; each tensor is one.
const MAX_ENTRIES: usize = 1 << 16;

/// Reads the archive.
pub(super) fn read(file: &Arc<File>, len: u64) -> Result<Value> {
    let entries = entries(file, len)?;
    let root = root(&entries)?;
    let pickle = &entries[&format!("{root}data.pkl")];
    if let Some(order) = entries.get(&format!("{root}byteorder")) {
        let order = order.storage(file)?.read(0, order.len.min(16))?;
        if order != b"little" {
            return Err(Error::data(
                "the tensors are stored as big-endian: save the file again on a little-endian machine",
            ));
        }
    }
    if pickle.len > MAX_PICKLE {
        return Err(Error::data(format!("data.pkl has {} bytes, expected at most {MAX_PICKLE}", pickle.len)));
    }
    let bytes = pickle.storage(file)?.read(0, pickle.len)?;
    // `torch.save` can omit the checksums of all entries; then none of them is valid.
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
                "an entry is compressed with {other}, expected no compression, as torch.save writes: repack the file (zip -0)"
            ))),
        }
    }
}

/// The entries by name, after checking that their positions and sizes fit the file. The directory is read entry by entry,
/// so that no number in it can cause a large allocation.
fn entries(file: &Arc<File>, len: u64) -> Result<HashMap<String, Entry>> {
    let mut archive = ZipIterable::try_new(BufReader::new(file.as_ref()), Config::default()).map_err(unsound)?;
    if archive.len() > MAX_ENTRIES {
        return Err(Error::data(format!("{} entries, expected at most {MAX_ENTRIES}", archive.len())));
    }
    let mut entries = HashMap::new();
    let mut unpacked = 0_u64;
    let files = archive.files().map_err(unsound)?;
    while let Some(found) = files.next() {
        let found = found.map_err(unsound)?;
        let name = found.name().map_err(unsound)?.into_owned();
        if found.encrypted() {
            return Err(Error::data(format!("entry {name:?} is encrypted: decrypt the file first")));
        }
        let start = found.get_metadata().data_start(files.reader_mut()).map_err(unsound)?;
        let (compressed, len_unpacked, method) = (found.compressed_size(), found.size(), found.compression());
        if start.checked_add(compressed).is_none_or(|end| end > len)
            || (method == CompressionMethod::Stored && len_unpacked != compressed)
        {
            return Err(damaged(&format!("entry {name:?} is outside the file")));
        }
        unpacked = unpacked.saturating_add(len_unpacked);
        let entry = Entry { start, compressed, len: len_unpacked, checksum: found.crc32(), method };
        if let Some(other) = entries.insert(name, entry) {
            return Err(hostile(&format!(
                "two entries have the same name (the second begins at byte {})",
                other.start
            )));
        }
    }
    if unpacked > len.saturating_mul(MAX_EXPANSION).saturating_add(SLACK) {
        return Err(hostile(&format!("the archive of {len} bytes would decompress to {unpacked}")));
    }
    check_apart(&entries)?;
    Ok(entries)
}

/// Refuses entries that share bytes: they could decompress to many times the size of the file.
fn check_apart(entries: &HashMap<String, Entry>) -> Result<()> {
    let mut places: Vec<(u64, u64)> =
        entries.values().filter(|entry| entry.compressed > 0).map(|entry| (entry.start, entry.compressed)).collect();
    places.sort_unstable();
    match places.windows(2).find(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
        Some(pair) => Err(hostile(&format!("two entries share the bytes from {} on", pair[1].0))),
        None => Ok(()),
    }
}

/// The folder of `data.pkl` in the archive, with its slash.
fn root(entries: &HashMap<String, Entry>) -> Result<String> {
    let root = entries.keys().filter_map(|name| name.strip_suffix("data.pkl")).min_by_key(|root| root.len());
    let root = root.filter(|root| root.is_empty() || root.ends_with('/')).ok_or_else(|| {
        Error::data("the zip archive has no data.pkl, so torch.save did not write it: give a .pth or .pt file")
    })?;
    if entries.contains_key(&format!("{root}constants.pkl")) {
        return Err(Error::data(
            "the file is a TorchScript program, not weights: in Python, use torch.save(module.state_dict(), ...)",
        ));
    }
    Ok(root.to_owned())
}

/// An error for what no program that writes weights does.
fn hostile(what: &str) -> Error {
    Error::data(format!("the file is hostile: {what}. Do not use it, and ask where it came from"))
}

fn unsound(error: ZipError) -> Error {
    damaged(&error.to_string())
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
