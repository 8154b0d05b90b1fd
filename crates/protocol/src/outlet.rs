//! Lines for a terminal, a pipe or a file that may take them late or never: a thread of their own writes them, so that
//! nobody who says something waits for whoever reads it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes that may wait; what comes beyond is dropped and counted.
const MAX_WAITING: usize = 4 << 20;

/// How long the end of a process waits for what is still to be written.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// What is written in place of so many pieces that were dropped; nothing if `None`.
pub type Remark = dyn Fn(u64) -> Option<Vec<u8>> + Send + Sync;

/// A queue and the thread that writes what comes through it. When it is dropped, what waits is still written.
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
    /// Bytes of `waiting`.
    bytes: usize,
    /// Pieces that were dropped since the last one that was taken.
    dropped: u64,
    /// A piece has been taken and is not written yet.
    writing: bool,
    /// Nothing more comes.
    ended: bool,
}

// What ends the process knows nothing of who has something to write.
static ALL: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());
static STDERR: OnceLock<Option<Outlet>> = OnceLock::new();

impl Outlet {
    /// Starts the thread `name`, which hands each piece to `write`.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(name: &str, write: impl FnMut(&[u8]) + Send + 'static, remark: Box<Remark>) -> io::Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new(), remark });
        let writer = Arc::clone(&shared);
        thread::Builder::new().name(name.to_owned()).spawn(move || writer.write_all(write))?;
        let mut all = lock(&ALL);
        all.retain(|one| one.strong_count() > 0);
        all.push(Arc::downgrade(&shared));
        Ok(Self { shared })
    }

    /// Has a piece written after all that came before it. Never waits; if too much waits already, the piece is dropped.
    pub fn push(&self, piece: Vec<u8>) {
        let mut queue = lock(&self.shared.queue);
        if queue.bytes > 0 && queue.bytes + piece.len() > MAX_WAITING {
            queue.dropped += 1;
            return;
        }
        self.shared.own_up(&mut queue);
        queue.add(piece);
        self.shared.changed.notify_all();
    }

    /// Waits until everything is written; `false` if that takes longer than `patience`.
    pub fn flush(&self, patience: Duration) -> bool {
        self.shared.flush(Instant::now() + patience)
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
    /// Puts the remark about what was dropped in its place.
    fn own_up(&self, queue: &mut Queue) {
        let dropped = std::mem::take(&mut queue.dropped);
        if let Some(remark) = (dropped > 0).then(|| (self.remark)(dropped)).flatten() {
            queue.add(remark);
        }
    }

    fn write_all(&self, mut write: impl FnMut(&[u8])) {
        let mut queue = lock(&self.queue);
        loop {
            if queue.waiting.is_empty() {
                self.own_up(&mut queue);
            }
            if let Some(piece) = queue.waiting.pop_front() {
                // It still counts while it is being written.
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

/// Writes text to stderr after all that was written here before, without waiting for whoever reads it.
pub fn stderr(text: impl Into<String>) {
    let remark = |count: u64| Some(format!("fnet: {count} messages are missing here: nobody took them\n").into_bytes());
    let start = || Outlet::start("stderr", write_to_stderr, Box::new(remark)).ok();
    match STDERR.get_or_init(start) {
        Some(outlet) => outlet.push(text.into().into_bytes()),
        None => write_to_stderr(text.into().as_bytes()),
    }
}

/// Waits until all that was handed over is written, for [`FLUSH_TIMEOUT`] at most in all.
pub fn flush_all() {
    let deadline = Instant::now() + FLUSH_TIMEOUT;
    let all: Vec<Arc<Shared>> = lock(&ALL).iter().filter_map(Weak::upgrade).collect();
    for one in all {
        one.flush(deadline);
    }
}

fn write_to_stderr(text: &[u8]) {
    // Not by std's handle, whose lock would keep everybody waiting who uses that.
    // SAFETY: the descriptor of stderr, which is not closed here; if the process has none, the write fails.
    let mut stderr = ManuallyDrop::new(unsafe { File::from_raw_fd(libc::STDERR_FILENO) });
    // Nothing can be said about a stderr that cannot be written.
    let _ = stderr.write_all(text);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Valid between any two statements, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// An outlet that writes a piece for each token, and what it has written.
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
    fn who_speaks_never_waits_and_what_is_dropped_is_counted_in_its_place() {
        let (outlet, tokens, written) = outlet();
        let large = || vec![b'x'; MAX_WAITING / 4];
        outlet.push(b"first".to_vec());
        for _ in 0..8 {
            outlet.push(large());
        }
        assert!(!outlet.flush(Duration::from_millis(10)), "nothing is taken");
        assert!(lock(&written).is_empty());
        (0..4).for_each(|_| tokens.send(()).unwrap());
        let deadline = Instant::now() + PATIENCE;
        while lock(&written).len() < 4 {
            assert!(Instant::now() < deadline);
            thread::sleep(Duration::from_millis(1));
        }
        outlet.push(b"last".to_vec());
        drop(tokens);
        assert!(outlet.flush(PATIENCE));
        let x = "x".repeat(20);
        assert_eq!(*lock(&written), ["first", &x, &x, &x, "5 missing", "last"]);
    }

    #[test]
    fn what_was_dropped_last_is_counted_too_and_what_waits_is_written_after_the_end() {
        let (outlet, tokens, written) = outlet();
        for _ in 0..3 {
            outlet.push(vec![b'y'; MAX_WAITING]);
        }
        let shared = Arc::clone(&outlet.shared);
        drop((outlet, tokens));
        let deadline = Instant::now() + PATIENCE;
        while Arc::strong_count(&shared) > 1 {
            assert!(Instant::now() < deadline, "the thread does not end");
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(*lock(&written), [&"y".repeat(20), "2 missing"]);
    }
}
