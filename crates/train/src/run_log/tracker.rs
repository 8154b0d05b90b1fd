//! The program of `log.command`, which gets the lines of the JSON log. The job never waits for it, except at its end, and goes
//! on without it if it stalls or fails.

use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fnet_protocol::env;
use fnet_protocol::outlet::Outlet;

/// How long a program may take no line before the log says so.
const STALL: Duration = Duration::from_secs(60);
/// How long a job waits for the program at its end.
pub const END_TIMEOUT: Duration = Duration::from_secs(60);
/// The same for a job that is asked to stop, or has failed.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A running program.
pub struct Tracker {
    child: Child,
    /// Lines that it has not taken yet; `None` once its standard input is closed.
    lines: Option<Outlet>,
    pushed: u64,
    taken: Arc<AtomicU64>,
    /// It takes no more lines.
    is_broken: Arc<AtomicBool>,
    /// Since when it has taken nothing of what waits, and how much it had taken then.
    waiting: Option<(Instant, u64)>,
    /// The log has said what is wrong with it.
    is_reported: bool,
}

impl Tracker {
    /// Starts a command line, if there is one. A failure is logged.
    pub fn start(command: &str, work_dir: &Path) -> Option<Self> {
        if command.trim().is_empty() {
            return None;
        }
        match Self::spawn(command, work_dir) {
            Ok(tracker) => {
                log::info!("log.command gets the lines of the JSON log: {command}");
                Some(tracker)
            }
            Err(error) => {
                log::warn!("log.command cannot be started: {error}; training continues without it");
                None
            }
        }
    }

    fn spawn(command: &str, work_dir: &Path) -> std::io::Result<Self> {
        // Its output is talk: the worker's stdout is for results.
        let stderr = std::io::stderr().as_fd().try_clone_to_owned()?;
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", command]).stdin(Stdio::piped()).stdout(Stdio::from(stderr)).env("FNET_WORK_DIR", work_dir);
        for variable in [env::CONTROL, env::STATUS_FD, env::STORE_FD, env::GLIBC_TUNABLES] {
            shell.env_remove(variable);
        }
        // Another program may need other libraries than the worker.
        match std::env::var_os(env::LIBRARY_PATH_BEFORE) {
            Some(path) if path.is_empty() => {
                shell.env_remove(env::LIBRARY_PATH);
            }
            Some(path) => {
                shell.env(env::LIBRARY_PATH, path);
            }
            None => {}
        }
        let mut child = shell.spawn()?;
        let (taken, is_broken) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, broken) = (Arc::clone(&taken), Arc::clone(&is_broken));
        let mut stdin = child.stdin.take();
        let write = move |line: &[u8]| {
            if stdin.as_mut().is_some_and(|stdin| stdin.write_all(line).is_err()) {
                stdin = None;
                broken.store(true, Ordering::Relaxed);
            }
            counted.fetch_add(1, Ordering::Relaxed);
        };
        let missing = |count: u64| Some(format!("{{\"mode\":\"missing\",\"count\":{count}}}\n").into_bytes());
        let lines = Some(Outlet::start("log.command", write, Box::new(missing))?);
        Ok(Self { child, lines, pushed: 0, taken, is_broken, waiting: None, is_reported: false })
    }

    /// Queues a line.
    pub fn push(&mut self, line: Vec<u8>) {
        if let Some(lines) = &self.lines {
            lines.push(line);
            self.pushed += 1;
        }
        if let Some(problem) = self.problem(Instant::now()) {
            self.report(&problem);
        }
    }

    /// What is wrong with the program, if anything.
    fn problem(&mut self, now: Instant) -> Option<String> {
        if self.is_broken.load(Ordering::Relaxed) {
            let ended = self.child.try_wait().ok().flatten();
            let how =
                ended.map_or_else(|| "has closed its standard input".to_owned(), |how| format!("has ended ({how})"));
            return Some(format!("{how} before the job"));
        }
        let taken = self.taken.load(Ordering::Relaxed);
        if taken >= self.pushed {
            self.waiting = None;
            return None;
        }
        let since = match self.waiting {
            Some((since, before)) if before == taken => since,
            _ => now,
        };
        self.waiting = Some((since, taken));
        (now.duration_since(since) > STALL).then(|| format!("has not taken a line for {} s", STALL.as_secs()))
    }

    fn report(&mut self, problem: &str) {
        if !std::mem::replace(&mut self.is_reported, true) {
            log::warn!("the program of log.command {problem}; the job goes on without it");
        }
    }

    /// Closes the program's standard input and waits until it has ended, at most `timeout`; calls `alive` meanwhile.
    pub fn finish(&mut self, timeout: Duration, alive: &dyn Fn()) {
        let Some(lines) = self.lines.take() else { return };
        let deadline = Instant::now() + timeout;
        // The thread of the queue writes what waits, and then closes the pipe.
        drop(lines);
        let ended = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break Some(status),
                Ok(None) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(10));
                    alive();
                }
                _ => break None,
            }
        };
        match ended {
            Some(status) if status.success() => {}
            Some(status) => self.report(&format!("has ended ({status})")),
            None => {
                self.report(&format!("has not ended within {} s after the last line and is killed", timeout.as_secs()));
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.finish(STOP_TIMEOUT, &|| ());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(command: &str, work_dir: &Path, lines: usize) -> Tracker {
        let mut tracker = Tracker::start(command, work_dir).unwrap();
        (0..lines).for_each(|number| tracker.push(format!("line {number}\n").into_bytes()));
        tracker
    }

    #[test]
    fn the_program_gets_every_line_and_the_end() {
        let folder = tempfile::tempdir().unwrap();
        run("sleep 0.1; cat > \"$FNET_WORK_DIR/got\"; echo end >> \"$FNET_WORK_DIR/got\"", folder.path(), 1000)
            .finish(Duration::from_secs(60), &|| ());
        let got = std::fs::read_to_string(folder.path().join("got")).unwrap();
        assert!(
            got.starts_with("line 0\n") && got.ends_with("line 999\nend\n") && got.lines().count() == 1001,
            "{got}"
        );
        assert!(Tracker::start(" ", folder.path()).is_none());
    }

    #[test]
    fn a_program_that_ends_or_stalls_stops_nobody_and_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let mut ended = run("exit 3", folder.path(), 1);
        let deadline = Instant::now() + Duration::from_secs(60);
        while !ended.is_reported && Instant::now() < deadline {
            ended.push(b"{}\n".to_vec());
            thread::sleep(Duration::from_millis(1));
        }
        assert!(ended.problem(Instant::now()).is_some_and(|problem| problem.contains("before the job")));

        // More than the pipe holds, so that the queue is stuck.
        let mut stalled = run("exec sleep 1000", folder.path(), 20_000);
        let mut later = Instant::now();
        assert_eq!(stalled.problem(later), None);
        // The pipe may still be filling.
        let problem = loop {
            later += STALL * 2;
            match stalled.problem(later) {
                Some(problem) => break problem,
                None => thread::sleep(Duration::from_millis(10)),
            }
        };
        assert_eq!(problem, "has not taken a line for 60 s");
        stalled.finish(Duration::from_millis(100), &|| ());
        assert!(stalled.is_reported && stalled.child.try_wait().unwrap().is_some(), "it is killed");
    }
}
