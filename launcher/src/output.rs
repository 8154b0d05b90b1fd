//! stdout and stderr, each with a separate writer thread: a reader that has stopped (a pager, a paused terminal, a stuck ssh)
//! must not block the supervision.
//!
//! Output waits in a queue of [`CAPACITY`] bytes. Lines beyond that are dropped and counted; a notice takes their place once
//! the reader continues.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Capacity of a queue in bytes.
const CAPACITY: usize = 4 << 20;
/// Maximum number of bytes per write.
const PIECE: usize = 4096;
/// Time for a reader to take the next piece at the end of a supervised job.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum duration of a flush as a multiple of its timeout, for slow readers.
const FLUSH_ROUNDS: u32 = 10;

/// An output stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// stdout, for programs.
    Out,
    /// stderr, for users.
    Err,
}

/// The state of the progress bar.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bar {
    /// Completed steps.
    pub position: u64,
    /// Total steps.
    pub length: u64,
    /// Text before the bar.
    pub prefix: String,
    /// Text after the bar.
    pub message: String,
}

/// The queue of a stream.
#[derive(Clone)]
struct Queue {
    shared: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    /// Lines that were dropped after those bytes.
    dropped: usize,
    /// The newest state of the bar, or its removal.
    bar: Option<Option<Bar>>,
    /// Whether the thread is writing.
    is_writing: bool,
    /// Number of pieces that the reader has taken.
    taken: u64,
}

impl State {
    fn is_idle(&self) -> bool {
        self.bytes.is_empty() && self.dropped == 0 && self.bar.is_none()
    }
}

// A process has one stdout and one stderr.
static QUEUES: OnceLock<[Queue; 2]> = OnceLock::new();

/// Starts the threads. Until then, and in tests, output is written directly.
pub fn start() -> io::Result<()> {
    let errors = Queue::start("stderr", File::from(io::stderr().as_fd().try_clone_to_owned()?), |count| {
        format!("fnet-launch: {count} lines were dropped here because stderr was blocked\n").into_bytes()
    })?;
    let out = if is_one_terminal() {
        errors.clone()
    } else {
        let for_people = errors.clone();
        Queue::start("stdout", File::from(io::stdout().as_fd().try_clone_to_owned()?), move |count| {
            // In stdout, programs could not distinguish the notice from the data.
            let text = format!("fnet-launch: {count} lines of stdout were dropped because it was blocked\n");
            for_people.push(text.as_bytes());
            Vec::new()
        })?
    };
    let _ = QUEUES.set([out, errors]);
    Ok(())
}

/// Whether stdout and stderr are the same terminal; then they share a thread, so that the bar is not overwritten.
fn is_one_terminal() -> bool {
    let device = |stream: std::os::fd::BorrowedFd<'_>| rustix::fs::fstat(stream).ok().map(|stat| stat.st_rdev);
    io::stdout().is_terminal()
        && io::stderr().is_terminal()
        && device(io::stdout().as_fd()) == device(io::stderr().as_fd())
}

/// Writes whole lines to a stream.
pub fn write(stream: Stream, bytes: &[u8]) {
    match (QUEUES.get(), stream) {
        (Some([out, _]), Stream::Out) => out.push(bytes),
        (Some([_, errors]), Stream::Err) => errors.push(bytes),
        // A closed stream must not end the program.
        (None, Stream::Out) => drop(io::stdout().lock().write_all(bytes)),
        (None, Stream::Err) => drop(io::stderr().lock().write_all(bytes)),
    }
}

/// Shows the bar below the lines of stderr; `None` removes it.
pub fn show_bar(bar: Option<Bar>) {
    if let Some([_, errors]) = QUEUES.get() {
        errors.show_bar(bar);
    }
}

/// Waits until all output is written, or a reader takes nothing for `timeout`.
pub fn flush(timeout: Option<Duration>) {
    for queue in QUEUES.get().into_iter().flatten() {
        queue.flush(timeout);
    }
}

impl Queue {
    /// Starts the thread; `notice` returns the text that replaces a number of dropped lines.
    fn start(name: &str, sink: File, notice: impl Fn(usize) -> Vec<u8> + Send + 'static) -> io::Result<Self> {
        let queue = Self { shared: Arc::default() };
        let reading = queue.clone();
        thread::Builder::new().name(name.to_owned()).spawn(move || reading.write_all(sink, &notice))?;
        Ok(queue)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, bytes: &[u8]) {
        let mut state = self.lock();
        // After a gap, lines are dropped until the thread has written the notice at the gap.
        if state.dropped > 0 || state.bytes.len() + bytes.len() > CAPACITY {
            state.dropped += bytes.iter().filter(|&&byte| byte == b'\n').count().max(1);
        } else {
            state.bytes.extend_from_slice(bytes);
        }
        self.shared.1.notify_all();
    }

    fn show_bar(&self, bar: Option<Bar>) {
        self.lock().bar = Some(bar);
        self.shared.1.notify_all();
    }

    fn write_all(&self, sink: File, notice: &dyn Fn(usize) -> Vec<u8>) {
        let mut shown: Option<ProgressBar> = None;
        loop {
            let mut state = self.lock();
            state.is_writing = false;
            self.shared.1.notify_all();
            while state.is_idle() {
                state = self.shared.1.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let State { mut bytes, dropped, bar, taken, .. } = std::mem::take(&mut *state);
            (state.is_writing, state.taken) = (true, taken);
            drop(state);
            match bar {
                Some(Some(bar)) => draw(shown.get_or_insert_with(new_bar), bar),
                Some(None) => shown.take().into_iter().for_each(|bar| bar.finish_and_clear()),
                None => {}
            }
            if dropped > 0 {
                bytes.extend(notice(dropped));
            }
            match &shown {
                Some(bar) if !bytes.is_empty() => bar.suspend(|| self.write_pieces(&sink, &bytes)),
                _ => self.write_pieces(&sink, &bytes),
            }
        }
    }

    fn write_pieces(&self, mut sink: &File, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            match sink.write(&rest[..rest.len().min(PIECE)]) {
                Ok(count) => {
                    rest = &rest[count..];
                    self.lock().taken += 1;
                    self.shared.1.notify_all();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Another program has made the terminal or pipe non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(10)),
                // A closed pipe or a full disk; later output may succeed.
                Err(_) => return,
            }
        }
    }

    fn flush(&self, timeout: Option<Duration>) {
        let mut state = self.lock();
        let end = timeout.map(|timeout| Instant::now() + timeout * FLUSH_ROUNDS);
        let (mut taken, mut last) = (state.taken, Instant::now());
        while state.is_writing || !state.is_idle() {
            if state.taken != taken {
                (taken, last) = (state.taken, Instant::now());
            }
            let deadline = timeout.map(|timeout| last + timeout).min(end);
            let Some(deadline) = deadline else {
                state = self.shared.1.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.shared.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg}") {
        bar.set_style(style);
    }
    bar
}

fn draw(bar: &ProgressBar, state: Bar) {
    bar.set_length(state.length);
    bar.set_position(state.position);
    bar.set_prefix(state.prefix);
    bar.set_message(state.message);
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, Read};
    use std::os::fd::OwnedFd;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// A queue and its reader.
    fn queue() -> (Queue, io::PipeReader) {
        let (reader, writer) = io::pipe().unwrap();
        let sink = File::from(OwnedFd::from(writer));
        (Queue::start("test", sink, |count| format!("[{count}]\n").into_bytes()).unwrap(), reader)
    }

    #[test]
    fn everything_arrives_in_order_when_it_is_read() {
        let (queue, mut reader) = queue();
        let lines: String = (0..10_000).map(|number| format!("line {number}\n")).collect();
        let expected = lines.clone();
        let read = thread::spawn(move || {
            let mut text = vec![0; expected.len()];
            reader.read_exact(&mut text).unwrap();
            assert!(text == expected.as_bytes());
        });
        lines.split_inclusive('\n').for_each(|line| queue.push(line.as_bytes()));
        read.join().unwrap();
        queue.flush(Some(LONG));
        assert!(queue.lock().is_idle());
    }

    #[test]
    fn a_reader_that_has_stopped_blocks_nobody_and_later_sees_what_it_missed() {
        let (queue, reader) = queue();
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        let count = 3 * CAPACITY / line.len();
        for _ in 0..count {
            queue.push(&line);
        }
        queue.flush(Some(Duration::from_millis(20)));
        assert!(queue.lock().bytes.len() <= CAPACITY);
        // It reads again: each line arrives, or is counted where it is missing.
        let mut reader = io::BufReader::new(reader);
        let (mut kept, mut missing) = (0, 0);
        while kept + missing < count {
            let mut text = String::new();
            reader.read_line(&mut text).unwrap();
            match text.trim_end().strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
                Some(number) => missing += number.parse::<usize>().unwrap(),
                None => kept += 1,
            }
        }
        assert!(missing >= count / 4 && kept >= CAPACITY / line.len() / 2, "{kept} {missing}");
        queue.push(b"new\n");
        let mut text = String::new();
        reader.read_line(&mut text).unwrap();
        assert_eq!(text, "new\n");
    }

    #[test]
    fn a_closed_reader_blocks_nobody() {
        let (queue, reader) = queue();
        drop(reader);
        for _ in 0..100 {
            queue.push(&[b'\n'; 1 << 16]);
        }
        queue.flush(None);
        assert!(queue.lock().is_idle());
    }

    #[test]
    fn a_non_blocking_stream_loses_nothing() {
        let (reader, writer) = io::pipe().unwrap();
        let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
        rustix::fs::fcntl_setfl(&writer, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
        let queue = Queue::start("test", File::from(OwnedFd::from(writer)), |_| Vec::new()).unwrap();
        queue.push(&[b'\n'; 1 << 20]);
        let mut reader = reader;
        reader.read_exact(&mut vec![0; 1 << 20]).unwrap();
        queue.flush(Some(LONG));
        assert!(queue.lock().is_idle());
    }
}
