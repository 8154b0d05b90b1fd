//! Requests to stop: from the control channel and, under other launchers, from signals.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, Ordering};

use crate::message::StopReason;

const NONE: u8 = 0;
const TERMINATED: u8 = 1;
const INTERRUPTED: u8 = 2;

struct State {
    stop: AtomicU8,
    at_checkpoint: AtomicBool,
    lost_peer: AtomicI64,
}

// Signals concern the whole process, and a signal handler can access only statics.
static STATE: State = State::new();

impl State {
    const fn new() -> Self {
        Self { stop: AtomicU8::new(NONE), at_checkpoint: AtomicBool::new(false), lost_peer: AtomicI64::new(-1) }
    }

    fn requested(&self) -> Option<StopReason> {
        match self.stop.load(Ordering::Relaxed) {
            NONE => None,
            INTERRUPTED => Some(StopReason::Interrupted),
            _ => Some(StopReason::Terminated),
        }
    }

    fn request(&self, reason: StopReason) {
        let value = match reason {
            StopReason::Interrupted => INTERRUPTED,
            StopReason::Terminated => TERMINATED,
        };
        self.stop.fetch_max(value, Ordering::Relaxed);
    }

    fn lost_peer(&self) -> Option<usize> {
        usize::try_from(self.lost_peer.load(Ordering::Relaxed)).ok()
    }

    fn set_lost_peer(&self, rank: usize) {
        let rank = i64::try_from(rank).unwrap_or(i64::MAX);
        let _ = self.lost_peer.compare_exchange(-1, rank, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Why this process was asked to stop, if it was. Cheap enough for every step.
pub fn requested() -> Option<StopReason> {
    STATE.requested()
}

/// Asks this process to stop. Ctrl-C takes precedence over the SIGTERM that the launcher sends along with it.
pub fn request(reason: StopReason) {
    STATE.request(reason);
}

/// Whether this process was asked to stop at its next checkpoint or end of an epoch.
pub fn at_checkpoint() -> bool {
    STATE.at_checkpoint.load(Ordering::Relaxed)
}

/// Asks this process to stop at its next checkpoint or end of an epoch.
pub(crate) fn request_at_checkpoint() {
    STATE.at_checkpoint.store(true, Ordering::Relaxed);
}

/// The rank that the launcher has reported as lost.
pub fn lost_peer() -> Option<usize> {
    STATE.lost_peer()
}

/// Records that a rank is lost; the first one is kept.
pub(crate) fn set_lost_peer(rank: usize) {
    STATE.set_lost_peer(rank);
}

extern "C" fn on_signal(signal: libc::c_int) {
    request(if signal == libc::SIGINT { StopReason::Interrupted } else { StopReason::Terminated });
}

/// Handles SIGINT, SIGTERM and SIGUSR1 as requests to stop. A second SIGINT terminates the process.
pub fn listen_to_signals() -> io::Result<()> {
    for (signal, flags) in [(libc::SIGINT, libc::SA_RESETHAND), (libc::SIGTERM, 0), (libc::SIGUSR1, 0)] {
        // SAFETY: all zeroes is a valid `sigaction` (no flags, empty mask).
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_signal as *const () as libc::sighandler_t;
        action.sa_flags = flags | libc::SA_RESTART;
        // SAFETY: `action` is initialized, and the handler only stores to an atomic, which is async-signal-safe.
        if unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_a_request_to_stop() {
        listen_to_signals().unwrap();
        // SAFETY: raising a signal that has a handler has no other effect.
        unsafe { libc::raise(libc::SIGUSR1) };
        assert!(requested().is_some());
    }

    #[test]
    fn ctrl_c_takes_precedence_over_sigterm() {
        let state = State::new();
        assert_eq!(state.requested(), None);
        state.request(StopReason::Terminated);
        assert_eq!(state.requested(), Some(StopReason::Terminated));
        state.request(StopReason::Interrupted);
        state.request(StopReason::Terminated);
        assert_eq!(state.requested(), Some(StopReason::Interrupted));
    }

    #[test]
    fn the_first_lost_peer_stays() {
        let state = State::new();
        assert_eq!(state.lost_peer(), None);
        state.set_lost_peer(3);
        state.set_lost_peer(1);
        assert_eq!(state.lost_peer(), Some(3));
    }
}
