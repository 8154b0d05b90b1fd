//! What a job would do, as a worker tells the launcher under [`crate::env::DRY_RUN`]: one JSON object on stdout.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What `train` or `test` would do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Name of the config.
    pub config: String,
    /// Folder that the job writes to.
    pub work_dir: PathBuf,
    /// Workers of the job.
    pub world_size: usize,
    /// What it would read.
    pub datasets: Vec<DatasetFacts>,
    /// Training; absent for `test`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training: Option<TrainingFacts>,
    /// Trained values of the model.
    pub parameters: u64,
    /// Greatest memory of each worker: on its GPU, or of its process on the CPU.
    pub memory: MemoryEstimate,
    /// Checkpoints on the disk; absent where none is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskEstimate>,
    /// What is odd, one sentence each.
    pub warnings: Vec<String>,
}

/// A data set after filtering.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DatasetFacts {
    /// `train` or `val`.
    pub split: String,
    /// The annotation file.
    pub annotation_file: PathBuf,
    /// Pictures that are used.
    pub images: usize,
    /// Classes.
    pub classes: usize,
}

/// The length of a training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingFacts {
    /// Epochs.
    pub epochs: usize,
    /// Steps of each worker in an epoch.
    pub iterations_per_epoch: usize,
    /// Steps in all.
    pub iterations: usize,
    /// Pictures of one step on one worker.
    pub samples_per_gpu: usize,
    /// Pictures of one update over all workers.
    pub effective_batch: usize,
    /// Learning rate after the warm-up.
    pub learning_rate: f64,
    /// Epochs that are done already, of the checkpoint that is resumed.
    pub epochs_done: usize,
}

/// Parts of a worker's greatest memory, in bytes; all but the fixed and persistent ones are estimates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEstimate {
    /// Height and width of the largest batch, padded.
    pub shape: [usize; 2],
    /// Pictures of it.
    pub batch: usize,
    /// Parameters and buffers.
    pub weights: u64,
    /// Gradients, with the buckets that are sent to the other workers.
    pub gradients: u64,
    /// The optimizer's state, and the moving average.
    pub optimizer: u64,
    /// What the forward pass keeps for the backward pass, and what both need besides.
    pub activations: u64,
    /// The program, its libraries, and on a GPU their context.
    pub fixed: u64,
    /// All of these.
    pub total: u64,
}

impl MemoryEstimate {
    /// With the sum of the parts.
    #[must_use]
    pub fn summed(self) -> Self {
        Self { total: self.weights + self.gradients + self.optimizer + self.activations + self.fixed, ..self }
    }
}

/// Checkpoints on the disk, in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiskEstimate {
    /// One checkpoint.
    pub checkpoint: u64,
    /// Checkpoints that will lie there at the same time, with the one that is being written.
    pub count: u64,
    /// What is still to be written, at most: those that lie there already are not counted.
    pub needed: u64,
    /// Free in the work folder, for this user.
    pub free: u64,
}

/// First argument that makes a worker print its [`Libraries`] as JSON.
pub const LIBRARIES: &str = "__libraries";

/// The libraries of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Libraries {
    /// Version of fnet.
    pub version: String,
    /// Version of libtorch.
    pub libtorch: String,
    /// The CUDA version that libtorch is built for; empty for none.
    pub cuda: String,
    /// Version of NCCL, if the CUDA libraries can be loaded.
    pub nccl: Option<String>,
    /// Why the CUDA libraries cannot be loaded.
    pub cuda_error: Option<String>,
}
