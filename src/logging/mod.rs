//! Logs: text for people, JSON lines for programs, TensorBoard for curves.
//!
//! Any module speaks through the `log` crate (`log::info!`, `log::warn!`). The training loop puts each number once into
//! a [`Window`]; the three writers of a [`RunLog`] pull the means.

mod environment;
mod facade;
mod format;
mod libraries;
mod run;
pub mod tensorboard;
mod window;

pub use environment::describe as describe_environment;
pub use facade::init;
pub use libraries::take_messages_of_libraries;
pub use run::{RunInfo, RunLog, TrainStep};
pub use window::Window;
