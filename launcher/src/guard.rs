//! A small process that ends the workers' process groups when the launcher is gone.
//!
//! A worker dies with its launcher (parent-death signal), but what the worker has started does not. The guard learns the
//! groups through a pipe; the pipe's end tells it that the launcher is gone, however it died.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};

use rustix::process::{Pid, Signal};

/// First argument that makes this program the guard.
pub const ARGUMENT: &str = "__guard";

/// The launcher's side.
pub struct Guard {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Guard {
    /// Starts the guard.
    ///
    /// # Errors
    /// If this program cannot be started once more.
    pub fn start() -> io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C on the terminal is for the launcher alone.
            .process_group(0)
            .spawn()?;
        let pipe = child.stdin.take();
        Ok(Self { child, pipe })
    }

    /// Watches over a group.
    pub fn add(&mut self, group: i32) {
        self.tell('+', group);
    }

    /// The group is gone.
    pub fn remove(&mut self, group: i32) {
        self.tell('-', group);
    }

    fn tell(&mut self, what: char, group: i32) {
        if let Some(pipe) = &mut self.pipe {
            // Without a guard the job goes on; workers still die with the launcher.
            let _ = pipe.write_all(format!("{what}{group}\n").as_bytes());
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.pipe = None;
        let _ = self.child.wait();
    }
}

/// The guard's side: returns when the launcher is gone and its groups are ended.
pub fn run() {
    // A batch system may signal every process of a job, and this one must outlive the launcher.
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2] {
        // SAFETY: no handler is installed; the process has one thread.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let mut groups = Vec::new();
    for line in BufReader::new(io::stdin().lock()).lines() {
        let Ok(line) = line else { break };
        let group = line.get(1..).and_then(|text| text.parse::<i32>().ok());
        match (line.chars().next(), group) {
            (Some('+'), Some(group)) => groups.push(group),
            (Some('-'), Some(group)) => groups.retain(|&other| other != group),
            _ => {}
        }
    }
    for group in groups.into_iter().filter_map(Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
}
