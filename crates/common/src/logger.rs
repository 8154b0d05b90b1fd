//! The process's log for people: lines on stderr, and in the work folder's text log once there is one. Whoever logs never
//! waits for either.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::OnceLock;

use log::{Level, LevelFilter, Log, Metadata, Record};

use fnet_protocol::outlet::{self, Outlet, Remark};

use crate::{Error, Result};

static LOGGER: OnceLock<Logger> = OnceLock::new();

struct Logger {
    name: String,
    file: OnceLock<Outlet>,
}

/// Lets `log::info!` and its like write to stderr. Ranks other than 0 say warnings and errors only, and name
/// themselves. Calls after the first change nothing but the level.
pub fn init(rank: usize, level: LevelFilter) {
    let name = if rank == 0 { "fnet".into() } else { format!("fnet[rank {rank}]") };
    let logger = LOGGER.get_or_init(|| Logger { name, file: OnceLock::new() });
    // Fails if a logger is set already: then it is this one.
    let _ = log::set_logger(logger);
    log::set_max_level(if rank == 0 { level } else { level.min(LevelFilter::Warn) });
}

/// Copies all further lines to the end of `path`; only the first one counts.
///
/// # Errors
/// An environment error if the file cannot be written.
pub fn attach(path: &Path) -> Result<()> {
    let refuse = |error| Error::environment(format!("cannot write the log {}: {error}", path.display()));
    let file = OpenOptions::new().create(true).append(true).open(path).map_err(refuse)?;
    let Some(logger) = LOGGER.get() else { return Ok(()) };
    let remark = |count: u64| {
        let text = format!("{count} lines are missing here: the disk did not take them in time");
        Some(format_line(&jiff::Zoned::now(), &logger.name, Level::Warn, &text).into_bytes())
    };
    let _ = logger.file.set(outlet_to(file, path, Box::new(remark)).map_err(refuse)?);
    Ok(())
}

/// Writes pieces to the end of a file. A disk that takes none is told of once.
pub fn outlet_to(mut file: File, path: &Path, remark: Box<Remark>) -> io::Result<Outlet> {
    let (path, mut is_told) = (path.display().to_string(), false);
    let write = move |piece: &[u8]| {
        if let Err(error) = file.write_all(piece)
            && !std::mem::replace(&mut is_told, true)
        {
            log::warn!("cannot write {path}: {error}; training goes on, this is said once");
        }
    };
    Outlet::start("log", write, remark)
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
        if let Some(file) = self.file.get() {
            file.push(line.clone().into_bytes());
        }
        outlet::stderr(line);
    }

    fn flush(&self) {
        outlet::flush_all();
    }
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
