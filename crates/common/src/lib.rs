//! Shared code of the worker's crates: errors, text of messages, atomic files, random numbers, logging, and information about
//! this process.

pub mod atomic;
mod error;
pub mod logger;
pub mod process;
pub mod random;
pub use fnet_protocol::text;

pub use error::{Context, Error, ErrorKind, Result};
