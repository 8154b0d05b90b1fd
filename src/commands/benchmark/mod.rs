//! `benchmark`: measures training, inference, data loading, start-up and communication.

mod comm;
mod data;
mod infer;
mod launch;
mod profile;
mod simulated;
mod synthetic;
mod train;

pub use comm::benchmark_comm;
pub use data::benchmark_data;
pub use infer::benchmark_infer;
pub use launch::benchmark_launch;
pub use train::benchmark_train;
