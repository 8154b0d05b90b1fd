//! Commands beside training and testing.

mod benchmark;
mod check_data;
mod export;
pub mod flops;

pub use benchmark::{benchmark_data, benchmark_infer, benchmark_train};
pub use check_data::check_data;
pub use export::export;
