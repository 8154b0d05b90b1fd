//! The current status of a worker, in memory that it shares with the launcher.
//!
//! Heartbeats can be a second old; this page is exact, even after a worker was killed or stopped. The launcher creates it
//! as an anonymous file, passes it on by [`crate::env::STATUS_FD`], and reads it at any time without locking. Without a
//! launcher the page belongs to the worker alone.

use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::mm::{MapFlags, ProtFlags, mmap};

use crate::clock;
use crate::message::{Operation, Phase, WorkerStatus};

/// Size of the page in bytes.
pub const BYTES: usize = WORDS * 8;
const WORDS: usize = 8;

/// One word per value of a [`WorkerStatus`]; written by the worker only.
#[derive(Debug, Default)]
#[repr(C)]
pub struct StatusPage {
    phase: AtomicU64,
    epoch: AtomicU64,
    step: AtomicU64,
    /// Milliseconds of the monotonic clock at which the working thread last reported progress.
    last_progress: AtomicU64,
    /// Number of collectives begun.
    collective: AtomicU64,
    operation: AtomicU64,
    _reserved: [AtomicU64; 2],
}

// One process is one rank, and collectives deep in the code update the page.
static PAGE: OnceLock<&'static StatusPage> = OnceLock::new();

/// The page of this process: the launcher's if it passed one, else its own.
pub fn page() -> &'static StatusPage {
    PAGE.get_or_init(|| Box::leak(Box::new(StatusPage::new())))
}

/// Maps the page that the launcher passed, if any. Must be called before [`page`].
/// Errors: the environment does not name an inherited page.
pub fn adopt_from_environment() -> io::Result<()> {
    let Some(value) = std::env::var_os(crate::env::STATUS_FD) else { return Ok(()) };
    let wrong = || {
        let text = format!(
            "{}={}: expected the number of an inherited file of {BYTES} bytes",
            crate::env::STATUS_FD,
            value.to_string_lossy()
        );
        io::Error::new(io::ErrorKind::InvalidInput, text)
    };
    let fd = value.to_str().and_then(|text| text.parse::<RawFd>().ok()).filter(|&fd| fd > 2).ok_or_else(wrong)?;
    if !fs::metadata(format!("/proc/self/fd/{fd}")).is_ok_and(|file| file.len() == BYTES as u64) {
        return Err(wrong());
    }
    // SAFETY: this open descriptor was inherited for this purpose and nothing else uses it; the mapping stays without it.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
    // SAFETY: a new mapping of a file of exactly BYTES bytes, at an address of the system's choice.
    let address = unsafe { mmap(std::ptr::null_mut(), BYTES, protection, flags, &file, 0) }?;
    // SAFETY: the mapping has the size of a StatusPage, is aligned to a memory page and never unmapped, and any bits
    // are a valid StatusPage.
    let page = unsafe { &*address.cast::<StatusPage>() };
    page.touch();
    // An earlier caller of `page` keeps a page that nobody reads.
    let _ = PAGE.set(page);
    Ok(())
}

impl StatusPage {
    /// An empty page with progress now.
    pub fn new() -> Self {
        let page = Self::default();
        page.touch();
        page
    }

    pub(crate) fn set_step(&self, epoch: u64, step: u64) {
        self.epoch.store(epoch, Ordering::Relaxed);
        self.step.store(step, Ordering::Relaxed);
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.store(u64::from(phase.index()), Ordering::Relaxed);
        self.touch();
    }

    /// Reports progress.
    pub fn touch(&self) {
        self.last_progress.store(now(), Ordering::Relaxed);
    }

    /// Begins a collective in which this rank waits for the others until the guard is dropped.
    pub fn collective(&self, operation: Operation) -> Collective<'_> {
        let collective = self.overlapped_collective();
        self.wait(operation);
        collective
    }

    /// Begins a collective that overlaps with other work; [`StatusPage::wait`] marks the end of that work.
    pub fn overlapped_collective(&self) -> Collective<'_> {
        self.collective.fetch_add(1, Ordering::Relaxed);
        Collective { page: self }
    }

    /// This rank waits in the collective that it last began.
    pub fn wait(&self, operation: Operation) {
        self.operation.store(u64::from(operation.index()), Ordering::Relaxed);
        self.touch();
    }

    /// This rank no longer waits in a collective; the same as dropping a [`Collective`].
    pub fn end_collective(&self) {
        self.operation.store(0, Ordering::Relaxed);
        self.touch();
    }

    /// The current status.
    pub fn read(&self) -> WorkerStatus {
        let words = [&self.phase, &self.epoch, &self.step, &self.last_progress, &self.collective, &self.operation];
        to_status(words.map(|word| word.load(Ordering::Relaxed)))
    }
}

/// A collective in progress on this rank.
#[must_use]
pub struct Collective<'a> {
    page: &'a StatusPage,
}

impl Drop for Collective<'_> {
    fn drop(&mut self) {
        self.page.end_collective();
    }
}

/// The status in the bytes of a page; `None` if the worker has not written it yet.
pub fn from_bytes(bytes: &[u8]) -> Option<WorkerStatus> {
    let (words, _) = bytes.as_chunks::<8>();
    let words: [u64; 6] =
        words.get(..6)?.iter().map(|word| u64::from_ne_bytes(*word)).collect::<Vec<_>>().try_into().ok()?;
    (words[3] > 0).then(|| to_status(words))
}

fn to_status([phase, epoch, step, last_progress, collective, operation]: [u64; 6]) -> WorkerStatus {
    WorkerStatus {
        phase: Phase::from_index(u8::try_from(phase).unwrap_or(u8::MAX)),
        epoch,
        step,
        idle_seconds: Duration::from_millis(now().saturating_sub(last_progress)).as_secs_f64(),
        collective,
        operation: Operation::from_index(u8::try_from(operation).unwrap_or(0)),
        activity: None,
    }
}

/// Milliseconds of the monotonic clock; never 0, which means that nothing was written.
fn now() -> u64 {
    u64::try_from(clock::monotonic().as_millis()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_page_hold_its_status() {
        let page = StatusPage::new();
        page.set_step(2, 17);
        page.set_phase(Phase::Backward);
        let inside = page.collective(Operation::GradientAllReduce);
        let status = page.read();
        assert_eq!((status.phase, status.epoch, status.step, status.collective), (Phase::Backward, 2, 17, 1));
        assert_eq!(status.operation, Operation::GradientAllReduce);
        assert!(status.idle_seconds < 60.0);
        drop(inside);
        assert_eq!(page.read().operation, Operation::None);
        // SAFETY: a StatusPage is BYTES long, in plain words without padding.
        let bytes = unsafe { std::slice::from_raw_parts((&raw const page).cast::<u8>(), BYTES) };
        assert_eq!(from_bytes(bytes).unwrap().step, 17);
        assert_eq!(from_bytes(&bytes[..40]), None);
        assert_eq!(from_bytes(&[0; BYTES]), None, "nothing was written");
        assert_eq!(size_of::<StatusPage>(), BYTES);
    }
}
