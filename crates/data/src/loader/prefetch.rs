//! A generic bounded queue of items that threads make ahead of time and that are returned in order.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fnet_common::{Error, Result};
use fnet_protocol::contain;

/// How long the consumer waits for one item before it gives up.
const BATCH_TIMEOUT: Duration = Duration::from_secs(600);
/// How long dropping waits for the threads. A thread that is stuck in the kernel is abandoned.
const JOIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Makes item `i`. Called once for each `i`, on several threads at once. Long work should check the flag regularly and
/// return early, with any result, once it is set.
pub(super) type Make<T> = dyn Fn(usize, &AtomicBool) -> Result<T> + Send + Sync;
/// Describes the work of making item `i`.
pub(super) type Describe = dyn Fn(usize) -> String + Send + Sync;

/// The items `0..count` in order.
pub(super) struct Prefetch<T> {
    shared: Arc<Shared<T>>,
    threads: usize,
    ended: bool,
}

struct Shared<T> {
    make: Box<Make<T>>,
    describe: Box<Describe>,
    count: usize,
    /// Maximum number of items that are finished or in progress ahead of the consumer.
    capacity: usize,
    canceled: AtomicBool,
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    next_to_make: usize,
    next_to_take: usize,
    finished: BTreeMap<usize, Result<T>>,
    running_threads: usize,
}

impl<T: Send + 'static> Prefetch<T> {
    /// Starts `threads` threads that keep up to `ahead` items per thread ready. Without threads, items are made on
    /// demand.
    pub fn new(
        count: usize,
        threads: usize,
        ahead: usize,
        make: Box<Make<T>>,
        describe: Box<Describe>,
    ) -> Result<Self> {
        let threads = threads.min(count);
        let state = State { next_to_make: 0, next_to_take: 0, finished: BTreeMap::new(), running_threads: 0 };
        let shared = Arc::new(Shared {
            make,
            describe,
            count,
            capacity: threads * ahead.max(1),
            canceled: AtomicBool::new(false),
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let prefetch = Self { shared, threads, ended: false };
        for i in 0..threads {
            let shared = Arc::clone(&prefetch.shared);
            prefetch.shared.lock().running_threads += 1;
            let started = std::thread::Builder::new().name(format!("loader-{i}")).spawn(move || shared.work());
            if let Err(error) = started {
                prefetch.shared.lock().running_threads -= 1;
                return Err(Error::environment(format!("cannot start loader thread {i} of {threads}: {error}")));
            }
        }
        Ok(prefetch)
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The main function of a thread.
    fn work(&self) {
        fnet_common::process::use_all_cpus();
        let mut state = self.lock();
        while !self.canceled.load(Ordering::Relaxed) && state.next_to_make < self.count {
            if state.next_to_make >= state.next_to_take + self.capacity {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let item = state.next_to_make;
            state.next_to_make += 1;
            drop(state);
            let result = self.make(item);
            state = self.lock();
            state.finished.insert(item, result);
            self.changed.notify_all();
        }
        state.running_threads -= 1;
        self.changed.notify_all();
    }

    fn make(&self, item: usize) -> Result<T> {
        catch_unwind(AssertUnwindSafe(|| (self.make)(item, &self.canceled))).unwrap_or_else(|panic| {
            Err(Error::bug(format!("loading {} panicked: {}", (self.describe)(item), contain::text(&*panic))))
        })
    }
}

impl<T> Iterator for Prefetch<T> {
    type Item = Result<T>;

    /// The next item. After an error the iterator ends.
    fn next(&mut self) -> Option<Result<T>> {
        if self.ended {
            return None;
        }
        let shared = &self.shared;
        let mut state = shared.lock();
        let item = state.next_to_take;
        if item == shared.count {
            return None;
        }
        if self.threads == 0 {
            state.next_to_take += 1;
            drop(state);
            let result = shared.make(item);
            self.ended = result.is_err();
            return Some(result);
        }
        let deadline = Instant::now() + BATCH_TIMEOUT;
        let result = loop {
            if let Some(result) = state.finished.remove(&item) {
                break result;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let what = (shared.describe)(item);
                let seconds = BATCH_TIMEOUT.as_secs();
                break Err(Error::data(format!("no progress for {seconds} s while loading {what}; check the disk")));
            }
            state = shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        };
        state.next_to_take += 1;
        drop(state);
        shared.changed.notify_all();
        self.ended = result.is_err();
        Some(result)
    }
}

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        self.shared.canceled.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + JOIN_TIMEOUT;
        let mut state = self.shared.lock();
        self.shared.changed.notify_all();
        while state.running_threads > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.finished.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn numbers(count: usize, threads: usize, make: Box<Make<usize>>) -> Prefetch<usize> {
        Prefetch::new(count, threads, 2, make, Box::new(|i| format!("item {i}"))).unwrap()
    }

    #[test]
    fn items_come_in_order_with_any_number_of_threads() {
        for threads in [0, 1, 2, 5, 50] {
            let make = |i: usize, _: &AtomicBool| {
                std::thread::sleep(Duration::from_micros((i as u64 * 7919) % 500));
                Ok(i * i)
            };
            let items: Vec<usize> = numbers(40, threads, Box::new(make)).map(Result::unwrap).collect();
            assert_eq!(items, (0..40).map(|i| i * i).collect::<Vec<_>>(), "{threads} threads");
        }
    }

    #[test]
    fn no_more_items_are_made_than_the_queue_holds() {
        let made = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&made);
        let mut items = numbers(
            1000,
            2,
            Box::new(move |i, _| {
                counter.fetch_add(1, Ordering::SeqCst);
                Ok(i)
            }),
        );
        for taken in 1..5 {
            items.next().unwrap().unwrap();
            std::thread::sleep(Duration::from_millis(20));
            assert!(made.load(Ordering::SeqCst) <= taken + 4, "at most 2 threads * 2 items ahead");
        }
    }

    #[test]
    fn a_panic_is_an_error_that_names_the_item_and_ends_the_rest() {
        let mut items = numbers(5, 2, Box::new(|i, _| if i == 1 { panic!("out of tea") } else { Ok(i) }));
        assert_eq!(items.next().unwrap().unwrap(), 0);
        let message = items.next().unwrap().unwrap_err().to_string();
        assert!(message.contains("item 1") && message.contains("out of tea"), "{message}");
        assert!(items.next().is_none());
    }

    #[test]
    fn dropping_stops_the_threads_at_once() {
        let started = Instant::now();
        let mut items = numbers(
            1_000_000,
            3,
            Box::new(|i, canceled| {
                while i > 0 && !canceled.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(i)
            }),
        );
        items.next().unwrap().unwrap();
        let shared = Arc::clone(&items.shared);
        drop(items);
        assert!(started.elapsed() < JOIN_TIMEOUT);
        assert_eq!(shared.lock().running_threads, 0);
    }
}
