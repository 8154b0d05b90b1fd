//! What the crates of the worker share: errors, the wording of messages, files that are replaced as a whole, random
//! numbers, the log, and what the operating system reports of this process.

pub mod atomic;
mod error;
pub mod logger;
pub mod process;
pub mod random;
pub mod text;

pub use error::{Context, Error, ErrorKind, Result};
