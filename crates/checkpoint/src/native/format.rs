//! The file format: the safetensors header with fnet's metadata, then the bytes of the tensors.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use indexmap::IndexMap;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use fnet_common::{Context, Error, Result};
use fnet_protocol::file_kind::not_a_checkpoint;

use super::meta::CheckpointMeta;
use crate::bytes;

/// Version of the format that is written, and the maximum version that is read.
const VERSION: u32 = 1;

const KEY_VERSION: &str = "fnet.format_version";
const KEY_WRITER: &str = "fnet.version";
const KEY_CONFIG: &str = "fnet.config";
const KEY_META: &str = "fnet.meta";
const KEY_TENSORS: &str = "fnet.tensors";
const KEY_CHECKSUM: &str = "fnet.checksum";

/// The maximum header size of safetensors readers.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes that are read at a time during verification.
const CHUNK: usize = 1 << 20;

/// A tensor's entry in `fnet.tensors`: its name and the CRC-32C of its bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    name: String,
    crc32c: Option<u32>,
}

/// A checkpoint that is ready to be written.
pub(super) struct Prepared<'a> {
    header: Vec<u8>,
    /// In the order of the file.
    tensors: Vec<(&'a str, &'a Tensor)>,
    data_size: u64,
}

/// Computes the checksums and the header.
pub(super) fn prepare<'a>(tensors: &'a IndexMap<String, Tensor>, meta: &CheckpointMeta) -> Result<Prepared<'a>> {
    let mut entries = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let crc32c = Some(bytes::with_bytes(&bytes::on_host(tensor, name)?, crc32c::crc32c));
        entries.push(Entry { name: name.clone(), crc32c });
    }
    let mut ordered: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    // Wide elements first, so that every tensor is aligned when the file is mapped into memory.
    ordered.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.kind().elt_size_in_bytes()));
    let mut infos = Vec::with_capacity(ordered.len());
    let mut end = 0;
    for (name, tensor) in &ordered {
        let start = end;
        end += tensor.numel() * tensor.kind().elt_size_in_bytes();
        let shape = tensor.size().into_iter().map(|side| side as usize).collect();
        infos.push((
            (*name).to_owned(),
            TensorInfo { dtype: bytes::dtype(tensor, name)?, shape, data_offsets: (start, end) },
        ));
    }
    let json = |value: serde_json::Result<String>| {
        value.map_err(|error| Error::bug(format!("checkpoint metadata cannot be written as JSON: {error}")))
    };
    let mut metadata: HashMap<String, String> = HashMap::from([
        ("format".into(), "pt".into()),
        (KEY_VERSION.into(), VERSION.to_string()),
        (KEY_WRITER.into(), env!("CARGO_PKG_VERSION").into()),
        (KEY_CONFIG.into(), meta.config.clone()),
        (KEY_META.into(), json(serde_json::to_string(meta))?),
        (KEY_TENSORS.into(), json(serde_json::to_string(&entries))?),
    ]);
    let infos_by_name = infos.iter().map(|(name, info)| (name.as_str(), info)).collect();
    metadata.insert(KEY_CHECKSUM.into(), digest(&metadata, &infos_by_name));
    let header = Metadata::new(Some(metadata), infos)
        .map_err(|error| Error::bug(format!("the checkpoint header is invalid: {error}")))?;
    let mut header = json(serde_json::to_string(&header))?.into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    if header.len() as u64 > MAX_HEADER {
        return Err(Error::bug(format!("the checkpoint header has {} bytes; the limit is {MAX_HEADER}", header.len())));
    }
    Ok(Prepared { header, tensors: ordered, data_size: end as u64 })
}

impl Prepared<'_> {
    /// Size of the whole file in bytes.
    pub fn size(&self) -> u64 {
        8 + self.header.len() as u64 + self.data_size
    }

    /// Writes the file.
    pub fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&(self.header.len() as u64).to_le_bytes())?;
        out.write_all(&self.header)?;
        for (name, tensor) in &self.tensors {
            let host = bytes::on_host(tensor, name).map_err(|error| io::Error::other(error.to_string()))?;
            bytes::with_bytes(&host, |data| out.write_all(data))?;
        }
        Ok(())
    }
}

/// The checksum of everything except tensor data: metadata, and each tensor's name, type and shape.
fn digest(metadata: &HashMap<String, String>, tensors: &BTreeMap<&str, &TensorInfo>) -> String {
    let mut text = String::new();
    let sorted: BTreeMap<&String, &String> = metadata.iter().filter(|(key, _)| *key != KEY_CHECKSUM).collect();
    for (key, value) in sorted {
        text.push_str(&format!("{} {key} {} {value}\n", key.len(), value.len()));
    }
    for (name, info) in tensors {
        text.push_str(&format!("{} {name} {} {:?} {:?}\n", name.len(), info.dtype, info.shape, info.data_offsets));
    }
    format!("{:08x}", crc32c::crc32c(text.as_bytes()))
}

/// An open file with a valid header.
pub(super) struct Opened {
    reader: BufReader<File>,
    header: Metadata,
}

/// Opens a safetensors file. Allocations are bounded by the length of the file.
pub(super) fn open(path: &Path) -> Result<Opened> {
    let unreadable = |error: io::Error| Error::data(format!("cannot open it: {error}"));
    // Opening a pipe would block until it has a writer.
    if let Some(why) = not_a_checkpoint(path) {
        return Err(Error::data(why));
    }
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(|error| Error::data(format!("cannot read its length: {error}")))?;
    let length = metadata.len();
    let mut reader = BufReader::with_capacity(CHUNK.min(length as usize), file);
    let mut prefix = [0; 8];
    let cut =
        |error: io::Error| Error::data(format!("the file of {length} bytes ends early or cannot be read: {error}"));
    reader.read_exact(&mut prefix).map_err(cut)?;
    let header_length = u64::from_le_bytes(prefix);
    if header_length > MAX_HEADER || header_length > length - 8 {
        return Err(Error::data(format!(
            "damaged or not a checkpoint: its first bytes do not match a file of {length} bytes; copy it again"
        )));
    }
    let mut header = vec![0; header_length as usize];
    reader.read_exact(&mut header).map_err(cut)?;
    let header: Metadata =
        serde_json::from_slice(&header).map_err(|error| Error::data(format!("its header is damaged: {error}")))?;
    let expected = header_length + 8 + header.data_len() as u64;
    if expected != length {
        return Err(Error::data(format!("truncated or damaged: it has {length} bytes, its header says {expected}")));
    }
    Ok(Opened { reader, header })
}

impl Opened {
    /// Whether this is an fnet checkpoint of any version.
    pub fn is_of_fnet(&self) -> bool {
        self.header.metadata().as_ref().is_some_and(|metadata| metadata.contains_key(KEY_VERSION))
    }

    /// The metadata and the checksums of the tensors, after the header's own checksum was verified.
    pub fn fnet_meta(&self) -> Result<(CheckpointMeta, Vec<Entry>)> {
        let none = HashMap::new();
        let metadata = self.header.metadata().as_ref().unwrap_or(&none);
        let value = |key: &str| {
            metadata.get(key).ok_or_else(|| {
                Error::data(format!("a safetensors file, but not an fnet checkpoint: its metadata has no {key}"))
            })
        };
        let version = value(KEY_VERSION)?;
        let version: u32 = version.parse().map_err(|_| {
            Error::data(format!("{KEY_VERSION} is {version:?}: a whole number is expected; the file is damaged"))
        })?;
        if version > VERSION {
            let writer = metadata.get(KEY_WRITER).map_or("unknown", String::as_str);
            return Err(Error::data(format!(
                "format version {version} of fnet {writer}; this fnet reads versions up to {VERSION}: use a newer fnet, or the \
                 file is damaged"
            )));
        }
        let tensors = self.header.tensors();
        let infos = tensors.iter().map(|(name, info)| (name.as_str(), *info)).collect();
        if *value(KEY_CHECKSUM)? != digest(metadata, &infos) && !cfg!(fuzzing) {
            return Err(Error::data("damaged: the header does not match its checksum"));
        }
        let mut meta: CheckpointMeta = parse(KEY_META, value(KEY_META)?)?;
        meta.check().context(KEY_META)?;
        meta.config.clone_from(value(KEY_CONFIG)?);
        let entries: Vec<Entry> = parse(KEY_TENSORS, value(KEY_TENSORS)?)?;
        let named: HashSet<&String> = entries.iter().map(|entry| &entry.name).collect();
        if entries.len() != tensors.len() || named != tensors.keys().collect() {
            return Err(Error::data(format!("{KEY_TENSORS} does not name the tensors of the file")));
        }
        if let Some(entry) = entries.iter().find(|entry| entry.crc32c.is_none()) {
            return Err(Error::data(format!("{KEY_TENSORS} has no crc32c for tensor {}", entry.name)));
        }
        Ok((meta, entries))
    }

    /// Reads all tensors, in the order of `entries`, and verifies their checksums.
    pub fn read_tensors(&mut self, entries: &[Entry]) -> Result<IndexMap<String, Tensor>> {
        let checksums = by_name(entries);
        let mut tensors = HashMap::with_capacity(entries.len());
        for name in self.header.offset_keys() {
            let info = self.info(&name)?;
            let kind = bytes::kind(info.dtype, &name)?;
            let shape = shape(&info, &name)?;
            let tensor =
                bytes::filled(&shape, kind, |data| self.reader.read_exact(data))?.map_err(|e| unread(&name, &e))?;
            check(&name, checksums.get(name.as_str()).copied().flatten(), || {
                bytes::with_bytes(&tensor, crc32c::crc32c)
            })?;
            tensors.insert(name, tensor);
        }
        let ordered = entries.iter().filter_map(|entry| tensors.remove_entry(&entry.name)).collect();
        Ok(ordered)
    }

    /// Verifies the checksums of all tensors without keeping them.
    pub fn verify_tensors(&mut self, entries: &[Entry]) -> Result<()> {
        let checksums = by_name(entries);
        let mut buffer = vec![0; CHUNK.min(self.header.data_len())];
        for name in self.header.offset_keys() {
            let (start, end) = self.info(&name)?.data_offsets;
            let (mut left, mut crc) = (end - start, 0);
            while left > 0 {
                let size = left.min(buffer.len());
                let chunk = &mut buffer[..size];
                self.reader.read_exact(chunk).map_err(|error| unread(&name, &error))?;
                crc = crc32c::crc32c_append(crc, chunk);
                left -= chunk.len();
            }
            check(&name, checksums.get(name.as_str()).copied().flatten(), || crc)?;
        }
        Ok(())
    }

    fn info(&self, name: &str) -> Result<TensorInfo> {
        let info = self.header.info(name).cloned();
        info.ok_or_else(|| Error::bug(format!("tensor {name} vanished from the header")))
    }
}

/// Parses the JSON under a key of the metadata.
/// Errors: a data error that names the key and the field in it.
fn parse<T: DeserializeOwned>(key: &str, text: &str) -> Result<T> {
    let unsound = |error: String| Error::data(format!("{key}: {error}"));
    let mut from = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut from).map_err(|error| unsound(error.to_string()))?;
    from.end().map_err(|error| unsound(error.to_string()))?;
    Ok(value)
}

/// The shape of a tensor. Even if one size is zero, the others must not overflow.
fn shape(info: &TensorInfo, name: &str) -> Result<Vec<i64>> {
    let sides: Option<Vec<i64>> = info.shape.iter().map(|&side| i64::try_from(side).ok()).collect();
    let bound = |sides: &Vec<i64>| sides.iter().try_fold(1_i64, |all, &side| all.checked_mul(side.max(1))).is_some();
    sides.filter(bound).ok_or_else(|| Error::data(format!("tensor {name} has an impossible shape: {:?}", info.shape)))
}

fn by_name(entries: &[Entry]) -> HashMap<&str, Option<u32>> {
    entries.iter().map(|entry| (entry.name.as_str(), entry.crc32c)).collect()
}

fn unread(name: &str, error: &io::Error) -> Error {
    Error::data(format!("cannot read tensor {name}: {error}"))
}

fn check(name: &str, expected: Option<u32>, actual: impl FnOnce() -> u32) -> Result<()> {
    match expected {
        Some(expected) if actual() != expected && !cfg!(fuzzing) => {
            Err(Error::data(format!("damaged: tensor {name} does not match its checksum")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::super::{Checkpoint, tests::sample, verify};
    use super::*;

    /// The file with other metadata and a matching checksum, as another program might write it.
    fn with_metadata(file: &[u8], change: impl FnOnce(&mut HashMap<String, String>)) -> Vec<u8> {
        let (length, rest) = file.split_at(8);
        let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
        let header: Metadata = serde_json::from_slice(header).unwrap();
        let mut metadata = header.metadata().clone().unwrap();
        change(&mut metadata);
        let infos = header.tensors();
        let checksum = digest(&metadata, &infos.iter().map(|(name, info)| (name.as_str(), *info)).collect());
        metadata.insert(KEY_CHECKSUM.into(), checksum);
        let infos = header.offset_keys().into_iter().map(|name| (name.clone(), infos[&name].clone())).collect();
        let header = serde_json::to_vec(&Metadata::new(Some(metadata), infos).unwrap()).unwrap();
        [&(header.len() as u64).to_le_bytes()[..], &header, data].concat()
    }

    #[test]
    fn invalid_metadata_is_an_error_with_file_and_field() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("epoch_1.ckpt");
        sample(7).save(&path).unwrap();
        let sound = std::fs::read(&path).unwrap();
        assert_eq!(with_metadata(&sound, |_| ()).len(), sound.trim_ascii_end().len());
        let check = |file: &[u8], expected: &[&str]| {
            std::fs::write(&path, file).unwrap();
            let errors = [
                Checkpoint::load(&path).map(drop).unwrap_err(),
                verify(&path).map(drop).unwrap_err(),
                CheckpointMeta::read(&path).map(drop).unwrap_err(),
            ];
            for error in errors {
                assert_eq!(error.kind(), fnet_common::ErrorKind::Data);
                let text = error.to_string();
                assert!(
                    text.contains("epoch_1.ckpt") && expected.iter().all(|e| text.contains(e)),
                    "{expected:?}: {text}"
                );
            }
        };
        let sharding = serde_json::json!({"pictures": 9, "samples_per_gpu": 1, "accumulate": 1, "legs": [
            {"world_size": 4, "samples_per_gpu": 1, "accumulate": 1, "steps": 1},
        ]});
        for (field, value) in [
            ("world_size", "0"),
            ("world_size", "-1"),
            ("seed", "null"),
            ("classes", "\"cat\""),
            ("classes[0]", "1"),
            ("progress.step", "\"7\""),
            ("progress.epoch", "0.5"),
            ("best.value", "null"),
            ("best.epoch", "true"),
            ("dealt.samples_per_gpu", "0"),
            ("dealt.accumulate", "0"),
            ("dealt.legs[0].world_size", "0"),
            ("dealt.legs[0].samples_per_gpu", "0"),
            ("dealt.legs[0].accumulate", "0"),
            ("dealt.legs", "[{\"world_size\": 4, \"samples_per_gpu\": 1, \"accumulate\": 1, \"steps\": 3}]"),
            ("dealt.legs[0].steps", "-1"),
            ("state", "[[]]"),
            ("state.evaluation_due", "1"),
            ("state.transient", "\"yes\""),
            ("state.ema_updates", "-1"),
            ("state.loss_scale", "65536.0"),
            ("state.loss_scale.scale", "0.5"),
            ("state.loss_scale.skipped", "\"no\""),
        ] {
            let file = with_metadata(&sound, |metadata| {
                let meta = metadata.get_mut(KEY_META).unwrap();
                let mut json: serde_json::Value = serde_json::from_str(meta).unwrap();
                json["dealt"] = sharding.clone();
                let pointer = format!("/{}", field.replace(['.', '['], "/").replace(']', ""));
                match json.pointer_mut(&pointer) {
                    Some(place) => *place = serde_json::from_str(value).unwrap(),
                    None => panic!("no {field}"),
                }
                *meta = json.to_string();
            });
            check(&file, &["fnet.meta: ", field]);
        }
        let replaced = |key: &str, from: &str, to: &str| {
            with_metadata(&sound, |metadata| {
                let value = metadata.get_mut(key).unwrap();
                assert!(value.contains(from), "{value}");
                *value = value.replacen(from, to, 1);
            })
        };
        check(&replaced(KEY_META, "\"seed\"", "\"seeds\""), &["fnet.meta: ", "missing field `seed`"]);
        check(&replaced(KEY_META, "}", "} {"), &["fnet.meta: "]);
        check(&replaced(KEY_VERSION, "1", "one"), &["fnet.format_version is \"one\""]);
        check(&replaced(KEY_TENSORS, "\"empty\"", "\"flags\""), &["fnet.tensors does not name"]);
        check(
            &replaced(KEY_TENSORS, "\"crc32c\"", "\"crc\""),
            &["fnet.tensors has no crc32c for tensor model.b.weight"],
        );
    }

    #[test]
    fn an_impossible_shape_is_a_data_error() {
        let of = |sides: &[usize]| {
            let info = TensorInfo { dtype: Dtype::F32, shape: sides.to_vec(), data_offsets: (0, 0) };
            shape(&info, "a")
        };
        assert_eq!(of(&[0, 3]).unwrap(), [0, 3]);
        for sides in [&[0, usize::MAX][..], &[0, 1 << 40, 1 << 40]] {
            assert_eq!(of(sides).unwrap_err().kind(), fnet_common::ErrorKind::Data);
        }
    }
}
