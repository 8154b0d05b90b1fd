//! What a worker is doing at this moment, in memory that it shares with the launcher.
//!
//! Messages can be a second old; this page is exact even after a worker was killed or stopped. The launcher makes it as
//! an anonymous file, hands it over by [`crate::env::STATE_FD`], and reads it when it wants; nobody waits for anybody.
//! Without a launcher the page is the worker's own.

use std::io;
use std::os::fd::RawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock;
use crate::message::{Heartbeat, Operation, Phase};

/// Bytes of the page.
pub const BYTES: usize = WORDS * 8;
const WORDS: usize = 8;

/// The page, one word for each value; written by the worker alone.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Page {
    phase: AtomicU64,
    epoch: AtomicU64,
    step: AtomicU64,
    /// Milliseconds of the system's monotonic clock at which the working thread last reported headway.
    headway: AtomicU64,
    /// Collectives begun.
    collective: AtomicU64,
    operation: AtomicU64,
    _reserved: [AtomicU64; 2],
}

// One process is one rank; a collective deep in the code reaches the page without being handed it.
static PAGE: OnceLock<&'static Page> = OnceLock::new();

/// The page of this process: the launcher's if it gave one, else its own.
pub fn page() -> &'static Page {
    PAGE.get_or_init(|| Box::leak(Box::new(Page::new())))
}

/// Takes over the page that the launcher has given, if it gave one. Must come before any [`page`].
///
/// # Errors
/// If the descriptor that the environment names is no such page.
pub fn adopt_from_environment() -> io::Result<()> {
    let Some(value) = std::env::var_os(crate::env::STATE_FD) else { return Ok(()) };
    let wrong = || {
        let text = format!(
            "{}={}: expected the number of an inherited file of {BYTES} bytes",
            crate::env::STATE_FD,
            value.to_string_lossy()
        );
        io::Error::new(io::ErrorKind::InvalidInput, text)
    };
    let fd = value.to_str().and_then(|text| text.parse::<RawFd>().ok()).filter(|&fd| fd > 2).ok_or_else(wrong)?;
    // SAFETY: all zeroes is a valid `stat`.
    let mut facts: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `facts` outlives the call; fstat fails on a number that is no descriptor.
    if unsafe { libc::fstat(fd, &raw mut facts) } != 0 || usize::try_from(facts.st_size).ok() != Some(BYTES) {
        return Err(wrong());
    }
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping of a file of exactly BYTES bytes, at an address of the system's choice.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), BYTES, protection, flags, fd, 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was inherited for this purpose and nothing else uses it; the mapping stays without it.
    unsafe { libc::close(fd) };
    // SAFETY: the mapping is as long as a Page, aligned to a memory page, never unmapped, and any bits are a valid Page.
    let page = unsafe { &*address.cast::<Page>() };
    page.touch();
    // Whoever asked earlier has a page of its own, which nobody reads.
    let _ = PAGE.set(page);
    Ok(())
}

impl Page {
    /// An empty page whose headway counts from now.
    pub fn new() -> Self {
        let page = Self::default();
        page.touch();
        page
    }

    pub(crate) fn set_place(&self, epoch: u64, step: u64) {
        self.epoch.store(epoch, Ordering::Relaxed);
        self.step.store(step, Ordering::Relaxed);
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.store(u64::from(phase.index()), Ordering::Relaxed);
        self.touch();
    }

    /// Headway now.
    pub fn touch(&self) {
        self.headway.store(now(), Ordering::Relaxed);
    }

    /// Says that this rank begins a collective, and what it is; until the result is dropped it waits for the others.
    pub fn collective(&self, operation: Operation) -> Collective<'_> {
        let collective = self.overlapped_collective();
        self.wait(operation);
        collective
    }

    /// Says that this rank begins a collective while it has work of its own to do; [`Page::wait`] says when that is done.
    pub fn overlapped_collective(&self) -> Collective<'_> {
        self.collective.fetch_add(1, Ordering::Relaxed);
        Collective { page: self }
    }

    /// Says that this rank waits in the collective that it last began.
    pub fn wait(&self, operation: Operation) {
        self.operation.store(u64::from(operation.index()), Ordering::Relaxed);
        self.touch();
    }

    /// Says that this rank waits in no collective any more, as dropping a [`Collective`] does.
    pub fn end_collective(&self) {
        self.operation.store(0, Ordering::Relaxed);
        self.touch();
    }

    /// The present state.
    pub fn read(&self) -> Heartbeat {
        let words = [&self.phase, &self.epoch, &self.step, &self.headway, &self.collective, &self.operation];
        heartbeat(words.map(|word| word.load(Ordering::Relaxed)))
    }
}

/// A collective that this rank is in.
#[must_use]
pub struct Collective<'a> {
    page: &'a Page,
}

impl Drop for Collective<'_> {
    fn drop(&mut self) {
        self.page.end_collective();
    }
}

/// The state that the bytes of a worker's page tell; `None` if they are too few, or the worker has not written yet.
pub fn from_bytes(bytes: &[u8]) -> Option<Heartbeat> {
    let (words, _) = bytes.as_chunks::<8>();
    let words: [u64; 6] =
        words.get(..6)?.iter().map(|word| u64::from_ne_bytes(*word)).collect::<Vec<_>>().try_into().ok()?;
    (words[3] > 0).then(|| heartbeat(words))
}

fn heartbeat([phase, epoch, step, headway, collective, operation]: [u64; 6]) -> Heartbeat {
    Heartbeat {
        phase: Phase::from_index(u8::try_from(phase).unwrap_or(u8::MAX)),
        epoch,
        step,
        idle_seconds: Duration::from_millis(now().saturating_sub(headway)).as_secs_f64(),
        collective,
        operation: Operation::from_index(u8::try_from(operation).unwrap_or(0)),
        activity: None,
    }
}

/// Milliseconds of the system's monotonic clock; never 0, which means that nothing was written.
fn now() -> u64 {
    u64::try_from(clock::monotonic().as_millis()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_worker_writes_is_what_the_bytes_tell() {
        let page = Page::new();
        page.set_place(2, 17);
        page.set_phase(Phase::Backward);
        let inside = page.collective(Operation::Gradients);
        let state = page.read();
        assert_eq!((state.phase, state.epoch, state.step, state.collective), (Phase::Backward, 2, 17, 1));
        assert_eq!(state.operation, Operation::Gradients);
        assert!(state.idle_seconds < 60.0);
        drop(inside);
        assert_eq!(page.read().operation, Operation::None);
        // SAFETY: a Page is plain words without padding, as long as BYTES.
        let bytes = unsafe { std::slice::from_raw_parts((&raw const page).cast::<u8>(), BYTES) };
        assert_eq!(from_bytes(bytes).unwrap().step, 17);
        assert_eq!(from_bytes(&bytes[..40]), None);
        assert_eq!(from_bytes(&[0; BYTES]), None, "nothing was written");
        assert_eq!(size_of::<Page>(), BYTES);
    }
}
