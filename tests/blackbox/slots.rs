//! How much may run at once: a job takes a slot for each rank that computes, and one that mostly waits takes a single
//! slot, so that tests which wait do not hold up those which compute.

use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::available_parallelism;

static TAKEN: Mutex<usize> = Mutex::new(0);
static GIVEN_BACK: Condvar = Condvar::new();

/// Some of the slots, until it is dropped.
pub struct Slots(usize);

/// Takes `count` slots, or all of them if there are fewer, once so many are free. There are two for each core, since
/// even a job that computes waits for the disk and for its slowest rank.
pub fn take(count: usize) -> Slots {
    let all = 2 * available_parallelism().map_or(2, usize::from);
    let count = count.min(all);
    let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut taken = GIVEN_BACK.wait_while(taken, |taken| *taken + count > all).unwrap_or_else(PoisonError::into_inner);
    *taken += count;
    Slots(count)
}

impl Drop for Slots {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
        GIVEN_BACK.notify_all();
    }
}
