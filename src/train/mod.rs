//! The training loop and what belongs to it.

pub mod checkpoint;
mod ema;
mod precision;
mod schedule;

pub use ema::Ema;
pub use precision::LossScale;
