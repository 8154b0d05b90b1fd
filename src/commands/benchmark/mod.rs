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

use serde::Serialize;

use fnet_common::{Error, Result};

/// Writes a report to stdout, as JSON or as text.
fn publish<R: Serialize>(report: &R, text: &str, json: bool) -> Result<()> {
    match json {
        true => super::print(&serde_json::to_string(report).map_err(|error| Error::bug(error.to_string()))?),
        false => super::print(text),
    }
    .map(drop)
}
