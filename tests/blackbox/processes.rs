//! Processes that tests start: signals, their ends, and what is left of them.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::messages::assert_fit;

/// Longer than anything here takes on a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(120);

/// Sends a signal to one process.
pub fn signal(process: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status().unwrap();
    assert!(status.success(), "kill -{name} {process}");
}

/// Waits until `condition` holds.
pub fn until(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + timeout;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {timeout:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Waits for the end of a process.
pub fn wait(child: &mut Child, timeout: Duration) -> ExitStatus {
    let mut status = None;
    until("the process ends", timeout, || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

/// Runs a command to its end, within [`TIMEOUT`]. What a program of fnet prints must be fit for users.
pub fn finish(mut command: Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let id = child.id();
    let (sender, receiver) = std::sync::mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    let Ok(output) = receiver.recv_timeout(TIMEOUT) else {
        signal(id, "KILL");
        panic!("{command:?} did not end in {TIMEOUT:?}");
    };
    let output = output.unwrap();
    if Path::new(command.get_program()).file_name().is_some_and(|name| name.to_string_lossy().starts_with("fnet-")) {
        assert_fit(&format!("{command:?}"), &String::from_utf8_lossy(&output.stderr));
    }
    output
}

/// The live processes with this entry in their environments, and the environments.
pub fn marked(mark: &str) -> Vec<(u32, String)> {
    let entries = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let one = |id: u32| {
        let environment = fs::read(format!("/proc/{id}/environ")).ok()?;
        let environment = String::from_utf8_lossy(&environment).replace('\0', "\n");
        environment.lines().any(|line| line == mark).then_some((id, environment))
    };
    entries.filter_map(|name| name.parse().ok()).filter_map(one).collect()
}

/// Fails if a process with this entry in its environment is alive.
pub fn assert_none_left(mark: &str) {
    // A killed process without a parent takes a moment to disappear.
    let deadline = Instant::now() + Duration::from_secs(2);
    while !marked(mark).is_empty() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    let left = marked(mark);
    let commands: Vec<_> = left.iter().map(|(id, _)| fs::read_to_string(format!("/proc/{id}/cmdline"))).collect();
    assert!(left.is_empty(), "left behind: {commands:?}");
}

/// A port that nobody listens on: below those that the system gives away, and not this process's before.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let port = 20_000 + (std::process::id() as u16 % 100) * 100 + NEXT.fetch_add(1, Ordering::Relaxed) % 100;
        if std::net::TcpListener::bind(("::", port)).is_ok() {
            return port;
        }
    }
}
