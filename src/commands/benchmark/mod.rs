//! `benchmark`: measures training, inference, data loading, start-up and communication.

mod comm;
mod data;
mod infer;
mod launch;
mod profile;
mod simulated;
mod summary;
mod synthetic;
mod train;

pub use comm::benchmark_comm;
pub use data::benchmark_data;
pub use infer::benchmark_infer;
pub use launch::benchmark_launch;
pub use train::benchmark_train;

use std::io::Write;

use serde::Serialize;

use fnet_common::{Error, Result};

/// Writes a report to stdout as JSON, or to stderr as text.
fn publish<R: Serialize>(report: &R, text: &str, json: bool) -> Result<()> {
    let write = |mut to: Box<dyn Write>, line: &str| match writeln!(to, "{line}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::environment(format!("writing the report: {error}")))
        }
        _ => Ok(()),
    };
    if json {
        let line = serde_json::to_string(report).map_err(|error| Error::bug(error.to_string()))?;
        write(Box::new(std::io::stdout()), &line)
    } else {
        write(Box::new(std::io::stderr()), text)
    }
}
