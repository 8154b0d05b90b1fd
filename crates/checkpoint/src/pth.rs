//! Files that `torch.save` wrote: the zip archive of today and the format before PyTorch 1.6.
//!
//! Nothing in the file is executed. Tensors stay in the file until they are asked for, and everything that the file
//! says about sizes is checked against the file before any memory is taken.

mod archive;
mod legacy;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use fnet_common::{Context, Error, Result};
use fnet_protocol::file_kind::not_a_checkpoint;

use super::value::Value;

/// Reads what `torch.save` wrote to `path`.
///
/// # Errors
/// If the file cannot be read, is none that PyTorch writes, or is damaged, cut off or hostile.
pub fn open(path: &Path) -> Result<Value> {
    let file = open_file(path)?;
    read(&file).with_context(|| path.display().to_string())
}

/// Opens a file of weights.
pub(super) fn open_file(path: &Path) -> Result<Arc<File>> {
    let unreadable = |error: std::io::Error| {
        Error::data(format!("cannot open {}: {error}. Give the path of a file of weights", path.display()))
    };
    // To open a pipe would wait for its writer.
    if let Some(why) = not_a_checkpoint(path) {
        return Err(Error::data(format!("{}: {why}", path.display())));
    }
    File::open(path).map(Arc::new).map_err(unreadable)
}

pub(super) fn read(file: &Arc<File>) -> Result<Value> {
    let mut start = Vec::new();
    file.as_ref().take(8).read_to_end(&mut start).map_err(unreadable)?;
    match start.as_slice() {
        [b'P', b'K', ..] => archive::read(file),
        [0x80, 2..=5, ..] => legacy::read(file),
        [] => Err(Error::data("the file is empty: copy or download it again")),
        _ => Err(Error::data(
            "not a file of PyTorch: neither a zip archive nor a pickle. Expected what torch.save writes (.pth, .pt)",
        )),
    }
}

fn length(file: &File) -> Result<u64> {
    file.metadata().map(|metadata| metadata.len()).map_err(unreadable)
}

fn unreadable(error: std::io::Error) -> Error {
    Error::data(format!("the file cannot be read: {error}"))
}

#[cfg(test)]
mod tests;
