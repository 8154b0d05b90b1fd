//! The text log: lines on stderr and, after [`attach`], in the work folder's log file. Logging never blocks.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use log::{Level, LevelFilter, Log, Metadata, Record};

use fnet_protocol::outlet::{self, Outlet, Remark};
use fnet_protocol::text::log_line;

use crate::{Error, Result};

static LOGGER: OnceLock<Logger> = OnceLock::new();
/// Target of lines that are for the file alone: `log::info!(target: FILE_ONLY, ...)`.
pub const FILE_ONLY: &str = "fnet-file";

struct Logger {
    name: String,
    /// Of stderr; the file has at least the information.
    level: LevelFilter,
    file: OnceLock<Outlet>,
}

/// Makes the macros of `log` write to stderr. Ranks other than 0 log only warnings and errors, with their rank. Later calls
/// have no effect.
pub fn init(rank: usize, level: LevelFilter) {
    let name = if rank == 0 { "fnet".into() } else { format!("fnet[rank {rank}]") };
    let (level, most) = if rank == 0 {
        (level, level.max(LevelFilter::Info))
    } else {
        (level.min(LevelFilter::Warn), LevelFilter::Warn)
    };
    let logger = LOGGER.get_or_init(|| Logger { name, level, file: OnceLock::new() });
    // Fails only if this logger is set already.
    let _ = log::set_logger(logger);
    log::set_max_level(most);
}

/// Appends all further lines to `path`. Only the first call has an effect.
/// Errors: an environment error if the file cannot be written.
pub fn attach(path: &Path) -> Result<()> {
    let refuse = |error| Error::environment(format!("cannot write the log {}: {error}", path.display()));
    let file = OpenOptions::new().create(true).append(true).open(path).map_err(refuse)?;
    let Some(logger) = LOGGER.get() else { return Ok(()) };
    let remark = |count: u64| {
        let text = format!("{count} lines are missing here: the disk was too slow");
        Some(log_line(&jiff::Zoned::now(), &logger.name, "WARNING", &text).into_bytes())
    };
    let _ = logger.file.set(outlet_to(file, path, Box::new(remark)).map_err(refuse)?);
    Ok(())
}

/// Appends to a file in the background. A write error is logged once.
pub fn outlet_to(mut file: File, path: &Path, remark: Box<Remark>) -> io::Result<Outlet> {
    let (path, mut is_logged) = (path.display().to_string(), false);
    let write = move |piece: &[u8]| {
        if let Err(error) = outlet::append(&mut file, piece)
            && !std::mem::replace(&mut is_logged, true)
        {
            log::warn!("cannot write {path}: {error}; training continues, and this is logged only once");
        }
    };
    Outlet::start("log", write, remark)
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Of libraries, only warnings and errors.
        metadata.target().starts_with("fnet") || metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = if record.level() == Level::Warn { "WARNING" } else { record.level().as_str() };
        let line = log_line(&jiff::Zoned::now(), &self.name, level, &record.args().to_string());
        if let Some(file) = self.file.get() {
            file.push(line.clone().into_bytes());
        }
        if record.level() <= self.level && record.target() != FILE_ONLY {
            outlet::stderr(line);
        }
    }

    fn flush(&self) {
        outlet::flush_all();
    }
}
