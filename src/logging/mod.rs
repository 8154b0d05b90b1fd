//! Logs: text for people, JSON lines for programs, TensorBoard for curves.
//!
//! Any module speaks through the `log` crate (`log::info!`, `log::warn!`). The training loop puts each number once into
//! a [`RunLog`]; the three writers pull the means.

mod environment;
mod facade;
mod format;
mod metrics;
mod run;
pub mod tensorboard;

pub use environment::describe as describe_environment;
pub use facade::init;
pub use metrics::Metrics;
pub use run::{RunInfo, RunLog, TrainStep};
