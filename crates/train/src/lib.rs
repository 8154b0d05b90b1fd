//! The training loop and what belongs to it.
//!
//! [`train`] turns a command line into a [`Trainer`] that stands where it should go on; the trainer loops over epochs
//! and steps; a [`Learner`] does one step.

mod agreement;
mod bad_batch;
mod buffers;
mod changed_ranks;
mod disk;
mod ema;
pub mod fault;
mod forecast;
mod job;
mod learner;
mod loss_scale;
mod memory;
mod optimizer;
mod place;
mod reporter;
mod rescue;
mod resume;
pub mod run_log;
mod saver;
mod schedule;
mod snapshot;
mod trainer;
mod validation;

pub use agreement::Wishes;
pub use ema::Ema;
pub use forecast::{facts, forecast};
pub use job::train;
pub use learner::{Learner, StepOutcome, StepTimes};
pub use loss_scale::LossScale;
pub use memory::of_inference;
pub use optimizer::Optimizer;
pub use place::{Plan, Position, StepPlace};
pub use schedule::{last_learning_rate, learning_rate};
pub use trainer::{Ending, Trainer};
