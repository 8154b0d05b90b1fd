//! `status`: shows what a running or ended training does.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use fnet_protocol::cli::Status;
use fnet_protocol::exit;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::status::{self, JobState, JobStatus, show};

/// Interval of `--watch`.
const INTERVAL: Duration = Duration::from_secs(1);
/// Interval of the reads while a change is waited for.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The status for programs.
#[derive(Serialize)]
struct StatusReport<'a> {
    #[serde(rename = "verdict")]
    state: JobState,
    /// The same in words.
    text: String,
    #[serde(flatten)]
    status: &'a JobStatus,
}

/// Shows the status of the job in a work folder, with `--watch` until it ends. Returns the exit code.
/// Errors: the folder is not that of a training (exit code 2); its status is missing or damaged (exit code 3).
pub fn run(command: &Status) -> Result<i32> {
    // A file that is replaced by hand may be damaged in between, but not the first time.
    let mut status = status::read(&command.work_dir)?;
    let mut changed = Instant::now();
    loop {
        let is_remote = !status.launcher.is_of_this_host();
        let watched = is_remote.then(|| wait_for_change(&command.work_dir, &mut status, &mut changed));
        let now = status::now();
        let state = status.judge(watched.unwrap_or(now - status.updated));
        let text = if command.check {
            printable(&show::describe_state(&status, state, now)) + "\n"
        } else if command.json {
            let report = StatusReport { state, text: show::describe_state(&status, state, now), status: &status };
            let line =
                if command.watch { serde_json::to_string(&report) } else { serde_json::to_string_pretty(&report) };
            line.map_err(|error| Error::bug(error.to_string()))? + "\n"
        } else {
            printable(&show::page(&status, state, now))
        };
        let is_redrawn = command.watch && !command.json && io::stdout().is_terminal();
        let shown = if is_redrawn { redrawn(&text) } else { text };
        match io::stdout().write_all(shown.as_bytes()).and_then(|()| io::stdout().flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(code(command, &status, state)),
            Err(error) => return Err(Error::environment(format!("writing to stdout: {error}"))),
            Ok(()) => {}
        }
        if !command.watch || matches!(state, JobState::Ended | JobState::Killed) {
            return Ok(code(command, &status, state));
        }
        thread::sleep(INTERVAL);
        status = status::read(&command.work_dir).unwrap_or(status);
    }
}

/// Waits for the next write of a launcher on another machine, whose clock may differ from that of this one, until its status
/// counts as stale. Returns the seconds since the last change.
fn wait_for_change(folder: &Path, status: &mut JobStatus, changed: &mut Instant) -> f64 {
    while status.end.is_none() && changed.elapsed() <= status::STALE {
        thread::sleep(POLL_INTERVAL);
        if let Ok(newer) = status::read(folder)
            && newer.updated != status.updated
        {
            (*status, *changed) = (newer, Instant::now());
            break;
        }
    }
    changed.elapsed().as_secs_f64()
}

/// The exit code: with `--check` that of the job.
fn code(command: &Status, status: &JobStatus, state: JobState) -> i32 {
    match state {
        JobState::Running => exit::SUCCESS,
        _ if !command.check => exit::SUCCESS,
        JobState::Ended => status.end.as_ref().map_or(exit::SUCCESS, |end| end.exit_code),
        JobState::Killed => exit::WORKER_LOST,
        JobState::Stalled | JobState::Unknown => exit::HANG,
    }
}

/// Text without characters that control a terminal: a file may contain anything.
fn printable(text: &str) -> String {
    text.chars().filter(|&letter| letter == '\n' || !letter.is_control()).collect()
}

/// The text in place of what is on the screen, with lines that fit.
fn redrawn(text: &str) -> String {
    let (terminal_size::Width(columns), terminal_size::Height(rows)) =
        terminal_size::terminal_size().unwrap_or((terminal_size::Width(80), terminal_size::Height(24)));
    let fitting = text.lines().take(usize::from(rows.max(2)) - 1);
    let lines: Vec<String> = fitting.map(|line| line.chars().take(usize::from(columns)).collect()).collect();
    // Each line replaces the old one, without a blank screen in between.
    format!("\x1b[H{}\x1b[K\n\x1b[J", lines.join("\x1b[K\n"))
}
