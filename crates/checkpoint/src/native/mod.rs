//! fnet's checkpoints: one safetensors file with everything that a job needs to resume (docs/checkpoint-format.md).

#[cfg(test)]
mod damage;
mod folder;
mod format;
#[cfg(test)]
mod tests;
mod writer;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use indexmap::IndexMap;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use tch::Tensor;

use fnet_protocol::work_dir::is_pytorch_file;

pub use folder::resolve;
pub use folder::{CheckpointFolder, Latest, Skipped, file_name, latest, set_aside_later};
pub use writer::{OnSaved, Save, Writer};

use crate::bytes;
use fnet_common::atomic;
use fnet_common::{Context, Error, Result};
use fnet_config::Config;
use fnet_data::ShardSegment;

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

/// The metadata of a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CheckpointMeta {
    /// The resolved config as TOML; [`CheckpointMeta::config`] reads it.
    #[serde(skip)]
    pub config: String,
    /// Class names in the order of the labels.
    pub classes: Vec<String>,
    /// The position of the job.
    pub progress: TrainProgress,
    /// Number of ranks of the job that wrote it.
    pub world_size: usize,
    /// Seed of the job.
    pub seed: u64,
    /// How the current epoch was sharded; `None` in files of older versions.
    #[serde(default, rename = "dealt")]
    pub sharding: Option<EpochSharding>,
    /// The best evaluation so far.
    pub best: Option<Best>,
    /// Further state of the training loop.
    #[serde(default)]
    pub state: State,
}

/// Further state of the training loop. All fields are optional; an invalid one is an error.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// The model must be evaluated before training continues.
    pub evaluation_due: bool,
    /// The checkpoint was written only because its job was stopped or aborted. The next regular checkpoint replaces it.
    pub transient: bool,
    /// The generation of the work folder that the attempt had which wrote it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Steps of the whole job, as planned when the checkpoint was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_steps: Option<usize>,
    /// How long the metric of `train.early_stop` has not become better.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stop: Option<EarlyStopState>,
    /// Updates of the moving average.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema_updates: Option<u64>,
    /// The loss scale of float16 training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScaleState>,
    /// Identifies the images that `data.val.fraction` took from the training set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_part: Option<String>,
    /// The folder in which the job ran, for relative paths of its config.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_folder: Option<String>,
    /// The values for the next log line. If they cannot be read, the job continues with a warning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_window: Option<serde_json::Value>,
}

/// The loss scale of float16 training, and when it last changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LossScaleState {
    /// The factor of the loss.
    #[serde(deserialize_with = "sound_scale")]
    pub scale: f64,
    /// Updates since the scale changed.
    pub steps_since_change: usize,
    /// Updates skipped in the whole job.
    #[serde(default)]
    pub skipped: u64,
}

impl LossScaleState {
    /// Below this, overflows have another cause than the scale.
    pub const MINIMUM: f64 = 1.0;
}

/// Accepts only scales that a job can have.
fn sound_scale<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    let scale = f64::deserialize(from)?;
    match (LossScaleState::MINIMUM..=f64::from(f32::MAX)).contains(&scale) {
        true => Ok(scale),
        false => Err(D::Error::custom(format!("the scale is {scale}, expected a number of at least 1"))),
    }
}

/// The position of a training job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TrainProgress {
    /// Finished epochs.
    pub epoch: usize,
    /// Steps since the end of the last finished epoch.
    pub step_in_epoch: usize,
    /// Steps since the start of training. Compared last, because it is recounted in whole epochs of the new length after the
    /// number of ranks changes.
    pub step: usize,
}

/// How an epoch is sharded over the ranks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochSharding {
    /// Images of the training set.
    #[serde(rename = "pictures")]
    pub images: usize,
    /// Images of each rank in a step.
    pub samples_per_gpu: usize,
    /// Gradient accumulation steps of an update.
    pub accumulate: usize,
    /// Earlier parts of the epoch that were sharded differently.
    #[serde(default, rename = "legs")]
    pub segments: Vec<ShardSegment>,
}

/// The best evaluation of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Name of the metric, for example `bbox_mAP`.
    pub metric: String,
    /// Its value.
    pub value: f64,
    /// Finished epochs at that evaluation.
    pub epoch: usize,
}

/// How long a metric has not become better.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EarlyStopState {
    /// The best evaluation by this metric.
    pub best: Best,
    /// Evaluations since then.
    pub since: usize,
}

impl CheckpointMeta {
    /// Checks for numbers that no job can have.
    fn check(&self) -> Result<()> {
        let mut counts = vec![("world_size".to_owned(), self.world_size)];
        if let Some(sharding) = &self.sharding {
            counts.push(("dealt.samples_per_gpu".to_owned(), sharding.samples_per_gpu));
            counts.push(("dealt.accumulate".to_owned(), sharding.accumulate));
            for (index, segment) in sharding.segments.iter().enumerate() {
                for (name, value) in [
                    ("world_size", segment.world_size),
                    ("samples_per_gpu", segment.samples_per_gpu),
                    ("accumulate", segment.accumulate),
                ] {
                    counts.push((format!("dealt.legs[{index}].{name}"), value));
                }
            }
            let within = self.progress.step_in_epoch;
            let steps = sharding.segments.iter().try_fold(0_usize, |all, segment| all.checked_add(segment.steps));
            if steps.is_none_or(|steps| steps > within) {
                return Err(Error::data(format!("dealt.legs has more steps than progress.step_in_epoch ({within})")));
            }
        }
        match counts.into_iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(Error::data(format!("{name} is 0, expected a number of at least 1"))),
            None => Ok(()),
        }
    }

    /// The stored config.
    /// Errors: a usage error if this version of fnet does not know a field or value.
    pub fn config(&self, path: &Path) -> Result<Config> {
        Ok(Config::from_toml(&self.config, &format!("config inside {}", path.display()))?)
    }

    /// Reads only the header of a checkpoint. Verifies its checksum and the length of the file, but not the tensors.
    /// Errors: a data error that says what is wrong with the file.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = folder::resolve(path.as_ref());
        Ok(format::open(&path).and_then(|file| file.fnet_meta()).with_context(|| reading(&path))?.0)
    }
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
        load().with_context(|| reading(&path))
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

/// Reads a checkpoint and verifies every byte against the checksums, with little memory.
pub fn verify(path: impl AsRef<Path>) -> Result<CheckpointMeta> {
    let path = folder::resolve(path.as_ref());
    let check = || -> Result<CheckpointMeta> {
        let mut file = format::open(&path)?;
        let (meta, entries) = file.fnet_meta()?;
        file.verify_tensors(&entries)?;
        Ok(meta)
    };
    check().with_context(|| reading(&path))
}

/// Whether `path` is a PyTorch file, or a valid safetensors file that is not an fnet checkpoint.
pub fn is_third_party(path: &Path) -> bool {
    let path = resolve(path);
    is_pytorch_file(&path) || format::open(&path).is_ok_and(|file| !file.is_of_fnet())
}

fn reading(path: &Path) -> String {
    format!("reading {}", PathBuf::from(path).display())
}
