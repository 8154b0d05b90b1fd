//! The training logs: text for people, JSON lines for programs, TensorBoard for curves.
//!
//! The training loop puts each number once into a [`Window`]; the three writers of a [`RunLog`] read the means.

mod environment;
mod format;
mod run;
pub mod tensorboard;
pub mod tracker;
mod window;

pub use environment::describe as describe_environment;
pub use run::{RunInfo, RunLog};
pub use tracker::Tracker;
pub use window::{TrainStep, Window};
