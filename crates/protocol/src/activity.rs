//! Work that may take long or block, as files that are read or written: what hangs is named.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::message::Activity;

struct Entry {
    number: u64,
    what: String,
    since: Instant,
}

struct Entries {
    next: u64,
    list: Vec<Entry>,
}

// One process is one rank, and threads deep in the code begin work without being handed a registry.
static ENTRIES: Mutex<Entries> = Mutex::new(Entries { next: 0, list: Vec::new() });

/// Work in progress; it is over when this is dropped.
#[must_use]
pub struct Guard {
    number: u64,
}

/// Says what this thread begins to do, as `reading train/1.jpg`.
pub fn begin(what: impl Into<String>) -> Guard {
    let mut entries = lock();
    let number = entries.next;
    entries.next += 1;
    entries.list.push(Entry { number, what: what.into(), since: Instant::now() });
    Guard { number }
}

/// The work that has been going on longest.
pub fn longest() -> Option<Activity> {
    // Entries are added in the order of time.
    lock().list.first().map(|entry| Activity { what: entry.what.clone(), seconds: entry.since.elapsed().as_secs_f64() })
}

impl Drop for Guard {
    fn drop(&mut self) {
        lock().list.retain(|entry| entry.number != self.number);
    }
}

fn lock() -> MutexGuard<'static, Entries> {
    // Valid between any two statements, so a panic elsewhere does not spoil it.
    ENTRIES.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_work_is_told_until_it_is_over() {
        let first = begin("reading a.jpg");
        let second = begin("reading b.jpg");
        assert_eq!(longest().unwrap().what, "reading a.jpg");
        drop(first);
        assert_eq!(longest().unwrap().what, "reading b.jpg");
        drop(second);
        assert_eq!(longest(), None);
    }
}
