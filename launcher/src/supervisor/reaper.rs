//! A small process that kills the workers' process groups when the launcher is gone.
//!
//! The kernel kills workers with the launcher (parent-death signal), but not the children of workers. The reaper receives
//! the process groups through a pipe; the end of the pipe means that the launcher is gone, for any reason.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};

use rustix::process::{Pid, Signal};

/// First argument with which this program is the reaper.
pub const ARGUMENT: &str = "__reaper";

/// The launcher's side.
pub struct Reaper {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Reaper {
    /// Starts the reaper.
    pub fn start() -> io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C in the terminal is for the launcher only.
            .process_group(0)
            .spawn()?;
        let pipe = child.stdin.take();
        Ok(Self { child, pipe })
    }

    /// Adds a process group.
    pub fn add(&mut self, group: i32) {
        self.send('+', group);
    }

    /// Removes a process group that is gone.
    pub fn remove(&mut self, group: i32) {
        self.send('-', group);
    }

    fn send(&mut self, what: char, group: i32) {
        if let Some(pipe) = &mut self.pipe {
            // Without a reaper the job continues; the kernel still kills workers with the launcher.
            let _ = pipe.write_all(format!("{what}{group}\n").as_bytes());
        }
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.pipe = None;
        let _ = self.child.wait();
    }
}

/// The reaper's side: returns when the launcher is gone and its process groups are killed.
pub fn run() {
    // A batch system may signal every process of a job, but the reaper must outlive the launcher.
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2] {
        // SAFETY: ignoring signals is safe, and the process has one thread.
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
