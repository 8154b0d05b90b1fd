//! Runs the real launcher with a worker that does as it is told.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::messages::{assert_fit, assert_logs_fit};

/// What a checkpoint begins with.
pub const CHECKPOINT: &[u8] = b"\x02\0\0\0\0\0\0\0{}";

/// Longer than anything here takes on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A folder of its own, in which the launcher runs; every process started there can be told by its environment.
pub struct Scene {
    folder: tempfile::TempDir,
}

pub struct Running {
    child: Child,
}

impl Scene {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cfg.toml"), "").unwrap();
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn read(&self, name: &str) -> String {
        let path = self.path(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// The launcher with `line` as its arguments and workers that do `deeds`.
    pub fn command(&self, deeds: &str, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fnet-launch"));
        command
            .args(line.split_whitespace())
            .current_dir(self.folder.path())
            .env("FNET_WORKER", Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/supervision/fake_worker.sh"))
            .env("FAKE", deeds)
            .env("SCENE", self.folder.path())
            .env_remove("OMP_NUM_THREADS")
            .stdin(Stdio::null());
        for name in [
            "NNODES",
            "NODE_RANK",
            "MASTER_ADDR",
            "MASTER_PORT",
            "PORT",
            "QUICK",
            "WORLD_SIZE",
            "PET_NNODES",
            "SLURM_NNODES",
        ] {
            command.env_remove(name);
        }
        command
    }

    /// Runs the launcher to its end.
    pub fn run(&self, deeds: &str, line: &str) -> Output {
        finish(self.command(deeds, line))
    }

    /// Starts the launcher, with its words in `stderr.txt`, and waits until `ranks` workers work.
    pub fn start(&self, deeds: &str, line: &str, ranks: usize) -> Running {
        let words = fs::File::create(self.path("stderr.txt")).unwrap();
        let child = self.command(deeds, line).stdout(Stdio::null()).stderr(words).spawn().unwrap();
        let running = Running { child };
        for rank in 0..ranks {
            let file = self.path(&format!("ready_{rank}"));
            until(&format!("rank {rank} works"), TIMEOUT, || file.exists());
        }
        running
    }

    /// Processes that were started here and live still.
    pub fn processes(&self) -> Vec<String> {
        let mark = format!("SCENE={}", self.folder.path().display());
        let lives = |pid: &str| {
            let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
            let ours = environment.split(|&byte| byte == 0).any(|entry| entry == mark.as_bytes());
            let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
            ours.then(|| format!("{pid} {}", command.replace('\0', " ")))
        };
        let entries = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
        entries.filter(|name| name.parse::<u32>().is_ok()).filter_map(|pid| lives(&pid)).collect()
    }

    /// States of those processes, as /proc/PID/stat has them (`T` is stopped).
    pub fn states(&self) -> Vec<char> {
        let state = |process: String| {
            let pid = process.split(' ').next()?.to_owned();
            let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            text.rsplit_once(") ")?.1.chars().next()
        };
        self.processes().into_iter().filter_map(state).collect()
    }

    /// Fails if a process lives that was started here.
    pub fn assert_nothing_left(&self) {
        // A killed process whose parent is gone takes a moment to vanish.
        let mut left = self.processes();
        let deadline = Instant::now() + Duration::from_millis(500);
        while !left.is_empty() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
            left = self.processes();
        }
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if !thread::panicking() {
            assert_logs_fit(self.folder.path());
        }
    }
}

impl Running {
    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    pub fn wait(mut self) -> ExitStatus {
        let mut status = None;
        until("the launcher ends", TIMEOUT, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

/// Sends a signal to one process.
pub fn signal(process: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status().unwrap();
    assert!(status.success());
}

/// Runs a command to its end, within [`TIMEOUT`].
pub fn finish(mut command: Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let id = child.id();
    let (sender, receiver) = std::sync::mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    match receiver.recv_timeout(TIMEOUT) {
        Ok(output) => {
            let output = output.unwrap();
            assert_fit(&format!("{command:?}"), &stderr(&output));
            output
        }
        Err(_) => {
            let _ = Command::new("kill").args(["-KILL", &id.to_string()]).status();
            panic!("{command:?} did not end in {TIMEOUT:?}");
        }
    }
}

/// Waits until `condition` holds.
pub fn until(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + timeout;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {timeout:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// How often the job had been restarted when it failed last, by its report.
pub fn restarts(report: &Path) -> Option<u64> {
    serde_json::from_slice::<serde_json::Value>(&fs::read(report).ok()?).ok()?["restarts"].as_u64()
}
