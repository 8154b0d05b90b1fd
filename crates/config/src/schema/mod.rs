//! Every configuration field: its type, default, unit and meaning. docs/config.md is generated from these definitions.

/// A section of the config with the default of each field.
macro_rules! section {
    ($(#[$attribute:meta])* pub struct $name:ident {
        $($(#[$of_field:meta])* pub $field:ident: $type:ty = $default:expr,)*
    }) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[$of_field])* pub $field: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

pub mod augment;
mod data;
mod evaluation;
mod interval;
mod model;
mod train;

pub use augment::ScaleMode;
pub use data::*;
pub use evaluation::*;
pub use interval::Interval;
pub use model::*;
pub use train::*;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::problem::Problems;

/// A whole job: model, data, optimization, and where the results go.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The detector.
    pub model: Model,
    /// Data sets and image preprocessing.
    pub data: Data,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// The learning rate schedule.
    pub schedule: Schedule,
    /// The training loop.
    pub train: Train,
    /// When checkpoints are saved and which are kept.
    pub checkpoint: CheckpointPolicy,
    /// When and how the model is evaluated.
    pub evaluation: Evaluation,
    /// What is logged.
    pub log: Log,
}

impl Config {
    /// Checks combinations of fields. Ranges of single fields are schema attributes.
    pub(super) fn check(&self, problems: &mut Problems) {
        self.model.check(problems);
        self.data.check(self.model.num_classes, problems);
        self.schedule.check(problems);
        self.train.check(&self.evaluation, problems);
        self.checkpoint.check(&self.evaluation, problems);
        self.evaluation.check(self.model.mask, problems);
    }

    /// Checks what matters only for training.
    pub(super) fn check_training(&self, problems: &mut Problems) {
        self.model.backbone.check_training(problems);
    }

    /// Images per update of the weights, over all ranks and accumulated micro-steps.
    pub fn effective_batch(&self, world_size: usize) -> usize {
        self.data.samples_per_gpu * world_size * self.train.accumulate
    }
}
