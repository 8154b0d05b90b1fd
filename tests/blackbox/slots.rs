//! How much may run at once: a job takes a slot for each rank that computes, and one that mostly waits takes a single
//! slot, so that tests which wait do not hold up those which compute.

use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::available_parallelism;

static STATE: Mutex<State> = Mutex::new(State { taken: 0, next: 0, turn: 0 });
static CHANGED: Condvar = Condvar::new();

struct State {
    taken: usize,
    /// The ticket of who comes next.
    next: usize,
    /// The ticket of who may take slots next: in order of arrival, so that who wants many is not passed over.
    turn: usize,
}

/// Some of the slots, until it is dropped.
pub struct Slots(usize);

/// Takes `count` slots, or all of them if there are fewer, once so many are free. There are three for each core, since
/// even a job that computes waits for the disk and for its slowest rank.
pub fn take(count: usize) -> Slots {
    let all = 3 * available_parallelism().map_or(2, usize::from);
    let count = count.min(all);
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    let ticket = state.next;
    state.next += 1;
    let must_wait = |state: &mut State| state.turn != ticket || state.taken + count > all;
    let mut state = CHANGED.wait_while(state, must_wait).unwrap_or_else(PoisonError::into_inner);
    state.taken += count;
    state.turn += 1;
    CHANGED.notify_all();
    Slots(count)
}

impl Drop for Slots {
    fn drop(&mut self) {
        STATE.lock().unwrap_or_else(PoisonError::into_inner).taken -= self.0;
        CHANGED.notify_all();
    }
}
