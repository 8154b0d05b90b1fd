//! What `tch` lacks of libtorch, through a small C++ bridge with a C ABI.
//!
//! Tensors cross the bridge as the pointers that `tch` holds. Every C++ exception comes back as an [`Error`].

pub mod autocast;
pub mod autograd;
pub mod block;
pub mod context;
#[cfg(test)]
mod convolution;
pub mod cuda;
mod device_fault;
pub mod diagnostics;
pub mod distributed;
mod dl;
mod error;
mod error_kind;
mod ffi;
pub mod levels;
pub mod losses;
pub mod memory;
mod mkl_warmup;
pub mod norm;
pub mod ops;
pub mod optim;
pub mod profile;
pub mod transfer;

pub use error::{Error, ErrorKind, Result};
