//! fnet's checkpoints: one safetensors file with everything that a job needs to resume (docs/checkpoint-format.md).

mod folder;
mod format;
mod meta;
#[cfg(test)]
mod tests;
mod writer;

use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use indexmap::IndexMap;
use tch::Tensor;

use fnet_protocol::work_dir::is_pytorch_file;

pub use folder::{CheckpointFolder, Latest, Skipped, file_name, latest, resolve, set_aside_later, verify};
pub use meta::{Best, CheckpointMeta, EarlyStopState, EpochSharding, LossScaleState, State, TrainProgress};
pub use writer::{OnSaved, Save, Writer};

use crate::bytes;
use fnet_common::atomic;
use fnet_common::{Context, Error, Result};

/// Prefix of the model's parameters and buffers; the rest of the name is the `state_dict` key.
pub const MODEL: &str = "model.";
/// Prefix of the optimizer's state: `optimizer.<state>.<parameter>`.
pub const OPTIMIZER: &str = "optimizer.";
/// Prefix of the moving average of the weights.
pub const EMA: &str = "ema.";

/// Prefix of the BatchNorm buffers of one rank.
pub fn rank_prefix(rank: usize) -> String {
    format!("rank{rank}.")
}

/// The state of a job after an update: tensors by name, and metadata.
#[derive(Debug)]
pub struct Checkpoint {
    /// All tensors, in insertion order; after loading, on the CPU and contiguous.
    pub tensors: IndexMap<String, Tensor>,
    /// The metadata.
    pub meta: CheckpointMeta,
}

/// A copy of a checkpoint in host memory, which another thread can write while training changes the original tensors.
#[derive(Debug)]
pub struct Snapshot(Checkpoint);

impl Checkpoint {
    /// Copies all tensors to host memory, so that training can continue while they are written.
    /// Errors: if a tensor cannot be copied, for example for lack of memory.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let copy = |(name, tensor): (&String, &Tensor)| Ok((name.clone(), bytes::host_copy(tensor, name)?));
        let tensors = self.tensors.iter().map(copy).collect::<Result<_>>()?;
        Ok(Snapshot(Self { tensors, meta: self.meta.clone() }))
    }

    /// Writes the checkpoint to a temporary file in the same folder, which replaces `path` when it is durable. Tensors are
    /// written one at a time.
    /// Errors: an environment error if the disk is full or the folder cannot be written; an existing file at `path` is
    /// unchanged.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.write(path.as_ref(), &AtomicU64::default(), || Ok(()))
    }

    /// Like [`Checkpoint::save`]; counts the bytes in `written`, and asks `permit` before an existing file is replaced.
    fn write(&self, path: &Path, written: &AtomicU64, permit: impl FnOnce() -> std::io::Result<()>) -> Result<()> {
        let prepared = format::prepare(&self.tensors, &self.meta);
        let prepared = prepared.with_context(|| format!("writing the checkpoint {}", path.display()))?;
        atomic::write_if(path, prepared.size(), |file| prepared.write_to(&mut Counted { file, written }), permit)
    }

    /// Reads a checkpoint and verifies every byte. `latest.ckpt` is resolved.
    /// Errors: a data error that names the file and the problem: missing, truncated, damaged, or not an fnet
    /// checkpoint.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = folder::resolve(path.as_ref());
        let load = || -> Result<Self> {
            let mut file = format::open(&path)?;
            let (meta, entries) = file.fnet_meta()?;
            let tensors = file.read_tensors(&entries)?;
            Ok(Self { tensors, meta })
        };
        load().with_context(|| format!("reading {}", path.display()))
    }

    /// The moving average of the weights by parameter; empty if the job had none.
    /// Errors: a data error unless it covers each parameter with optimizer state, with the shape of its weight.
    pub fn averages(&self) -> Result<IndexMap<String, Tensor>> {
        let averages: IndexMap<String, Tensor> =
            self.section(EMA).map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())).collect();
        let trained = self.section(OPTIMIZER).filter_map(|(name, _)| Some(name.split_once('.')?.1));
        if let Some(name) = trained.into_iter().find(|name| !averages.is_empty() && !averages.contains_key(*name)) {
            return Err(Error::data(format!("damaged: it has a moving average of the weights, but no {EMA}{name}")));
        }
        for (name, average) in &averages {
            let weight = self.tensors.get(&format!("{MODEL}{name}"));
            if weight.is_none_or(|weight| weight.size() != average.size()) {
                return Err(Error::data(format!(
                    "damaged: {EMA}{name} has shape {:?}, {MODEL}{name} has {}",
                    average.size(),
                    weight.map_or("none".to_owned(), |weight| format!("{:?}", weight.size()))
                )));
            }
        }
        Ok(averages)
    }

    /// The tensors with names that start with `prefix`, by the rest of their names, in order.
    pub fn section<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a Tensor)> {
        self.tensors.iter().filter_map(move |(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)))
    }
}

impl Snapshot {
    /// Like [`Checkpoint::save`]; counts the bytes in `written`, and asks `permit` before an existing file is replaced.
    pub fn write(&self, path: &Path, written: &AtomicU64, permit: impl FnOnce() -> std::io::Result<()>) -> Result<()> {
        self.0.write(path, written, permit)
    }

    /// The metadata.
    pub fn meta(&self) -> &CheckpointMeta {
        &self.0.meta
    }
}

/// Counts the bytes that are written.
struct Counted<'a> {
    file: &'a mut dyn Write,
    written: &'a AtomicU64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.written.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// Whether `path` is a PyTorch file, or a valid safetensors file that is not an fnet checkpoint.
pub fn is_third_party(path: &Path) -> bool {
    let path = resolve(path);
    is_pytorch_file(&path) || format::open(&path).is_ok_and(|file| !file.is_of_fnet())
}
