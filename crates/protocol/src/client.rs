//! A worker's end of the control channel.
//!
//! A separate thread sends, so the working thread never waits for the launcher. Without [`crate::env::CONTROL`] (under
//! torchrun, or started by hand) nothing is sent, and notes go to stderr.

use std::backtrace::Backtrace;
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::panic::PanicHookInfo;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::message::{self, Evaluated, Failure, FailureKind, FromWorker, Phase, Progress, ToWorker, WorkerStatus};
use crate::status::{self, StatusPage};
use crate::{activity, contain, env, outlet, stack, stop};

/// Time between heartbeats.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of queued notes; more are dropped, so that a launcher that does not read cannot fill the memory.
const MAX_NOTES: usize = 4096;
/// Time for the last message to be sent before this process exits.
const LAST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(2);

/// Reports to the launcher. Clones share one channel.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    connected: bool,
    page: &'static StatusPage,
    /// Called when the working thread enters a phase.
    on_phase: OnceLock<Box<OnPhase>>,
    /// Called when the launcher reports that another rank is lost, or asks to abort collectives.
    on_peer_lost: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// Called with the status of this rank when it enters a phase.
pub type OnPhase = dyn Fn(&WorkerStatus) + Send + Sync;

#[derive(Default)]
struct Queue {
    progress: Option<Progress>,
    messages: VecDeque<FromWorker>,
    /// A message has been taken but not written yet.
    writing: bool,
    broken: bool,
    /// The launcher has asked for an emergency checkpoint.
    emergency_checkpoint: bool,
}

impl Client {
    /// Connects to the launcher, if the environment names one.
    /// Errors: [`env::CONTROL`] is not the number of an open socket, or no thread can be started.
    pub fn from_environment(rank: usize) -> io::Result<Self> {
        let Some(value) = std::env::var_os(env::CONTROL) else { return Ok(Self::disconnected()) };
        let number = value.to_str().and_then(|text| text.parse::<RawFd>().ok());
        let Some(fd) = number.filter(|&fd| fd > 2 && is_socket(fd)) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{}={}: expected the number of an inherited socket", env::CONTROL, value.to_string_lossy()),
            ));
        };
        // SAFETY: the launcher passed this open descriptor for this purpose, and nothing else uses it.
        let stream = unsafe { UnixStream::from_raw_fd(fd) };
        // Children of this worker must not hold the channel open.
        rustix::io::fcntl_setfd(&stream, rustix::io::FdFlags::CLOEXEC)?;
        Self::over(stream, rank, status::page())
    }

    /// A client that sends nothing; notes go to stderr.
    pub fn disconnected() -> Self {
        Self { shared: Arc::new(Shared::new(false, status::page())) }
    }

    /// A client over `stream` that sends a hello, then heartbeats with the status in `page`, and receives requests.
    pub fn over(stream: UnixStream, rank: usize, page: &'static StatusPage) -> io::Result<Self> {
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

    /// Whether there is a launcher.
    pub fn is_connected(&self) -> bool {
        self.shared.connected
    }

    /// The working thread enters this phase of this step; counts as progress. Costs a few atomic stores.
    pub fn at(&self, phase: Phase, epoch: u64, step: u64) {
        self.shared.page.set_step(epoch, step);
        self.phase(phase);
    }

    /// The working thread enters `phase` of the same step; counts as progress.
    pub fn phase(&self, phase: Phase) {
        self.shared.page.set_phase(phase);
        if let Some(on_phase) = self.shared.on_phase.get() {
            on_phase(&self.shared.page.read());
        }
    }

    /// Sets the function to call when the working thread enters a phase; later calls have no effect.
    pub fn on_phase(&self, action: impl Fn(&WorkerStatus) + Send + Sync + 'static) {
        let _ = self.shared.on_phase.set(Box::new(action));
    }

    /// Sets the function to call, on another thread, when collectives must be aborted because another rank is lost or the
    /// time to stop is running out; later calls have no effect.
    pub fn on_peer_lost(&self, action: impl Fn() + Send + Sync + 'static) {
        let _ = self.shared.on_peer_lost.set(Box::new(action));
    }

    /// The working thread makes progress within its phase (an image evaluated, bytes written).
    pub fn made_progress(&self) {
        self.shared.page.touch();
    }

    /// Updates the progress bar; replaces numbers that are not sent yet.
    pub fn progress(&self, progress: Progress) {
        self.at(progress.phase, progress.epoch, progress.step);
        if self.shared.connected {
            self.shared.lock().progress = Some(progress);
            self.shared.changed.notify_all();
        }
    }

    /// Shows a line or a table to the user, unless the program is quiet. Results go to stdout instead.
    pub fn note(&self, text: impl Into<String>) {
        let text = text.into();
        if !self.shared.connected {
            if !env::is_quiet() {
                outlet::stderr(format!("{text}\n"));
            }
        } else if self.shared.lock().messages.len() < MAX_NOTES {
            self.shared.push(FromWorker::Note { text });
        }
    }

    /// Reports that the logs of a training are started.
    pub fn started(&self, log: &Path) {
        self.shared.push(FromWorker::Started { log: log.to_path_buf() });
    }

    /// Reports the metrics of an evaluation during training.
    pub fn evaluated(&self, evaluated: Evaluated) {
        self.shared.push(FromWorker::Evaluated(evaluated));
    }

    /// Reports that a checkpoint is on disk.
    pub fn saved(&self, path: &Path, step: u64) {
        self.shared.push(FromWorker::Saved { path: path.to_path_buf(), step });
    }

    /// Reports that this worker can write the state after `step` steps of a failed job, and waits for the launcher's
    /// decision: `true` if this worker shall write it, `false` if the launcher does not say so in time.
    pub fn state_ready(&self, step: u64, timeout: Duration) -> bool {
        self.shared.push(FromWorker::StateReady { step });
        let deadline = Instant::now() + timeout;
        let mut queue = self.shared.lock();
        while self.shared.connected && !queue.emergency_checkpoint {
            let left = deadline.saturating_duration_since(Instant::now());
            if queue.broken || left.is_zero() {
                return false;
            }
            queue = self.shared.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        queue.emergency_checkpoint
    }

    /// Reports why this worker is about to exit, and waits until that is sent (2 seconds at most); `false` if it is not.
    pub fn failed(&self, failure: Failure) -> bool {
        let at = Some(Box::new(self.shared.page.read()));
        self.shared.push(FromWorker::Failed(Failure { at, ..failure }));
        self.flush(LAST_MESSAGE_TIMEOUT) && self.is_connected()
    }

    /// Reports that the work is finished, and waits until that is sent (2 seconds at most).
    pub fn done(&self) {
        self.shared.push(FromWorker::Done);
        self.flush(LAST_MESSAGE_TIMEOUT);
    }

    /// Waits until everything is sent; `false` if that takes longer than `timeout` or the launcher is gone.
    pub fn flush(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
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

    /// Installs a panic hook that reports a panic of any thread with its stack, then prints it after all earlier output.
    /// Panics that become errors ([`contain`]) are not reported.
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

/// The text that std prints for a panic.
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
        text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("a payload that is not text");
    let location = info.location().map_or_else(|| "an unknown location".to_owned(), ToString::to_string);
    Failure {
        kind: FailureKind::Bug,
        message: format!("panic in thread {name} at {location}: {text}"),
        backtrace: Some(without_panic_frames(&backtrace.to_string()).to_owned()),
        at: None,
    }
}

/// The stack without the frames of the panic machinery.
fn without_panic_frames(stack: &str) -> &str {
    let end_of_line = |from: usize| stack[from..].find('\n').map_or(stack.len(), |length| from + length + 1);
    let Some(start) = ["core::panicking::panic_fmt", "rust_begin_unwind"].iter().find_map(|name| stack.find(name))
    else {
        return stack;
    };
    let rest = &stack[end_of_line(start)..];
    // The source location of that frame is on a line of its own.
    match rest.split_once('\n') {
        Some((location, frames)) if location.trim_start().starts_with("at ") => frames,
        _ => rest,
    }
}

fn is_socket(fd: RawFd) -> bool {
    std::fs::metadata(format!("/proc/self/fd/{fd}")).is_ok_and(|file| file.file_type().is_socket())
}

impl Shared {
    fn new(connected: bool, page: &'static StatusPage) -> Self {
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
        // The queue is consistent between any two statements, so poisoning does not matter.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, message: FromWorker) {
        if self.connected {
            self.lock().messages.push_back(message);
            self.changed.notify_all();
        }
    }

    fn heartbeat(&self) -> FromWorker {
        FromWorker::Heartbeat(WorkerStatus { activity: activity::longest(), ..self.page.read() })
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
                    Ok(ToWorker::StopAtCheckpoint) => stop::request_at_checkpoint(),
                    Ok(ToWorker::PeerLost { rank }) => {
                        stop::set_lost_peer(rank);
                        self.break_off();
                    }
                    Ok(ToWorker::BreakOff) => self.break_off(),
                    Ok(ToWorker::EmergencyCheckpoint) => {
                        self.lock().emergency_checkpoint = true;
                        self.changed.notify_all();
                    }
                    Ok(ToWorker::Stack) => self.push(FromWorker::Stack { text: stack::of_main_thread() }),
                    Ok(ToWorker::Unknown) | Err(_) => {}
                },
            }
        }
    }

    fn break_off(&self) {
        if let Some(action) = self.on_peer_lost.get() {
            action();
        }
    }

    /// The next message: a queued one, the newest progress, or a heartbeat when it is due.
    fn next(&self, due: &mut Instant) -> FromWorker {
        let mut queue = self.lock();
        loop {
            let now = Instant::now();
            let message = if let Some(message) = queue.messages.pop_front() {
                message
            } else if let Some(progress) = queue.progress.take() {
                FromWorker::Progress(progress)
            } else if now >= *due {
                *due = now + HEARTBEAT_INTERVAL;
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
            // Every message can be written as JSON; if one could not, it would be skipped.
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
