//! The process's log for people: lines on stderr, and in the work folder's text log once there is one.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::error::{Error, Result};

static LOGGER: OnceLock<Logger> = OnceLock::new();

struct Logger {
    name: String,
    file: Mutex<Option<File>>,
}

/// Lets `log::info!` and its like write to stderr. Ranks other than 0 say warnings and errors only, and name
/// themselves. Calls after the first change nothing but the level.
pub fn init(rank: usize, level: LevelFilter) {
    let name = if rank == 0 { "fnet".into() } else { format!("fnet[rank {rank}]") };
    let logger = LOGGER.get_or_init(|| Logger { name, file: Mutex::new(None) });
    // Fails if a logger is set already: then it is this one.
    let _ = log::set_logger(logger);
    log::set_max_level(if rank == 0 { level } else { level.min(LevelFilter::Warn) });
}

/// Copies all further lines to the end of `path`.
///
/// # Errors
/// An environment error if the file cannot be written.
pub(super) fn attach(path: &Path) -> Result<()> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    let file = file.map_err(|error| Error::environment(format!("cannot write the log {}: {error}", path.display())))?;
    if let Some(logger) = LOGGER.get() {
        *logger.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
    }
    Ok(())
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries speak up only when something is wrong.
        metadata.target().starts_with("fnet") || metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = format_line(&jiff::Zoned::now(), &self.name, record.level(), &record.args().to_string());
        // Nothing can be said about a log that cannot be written.
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
        if let Some(file) = self.file.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            let _ = file.write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// A line as the reference writes it: `2026-11-25 01:41:17,570 - fnet - INFO - message`.
fn format_line(time: &jiff::Zoned, name: &str, level: Level, message: &str) -> String {
    let level = if level == Level::Warn { "WARNING" } else { level.as_str() };
    let milliseconds = time.subsec_nanosecond() / 1_000_000;
    format!("{},{milliseconds:03} - {name} - {level} - {message}\n", time.strftime("%Y-%m-%d %H:%M:%S"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_time_name_level_and_message() {
        let time: jiff::Zoned = "2026-11-25T01:41:07.0705[UTC]".parse().unwrap();
        assert_eq!(format_line(&time, "fnet", Level::Warn, "x"), "2026-11-25 01:41:07,070 - fnet - WARNING - x\n");
    }
}
