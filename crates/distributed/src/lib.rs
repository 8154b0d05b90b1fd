//! The ranks of a job: rendezvous, process group, data-parallel training.
//!
//! The rest of the worker uses [`Communicator`]. It also works alone: in a job of one rank, collectives return their input,
//! and no socket is opened.

mod address;
mod breaker;
mod communicator;
mod data_parallel;
mod device;
mod dial;
mod endpoint;
mod mpi;
mod orphan;
mod placement;
mod starter;

pub use communicator::{Communicator, Deadlines, DifferentiableSum};
pub use data_parallel::DataParallel;
pub use device::choose_device;
pub use placement::RankPlacement;
pub use starter::{Launch, likely_rank};
