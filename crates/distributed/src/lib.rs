//! The ranks of a job: rendezvous, process group, data-parallel training.
//!
//! [`World`] is what the rest of the worker sees. It also works alone: without peers its collectives return what they
//! were given, and no socket is opened.

mod address;
mod breaker;
mod computed;
mod data_parallel;
mod device;
mod dial;
mod endpoint;
mod mpi;
mod orphan;
mod place;
mod starter;
mod world;

pub use data_parallel::DataParallel;
pub use device::choose_device;
pub use place::Place;
pub use starter::{Start, likely_rank};
pub use world::{Deadlines, DifferentiableSum, World};
