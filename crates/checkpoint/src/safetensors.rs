//! Safetensors files: the header is read, and tensors stay in the file until they are loaded.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use indexmap::IndexMap;
use safetensors::tensor::{Metadata, TensorInfo};
use tch::Tensor;

use fnet_common::{Error, Result};

use super::bytes;
use super::lazy::{LazyTensor, Storage};
use super::meta::Meta;

/// Maximum size of a header; a name and a shape take about a hundred bytes.
const MAX_HEADER: u64 = 16 << 20;

/// Whether `file` starts like a safetensors file: eight bytes of length, then a JSON object.
pub(super) fn is_one(file: &File) -> bool {
    let mut start = [0; 9];
    file.read_exact_at(&mut start, 0).is_ok() && start[8] == b'{' && start[..2] != *b"PK"
}

/// The metadata, and the tensors in the order of their data.
pub(super) fn read(file: &Arc<File>) -> Result<(Meta, IndexMap<String, Arc<LazyTensor>>)> {
    let unreadable = |error: std::io::Error| Error::data(format!("cannot read the file: {error}"));
    let len = file.metadata().map_err(unreadable)?.len();
    let mut start = [0; 8];
    file.read_exact_at(&mut start, 0).map_err(unreadable)?;
    let header = u64::from_le_bytes(start);
    if header > MAX_HEADER || header > len.saturating_sub(8) {
        return Err(damaged(&format!("a header of {header} bytes in a file of {len}")));
    }
    let mut text = vec![0; header as usize];
    file.read_exact_at(&mut text, 8).map_err(unreadable)?;
    let metadata: Metadata = serde_json::from_slice(&text).map_err(|error| damaged(&error.to_string()))?;
    let begin = 8 + header;
    if begin.checked_add(metadata.data_len() as u64) != Some(len) {
        return Err(damaged(&format!("{len} bytes, but {} according to the header", metadata.data_len() as u64)));
    }
    let mut tensors = IndexMap::new();
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else { continue };
        // Types that no model uses are skipped.
        let Some(kind) = bytes::kind_of(info.dtype) else { continue };
        let (first, end) = info.data_offsets;
        let storage = Storage::in_file(file, begin + first as u64, (end - first) as u64);
        let size = info.shape.iter().map(|&size| i64::try_from(size)).collect::<Result<_, _>>();
        let size = size.map_err(|_| damaged(&format!("the shape of {name}")))?;
        tensors.insert(name, Arc::new(LazyTensor::contiguous(storage, kind, size)?));
    }
    Ok((meta(metadata.metadata().as_ref()), tensors))
}

fn damaged(what: &str) -> Error {
    Error::data(format!("the safetensors file is damaged or incomplete ({what}): copy or download it again"))
}

/// Reads the metadata of third-party files. All entries are optional; invalid ones are ignored with a warning.
fn meta(facts: Option<&HashMap<String, String>>) -> Meta {
    let fact = |name: &str| facts.and_then(|facts| facts.get(name));
    let ignore = |name: &str, error: serde_json::Error| {
        log::warn!("the metadata entry {name} of the weights is ignored: {error}");
    };
    let count =
        |name: &str| fact(name).and_then(|text| serde_json::from_str(text).map_err(|error| ignore(name, error)).ok());
    Meta {
        classes: fact("classes").map_or(Vec::new(), |text| {
            serde_json::from_str(text).unwrap_or_else(|error| {
                ignore("classes", error);
                Vec::new()
            })
        }),
        epoch: count("epoch"),
        iter: count("iter"),
    }
}

/// Writes `tensors`, wide elements first so that each tensor is aligned to the width of its elements.
pub(super) fn write<'a>(
    out: &mut dyn Write,
    meta: &Meta,
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
) -> Result<()> {
    let mut tensors: Vec<_> =
        tensors.into_iter().map(|(name, tensor)| Ok((name, tensor, tensor.f_kind()?))).collect::<Result<_>>()?;
    tensors.sort_by_key(|(_, _, kind)| std::cmp::Reverse(kind.elt_size_in_bytes()));
    let mut position = 0;
    let mut infos = Vec::with_capacity(tensors.len());
    for &(name, tensor, kind) in &tensors {
        let dtype = bytes::dtype_of(kind)
            .ok_or_else(|| Error::data(format!("{name} has elements of type {kind:?}, which cannot be exported")))?;
        let end = position + tensor.numel() * kind.elt_size_in_bytes();
        let shape = tensor.size().into_iter().map(|size| size as usize).collect();
        infos.push((name.to_owned(), TensorInfo { dtype, shape, data_offsets: (position, end) }));
        position = end;
    }
    let mut facts = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    facts.extend(meta.epoch.map(|epoch| ("epoch".to_owned(), epoch.to_string())));
    facts.extend(meta.iter.map(|iter| ("iter".to_owned(), iter.to_string())));
    let classes = serde_json::to_string(&meta.classes).map_err(|error| Error::bug(error.to_string()))?;
    facts.insert("classes".into(), classes);
    let metadata = Metadata::new(Some(facts), infos).map_err(|error| Error::bug(error.to_string()))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|error| Error::bug(error.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let failed = |error: std::io::Error| Error::environment(format!("writing failed: {error}"));
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
    out.write_all(&header).map_err(failed)?;
    for (name, tensor, _) in tensors {
        bytes::with_bytes(&bytes::on_host(tensor, name)?, |bytes| out.write_all(bytes)).map_err(failed)?;
    }
    Ok(())
}
