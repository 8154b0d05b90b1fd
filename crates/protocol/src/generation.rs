//! The generation of a work folder: a number that grows with every attempt to train into it, so that what is left of an older
//! attempt, cut off from its job, cannot replace what the newer one writes.
//!
//! The file is locked (`flock`) while the number grows and while a checkpoint gets its name, so a checkpoint is named either
//! before a newer attempt begins or not at all. On a file system without locks, only an attempt that begins between the check
//! and the renaming would go unnoticed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::env;

/// Name of the file in the work folder.
const FILE: &str = ".fnet.generation";
/// How long a new attempt waits for a writer of an older one, which may be stopped.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// Digits of the number, always all of them: a write never leaves a part of another number.
const DIGITS: usize = 20;

/// Takes the next generation of an existing work folder; `None` if the one that this job had, `last`, is not its newest any more.
/// Errors: the file cannot be read or written.
pub fn take(folder: &Path, last: Option<u64>) -> io::Result<Option<u64>> {
    let file = open(folder)?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    while flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) && Instant::now() < deadline
    {
        thread::sleep(Duration::from_millis(10));
    }
    let Some(next) = after(read(&file)?, last) else { return Ok(None) };
    file.write_all_at(format!("{next:0DIGITS$}\n").as_bytes(), 0)?;
    file.sync_all()?;
    Ok(Some(next))
}

/// The generation that follows the `newest` one of a folder, for a job that had `last` before.
pub fn after(newest: u64, last: Option<u64>) -> Option<u64> {
    last.is_none_or(|last| last == newest).then_some(newest + 1)
}

/// Whether an attempt of generation `own` may still write to a folder.
pub fn may_write(newest: u64, own: u64) -> bool {
    newest <= own
}

/// The generation of this process, if the launcher has given it one.
pub fn own() -> Option<u64> {
    std::env::var(env::GENERATION).ok()?.parse().ok()
}

/// What an attempt asks before it names a file in its work folder.
#[derive(Debug, Clone)]
pub struct Fence {
    /// The work folder.
    pub folder: PathBuf,
    /// The generation of the attempt.
    pub own: u64,
}

/// The right to name a file, until it is dropped.
#[derive(Debug)]
pub struct Permit {
    _file: Option<File>,
}

impl Fence {
    /// A folder that cannot be read stops nobody: nothing in it is replaced then.
    /// Errors: why nothing is written any more, if the folder has a newer generation.
    pub fn permit(&self) -> Result<Permit, String> {
        let Ok(file) = open(&self.folder) else { return Ok(Permit { _file: None }) };
        let _ = flock(&file, FlockOperation::LockShared);
        let newest = read(&file).unwrap_or(0);
        if may_write(newest, self.own) {
            return Ok(Permit { _file: Some(file) });
        }
        Err(format!(
            "{} belongs to a newer attempt of the job (generation {newest}), from which this one (generation {}) was cut \
             off: nothing is written",
            self.folder.display(),
            self.own
        ))
    }
}

fn open(folder: &Path) -> io::Result<File> {
    File::options().create(true).truncate(false).read(true).write(true).open(folder.join(FILE))
}

/// The number in the file; 0 if it has none yet.
fn read(file: &File) -> io::Result<u64> {
    let mut text = [0; DIGITS];
    let count = file.read_at(&mut text, 0)?;
    Ok(std::str::from_utf8(&text[..count]).ok().and_then(|text| text.parse().ok()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_may_write_until_a_newer_one_begins() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let next = |last| take(folder, last).unwrap();
        assert_eq!((next(None), next(Some(1)), next(Some(1))), (Some(1), Some(2), None));
        let fence = |own| Fence { folder: folder.to_owned(), own };
        assert!(fence(1).permit().is_err());
        let held = fence(2).permit().unwrap();
        // While a file gets its name, no newer attempt begins.
        let (other, started) = (folder.to_owned(), Instant::now());
        let taken = thread::spawn(move || (take(&other, None).unwrap(), started.elapsed()));
        thread::sleep(Duration::from_millis(100));
        drop(held);
        let (next, waited) = taken.join().unwrap();
        assert!(next == Some(3) && waited >= Duration::from_millis(100), "{next:?} after {waited:?}");
        assert!(fence(2).permit().is_err() && fence(3).permit().is_ok());
        assert!(Fence { folder: folder.join("none"), own: 1 }.permit().is_ok());
    }
}
