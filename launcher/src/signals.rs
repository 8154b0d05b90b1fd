//! Signals from users and batch systems to the launcher, and its time limit.

use std::fs;
use std::io;
use std::time::Duration;

use fnet_protocol::message::StopReason;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

/// A request from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Save and stop.
    Stop(StopReason),
    /// Ctrl-Z: pause the workers and the launcher.
    Pause,
}

/// The result of work, unless a stop is requested first.
pub type OrStop<T> = Result<T, StopReason>;

/// The installed signal handlers and the time limit.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    user: Signal,
    hang_up: Option<Signal>,
    pause: Signal,
    /// Number of times that Ctrl-C was pressed.
    interrupts: u32,
    /// When the time limit is reached, and what to call then.
    time_limit: Option<(Instant, Box<dyn Fn()>)>,
}

const SIGTSTP: i32 = 20;

impl Signals {
    /// Installs the handlers.
    pub fn install() -> io::Result<Self> {
        // nohup ignores SIGHUP.
        let hang_up = if is_ignored(1) { None } else { Some(signal(SignalKind::hangup())?) };
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            user: signal(SignalKind::user_defined1())?,
            hang_up,
            pause: signal(SignalKind::from_raw(SIGTSTP))?,
            interrupts: 0,
            time_limit: None,
        })
    }

    /// Requests a stop after `limit` from now, as SIGTERM does; `on_limit` is called first.
    pub fn set_time_limit(&mut self, limit: Duration, on_limit: impl Fn() + 'static) {
        self.time_limit = Instant::now().checked_add(limit).map(|at| (at, Box::new(on_limit) as Box<dyn Fn()>));
    }

    /// The result of `work`, which is cancelled if a stop is requested first.
    pub async fn unless_stopped<T>(&mut self, work: impl Future<Output = T>) -> OrStop<T> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                request = self.next() => match request {
                    Request::Stop(reason) => return Err(reason),
                    Request::Pause => stop_self(),
                },
                done = &mut work => return Ok(done),
            }
        }
    }

    /// Whether a stop that was requested for `reason` must not wait for anything: Ctrl-C was pressed twice. Other signals may
    /// come together with the first one, and batch systems repeat theirs.
    pub fn is_second_interrupt(&self, reason: StopReason) -> bool {
        reason == StopReason::Interrupted && self.interrupts > 1
    }

    pub async fn next(&mut self) -> Request {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        let end = self.time_limit.as_ref().map(|(at, _)| *at);
        let time = async {
            match end {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Of signals that come together the same one counts each time.
            biased;
            _ = self.interrupt.recv() => {
                self.interrupts += 1;
                Request::Stop(StopReason::Interrupted)
            }
            _ = self.terminate.recv() => Request::Stop(StopReason::Terminated),
            _ = self.user.recv() => Request::Stop(StopReason::Terminated),
            _ = hang_up => Request::Stop(StopReason::Terminated),
            () = time => {
                if let Some((_, on_limit)) = self.time_limit.take() {
                    on_limit();
                }
                Request::Stop(StopReason::Terminated)
            }
            _ = self.pause.recv() => Request::Pause,
        }
    }
}

/// Stops this process, as Ctrl-Z does, until SIGCONT.
pub fn stop_self() {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
}

/// Whether this process was started with a signal ignored.
fn is_ignored(number: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).is_some_and(|mask| mask >> (number - 1) & 1 == 1)
}
