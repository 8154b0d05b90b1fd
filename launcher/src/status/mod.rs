//! The status of a job: what its launcher knows, in one struct for `status.json`, `metrics.prom`, the command `status` and the
//! live line.

mod files;
mod keeper;
mod prometheus;
pub mod show;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fnet_protocol::links::Summary;
use fnet_protocol::message::{Evaluated, Progress, WorkerStatus};
use fnet_protocol::work_dir::{STATUS, Writer};
use fnet_protocol::{exit, work_dir};
use serde::{Deserialize, Serialize};

pub use self::files::{ERROR, INFO, WARNING};
pub use self::keeper::Keeper;
use crate::attempt::status::{JobStage, Usage};
use crate::error::{Error, Result};

/// Maximum size of a status file in bytes; that of a thousand workers is far below.
const MAX_BYTES: u64 = 16 << 20;
/// A launcher writes every second; after this time without a change, it is stopped or gone.
pub const STALE: Duration = Duration::from_secs(15);

/// What a job does. Times are seconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Version of fnet.
    pub version: String,
    /// The line that started the job.
    pub command: String,
    /// Its work folder.
    pub work_dir: PathBuf,
    /// The host of its launcher, that of node 0.
    pub host: String,
    /// The process of its launcher.
    pub launcher: Writer,
    /// Number of workers on all nodes.
    pub world_size: usize,
    /// When the launcher started.
    pub started: f64,
    /// When this status was written.
    pub updated: f64,
    /// What the launcher does.
    pub stage: JobStage,
    /// Why the job is about to end or restart.
    #[serde(default)]
    pub problem: Option<String>,
    /// The text log of the current attempt.
    #[serde(default)]
    pub log: Option<PathBuf>,
    /// The newest training step.
    #[serde(default)]
    pub training: Option<Progress>,
    /// An evaluation in progress, in images of the whole job.
    #[serde(default)]
    pub evaluating: Option<Progress>,
    /// The newest finished evaluation.
    #[serde(default)]
    pub evaluation: Option<Evaluated>,
    /// The rank for which the others wait, and for how many seconds of a step.
    #[serde(default)]
    pub slowest: Option<(usize, f64)>,
    /// The newest checkpoint that this job has written.
    #[serde(default)]
    pub checkpoint: Option<SavedCheckpoint>,
    /// The restarts so far.
    #[serde(default)]
    pub restarts: Vec<Restart>,
    /// The network between several nodes, as measured before the attempt.
    #[serde(default)]
    pub network: Option<Summary>,
    /// The last nodes that have joined or left, or were slow.
    #[serde(default)]
    pub membership: Vec<MembershipChange>,
    /// Seconds without progress because of failures: from the last step before each to the first new step after it.
    #[serde(default)]
    pub lost_seconds: f64,
    /// The ranks that have not exited.
    #[serde(default)]
    pub ranks: Vec<RankState>,
    /// The GPUs of this node's workers.
    #[serde(default)]
    pub gpus: Vec<GpuUse>,
    /// How the job ended.
    #[serde(default)]
    pub end: Option<JobEnd>,
}

/// A checkpoint on the disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedCheckpoint {
    /// Its file.
    pub path: PathBuf,
    /// Completed steps of the job that it contains.
    pub step: u64,
    /// When it was reported.
    pub at: f64,
}

/// A restart and its cause.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Restart {
    /// When the job failed.
    pub at: f64,
    /// The first failing rank.
    pub rank: usize,
    /// The exit code that the job would have had.
    pub exit_code: i32,
    /// What happened.
    pub reason: String,
}

/// A node has joined or left, or is slow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MembershipChange {
    /// When that was noticed.
    pub at: f64,
    /// What happened.
    pub text: String,
}

/// A rank that has not exited.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankState {
    /// Its number.
    pub rank: usize,
    /// Seconds since its last message; none before the first.
    #[serde(default)]
    pub silent_seconds: Option<f64>,
    /// What it does; none before it has reported that.
    #[serde(default)]
    pub status: Option<WorkerStatus>,
    /// What it uses.
    #[serde(flatten)]
    pub usage: Usage,
}

/// The use of a worker's GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GpuUse {
    /// The rank of the worker.
    pub rank: usize,
    /// Its entry in CUDA_VISIBLE_DEVICES.
    pub device: String,
    /// Percent of the time in which kernels ran.
    pub busy_percent: Option<u32>,
    /// Memory in use by all programs.
    pub memory_used_bytes: u64,
    pub memory_total_bytes: u64,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobEnd {
    /// When.
    pub at: f64,
    pub exit_code: i32,
    /// The cause of a failure.
    #[serde(default)]
    pub reason: Option<String>,
}

/// The state of a job, as a reader of its status concludes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Its launcher runs.
    Running,
    /// Its launcher runs, but has not written for too long.
    Stalled,
    /// Its launcher is gone and has written no end.
    Killed,
    /// Its launcher is on another host and has not written for too long.
    Unknown,
    /// The job has ended.
    Ended,
}

impl JobStatus {
    /// What this status means after this many seconds without a newer one.
    pub fn judge(&self, silent: f64) -> JobState {
        let is_stale = silent > STALE.as_secs_f64();
        match self.launcher.is_of_this_host() {
            _ if self.end.is_some() => JobState::Ended,
            true if self.launcher.is_gone() => JobState::Killed,
            true if is_stale => JobState::Stalled,
            false if is_stale => JobState::Unknown,
            _ => JobState::Running,
        }
    }
}

/// Seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// Reads the status in a work folder.
/// Errors: the folder is not that of a training (exit code 2); its status is missing or damaged (exit code 3).
pub fn read(folder: &Path) -> Result<JobStatus> {
    let shown = folder.display();
    let path = folder.join(STATUS);
    if !folder.is_dir() {
        let is_config = folder.extension().is_some_and(|extension| extension == "toml");
        let instead =
            if is_config { work_dir::work_dir(folder, None) } else { PathBuf::from("work_dirs/<config name>") };
        let what = if folder.exists() { "a file, not a work folder" } else { "no such folder" };
        let instead = instead.display();
        return Err(Error::usage(format!("{shown}: {what}; give the work folder of a training, such as {instead}")));
    }
    if !path.exists() {
        if !folder.join("config.toml").is_file() && !folder.join(work_dir::LOGS).is_dir() {
            return Err(Error::usage(format!(
                "{shown} is not the work folder of a training: it has neither {STATUS} nor config.toml"
            )));
        }
        return Err(Error::new(
            exit::DATA,
            format!(
                "{} does not exist: only trainings under fnet-launch write it, on node 0, not those under torchrun, mpirun or \
                 srun; their logs are in {shown}",
                path.display()
            ),
        ));
    }
    let damaged = |why: String| {
        let text = format!(
            "{}: not the status of a training: {why}; a running launcher replaces it within a second, else remove it",
            path.display()
        );
        Error::new(exit::DATA, text)
    };
    // Opening a pipe would wait for its writer.
    if !path.is_file() {
        return Err(damaged("it is not a regular file".to_owned()));
    }
    let mut text = Vec::new();
    let file = std::fs::File::open(&path).map_err(|error| damaged(error.to_string()))?;
    file.take(MAX_BYTES).read_to_end(&mut text).map_err(|error| damaged(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))
}

#[cfg(test)]
mod tests;
