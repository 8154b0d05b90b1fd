//! The training loop and what belongs to it.

mod ema;
mod precision;
mod schedule;

pub use ema::Ema;
pub use precision::LossScale;
