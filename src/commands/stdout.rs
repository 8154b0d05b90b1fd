//! Writing the results of a command to stdout.

use std::io::{ErrorKind, Write};

use serde::Serialize;

use fnet_common::{Error, Result};
use fnet_protocol::exit;

/// Writes to stdout. A closed pipe is not an error.
pub fn print(text: &str) -> Result<i32> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::environment(format!("writing to stdout: {error}")))
        }
        _ => Ok(exit::SUCCESS),
    }
}

/// Writes a benchmark's results to stdout, as JSON or as text.
pub fn publish<R: Serialize>(results: &R, text: &str, json: bool) -> Result<()> {
    match json {
        true => print(&serde_json::to_string(results).map_err(|error| Error::bug(error.to_string()))?),
        false => print(text),
    }
    .map(drop)
}
