//! One rank of a job: trains and evaluates Mask R-CNN with a FasterNet backbone.
//!
//! The modules follow the way of a batch: [`config`] → [`data`] → [`model`] → [`train`] → [`evaluate`].

mod atomic;
pub mod commands;
pub mod config;
pub mod data;
pub mod distributed;
pub mod error;
pub mod evaluate;
pub mod fault;
pub mod logging;
pub mod model;
#[cfg(test)]
mod parity;
pub mod process;
pub mod random;
mod text;
pub mod tools;
pub mod train;
pub mod weights;

pub use error::{Error, ErrorKind, Result};
