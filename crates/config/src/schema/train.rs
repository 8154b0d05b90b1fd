//! `[optimizer]`, `[schedule]`, `[train]`, `[checkpoint]` and `[log]`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Evaluation, Interval};
use crate::check::Problems;

/// The optimizer; one group holds all parameters, so weight decay acts on norms and biases too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Optimizer {
    /// Which one.
    pub kind: OptimizerKind,
    /// Learning rate for 16 images a step (see `--auto-scale-lr` for other batches).
    #[schemars(range(min = 0.0))]
    pub lr: f64,
    /// Decay of AdamW's two moments.
    #[schemars(extend("items" = serde_json::json!({"type": "number", "minimum": 0, "exclusiveMaximum": 1})))]
    pub betas: [f64; 2],
    /// Added to AdamW's denominator.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub eps: f64,
    /// Momentum of SGD.
    #[schemars(extend("minimum" = 0, "exclusiveMaximum" = 1))]
    pub momentum: f64,
    /// Weight decay; decoupled with AdamW.
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
    /// Greatest L2 norm of the whole gradient; 0 for no clipping.
    #[schemars(range(min = 0.0))]
    pub grad_clip: f64,
    /// Images per step that `lr` was chosen for; `--auto-scale-lr` multiplies by the actual number over this.
    #[schemars(range(min = 1))]
    pub base_batch_size: usize,
}

impl Default for Optimizer {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::AdamW,
            lr: 2e-4,
            betas: [0.9, 0.999],
            eps: 1e-8,
            momentum: 0.9,
            weight_decay: 1e-4,
            grad_clip: 0.0,
            base_batch_size: 16,
        }
    }
}

impl Optimizer {
    /// The learning rate for `effective_batch` images per update: `lr` times the batch over `base_batch_size`, the
    /// linear rule of Goyal et al., 2017, as the reference's `auto_scale_lr`.
    pub fn auto_scale_lr(&self, effective_batch: usize) -> f64 {
        self.lr * (effective_batch as f64 / self.base_batch_size as f64)
    }
}

/// An optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// AdamW (Loshchilov and Hutter, 2019).
    AdamW,
    /// Stochastic gradient descent with momentum.
    Sgd,
}

/// The learning rate over time: linear warm-up, then steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// Steps of linear warm-up; 0 for none.
    pub warmup_iters: usize,
    /// Share of the learning rate at the first step of the warm-up.
    #[schemars(extend("exclusiveMinimum" = 0, "maximum" = 1))]
    pub warmup_ratio: f64,
    /// Epochs (finished ones) after which the learning rate is multiplied by `gamma`.
    pub steps: Vec<usize>,
    /// Factor at each step.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub gamma: f64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { warmup_iters: 500, warmup_ratio: 0.001, steps: vec![8, 11], gamma: 0.1 }
    }
}

impl Schedule {
    pub(super) fn check(&self, problems: &mut Problems) {
        problems.require(
            self.steps.windows(2).all(|pair| pair[0] < pair[1]),
            "schedule.steps",
            &self.steps,
            "epochs in rising order, each once",
            "sort the list",
        );
    }
}

/// The training loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Train {
    /// Passes over the training set.
    #[schemars(range(min = 1))]
    pub epochs: usize,
    /// Seed of everything random; up to 2^63 - 1.
    pub seed: u64,
    /// Use deterministic algorithms where they are slower. The backward pass of RoIAlign on a GPU has none: there the last
    /// bits of gradients may differ between runs.
    pub deterministic: bool,
    /// Automatic mixed precision in training: the type of convolutions and matrix products. Weights, gradients, optimizer
    /// state, BatchNorm's statistics, losses, scores and boxes are float32 with each. See `evaluation.amp` for the rest.
    pub amp: Amp,
    /// Factor of the loss that float16 training begins with. It halves when a gradient overflows, and the update is left
    /// out; it doubles after 2000 updates without that. Checkpoints hold it.
    #[schemars(range(min = 1.0, max = 1e38))]
    pub loss_scale: f64,
    /// Micro-steps whose gradients are averaged into one update.
    #[schemars(range(min = 1))]
    pub accumulate: usize,
    /// Decay of an exponential moving average of the weights, which is then evaluated and saved beside them; 0 for none.
    #[schemars(extend("minimum" = 0, "exclusiveMaximum" = 1))]
    pub ema: f64,
    /// What to do when a loss is not finite.
    pub on_nan: OnNan,
}

impl Default for Train {
    fn default() -> Self {
        Self {
            epochs: 12,
            seed: 0,
            deterministic: false,
            amp: Amp::Off,
            loss_scale: 65_536.0,
            accumulate: 1,
            ema: 0.0,
            on_nan: OnNan::Stop,
        }
    }
}

/// Automatic mixed precision: which type convolutions and matrix products compute in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Amp {
    /// Float32, as everything else.
    Off,
    /// Bfloat16: float32's range with 8 significant bits.
    Bf16,
    /// Float16: 11 significant bits and a small range, for which training scales the loss.
    Fp16,
}

/// What to do when a loss is not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnNan {
    /// End the job and say which loss, rank, step and images.
    Stop,
    /// Leave out the update that the step belongs to, with all of its micro-steps, and say so.
    Skip,
}

/// When checkpoints are written and which are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointPolicy {
    /// Time between checkpoints: epochs, or with another unit as text. There is one at the end of the job in any case, and
    /// where an evaluation may find the best one. One that a stop or a failure has made goes when a later one is there.
    pub interval: Interval,
    /// Newest checkpoints that are kept; 0 for all.
    pub keep_last: usize,
    /// Metric whose best checkpoint is kept as `best_<metric>.ckpt`; empty for none.
    pub save_best: String,
    /// Folders, in this order, for checkpoints that the work folder does not take: its disk is full, read-only or gone.
    /// Each job writes to a folder of its own in there, and `--resume` looks there too.
    pub fallback: Vec<PathBuf>,
}

impl Default for CheckpointPolicy {
    fn default() -> Self {
        Self { interval: Interval::Epochs(1), keep_last: 0, save_best: String::new(), fallback: Vec::new() }
    }
}

impl CheckpointPolicy {
    pub(super) fn check(&self, evaluation: &Evaluation, problems: &mut Problems) {
        if self.save_best.is_empty() {
            return;
        }
        let names: Vec<String> = evaluation.metrics.iter().flat_map(|&kind| evaluation.names(kind)).collect();
        problems.require(
            names.contains(&self.save_best),
            "checkpoint.save_best",
            &self.save_best,
            &format!("empty, or one of {}, which evaluation.metrics gives", names.join(", ")),
            "name a measured metric, for example bbox_mAP",
        );
        problems.require(
            evaluation.interval > 0,
            "checkpoint.save_best",
            &self.save_best,
            "empty, because evaluation.interval is 0",
            "set evaluation.interval to 1 or more to have a best checkpoint",
        );
    }
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Steps between lines of the log; each line holds the averages since the last.
    #[schemars(range(min = 1))]
    pub interval: usize,
    /// Write TensorBoard files.
    pub tensorboard: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self { interval: 50, tensorboard: true }
    }
}
