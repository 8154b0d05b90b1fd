//! Commands beside training and testing.

mod benchmark;
mod export;
pub mod flops;

pub use benchmark::{benchmark_data, benchmark_infer, benchmark_train};
pub use export::export;
