//! `[optimizer]`, `[schedule]`, `[train]`, `[checkpoint]` and `[log]`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Amp, Evaluation, Interval};
use crate::problem::Problems;

section! {
/// The optimizer. Without `[optimizer.paramwise]` all parameters are in one group, so weight decay also applies to norms and
/// biases.
pub struct Optimizer {
    /// Which optimizer.
    pub kind: OptimizerKind = OptimizerKind::AdamW,
    /// Learning rate for 16 images per step. For other batch sizes see `--auto-scale-lr`.
    #[schemars(range(min = 0.0))]
    pub lr: f64 = 2e-4,
    /// AdamW's betas: decay rates of the two moments.
    #[schemars(extend("items" = serde_json::json!({"type": "number", "minimum": 0, "exclusiveMaximum": 1})))]
    pub betas: [f64; 2] = [0.9, 0.999],
    /// Added to AdamW's denominator.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub eps: f64 = 1e-8,
    /// Momentum of SGD.
    #[schemars(extend("minimum" = 0, "exclusiveMaximum" = 1))]
    pub momentum: f64 = 0.9,
    /// Weight decay, decoupled with AdamW.
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64 = 1e-4,
    /// Maximum L2 norm of the gradients; 0 for no clipping.
    #[schemars(range(min = 0.0))]
    pub grad_clip: f64 = 0.0,
    /// Images per step that `lr` is for. `--auto-scale-lr` multiplies `lr` by the actual number divided by this.
    #[schemars(range(min = 1))]
    pub base_batch_size: usize = 16,
    /// Multipliers of learning rate and weight decay for some parameters. The rule is that of MMCV's
    /// `DefaultOptimizerConstructor`: the longest key of `custom_keys` that is part of a parameter's name decides, of equally
    /// long ones the first in the alphabet. Parameters without such a key follow the three other fields.
    pub paramwise: Paramwise = Paramwise::default(),
}
}

impl Optimizer {
    /// The learning rate for `effective_batch` images per update: `lr * effective_batch / base_batch_size`, the linear
    /// scaling rule of Goyal et al., 2017, like MMDetection's `auto_scale_lr`.
    pub fn auto_scale_lr(&self, effective_batch: usize) -> f64 {
        self.lr * (effective_batch as f64 / self.base_batch_size as f64)
    }
}

section! {
/// Multipliers of learning rate and weight decay for some parameters.
pub struct Paramwise {
    /// Multipliers of the parameters whose names contain a key, for example
    /// `{ "backbone" = { lr_mult = 0.1 }, "backbone.norm" = { lr_mult = 0.1, decay_mult = 0.0 } }`. A multiplier that is not
    /// given is 1.
    pub custom_keys: BTreeMap<String, Multipliers> = BTreeMap::new(),
    /// Multiplier of the weight decay of norms: their weights and biases.
    #[schemars(range(min = 0.0))]
    pub norm_decay_mult: f64 = 1.0,
    /// Multiplier of the learning rate of biases, except for those of norms.
    #[schemars(range(min = 0.0))]
    pub bias_lr_mult: f64 = 1.0,
    /// Multiplier of the weight decay of biases, except for those of norms.
    #[schemars(range(min = 0.0))]
    pub bias_decay_mult: f64 = 1.0,
}
}

section! {
/// Multipliers of a parameter.
#[derive(Copy)]
pub struct Multipliers {
    /// Of the learning rate.
    #[schemars(range(min = 0.0))]
    pub lr_mult: f64 = 1.0,
    /// Of the weight decay.
    #[schemars(range(min = 0.0))]
    pub decay_mult: f64 = 1.0,
}
}

impl Paramwise {
    /// The multipliers of the parameter `name`, which may belong to a norm.
    pub fn multipliers(&self, name: &str, is_norm: bool) -> Multipliers {
        let length = |key: &str| key.chars().count();
        let matching = self.custom_keys.iter().filter(|(key, _)| name.contains(key.as_str()));
        let custom = matching.max_by(|(a, _), (b, _)| length(a).cmp(&length(b)).then(b.cmp(a)));
        if let Some((_, multipliers)) = custom {
            return *multipliers;
        }
        let is_bias = name.ends_with(".bias");
        Multipliers {
            lr_mult: if is_bias && !is_norm { self.bias_lr_mult } else { 1.0 },
            decay_mult: match (is_norm, is_bias) {
                (true, _) => self.norm_decay_mult,
                (false, true) => self.bias_decay_mult,
                (false, false) => 1.0,
            },
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

section! {
/// The learning rate schedule: MMCV's step, cosine, polynomial and constant policies, after a warm-up. The rate is computed
/// from `p`, the progress of the job: the number of finished epochs, or steps if `by_epoch` is false; and `n`, the number
/// of all epochs or steps. `print-config CONFIG --schedule` shows the result.
pub struct Schedule {
    /// How the learning rate changes after the warm-up.
    pub policy: Policy = Policy::Step,
    /// Change the learning rate at the end of epochs; false to change it at every step. `steps` are numbers of steps then.
    pub by_epoch: bool = true,
    /// Policy step: completed epochs (or steps) after which the learning rate is multiplied by `gamma`.
    pub steps: Vec<usize> = vec![8, 11],
    /// Policy step: factor of the learning rate at each of `steps`.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub gamma: f64 = 0.1,
    /// Policies cosine and poly: the learning rate at the end. Policy step: the lowest learning rate.
    #[schemars(range(min = 0.0))]
    pub min_lr: f64 = 0.0,
    /// Policy cosine: the learning rate at the end, as a fraction of `optimizer.lr`, in place of `min_lr`.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_lr_ratio: f64 = 0.0,
    /// Policy poly: the exponent; 1 for a straight line.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub power: f64 = 1.0,
    /// How the learning rate grows during the warm-up.
    pub warmup: Warmup = Warmup::Linear,
    /// Warm-up steps, or epochs if `warmup_by_epoch` is true; 0 for none.
    pub warmup_iters: usize = 500,
    /// Count `warmup_iters` in epochs. The learning rate still grows at every step.
    pub warmup_by_epoch: bool = false,
    /// Fraction of the learning rate at the first warm-up step.
    #[schemars(extend("exclusiveMinimum" = 0, "maximum" = 1))]
    pub warmup_ratio: f64 = 0.001,
}
}

/// How the learning rate changes after the warm-up, from `lr`, the learning rate of the optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// `max(lr * gamma^k, min_lr)`, where k of `steps` are at most p.
    Step,
    /// `end + (lr - end) * (1 + cos(pi * p / n)) / 2`, where end is `min_lr` or `lr * min_lr_ratio`.
    Cosine,
    /// `min_lr + (lr - min_lr) * (1 - p / n)^power`.
    Poly,
    /// `lr`.
    Constant,
}

/// The factor of the learning rate at warm-up step i (from 0) of w, with `r = warmup_ratio`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Warmup {
    /// `1 - (1 - i / w) * (1 - r)`.
    Linear,
    /// `r^(1 - i / w)`.
    Exp,
    /// `r`.
    Constant,
}

impl Schedule {
    pub(super) fn check(&self, problems: &mut Problems) {
        problems.require(
            self.steps.windows(2).all(|pair| pair[0] < pair[1]),
            "schedule.steps",
            &self.steps,
            "numbers in ascending order without duplicates",
            "sort the list",
        );
        problems.require(
            self.min_lr_ratio == 0.0 || self.policy == Policy::Cosine,
            "schedule.min_lr_ratio",
            self.min_lr_ratio,
            "0, because schedule.policy is not \"cosine\"",
            "set schedule.min_lr instead",
        );
        problems.require(
            self.min_lr_ratio == 0.0 || self.min_lr == 0.0,
            "schedule.min_lr_ratio",
            self.min_lr_ratio,
            &format!("0, because schedule.min_lr is {}", self.min_lr),
            "set one of the two",
        );
    }
}

section! {
/// The training loop.
pub struct Train {
    /// Number of epochs.
    #[schemars(range(min = 1))]
    pub epochs: usize = 12,
    /// Random seed, up to 2^63 - 1.
    pub seed: u64 = 0,
    /// Use deterministic algorithms even where they are slower. The backward pass of RoIAlign on a GPU has none, so the
    /// last bits of gradients may differ between runs.
    pub deterministic: bool = false,
    /// Automatic mixed precision in training: the type of convolutions and matrix products. Weights, gradients,
    /// optimizer state, BatchNorm statistics, losses, scores and boxes are always float32. `evaluation.amp` sets the
    /// type at inference.
    pub amp: Amp = Amp::Off,
    /// Initial loss scale of float16 training. When a gradient overflows, the update is skipped and the scale is
    /// halved. After 2000 updates without overflow it is doubled. Checkpoints store it.
    #[schemars(range(min = 1.0, max = 1e38))]
    pub loss_scale: f64 = 65_536.0,
    /// Gradient accumulation steps.
    #[schemars(range(min = 1))]
    pub accumulate: usize = 1,
    /// With `--nnodes MIN:MAX` of fnet-launch: what to do when `accumulate` cannot be changed so that fewer nodes have as many
    /// images per update as MAX nodes. If it can, that is done.
    pub elastic_batch: ElasticBatch = ElasticBatch::ScaleLr,
    /// The type in which gradients travel between the ranks. Weights and optimizer state stay float32.
    pub grad_compression: GradCompression = GradCompression::Off,
    /// Decay of the exponential moving average of the weights, which is evaluated and saved in addition to them; 0 for
    /// none.
    #[schemars(extend("minimum" = 0, "exclusiveMaximum" = 1))]
    pub ema: f64 = 0.0,
    /// With `--load-from` weights of a detector for other classes: keep the class-dependent weights (rows of `fc_cls`,
    /// `fc_reg` and `conv_logits`, and the background) of classes whose names are the same; of several classes with one name,
    /// in their order. If false, these layers are re-initialized when the number of classes differs.
    pub match_classes: bool = false,
    /// What to do when a loss is not finite.
    pub on_nan: OnNan = OnNan::Stop,
    /// When the job ends before its last epoch.
    pub early_stop: EarlyStop = EarlyStop::default(),
}
}

impl Train {
    pub(super) fn check(&self, evaluation: &Evaluation, problems: &mut Problems) {
        check_metric("train.early_stop.metric", &self.early_stop.metric, evaluation, problems);
    }
}

section! {
/// Ends the job when evaluations no longer get better.
#[derive(Eq)]
pub struct EarlyStop {
    /// Metric whose highest value is the best, for example `bbox_mAP`; empty to train all epochs.
    pub metric: String = String::new(),
    /// Number of evaluations in a row without a new best value after which the job ends.
    #[schemars(range(min = 1))]
    pub patience: usize = 10,
}
}

/// Refuses a metric that the evaluations of training do not give.
fn check_metric(field: &str, metric: &str, evaluation: &Evaluation, problems: &mut Problems) {
    if metric.is_empty() {
        return;
    }
    let names: Vec<String> = evaluation.metrics.iter().flat_map(|&kind| evaluation.names(kind)).collect();
    problems.require(
        names.iter().any(|name| name == metric),
        field,
        metric,
        &format!("empty, or one of {} (from evaluation.metrics)", names.join(", ")),
        "choose one of these metrics, for example bbox_mAP",
    );
    problems.require(
        evaluation.interval > 0,
        field,
        metric,
        "empty, because evaluation.interval is 0",
        "set evaluation.interval to 1 or more",
    );
}

/// The type in which gradients travel between the ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum GradCompression {
    /// Float32.
    #[default]
    Off,
    /// Bfloat16, half the bytes: each rank rounds its share of the mean gradient to 8 significant bits, and sums are rounded
    /// likewise. Not for a job of one rank, where nothing travels. As `bf16_compress_hook` of PyTorch.
    Bf16,
}

/// What to do when fewer nodes cannot have as many images per update as all nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ElasticBatch {
    /// Stop the job. Its last completed step is saved.
    KeepOrStop,
    /// Take the nearest number of images, and scale the learning rate with it.
    ScaleLr,
    /// Change neither `accumulate` nor the learning rate, so there are fewer images per update.
    AsIs,
}

/// What to do when a loss is not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnNan {
    /// Stop the job and report the loss, rank, step and images.
    Stop,
    /// Skip the update, with all of its micro-steps, and log it.
    Skip,
}

section! {
/// When checkpoints are saved and which are kept.
pub struct CheckpointPolicy {
    /// Time between checkpoints: epochs, or a string with another unit. A checkpoint is always saved at the end of the
    /// job and where an evaluation may find the best one. A checkpoint from a stop or a failure is deleted once a later
    /// one exists.
    pub interval: Interval = Interval::Epochs(1),
    /// Number of newest checkpoints to keep; 0 for all.
    pub keep_last: usize = 0,
    /// Metric whose best checkpoint is kept as `best_<metric>.ckpt`; empty for none.
    pub save_best: String = String::new(),
    /// Folders, in this order, for checkpoints that cannot be written to the work folder because its disk is full,
    /// read-only or gone. Each job uses a separate subfolder, and `--resume` looks there too.
    pub fallback: Vec<PathBuf> = Vec::new(),
}
}

impl CheckpointPolicy {
    pub(super) fn check(&self, evaluation: &Evaluation, problems: &mut Problems) {
        check_metric("checkpoint.save_best", &self.save_best, evaluation, problems);
    }
}

section! {
/// What is logged.
pub struct Log {
    /// Steps between log lines. Each line contains the averages since the previous one.
    #[schemars(range(min = 1))]
    pub interval: usize = 50,
    /// Write TensorBoard files.
    pub tensorboard: bool = true,
    /// A program, as a line for the shell, that gets every line of `<time>.log.json` on its standard input while the job
    /// runs; empty for none. Its working directory is that of the job, and FNET_WORK_DIR names the work folder. If it
    /// stalls or fails, the job goes on without it (docs/trackers.md).
    pub command: String = String::new(),
    /// Add histograms of the weights after each epoch to TensorBoard.
    pub histograms: bool = false,
}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rule of MMCV's `DefaultOptimizerConstructor.add_params`: `custom_keys` sorted by the alphabet, then by falling
    /// length; the first that is part of the name decides alone.
    #[test]
    fn the_longest_key_in_a_name_decides_alone() {
        let of = |lr_mult, decay_mult| Multipliers { lr_mult, decay_mult };
        let paramwise = Paramwise {
            custom_keys: [
                ("backbone", of(0.1, 1.0)),
                ("norm0", of(0.5, 0.0)),
                ("norm2", of(3.0, 1.0)),
                ("orm2.", of(7.0, 1.0)),
            ]
            .map(|(key, multipliers)| (key.to_owned(), multipliers))
            .into(),
            norm_decay_mult: 0.25,
            bias_lr_mult: 2.0,
            bias_decay_mult: 0.0,
        };
        for (name, is_norm, expected) in [
            ("backbone.stages.0.blocks.0.mlp.0.weight", false, of(0.1, 1.0)),
            ("backbone.norm0.bias", true, of(0.1, 1.0)),
            ("neck.norm0.bias", true, of(0.5, 0.0)),
            ("neck.norm2.bias", true, of(3.0, 1.0)),
            ("neck.fpn_convs.0.conv.bias", false, of(2.0, 0.0)),
            ("neck.fpn_convs.0.conv.weight", false, of(1.0, 1.0)),
            ("neck.norm.weight", true, of(1.0, 0.25)),
            ("neck.norm.bias", true, of(1.0, 0.25)),
        ] {
            assert_eq!(paramwise.multipliers(name, is_norm), expected, "{name}");
        }
    }
}
