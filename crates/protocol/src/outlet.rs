//! Output to a terminal, a pipe or a file that may block: a separate thread writes it, so that writers never wait for a
//! reader.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// Maximum number of queued bytes; more output is dropped and counted.
const MAX_WAITING: usize = 4 << 20;

/// How long an exiting process waits for queued output.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The text that replaces a number of dropped pieces, if any.
pub type Remark = dyn Fn(u64) -> Option<Vec<u8>> + Send + Sync;

/// A queue and the thread that writes its pieces. Queued pieces are still written after it is dropped.
pub struct Outlet {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    remark: Box<Remark>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Vec<u8>>,
    /// Bytes in `waiting`.
    bytes: usize,
    /// Pieces that were dropped since the last one that was queued.
    dropped: u64,
    /// A piece has been taken but not written yet.
    writing: bool,
    /// The outlet was dropped.
    ended: bool,
}

// The end of the process flushes all of them.
static ALL: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());
static STDERR: OnceLock<Option<Outlet>> = OnceLock::new();

impl Outlet {
    /// Starts the thread `name`, which passes each piece to `write`.
    pub fn start(name: &str, write: impl FnMut(&[u8]) + Send + 'static, remark: Box<Remark>) -> io::Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new(), remark });
        let writer = Arc::clone(&shared);
        thread::Builder::new().name(name.to_owned()).spawn(move || writer.write_all(write))?;
        let mut all = lock(&ALL);
        all.retain(|one| one.strong_count() > 0);
        all.push(Arc::downgrade(&shared));
        Ok(Self { shared })
    }

    /// Queues a piece. Never blocks; if the queue is full, the piece is dropped.
    pub fn push(&self, piece: Vec<u8>) {
        let mut queue = lock(&self.shared.queue);
        if queue.bytes > 0 && queue.bytes + piece.len() > MAX_WAITING {
            queue.dropped += 1;
            return;
        }
        self.shared.report_dropped(&mut queue);
        queue.add(piece);
        self.shared.changed.notify_all();
    }

    /// Waits until everything is written; `false` if that takes longer than `timeout`.
    pub fn flush(&self, timeout: Duration) -> bool {
        self.shared.flush(Instant::now() + timeout)
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        lock(&self.shared.queue).ended = true;
        self.shared.changed.notify_all();
    }
}

impl Queue {
    fn add(&mut self, piece: Vec<u8>) {
        self.bytes += piece.len();
        self.waiting.push_back(piece);
    }
}

impl Shared {
    /// Queues the remark about dropped pieces in their place.
    fn report_dropped(&self, queue: &mut Queue) {
        let dropped = std::mem::take(&mut queue.dropped);
        if let Some(remark) = (dropped > 0).then(|| (self.remark)(dropped)).flatten() {
            queue.add(remark);
        }
    }

    fn write_all(&self, mut write: impl FnMut(&[u8])) {
        let mut queue = lock(&self.queue);
        loop {
            if queue.waiting.is_empty() {
                self.report_dropped(&mut queue);
            }
            if let Some(piece) = queue.waiting.pop_front() {
                // Its bytes still count while it is being written.
                queue.writing = true;
                drop(queue);
                write(&piece);
                queue = lock(&self.queue);
                queue.bytes -= piece.len();
                queue.writing = false;
                self.changed.notify_all();
            } else if queue.ended {
                return;
            } else {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn flush(&self, deadline: Instant) -> bool {
        let mut queue = lock(&self.queue);
        while queue.writing || !queue.waiting.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            queue = self.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// Writes text to stderr in order, without blocking.
pub fn stderr(text: impl Into<String>) {
    let remark =
        |count: u64| Some(format!("fnet: {count} messages are missing here because stderr was blocked\n").into_bytes());
    let start = || Outlet::start("stderr", write_to_stderr, Box::new(remark)).ok();
    match STDERR.get_or_init(start) {
        Some(outlet) => outlet.push(text.into().into_bytes()),
        None => write_to_stderr(text.into().as_bytes()),
    }
}

/// Waits until all outlets are written, for [`FLUSH_TIMEOUT`] at most.
pub fn flush_all() {
    let deadline = Instant::now() + FLUSH_TIMEOUT;
    let all: Vec<Arc<Shared>> = lock(&ALL).iter().filter_map(Weak::upgrade).collect();
    for one in all {
        one.flush(deadline);
    }
}

fn write_to_stderr(text: &[u8]) {
    // Not through std's handle: its lock would block its other users.
    // SAFETY: ManuallyDrop keeps stderr open; if the process has none, the write fails.
    let mut stderr = ManuallyDrop::new(unsafe { File::from_raw_fd(libc::STDERR_FILENO) });
    // There is no other place to report this.
    let _ = stderr.write_all(text);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Consistent between any two statements, so poisoning does not matter.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    /// An outlet that writes one piece per token, and what it has written.
    fn outlet() -> (Outlet, mpsc::Sender<()>, Arc<Mutex<Vec<String>>>) {
        let (sender, receiver) = mpsc::channel::<()>();
        let written: Arc<Mutex<Vec<String>>> = Arc::default();
        let to = Arc::clone(&written);
        let write = move |piece: &[u8]| {
            let _ = receiver.recv();
            lock(&to).push(String::from_utf8_lossy(&piece[..piece.len().min(20)]).into_owned());
        };
        (
            Outlet::start("test", write, Box::new(|count| Some(format!("{count} missing").into_bytes()))).unwrap(),
            sender,
            written,
        )
    }

    #[test]
    fn writers_never_wait_and_dropped_pieces_are_counted_in_their_place() {
        let (outlet, tokens, written) = outlet();
        let large = || vec![b'x'; MAX_WAITING / 4];
        outlet.push(b"first".to_vec());
        for _ in 0..8 {
            outlet.push(large());
        }
        assert!(!outlet.flush(Duration::from_millis(10)), "nothing is written");
        assert!(lock(&written).is_empty());
        (0..4).for_each(|_| tokens.send(()).unwrap());
        let deadline = Instant::now() + TIMEOUT;
        while lock(&written).len() < 4 {
            assert!(Instant::now() < deadline);
            thread::sleep(Duration::from_millis(1));
        }
        outlet.push(b"last".to_vec());
        drop(tokens);
        assert!(outlet.flush(TIMEOUT));
        let x = "x".repeat(20);
        assert_eq!(*lock(&written), ["first", &x, &x, &x, "5 missing", "last"]);
    }

    #[test]
    fn queued_pieces_are_written_after_the_end_and_the_last_dropped_ones_counted() {
        let (outlet, tokens, written) = outlet();
        for _ in 0..3 {
            outlet.push(vec![b'y'; MAX_WAITING]);
        }
        let shared = Arc::clone(&outlet.shared);
        drop((outlet, tokens));
        let deadline = Instant::now() + TIMEOUT;
        while Arc::strong_count(&shared) > 1 {
            assert!(Instant::now() < deadline, "the thread does not end");
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(*lock(&written), [&"y".repeat(20), "2 missing"]);
    }
}
