//! Runs the real launcher with a script as its worker.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;

use crate::messages::assert_logs_fit;
use crate::processes;
pub use crate::processes::{TIMEOUT, finish, free_port, signal, until};

/// What a checkpoint begins with.
pub const CHECKPOINT: &[u8] = b"\x02\0\0\0\0\0\0\0{}";

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
        let mut command = self.program(env!("CARGO_BIN_EXE_fnet-launch"), deeds);
        command.args(line.split_whitespace());
        command
    }

    /// A program that starts the launcher, with workers that do `deeds`.
    pub fn program(&self, program: &str, deeds: &str) -> Command {
        let mut command = Command::new(program);
        command
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

    fn mark(&self) -> String {
        format!("SCENE={}", self.folder.path().display())
    }

    /// Processes that were started here and live still.
    pub fn processes(&self) -> Vec<u32> {
        processes::marked(&self.mark()).into_iter().map(|(process, _)| process).collect()
    }

    /// States of those processes, as /proc/PID/stat has them (`T` is stopped).
    pub fn states(&self) -> Vec<char> {
        let state = |process: u32| {
            let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
            text.rsplit_once(") ")?.1.chars().next()
        };
        self.processes().into_iter().filter_map(state).collect()
    }

    /// Fails if a process lives that was started here.
    pub fn assert_nothing_left(&self) {
        processes::assert_none_left(&self.mark());
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
        processes::wait(&mut self.child, TIMEOUT)
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
