//! Every configuration field: its type, default, unit and meaning. The documentation is made from these definitions.

mod data;
mod model;
mod train;

pub use data::*;
pub use model::*;
pub use train::*;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A whole job: model, data, optimisation, and where the results go.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The detector.
    pub model: Model,
    /// Data sets and how their pictures are prepared.
    pub data: Data,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// The learning rate over time.
    pub schedule: Schedule,
    /// The training loop.
    pub train: Train,
    /// When checkpoints are written and which are kept.
    pub checkpoint: CheckpointPolicy,
    /// When and how the model is evaluated.
    pub evaluation: Evaluation,
    /// What is logged.
    pub log: Log,
}
