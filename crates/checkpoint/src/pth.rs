//! Files of `torch.save`: zip archives, and the legacy format before PyTorch 1.6.
//!
//! Nothing in the file is executed. Tensors stay in the file until they are loaded, and all sizes in the file are checked
//! against its length before memory is allocated.

mod archive;
mod legacy;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use indexmap::IndexMap;

use fnet_common::{Context, Error, Result};
use fnet_protocol::file_kind::not_a_checkpoint;

use super::lazy::LazyTensor;
use super::meta::Format;
use super::value::Value;

/// Reads a file of `torch.save`.
/// Errors: if the file cannot be read, was not written by PyTorch, or is damaged, truncated or hostile.
pub fn open(path: &Path) -> Result<Value> {
    let file = open_file(path)?;
    read(&file).with_context(|| path.display().to_string())
}

/// Opens a file of weights.
pub(super) fn open_file(path: &Path) -> Result<Arc<File>> {
    let unreadable = |error: std::io::Error| {
        Error::data(format!("cannot open {}: {error}. Give the path of a file with weights", path.display()))
    };
    // Opening a pipe would block until it has a writer.
    if let Some(why) = not_a_checkpoint(path) {
        return Err(Error::data(format!("{}: {why}", path.display())));
    }
    File::open(path).map(Arc::new).map_err(unreadable)
}

pub(super) fn read(file: &Arc<File>) -> Result<Value> {
    let mut start = Vec::new();
    let unreadable = |error| Error::data(format!("cannot read the file: {error}"));
    file.as_ref().take(8).read_to_end(&mut start).map_err(unreadable)?;
    let len = file.metadata().map_err(unreadable)?.len();
    match start.as_slice() {
        [b'P', b'K', ..] => archive::read(file, len),
        [0x80, 2..=5, ..] => legacy::read(file, len),
        [] => Err(Error::data("the file is empty: copy or download it again")),
        _ => Err(Error::data(
            "not a PyTorch file: neither a zip archive nor a pickle. Expected a file of torch.save (.pth, .pt)",
        )),
    }
}

/// The tensors of a PyTorch file: under `state_dict`, else under `model`, else the dictionary itself, as in MMDetection.
pub(super) fn state_of(value: &Value) -> Result<(Format, IndexMap<String, Arc<LazyTensor>>)> {
    let (format, state) = match (value.get("state_dict"), value.get("model")) {
        (Some(state), _) => (Format::StateDict, state),
        (None, Some(state)) => (Format::Model, state),
        (None, None) => (Format::Bare, value),
    };
    if !matches!(state, Value::Dict(_)) {
        return Err(Error::data(format!(
            "expected a dictionary of tensors (a state_dict), found {}: in Python, save module.state_dict()",
            state.describe()
        )));
    }
    let tensors: IndexMap<_, _> = state
        .entries()
        .iter()
        .filter_map(|(name, value)| match (name, value) {
            (Value::Str(name), Value::Tensor(tensor)) => Some((name.as_ref().to_owned(), Arc::clone(tensor))),
            _ => None,
        })
        .collect();
    if tensors.is_empty() {
        let keys: Vec<&str> = state.entries().iter().filter_map(|(key, _)| key.as_str()).take(8).collect();
        return Err(Error::data(format!(
            "the dictionary contains no tensors; its keys begin with {keys:?}. Expected a state_dict, or one under \
             \"state_dict\" or \"model\""
        )));
    }
    Ok((format, tensors))
}

#[cfg(test)]
mod tests;
