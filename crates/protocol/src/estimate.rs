//! What a job would do, as a worker prints it under [`crate::env::DRY_RUN`]: one JSON object on stdout.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What `train` or `test` would do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Name of the config.
    pub config: String,
    /// Output folder.
    pub work_dir: PathBuf,
    /// Number of workers.
    pub world_size: usize,
    /// Data sets.
    pub datasets: Vec<DatasetFacts>,
    /// Training; absent for `test`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training: Option<TrainingFacts>,
    /// Number of trainable parameters.
    pub parameters: u64,
    /// Peak memory of each worker: on its GPU, or of its process on the CPU.
    pub memory: MemoryEstimate,
    /// Disk space of checkpoints; absent if none is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskEstimate>,
    /// Warnings, one sentence each.
    pub warnings: Vec<String>,
}

/// One annotation file of a data set, after filtering.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DatasetFacts {
    /// `train`, `val` or `test`.
    pub split: String,
    /// The annotation file.
    pub annotation_file: PathBuf,
    /// Number of images used.
    pub images: usize,
    /// The same with repetitions.
    pub images_per_epoch: usize,
    /// Number of classes.
    pub classes: usize,
}

/// The length of a training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingFacts {
    /// Epochs.
    pub epochs: usize,
    /// Steps per epoch of each worker.
    pub iterations_per_epoch: usize,
    /// Total steps.
    pub iterations: usize,
    /// Images per step and worker.
    pub samples_per_gpu: usize,
    /// Images per update over all workers.
    pub effective_batch: usize,
    /// Learning rate after the warm-up.
    pub learning_rate: f64,
    /// Completed epochs of the checkpoint to resume from.
    pub epochs_done: usize,
    /// Steps per update.
    pub accumulate: usize,
    /// Bytes of the gradients that the ranks add up in an update, in float32.
    pub gradients: u64,
    /// Whether they travel as bfloat16.
    pub as_bfloat16: bool,
    /// Images that an evaluation during training takes; 0 without one.
    pub evaluated: usize,
}

/// Parts of a worker's peak memory in bytes; all but weights, gradients and optimizer state are estimates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEstimate {
    /// Padded height and width of the largest batch.
    pub shape: [usize; 2],
    /// Images of that batch.
    pub batch: usize,
    /// Parameters and buffers.
    pub weights: u64,
    /// Gradients, including all-reduce buckets.
    pub gradients: u64,
    /// Optimizer state and moving average.
    pub optimizer: u64,
    /// Activations kept for the backward pass, and temporary buffers.
    pub activations: u64,
    /// The program, its libraries, and the GPU context.
    pub fixed: u64,
    /// Sum of all parts.
    pub total: u64,
}

impl MemoryEstimate {
    /// Fills in the sum of the parts.
    #[must_use]
    pub fn summed(self) -> Self {
        Self { total: self.weights + self.gradients + self.optimizer + self.activations + self.fixed, ..self }
    }
}

/// Checkpoints on the disk, in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiskEstimate {
    /// Size of one checkpoint.
    pub checkpoint: u64,
    /// Maximum number of checkpoints at a time, including the one that is being written.
    pub count: u64,
    /// Maximum bytes still to be written; existing checkpoints do not count.
    pub needed: u64,
    /// Free bytes in the work folder for this user.
    pub free: u64,
}

/// First argument of a worker that prints its [`Libraries`] as JSON.
pub const LIBRARIES: &str = "__libraries";

/// The libraries of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Libraries {
    /// Version of fnet.
    pub version: String,
    /// Version of libtorch.
    pub libtorch: String,
    /// CUDA version of libtorch; empty without CUDA.
    pub cuda: String,
    /// Version of NCCL, if the CUDA libraries can be loaded.
    pub nccl: Option<String>,
    /// Why the CUDA libraries cannot be loaded.
    pub cuda_error: Option<String>,
}
