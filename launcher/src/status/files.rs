//! Writes the files of the status, and the launcher's lines in the text log, on a thread of its own: a disk that does not
//! respond must not block the supervision.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fnet_protocol::generation::Fence;
use fnet_protocol::outlet::{Outlet, append};
use fnet_protocol::text::log_line;
use fnet_protocol::work_dir::{METRICS, STATUS, TEMPORARY, Writer, temporary_prefix};

use super::{JobStatus, prometheus};
use crate::output::{self, Stream};

/// Levels of the launcher's lines in the text log.
pub const INFO: &str = "INFO";
pub const WARNING: &str = "WARNING";
pub const ERROR: &str = "ERROR";

/// What the thread has not taken yet: only the newest status, but every line.
#[derive(Default)]
struct Pending {
    status: Option<(Box<JobStatus>, Option<Fence>)>,
    lines: Vec<(PathBuf, String)>,
}

/// The files of a job.
pub struct Files {
    outlet: Outlet,
    pending: Arc<Mutex<Pending>>,
}

impl Files {
    /// Starts the thread for the files of a work folder.
    pub fn start(folder: PathBuf) -> io::Result<Self> {
        let pending: Arc<Mutex<Pending>> = Arc::default();
        let (waiting, mut is_reported) = (Arc::clone(&pending), false);
        let write = move |_: &[u8]| {
            let Pending { status, lines } =
                std::mem::take(&mut *waiting.lock().unwrap_or_else(PoisonError::into_inner));
            let mut written = status.map_or(Ok(()), |(status, fence)| write_status(&folder, &status, fence.as_ref()));
            for (log, line) in lines {
                // Whole lines at the end of the file, between those of rank 0.
                let file = File::options().append(true).open(log);
                written = written.and(file.and_then(|mut file| append(&mut file, line.as_bytes())));
            }
            if let Err(error) = written
                && !std::mem::replace(&mut is_reported, true)
            {
                let text = format!(
                    "fnet-launch: warning: cannot write the status of the job to {}: {error}; the job goes on\n",
                    folder.display()
                );
                output::write(Stream::Err, text.as_bytes());
            }
        };
        Ok(Self { outlet: Outlet::start("status", write, Box::new(|_| None))?, pending })
    }

    fn add(&self, change: impl FnOnce(&mut Pending)) {
        change(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        // The thread takes everything that is pending with the next piece.
        self.outlet.push(Vec::new());
    }

    /// Replaces the files of the status, unless they belong to a newer attempt than that of `fence`.
    pub fn write(&self, status: &JobStatus, fence: Option<&Fence>) {
        let status = (Box::new(status.clone()), fence.cloned());
        self.add(|pending| pending.status = Some(status));
    }

    /// Appends a [`line()`] to a text log.
    pub fn append(&self, log: &Path, line: String) {
        self.add(|pending| pending.lines.push((log.to_path_buf(), line)));
    }

    /// Waits until everything is written, unless the disk takes nothing for `timeout`.
    pub fn flush(&self, timeout: Duration) {
        self.outlet.flush(timeout);
    }
}

/// A line of now in the format of rank 0's lines, of [`INFO`], [`WARNING`] or [`ERROR`].
pub fn line(level: &str, text: &str) -> String {
    log_line(&jiff::Zoned::now(), "fnet-launch", level, text)
}

fn write_status(folder: &Path, status: &JobStatus, fence: Option<&Fence>) -> io::Result<()> {
    let permit = fence.map(Fence::permit);
    if matches!(permit, Some(Err(_))) {
        return Ok(());
    }
    let json = serde_json::to_vec_pretty(status).map_err(io::Error::other)?;
    replace(folder, STATUS, &[&json[..], b"\n"].concat())?;
    replace(folder, METRICS, prometheus::text(status).as_bytes())
}

/// Readers see the old or the new file. It need not survive a crash of the machine, so nothing waits for the disk.
fn replace(folder: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let temporary = folder.join(format!("{}0{TEMPORARY}", temporary_prefix(name, &Writer::this())));
    let written = fs::write(&temporary, content).and_then(|()| fs::rename(&temporary, folder.join(name)));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}
