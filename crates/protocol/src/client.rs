//! A worker's end of the control channel.
//!
//! All sending is done by a thread of its own, so the working thread never waits for the launcher. Without
//! [`crate::env::CONTROL`] (under torchrun, or by hand) nothing is sent, and notes go to stderr.

use std::backtrace::Backtrace;
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::panic::PanicHookInfo;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::message::{self, Failure, FailureKind, FromWorker, Heartbeat, Phase, Progress, ToWorker};
use crate::state::{self, Page};
use crate::{activity, contain, env, outlet, stack, stop};

/// Time between heartbeats.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// Notes that may wait; more are dropped, so a launcher that does not read cannot fill the worker's memory.
const MAX_NOTES: usize = 4096;

/// Tells the launcher what this worker does. Cheap to clone; all clones are one channel.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    connected: bool,
    page: &'static Page,
    /// Called when the working thread enters a phase.
    on_phase: OnceLock<Box<OnPhase>>,
    /// Called when the launcher says that another rank is gone.
    on_peer_lost: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// What is called with the state of this rank when it enters a phase.
pub type OnPhase = dyn Fn(&Heartbeat) + Send + Sync;

#[derive(Default)]
struct Queue {
    progress: Option<Progress>,
    messages: VecDeque<FromWorker>,
    /// A message has been taken and is not written yet.
    writing: bool,
    broken: bool,
    /// The launcher has chosen this worker to write its state.
    chosen: bool,
}

impl Client {
    /// Connects to the launcher named by the environment and says hello; without one, a client that does nothing.
    ///
    /// # Errors
    /// If [`env::CONTROL`] is not the number of an open socket, or a thread cannot be started.
    pub fn from_environment(rank: usize) -> io::Result<Self> {
        let Some(value) = std::env::var_os(env::CONTROL) else { return Ok(Self::disconnected()) };
        let number = value.to_str().and_then(|text| text.parse::<RawFd>().ok());
        let Some(fd) = number.filter(|&fd| fd > 2 && is_socket(fd)) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{}={}: expected the number of an inherited socket", env::CONTROL, value.to_string_lossy()),
            ));
        };
        // Children of this worker must not hold the channel open.
        // SAFETY: fcntl on an open descriptor; no memory is passed.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the launcher has handed this descriptor over for this purpose, and nothing else here uses it.
        let stream = unsafe { UnixStream::from_raw_fd(fd) };
        Self::over(stream, rank, state::page())
    }

    /// A client that sends nothing; notes go to stderr.
    pub fn disconnected() -> Self {
        Self { shared: Arc::new(Shared::new(false, state::page())) }
    }

    /// A client over `stream`: says hello, sends heartbeats with what `page` tells, receives requests.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn over(stream: UnixStream, rank: usize, page: &'static Page) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        let shared = Arc::new(Shared::new(true, page));
        let hello = FromWorker::Hello { version: message::VERSION, rank, pid: std::process::id() };
        shared.lock().messages.push_back(hello);
        let reading = stream.try_clone()?;
        let (reader, writer) = (Arc::clone(&shared), Arc::clone(&shared));
        thread::Builder::new().name("control-read".into()).spawn(move || reader.read_all(reading))?;
        thread::Builder::new().name("control-write".into()).spawn(move || writer.write_all(stream))?;
        Ok(Self { shared })
    }

    /// Whether a launcher listens.
    pub fn is_connected(&self) -> bool {
        self.shared.connected
    }

    /// Says what the working thread does now; counts as headway. Costs a few atomic stores.
    pub fn at(&self, phase: Phase, epoch: u64, step: u64) {
        self.shared.page.set_place(epoch, step);
        self.phase(phase);
    }

    /// Says that the working thread has entered `phase` of the same step; counts as headway.
    pub fn phase(&self, phase: Phase) {
        self.shared.page.set_phase(phase);
        if let Some(on_phase) = self.shared.on_phase.get() {
            on_phase(&self.shared.page.read());
        }
    }

    /// Has `action` called when the working thread enters a phase; only the first one counts.
    pub fn on_phase(&self, action: impl Fn(&Heartbeat) + Send + Sync + 'static) {
        let _ = self.shared.on_phase.set(Box::new(action));
    }

    /// Has `action` called, by another thread, when the launcher says that another rank is gone; only the first one counts.
    pub fn on_peer_lost(&self, action: impl Fn() + Send + Sync + 'static) {
        let _ = self.shared.on_peer_lost.set(Box::new(action));
    }

    /// Says that the working thread gets on, in the phase it is in (a picture evaluated, bytes written).
    pub fn headway(&self) {
        self.shared.page.touch();
    }

    /// Numbers for the progress bar. Replaces the previous ones if those are not sent yet.
    pub fn progress(&self, progress: Progress) {
        self.at(progress.phase, progress.epoch, progress.step);
        if self.shared.connected {
            self.shared.lock().progress = Some(progress);
            self.shared.changed.notify_all();
        }
    }

    /// A line or a table for people.
    pub fn note(&self, text: impl Into<String>) {
        let text = text.into();
        if !self.shared.connected {
            outlet::stderr(format!("{text}\n"));
        } else if self.shared.lock().messages.len() < MAX_NOTES {
            self.shared.push(FromWorker::Note { text });
        }
    }

    /// Says that a checkpoint is on the disk.
    pub fn saved(&self, path: &Path, step: u64) {
        self.shared.push(FromWorker::Saved { path: path.to_path_buf(), step });
    }

    /// Says that this worker holds the state after `step` steps of a job that has broken off, and waits until the launcher
    /// chooses it to write that state; `false` if it does not within `patience`, or there is no launcher.
    pub fn hold(&self, step: u64, patience: Duration) -> bool {
        self.shared.push(FromWorker::Holds { step });
        let deadline = Instant::now() + patience;
        let mut queue = self.shared.lock();
        while self.shared.connected && !queue.chosen {
            let left = deadline.saturating_duration_since(Instant::now());
            if queue.broken || left.is_zero() {
                return false;
            }
            queue = self.shared.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        queue.chosen
    }

    /// Says why this worker is about to end, and waits until the launcher's end has it (2 seconds at most).
    pub fn failed(&self, failure: Failure) {
        let at = Some(self.shared.page.read());
        self.shared.push(FromWorker::Failed(Failure { at, ..failure }));
        self.flush(Duration::from_secs(2));
    }

    /// Says that the work is finished, and waits until the launcher's end has it (2 seconds at most).
    pub fn done(&self) {
        self.shared.push(FromWorker::Done);
        self.flush(Duration::from_secs(2));
    }

    /// Waits until everything is sent; `false` if that takes longer than `patience` or the launcher is gone.
    pub fn flush(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut queue = self.shared.lock();
        while !queue.broken && (queue.writing || queue.progress.is_some() || !queue.messages.is_empty()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            queue = self.shared.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        !queue.broken
    }

    /// From now on a panic of any thread is reported with its stack before it is printed, unless it becomes an error
    /// ([`contain`]): as usual, but behind the lines that came before it, and without waiting for ever for a reader.
    pub fn report_panics(&self) {
        let client = self.clone();
        std::panic::set_hook(Box::new(move |info| {
            if contain::is_active() {
                return;
            }
            let backtrace = Backtrace::force_capture();
            client.failed(panic_failure(info, &backtrace));
            outlet::stderr(panic_text(info, &backtrace));
            outlet::flush_all();
        }));
    }
}

/// What std prints of a panic.
fn panic_text(info: &PanicHookInfo<'_>, backtrace: &Backtrace) -> String {
    let thread = thread::current();
    let text = format!("\nthread '{}' {info}\n", thread.name().unwrap_or("<unnamed>"));
    match std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
        true => format!("{text}stack backtrace:\n{}", without_panic_frames(&backtrace.to_string())),
        false => text,
    }
}

fn panic_failure(info: &PanicHookInfo<'_>, backtrace: &Backtrace) -> Failure {
    let thread = thread::current();
    let name = thread.name().unwrap_or("unnamed").to_owned();
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text =
        text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("a value that is no text");
    let place = info.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    Failure {
        kind: FailureKind::Bug,
        message: format!("panic in thread {name} at {place}: {text}"),
        backtrace: Some(without_panic_frames(&backtrace.to_string()).to_owned()),
        at: None,
    }
}

/// The frames below those that only carry the panic out.
fn without_panic_frames(stack: &str) -> &str {
    let end_of_line = |from: usize| stack[from..].find('\n').map_or(stack.len(), |length| from + length + 1);
    let Some(carrier) = ["core::panicking::panic_fmt", "rust_begin_unwind"].iter().find_map(|name| stack.find(name))
    else {
        return stack;
    };
    let rest = &stack[end_of_line(carrier)..];
    // The place of that frame stands on a line of its own.
    match rest.split_once('\n') {
        Some((place, frames)) if place.trim_start().starts_with("at ") => frames,
        _ => rest,
    }
}

fn is_socket(fd: RawFd) -> bool {
    // SAFETY: all zeroes is a valid `stat`.
    let mut facts: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `facts` outlives the call; fstat fails with EBADF on a number that is no descriptor.
    let found = unsafe { libc::fstat(fd, &mut facts) } == 0;
    found && facts.st_mode & libc::S_IFMT == libc::S_IFSOCK
}

impl Shared {
    fn new(connected: bool, page: &'static Page) -> Self {
        Self {
            queue: Mutex::default(),
            changed: Condvar::new(),
            connected,
            page,
            on_phase: OnceLock::new(),
            on_peer_lost: OnceLock::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // The queue is valid between any two statements, so a panic elsewhere does not spoil it.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, message: FromWorker) {
        if self.connected {
            self.lock().messages.push_back(message);
            self.changed.notify_all();
        }
    }

    fn heartbeat(&self) -> FromWorker {
        FromWorker::Heartbeat(Heartbeat { activity: activity::longest(), ..self.page.read() })
    }

    /// Receives the launcher's messages until it closes the channel.
    fn read_all(&self, stream: UnixStream) {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            match reader.read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => match message::from_line(&line) {
                    Ok(ToWorker::Stop { reason }) => stop::request(reason),
                    Ok(ToWorker::PeerLost { rank }) => {
                        stop::set_lost_peer(rank);
                        if let Some(action) = self.on_peer_lost.get() {
                            action();
                        }
                    }
                    Ok(ToWorker::Rescue) => {
                        self.lock().chosen = true;
                        self.changed.notify_all();
                    }
                    Ok(ToWorker::Stack) => self.push(FromWorker::Stack { text: stack::of_main_thread() }),
                    Ok(ToWorker::Unknown) | Err(_) => {}
                },
            }
        }
    }

    /// The next message: a queued one, the newest progress, or a heartbeat when one is due.
    fn next(&self, due: &mut Instant) -> FromWorker {
        let mut queue = self.lock();
        loop {
            let now = Instant::now();
            let message = if let Some(message) = queue.messages.pop_front() {
                message
            } else if let Some(progress) = queue.progress.take() {
                FromWorker::Progress(progress)
            } else if now >= *due {
                *due = now + HEARTBEAT;
                self.heartbeat()
            } else {
                queue = self.changed.wait_timeout(queue, *due - now).unwrap_or_else(PoisonError::into_inner).0;
                continue;
            };
            queue.writing = true;
            return message;
        }
    }

    /// Sends until the launcher closes the channel.
    fn write_all(&self, mut stream: UnixStream) {
        let mut due = Instant::now();
        loop {
            let message = self.next(&mut due);
            // A message that cannot be written as JSON is left out; none of ours is.
            let sent = message::to_line(&message).map_or(Ok(()), |line| stream.write_all(&line));
            let mut queue = self.lock();
            queue.writing = false;
            queue.broken = sent.is_err();
            self.changed.notify_all();
            if queue.broken {
                let _ = stream.shutdown(Shutdown::Both);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
