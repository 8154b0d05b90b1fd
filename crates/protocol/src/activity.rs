//! Work that may block, such as reading a file, so that a report of a hang can name it.

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

// One process is one rank, and threads deep in the code begin work.
static ENTRIES: Mutex<Entries> = Mutex::new(Entries { next: 0, list: Vec::new() });

/// Work in progress, until this is dropped.
#[must_use]
pub struct Guard {
    number: u64,
}

/// Begins work, for example `reading train/1.jpg`.
pub fn begin(what: impl Into<String>) -> Guard {
    let mut entries = lock();
    let number = entries.next;
    entries.next += 1;
    entries.list.push(Entry { number, what: what.into(), since: Instant::now() });
    Guard { number }
}

/// The longest-running work.
pub fn longest() -> Option<Activity> {
    // Entries are in chronological order.
    lock().list.first().map(|entry| Activity { what: entry.what.clone(), seconds: entry.since.elapsed().as_secs_f64() })
}

impl Drop for Guard {
    fn drop(&mut self) {
        lock().list.retain(|entry| entry.number != self.number);
    }
}

fn lock() -> MutexGuard<'static, Entries> {
    // Consistent between any two statements, so poisoning does not matter.
    ENTRIES.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_work_is_reported_until_it_is_over() {
        let first = begin("reading a.jpg");
        let second = begin("reading b.jpg");
        assert_eq!(longest().unwrap().what, "reading a.jpg");
        drop(first);
        assert_eq!(longest().unwrap().what, "reading b.jpg");
        drop(second);
        assert_eq!(longest(), None);
    }
}
