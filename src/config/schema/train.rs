//! `[optimizer]`, `[schedule]`, `[train]`, `[checkpoint]`, `[evaluation]` and `[log]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The optimizer; one group holds all parameters, so weight decay acts on norms and biases too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Optimizer {
    /// Which one.
    pub kind: OptimizerKind,
    /// Learning rate for 16 pictures a step (see `--auto-scale-lr` for other batches).
    pub lr: f64,
    /// Decay of AdamW's two moments.
    pub betas: [f64; 2],
    /// Added to AdamW's denominator.
    pub eps: f64,
    /// Momentum of SGD.
    pub momentum: f64,
    /// Weight decay; decoupled with AdamW.
    pub weight_decay: f64,
    /// Greatest L2 norm of the whole gradient; 0 for no clipping.
    pub grad_clip: f64,
    /// Pictures per step that `lr` was chosen for; `--auto-scale-lr` multiplies by the actual number over this.
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
    pub warmup_ratio: f64,
    /// Epochs (finished ones) after which the learning rate is multiplied by `gamma`.
    pub steps: Vec<usize>,
    /// Factor at each step.
    pub gamma: f64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { warmup_iters: 500, warmup_ratio: 0.001, steps: vec![8, 11], gamma: 0.1 }
    }
}

/// The training loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Train {
    /// Passes over the training set.
    pub epochs: usize,
    /// Seed of everything random.
    pub seed: u64,
    /// Use deterministic algorithms where they are slower.
    pub deterministic: bool,
    /// Numbers that the network computes with; weights and optimizer stay float32.
    pub precision: Precision,
    /// Micro-steps whose gradients are averaged into one update.
    pub accumulate: usize,
    /// Decay of an exponential moving average of the weights, which is then evaluated and saved beside them; 0 for none.
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
            precision: Precision::Fp32,
            accumulate: 1,
            ema: 0.0,
            on_nan: OnNan::Stop,
        }
    }
}

/// Numbers that the network computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Float32 throughout.
    Fp32,
    /// Autocast to bfloat16.
    Bf16,
    /// Autocast to float16 with a dynamic loss scale.
    Fp16,
}

/// What to do when a loss is not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnNan {
    /// End the job and say which loss, rank, step and pictures.
    Stop,
    /// Leave out this update and say so.
    Skip,
}

/// When checkpoints are written and which are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointPolicy {
    /// Epochs between checkpoints.
    pub interval: usize,
    /// Checkpoints of past epochs that are kept; 0 for all.
    pub keep_last: usize,
    /// Metric whose best checkpoint is kept as `best_<metric>.ckpt`; empty for none.
    pub save_best: String,
}

impl Default for CheckpointPolicy {
    fn default() -> Self {
        Self { interval: 1, keep_last: 0, save_best: String::new() }
    }
}

/// When and how the model is evaluated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Evaluation {
    /// Epochs between evaluations; 0 for none.
    pub interval: usize,
    /// What is measured.
    pub metrics: Vec<Metric>,
    /// Add a table per class.
    pub classwise: bool,
}

impl Default for Evaluation {
    fn default() -> Self {
        Self { interval: 1, metrics: vec![Metric::Bbox, Metric::Segm], classwise: false }
    }
}

/// What COCO evaluation compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Boxes.
    Bbox,
    /// Masks.
    Segm,
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Steps between lines of the log; each line holds the averages since the last.
    pub interval: usize,
    /// Write TensorBoard files.
    pub tensorboard: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self { interval: 50, tensorboard: true }
    }
}
