//! The signals that people and batch systems send to the launcher, and the end of its time.

use std::fs;
use std::io;
use std::time::Duration;

use fnet_protocol::message::StopReason;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Save and stop.
    Stop(StopReason),
    /// Ctrl-Z: pause the workers and the launcher.
    Pause,
}

/// The installed handlers.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    user: Signal,
    hang_up: Option<Signal>,
    pause: Signal,
    /// When the time limit is reached, and what to say then.
    time_is_up: Option<(Instant, Box<dyn Fn()>)>,
}

const SIGTSTP: i32 = 20;

impl Signals {
    /// Installs the handlers.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn install() -> io::Result<Self> {
        // nohup ignores SIGHUP for good reason.
        let hang_up = if is_ignored(1) { None } else { Some(signal(SignalKind::hangup())?) };
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            user: signal(SignalKind::user_defined1())?,
            hang_up,
            pause: signal(SignalKind::from_raw(SIGTSTP))?,
            time_is_up: None,
        })
    }

    /// Has the job stop after `limit` from now, as SIGTERM does; `say` is called then.
    pub fn limit_time(&mut self, limit: Duration, say: impl Fn() + 'static) {
        self.time_is_up = Instant::now().checked_add(limit).map(|at| (at, Box::new(say) as Box<dyn Fn()>));
    }

    /// What `work` gives, unless a stop is requested before.
    ///
    /// # Errors
    /// Why to stop; `work` is broken off.
    pub async fn unless_stopped<T>(&mut self, work: impl Future<Output = T>) -> Result<T, StopReason> {
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

    /// The next request.
    pub async fn next(&mut self) -> Request {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        let end = self.time_is_up.as_ref().map(|(at, _)| *at);
        let time = async {
            match end {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = time => {
                if let Some((_, say)) = self.time_is_up.take() {
                    say();
                }
                Request::Stop(StopReason::Terminated)
            }
            _ = self.interrupt.recv() => Request::Stop(StopReason::Interrupted),
            _ = self.terminate.recv() => Request::Stop(StopReason::Terminated),
            _ = self.user.recv() => Request::Stop(StopReason::Terminated),
            _ = hang_up => Request::Stop(StopReason::Terminated),
            _ = self.pause.recv() => Request::Pause,
        }
    }
}

/// Stops this process as Ctrl-Z does.
pub fn stop_self() {
    // Returns when the shell sends SIGCONT.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
}

/// Whether this process was started with a signal ignored; `SigIgn` of /proc/self/status is a bit mask.
fn is_ignored(number: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).is_some_and(|mask| mask >> (number - 1) & 1 == 1)
}
