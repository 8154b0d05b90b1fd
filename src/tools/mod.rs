//! Commands beside training and testing.

mod benchmark;
pub mod flops;

pub use benchmark::{benchmark_infer, benchmark_train};
