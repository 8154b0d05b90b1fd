//! The training loop.
//!
//! [`train`] turns a command line into a [`Trainer`], restored if the job resumes; the trainer loops over epochs and
//! steps; a [`TrainState`] does one step.

mod after_evaluation;
mod bad_batch;
mod buffers;
mod changed_ranks;
mod disk;
mod early_stop;
mod elastic;
mod ema;
mod emergency_checkpoint;
pub mod fault;
mod forecast;
mod job;
mod learning_rate;
mod loss_scale;
mod memory;
mod optimizer;
mod progress;
mod reporter;
mod resume;
pub mod run_log;
mod saver;
mod schedule_table;
mod snapshot;
mod step_vote;
mod summary;
mod train_state;
mod trainer;
mod validation;

pub use ema::Ema;
pub use forecast::{facts, forecast};
pub use job::train;
pub use learning_rate::{LearningRate, Rate};
pub use loss_scale::LossScale;
pub use memory::of_inference;
pub use optimizer::{Optimizer, is_norm};
pub use progress::{StepIndex, TrainSchedule};
pub use schedule_table::schedule_table;
pub use step_vote::StepVote;
pub use train_state::{StepOutcome, StepTimes, TrainState};
pub use trainer::{Ending, Trainer};
