//! Commands beside training and testing.

mod benchmark;
mod check_data;
mod dry_run;
mod export;
pub mod flops;

pub use benchmark::{benchmark_comm, benchmark_data, benchmark_infer, benchmark_launch, benchmark_train};
pub use check_data::check_data;
pub use dry_run::{dry_run, dry_run_ranks};
pub use export::export;
