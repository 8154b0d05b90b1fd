//! Short runs of other programs that must not hold this one up.

use std::io;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Runs a command to its end and returns what it printed; `None` if it takes longer than `patience`. It is killed then, but
/// not waited for: it may be stuck in a driver and not die.
///
/// # Errors
/// If it cannot be started or waited for.
pub fn output(command: &mut Command, patience: Duration) -> io::Result<Option<Output>> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let deadline = Instant::now() + patience;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_too_long_is_given_up() {
        let shell =
            |script: &str, seconds| output(Command::new("/bin/sh").args(["-c", script]), Duration::from_secs(seconds));
        let told = shell("echo told; exit 3", 60).unwrap().unwrap();
        assert_eq!((told.status.code(), told.stdout.as_slice()), (Some(3), &b"told\n"[..]));
        let started = Instant::now();
        assert!(shell("exec sleep 60", 0).unwrap().is_none());
        assert!(started.elapsed() < Duration::from_secs(20));
        assert!(output(&mut Command::new("/no/such/program"), Duration::ZERO).is_err());
    }
}
