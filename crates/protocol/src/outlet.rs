//! Output to a terminal, a pipe or a file that may block: a separate thread writes it, so that writers never wait for a
//! reader.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Maximum number of queued bytes; more output is dropped and counted.
const MAX_WAITING: usize = 4 << 20;
/// Maximum number of bytes per write to a stream, so that a slow reader is known from one that has stopped.
const MAX_WRITE: usize = 4096;

/// How long an exiting process waits for a reader that takes nothing.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum duration of a flush as a multiple of its timeout, for slow readers.
const FLUSH_ROUNDS: u32 = 10;

/// The text that replaces a number of dropped pieces or lines, if any.
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
    /// Pieces or lines that were dropped since the last piece that was queued.
    dropped: u64,
    /// How often the reader has taken something.
    taken: u64,
    /// A piece has been taken but not written yet.
    writing: bool,
    /// The outlet was dropped.
    ended: bool,
}

// The end of the process flushes all of them.
static ALL: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());
static STDERR: OnceLock<Option<Outlet>> = OnceLock::new();
static STDOUT: OnceLock<Option<Outlet>> = OnceLock::new();

impl Outlet {
    /// Starts the thread `name`, which passes each piece to `write`.
    pub fn start(name: &str, mut write: impl FnMut(&[u8]) + Send + 'static, remark: Box<Remark>) -> io::Result<Self> {
        Self::start_in_parts(name, move |piece, _| write(piece), remark)
    }

    /// The same for a `write` that calls its second argument whenever the reader has taken a part of the piece.
    pub fn start_in_parts(
        name: &str,
        write: impl FnMut(&[u8], &dyn Fn()) + Send + 'static,
        remark: Box<Remark>,
    ) -> io::Result<Self> {
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
        self.push_counted(piece, 1);
    }

    /// The same for a piece that counts as the number of its lines where it is dropped.
    pub fn push_lines(&self, piece: Vec<u8>) {
        let lines = piece.iter().filter(|&&byte| byte == b'\n').count().max(1);
        self.push_counted(piece, lines as u64);
    }

    fn push_counted(&self, piece: Vec<u8>, count: u64) {
        let mut queue = lock(&self.shared.queue);
        if queue.bytes > 0 && queue.bytes + piece.len() > MAX_WAITING {
            queue.dropped += count;
            return;
        }
        self.shared.report_dropped(&mut queue);
        queue.add(piece);
        self.shared.changed.notify_all();
    }

    /// Waits until everything is written; `false` if the reader takes nothing for `timeout`, or not all in ten times that.
    pub fn flush(&self, timeout: Duration) -> bool {
        self.shared.flush(Some((timeout, Instant::now() + timeout * FLUSH_ROUNDS)))
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

    fn write_all(&self, mut write: impl FnMut(&[u8], &dyn Fn())) {
        let taken = || {
            lock(&self.queue).taken += 1;
            self.changed.notify_all();
        };
        let mut queue = lock(&self.queue);
        loop {
            if queue.waiting.is_empty() {
                self.report_dropped(&mut queue);
            }
            if let Some(piece) = queue.waiting.pop_front() {
                // Its bytes still count while it is being written.
                queue.writing = true;
                drop(queue);
                write(&piece, &taken);
                queue = lock(&self.queue);
                queue.bytes -= piece.len();
                queue.taken += 1;
                queue.writing = false;
                self.changed.notify_all();
            } else if queue.ended {
                return;
            } else {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Waits until everything is written; with a limit, until nothing was taken for its first part, or until its second.
    fn flush(&self, limit: Option<(Duration, Instant)>) -> bool {
        let mut queue = lock(&self.queue);
        let (mut taken, mut last) = (queue.taken, Instant::now());
        while queue.writing || !queue.waiting.is_empty() {
            let Some((timeout, end)) = limit else {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            if queue.taken != taken {
                (taken, last) = (queue.taken, Instant::now());
            }
            let left = end.min(last + timeout).saturating_duration_since(Instant::now());
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
    let write = |piece: &[u8], taken: &dyn Fn()| write_to(io::stderr().as_fd(), piece, taken);
    let start = || Outlet::start_in_parts("stderr", write, Box::new(remark)).ok();
    match STDERR.get_or_init(start) {
        Some(outlet) => outlet.push(text.into().into_bytes()),
        None => write(text.into().as_bytes(), &|| {}),
    }
}

/// Writes a result to stdout in order, without blocking.
pub fn stdout(text: impl Into<String>) {
    let write = |piece: &[u8], taken: &dyn Fn()| write_to(io::stdout().as_fd(), piece, taken);
    match STDOUT.get_or_init(|| Outlet::start_in_parts("stdout", write, Box::new(|_| None)).ok()) {
        Some(outlet) => outlet.push(text.into().into_bytes()),
        None => write(text.into().as_bytes(), &|| {}),
    }
}

/// Waits until all outlets are written; not for those whose reader takes nothing for [`FLUSH_TIMEOUT`], and ten times that
/// in all.
pub fn flush_all() {
    let end = Instant::now() + FLUSH_TIMEOUT * FLUSH_ROUNDS;
    for one in all() {
        one.flush(Some((FLUSH_TIMEOUT, end)));
    }
}

/// Waits until all outlets are written, for as long as that takes.
pub fn wait_for_all() {
    for one in all() {
        one.flush(None);
    }
}

fn all() -> Vec<Arc<Shared>> {
    lock(&ALL).iter().filter_map(Weak::upgrade).collect()
}

/// Writes a piece to a stream, also if it is non-blocking, and calls `taken` after each part. What a closed stream or a full
/// disk does not take is dropped; later output may succeed.
///
/// Not through std's handles: their locks would block other users of the stream.
pub fn write_to(stream: impl AsFd, piece: &[u8], taken: &dyn Fn()) {
    let mut rest = piece;
    while !rest.is_empty() {
        match rustix::io::write(&stream, &rest[..rest.len().min(MAX_WRITE)]) {
            Ok(count) => {
                rest = &rest[count..];
                taken();
            }
            Err(Errno::INTR) => {}
            // Whoever shares the terminal or pipe may have made it non-blocking.
            Err(Errno::AGAIN) => {
                if poll(&mut [PollFd::new(&stream, PollFlags::OUT)], None).is_err() {
                    thread::sleep(Duration::from_millis(10));
                }
            }
            Err(_) => return,
        }
    }
}

/// Appends all of `piece`, or nothing: what a full disk has taken of it is cut off, so that the next line or record is whole.
pub fn append(file: &mut File, piece: &[u8]) -> io::Result<()> {
    let end = file.seek(SeekFrom::End(0))?;
    let written = file.write_all(piece);
    if written.is_err() && file.metadata()?.len() > end {
        file.set_len(end)?;
        file.seek(SeekFrom::Start(end))?;
    }
    written
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Consistent between any two statements, so poisoning does not matter.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};
    use std::sync::mpsc;

    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

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

    fn pipe() -> (Outlet, io::PipeReader, io::PipeWriter) {
        let (reader, writer) = io::pipe().unwrap();
        let other = writer.try_clone().unwrap();
        let write = move |piece: &[u8], taken: &dyn Fn()| write_to(&writer, piece, taken);
        let remark = |count| Some(format!("[{count}]\n").into_bytes());
        (Outlet::start_in_parts("test", write, Box::new(remark)).unwrap(), reader, other)
    }

    #[test]
    fn everything_arrives_in_order_also_where_the_stream_does_not_block() {
        for non_blocking in [false, true] {
            let (outlet, mut reader, writer) = pipe();
            if non_blocking {
                fcntl_setfl(&writer, fcntl_getfl(&writer).unwrap() | OFlags::NONBLOCK).unwrap();
            }
            let lines: String = (0..100_000).map(|number| format!("line {number}\n")).collect();
            let mut text = vec![0; lines.len()];
            let read = thread::spawn(move || reader.read_exact(&mut text).map(|()| text));
            lines.split_inclusive('\n').for_each(|line| outlet.push(line.as_bytes().to_vec()));
            assert!(read.join().unwrap().unwrap() == lines.as_bytes(), "non-blocking: {non_blocking}");
            assert!(outlet.flush(TIMEOUT));
        }
    }

    #[test]
    fn a_reader_that_has_stopped_blocks_nobody_and_later_sees_how_many_lines_it_missed() {
        let (outlet, reader, _writer) = pipe();
        let lines = [&[b'x'; 511][..], b"\n"].concat().repeat(2);
        let count = 3 * MAX_WAITING / lines.len();
        for _ in 0..count {
            outlet.push_lines(lines.clone());
        }
        assert!(!outlet.flush(Duration::from_millis(20)));
        // It reads again: each line arrives, or is counted where it is missing.
        let mut reader = BufReader::new(reader);
        let (mut kept, mut missing) = (0, 0);
        while kept + missing < 2 * count {
            let mut text = String::new();
            reader.read_line(&mut text).unwrap();
            match text.trim_end().strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
                Some(number) => missing += number.parse::<usize>().unwrap(),
                None => kept += 1,
            }
        }
        assert!(missing >= count && kept >= count / 2, "{kept} {missing}");
        assert!(outlet.flush(TIMEOUT));
    }

    #[test]
    fn a_slow_reader_is_waited_for_as_long_as_it_takes_something() {
        let (outlet, mut reader, _writer) = pipe();
        outlet.push(vec![b'\n'; 1 << 17]);
        let read = thread::spawn(move || {
            let mut page = [0; 4096];
            for _ in 0..(1 << 17) / page.len() {
                thread::sleep(Duration::from_millis(80));
                reader.read_exact(&mut page).unwrap();
            }
        });
        // Half of it fits into the pipe; the rest takes longer than the timeout.
        assert!(outlet.flush(Duration::from_secs(1)));
        read.join().unwrap();
    }

    #[test]
    fn a_closed_reader_blocks_nobody() {
        let (outlet, reader, _writer) = pipe();
        drop(reader);
        for _ in 0..100 {
            outlet.push(vec![b'\n'; 1 << 16]);
        }
        assert!(outlet.flush(TIMEOUT));
    }

    #[test]
    fn a_line_that_does_not_fit_on_the_disk_leaves_no_part_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        if let Some(path) = std::env::var_os("FNET_TEST_APPEND") {
            let mut file = File::options().create(true).append(true).open(path).unwrap();
            append(&mut file, b"first\n").unwrap();
            append(&mut file, &[b'x'; 2000]).unwrap_err();
            append(&mut file, b"last\n").unwrap();
            return;
        }
        // Files of this process may have 512 bytes, or 1024 with some shells.
        let script = "trap '' XFSZ; ulimit -f 1; exec \"$0\" --exact outlet::tests::a_line_that_does_not_fit_on_the_disk_leaves_no_part_behind";
        let mut child = std::process::Command::new("sh");
        child.args(["-c", script]).arg(std::env::current_exe().unwrap()).env("FNET_TEST_APPEND", &path);
        assert!(child.output().unwrap().status.success());
        assert_eq!(std::fs::read_to_string(path).unwrap(), "first\nlast\n");
    }
}
