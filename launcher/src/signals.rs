//! The signals that people and batch systems send to the launcher.

use std::fs;
use std::io;

use fnet_protocol::message::StopReason;
use tokio::signal::unix::{Signal, SignalKind, signal};

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
        })
    }

    /// The next request.
    pub async fn next(&mut self) -> Request {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
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
