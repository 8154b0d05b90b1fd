//! Short runs of other programs for their output, with time limits.

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use fnet_protocol::exit;
use rustix::process::Signal;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::error::{Error, Result};
use crate::{libtorch, text};

/// Maximum size of stdout in bytes; the rest is read and dropped.
const MAX_OUTPUT: u64 = 64 << 20;
/// Maximum number of bytes and lines at the end of stderr that are kept.
const MAX_ERRORS: usize = 4096;
const MAX_LINES: usize = 20;
/// Time to read the output of a program that has exited; its children may keep the pipe open.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);
/// The exit code of the loader if a library is missing.
const NOT_FOUND: i32 = 127;
/// Signals that a batch system sends to every process of a job; only the launcher handles them.
const IGNORED_SIGNALS: [libc::c_int; 5] = [libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2];

/// The output of a program that exited with code 0.
#[derive(Debug)]
pub struct Answer {
    pub stdout: Vec<u8>,
    /// The last lines of its stderr.
    pub stderr: String,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// It could not be started or waited for.
    NotStarted(io::Error),
    /// It took longer than this, and was killed.
    TimedOut(Duration),
    /// It failed, with these last lines of stderr.
    Failed(ExitStatus, String),
    /// It exited with code 0 without an answer.
    NoAnswer(&'static str),
}

/// Runs a command. It is killed after `timeout`, or if this future is dropped, without waiting for its exit: it may be stuck
/// in a driver.
pub async fn ask(mut command: Command, timeout: Duration) -> Result<Answer, Failure> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let shield = || {
        for signal in IGNORED_SIGNALS {
            // SAFETY: ignoring a signal is async-signal-safe.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only; it neither allocates nor takes locks.
    unsafe { command.pre_exec(shield) };
    let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn().map_err(Failure::NotStarted)?;
    let stdout = child.stdout.take().map(|stream| tokio::spawn(first(stream)));
    let stderr = child.stderr.take().map(|stream| tokio::spawn(last(stream)));
    let status = match tokio::time::timeout(timeout, child.wait()).await {
        Ok(status) => status.map_err(Failure::NotStarted)?,
        Err(_) => {
            // Dropping the child kills it.
            return Err(Failure::TimedOut(timeout));
        }
    };
    let stderr = last_lines(&drained(stderr).await);
    match status.code() {
        Some(exit::SUCCESS) => Ok(Answer { stdout: drained(stdout).await, stderr }),
        _ => Err(Failure::Failed(status, stderr)),
    }
}

/// [`ask`] without an event loop.
pub fn ask_blocking(command: Command, timeout: Duration) -> Result<Answer, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::NotStarted)?;
    let answer = runtime.block_on(ask(command, timeout));
    runtime.shutdown_background();
    answer
}

async fn first(stream: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut stream = stream.take(MAX_OUTPUT);
    let mut bytes = Vec::new();
    // A broken pipe is the end of the output.
    let _ = stream.read_to_end(&mut bytes).await;
    let _ = tokio::io::copy(&mut stream.into_inner(), &mut tokio::io::sink()).await;
    bytes
}

async fn last(mut stream: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut bytes = Vec::new();
    while matches!(stream.read_buf(&mut bytes).await, Ok(count) if count > 0) {
        let surplus = bytes.len().saturating_sub(MAX_ERRORS);
        bytes.drain(..surplus);
    }
    bytes
}

async fn drained(reader: Option<tokio::task::JoinHandle<Vec<u8>>>) -> Vec<u8> {
    let Some(mut reader) = reader else { return Vec::new() };
    match tokio::time::timeout(DRAIN_TIMEOUT, &mut reader).await {
        Ok(bytes) => bytes.unwrap_or_default(),
        Err(_) => {
            reader.abort();
            Vec::new()
        }
    }
}

fn last_lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.trim().lines().collect();
    lines[lines.len().saturating_sub(MAX_LINES)..].join("\n").trim().to_owned()
}

impl Failure {
    /// What happened, as text after the name of the program.
    pub fn text(&self) -> String {
        match self {
            Self::NotStarted(error) => format!("cannot be started: {error}"),
            Self::TimedOut(timeout) => format!("did not answer within {} s", timeout.as_secs_f64()),
            Self::Failed(status, words) => {
                let how = match (status.code(), status.signal()) {
                    (Some(code), _) => format!("exited with code {code} ({})", exit::meaning(code)),
                    (None, signal) => {
                        let (name, meaning) = text::signal(signal.unwrap_or(0));
                        format!("was killed by {name}: {meaning}")
                    }
                };
                if words.is_empty() { how } else { format!("{how}\n{words}") }
            }
            Self::NoAnswer(what) => {
                format!("exited with code 0 but {what}: it is not the worker of this version of fnet")
            }
        }
    }

    /// The error of a worker that failed at something, for example `reading the config`. Its own error message is passed on.
    pub fn of_worker(&self, program: &Path, doing: &str) -> Error {
        let remedy = "; run `fnet-launch doctor`, or `make setup` again";
        let program = program.display();
        match self {
            Self::Failed(status, words) if !words.is_empty() && is_reported(status) => {
                let words = words.strip_prefix("error: ").unwrap_or(words);
                Error::new(status.code().unwrap_or(exit::ENVIRONMENT), words)
            }
            Self::Failed(status, _) if is_reported(status) => Error::new(
                status.code().unwrap_or(exit::ENVIRONMENT),
                format!("{doing}: {program} {} without a message{remedy}", self.text()),
            ),
            Self::NotStarted(_) | Self::NoAnswer(_) => {
                Error::environment(format!("{doing}: {program} {}{remedy}", self.text()))
            }
            Self::Failed(status, words) if status.code() == Some(NOT_FOUND) && words.contains("shared libraries") => {
                Error::environment(format!("{doing}: {program} {}\n{}", self.text(), libtorch::remedy()))
            }
            Self::TimedOut(_) | Self::Failed(..) => Error::environment(format!("{doing}: {program} {}", self.text())),
        }
    }
}

/// Whether a worker exits with this code after it has reported an error.
fn is_reported(status: &ExitStatus) -> bool {
    matches!(status.code(), Some(exit::BUG | exit::USAGE | exit::DATA | exit::ENVIRONMENT))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn shell(script: &str, timeout: Duration) -> Result<Answer, Failure> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        ask_blocking(command, timeout)
    }

    fn error(failure: &Failure) -> Error {
        failure.of_worker(Path::new("/opt/fnet-worker"), "reading the config")
    }

    #[test]
    fn a_program_that_takes_too_long_is_killed() {
        let answer = shell("echo answer; echo 'a warning' >&2", LONG).unwrap();
        assert_eq!((answer.stdout.as_slice(), answer.stderr.as_str()), (&b"answer\n"[..], "a warning"));
        let started = Instant::now();
        let failure = shell("exec sleep 60", Duration::from_millis(20)).unwrap_err();
        assert!(matches!(failure, Failure::TimedOut(_)), "{failure:?}");
        // It exits, but its child keeps its pipes open.
        assert!(shell("sleep 60 & exit 0", LONG).is_ok());
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn more_than_a_pipe_holds_is_read_while_waiting() {
        let answer = shell("head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2", LONG).unwrap();
        assert_eq!((answer.stdout.len(), answer.stderr.len()), (3_000_000, MAX_ERRORS));
    }

    #[test]
    fn signals_to_every_process_of_a_job_are_ignored() {
        let script = "kill -HUP $$; kill -INT $$; kill -TERM $$; kill -USR1 $$; kill -USR2 $$; echo answer";
        assert_eq!(shell(script, LONG).unwrap().stdout, b"answer\n");
    }

    /// Every way in which a child exits without an answer, with the exit code of the job and a part of the text.
    #[test]
    fn however_a_child_exits_the_error_has_a_text_and_a_documented_code() {
        let mut ways: Vec<(String, i32, String)> = Vec::new();
        // Without the ignored signals, QUIT (ignored by background jobs of a shell), STOP and CONT.
        for signal in [4, 5, 6, 7, 8, 9, 11, 13, 14, 16, 24, 25, 26, 27, 29, 30, 31] {
            let name = text::signal(signal).0;
            ways.push((format!("ulimit -c 0; kill -{signal} $$"), exit::ENVIRONMENT, format!("was killed by {name}")));
        }
        for (script, code, part) in [
            ("exit 1", exit::BUG, "exited with code 1"),
            ("exit 2", exit::USAGE, "exited with code 2"),
            ("exit 3", exit::DATA, "exited with code 3"),
            ("exit 6", exit::ENVIRONMENT, "exited with code 6"),
            ("exit 17", exit::ENVIRONMENT, "exited with code 17"),
            ("exit 75", exit::ENVIRONMENT, "exited with code 75"),
            ("exit 255", exit::ENVIRONMENT, "exited with code 255"),
            ("echo '   ' >&2; exit 2", exit::USAGE, "exited with code 2"),
            ("echo 'error: cfg.toml:3: no' >&2; exit 2", exit::USAGE, "cfg.toml:3: no"),
            ("printf 'error: \\377\\376 no text' >&2; exit 3", exit::DATA, "no text"),
            ("head -c 1000000 /dev/zero | tr '\\0' x >&2; exit 2", exit::USAGE, "xxx"),
            ("yes 'a line' | head -n 50000 >&2; exit 6", exit::ENVIRONMENT, "a line"),
            ("echo 'libtorch.so: cannot open' >&2; exit 127", exit::ENVIRONMENT, "libtorch.so: cannot open"),
            ("echo 'loading shared libraries: libtorch.so' >&2; exit 127", exit::ENVIRONMENT, "--libtorch"),
            ("echo last words >&2; kill -9 $$", exit::ENVIRONMENT, "last words"),
            ("exec /no/such/program", exit::ENVIRONMENT, "exited with code 127"),
            ("exec 1>&- 2>&-; exit 2", exit::USAGE, "exited with code 2"),
        ] {
            ways.push((script.to_owned(), code, part.to_owned()));
        }
        for (script, code, part) in ways {
            let error = error(&shell(&script, LONG).expect_err(&script));
            let text = error.message();
            assert!(error.code == code && text.contains(&part), "{script}: {} {text}", error.code);
            assert!(text.len() < MAX_ERRORS + 200 && text.lines().count() <= MAX_LINES + 1, "{script}: {text}");
        }
        let folder = tempfile::tempdir().unwrap();
        let text_file = folder.path().join("worker");
        std::fs::write(&text_file, "no program").unwrap();
        let no_format = folder.path().join("other");
        std::fs::write(&no_format, "\x7fELF of another machine").unwrap();
        std::fs::set_permissions(&no_format, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        for program in
            [Path::new("/no/such/program"), folder.path(), &text_file, &no_format, Path::new("/etc/passwd/x")]
        {
            let error = error(&ask_blocking(Command::new(program), LONG).unwrap_err());
            // exec passes a file of unknown format to a shell.
            let is_reported =
                ["cannot be started", "exited with code"].iter().any(|words| error.message().contains(words));
            assert!(error.code == exit::ENVIRONMENT && is_reported, "{error}");
        }
        for failure in [Failure::TimedOut(Duration::from_secs(3)), Failure::NoAnswer("printed nothing")] {
            assert!(error(&failure).message().starts_with("reading the config: /opt/fnet-worker "), "{failure:?}");
        }
    }
}
