//! Before a job starts: whether the machine can run it, as far as that can be told at once.
//!
//! The facts are gathered while other things are prepared, and judged by [`judge`]. What needs the config, the data or the
//! size of the model is checked by rank 0.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access, StatVfsMountFlags};
use rustix::process::{Resource, Rlimit};

use crate::devices::Devices;
use crate::error::{Error, Result};
use crate::nvml::{GpuState, Query, Report};
use crate::{gpu, text};

/// Time that the driver has to answer, from the start of the question; a slow one does not hold up the job.
const DRIVER_PATIENCE: Duration = Duration::from_millis(150);
/// Below this a GPU cannot even hold the context and the libraries' kernels.
const LEAST_GPU_MEMORY: u64 = 1 << 30;
/// Descriptors of the launcher for each worker (pipes, logs, the control channel, the process), with a reserve.
const FILES_PER_WORKER: u64 = 12;
/// Descriptors of a worker for each other one (a connection for each of the groups), with a reserve.
const FILES_PER_PEER: u64 = 4;
/// Descriptors of a process beside those.
const FILES: u64 = 256;
/// More than any job needs; some programs walk through all the numbers up to the limit.
const MOST_FILES: u64 = 1 << 20;
/// NCCL keeps some MiB for each pair of GPUs there.
const SHARED_MEMORY: u64 = 256 << 20;
/// NCCL cannot begin with less.
const LEAST_SHARED_MEMORY: u64 = 8 << 20;

/// What is known before the start.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Workers of this node.
    pub workers: usize,
    /// Workers of the job.
    pub world_size: usize,
    /// The workers' GPUs with their entries of CUDA_VISIBLE_DEVICES; `Err` if the driver did not tell.
    pub gpus: Option<std::result::Result<Vec<(String, GpuState)>, String>>,
    /// Bytes that are free in /dev/shm; `None` if it is not there.
    pub shared_memory: Option<u64>,
    /// Whether NCCL may use shared memory (NCCL_SHM_DISABLE).
    pub nccl_uses_shm: bool,
    /// The limit on open files, and the greatest that this process may set; `None` is no limit.
    pub open_files: (Option<u64>, Option<u64>),
    /// The folder for the outputs, or the one above it that is there, and why it cannot be written to.
    pub folder: Option<(PathBuf, Option<&'static str>)>,
}

/// What follows from the facts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judgement {
    /// What should be told.
    pub warnings: Vec<String>,
    /// Limit on open files to set.
    pub open_files: Option<u64>,
}

/// Judges.
///
/// # Errors
/// What would keep the job from running, with the remedy (exit code 6).
pub fn judge(facts: &Facts) -> Result<Judgement> {
    let mut warnings = Vec::new();
    if let Some((folder, Some(why))) = &facts.folder {
        return Err(Error::environment(format!(
            "cannot write to {}: {why}; give a folder of your own with --work-dir",
            folder.display()
        )));
    }
    match &facts.gpus {
        Some(Ok(gpus)) => {
            for (entry, gpu) in gpus {
                warnings.extend(judge_gpu(entry, gpu)?);
            }
            warnings.extend(judge_shared_memory(facts)?);
        }
        Some(Err(_)) => warnings.extend(judge_shared_memory(facts)?),
        None => {}
    }
    Ok(Judgement { warnings, open_files: judge_files(facts)? })
}

fn judge_gpu(entry: &str, gpu: &GpuState) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    let others: Vec<String> = gpu
        .processes
        .iter()
        .map(|process| {
            let program = process.program.as_deref().unwrap_or("an unknown program");
            let memory = process.memory.map_or_else(String::new, |bytes| format!(", {}", text::bytes(bytes)));
            format!("process {} ({program}{memory})", process.pid)
        })
        .collect();
    let others = others.join(", ");
    if gpu.memory_free < LEAST_GPU_MEMORY && gpu.memory_total >= LEAST_GPU_MEMORY {
        let users = if others.is_empty() { "processes that the driver does not name".to_owned() } else { others };
        return Err(Error::environment(format!(
            "GPU {entry} ({}) has {} of {} free, too little to start: it is used by {users}. End them, or take other GPUs \
             with --gpus",
            gpu.name,
            text::bytes(gpu.memory_free),
            text::bytes(gpu.memory_total)
        )));
    }
    if !others.is_empty() {
        if gpu.shared == Some(false) {
            return Err(Error::environment(format!(
                "GPU {entry} ({}) is for one process at a time (compute mode EXCLUSIVE_PROCESS), and is used by {others}. \
                 End it, or take other GPUs with --gpus",
                gpu.name
            )));
        }
        warnings.push(format!(
            "GPU {entry} ({}) is used by {others} too; {} of {} are free",
            gpu.name,
            text::bytes(gpu.memory_free),
            text::bytes(gpu.memory_total)
        ));
    }
    if let Some(errors) = gpu.ecc_errors.filter(|&errors| errors > 0) {
        warnings.push(format!(
            "GPU {entry} ({}) had {errors} memory errors that could not be corrected since it was started; `fnet-launch \
             doctor` says what to do",
            gpu.name
        ));
    }
    Ok(warnings)
}

fn judge_shared_memory(facts: &Facts) -> Result<Option<String>> {
    if facts.workers < 2 || !facts.nccl_uses_shm {
        return Ok(None);
    }
    let remedy = "start the container with --shm-size=1g or --ipc=host, or set NCCL_SHM_DISABLE=1 (slower)";
    let free = facts.shared_memory.unwrap_or(0);
    if free < LEAST_SHARED_MEMORY {
        return Err(Error::environment(format!(
            "{} are free in /dev/shm, too little for NCCL to start; {remedy}",
            text::bytes(free)
        )));
    }
    let small = free < SHARED_MEMORY;
    Ok(small.then(|| format!("only {} are free in /dev/shm, which NCCL may fill; {remedy}", text::bytes(free))))
}

/// The limit to set, if the present one is too small.
fn judge_files(facts: &Facts) -> Result<Option<u64>> {
    let (soft, hard) = facts.open_files;
    let need = FILES + (facts.workers as u64 * FILES_PER_WORKER).max(facts.world_size as u64 * FILES_PER_PEER);
    if soft.is_none_or(|soft| soft >= need) {
        return Ok(None);
    }
    match hard {
        Some(hard) if hard < need => Err(Error::environment(format!(
            "{} of {} need {need} open files in one process, and the limit is {hard}; raise it (ulimit -Hn, \
             /etc/security/limits.conf, LimitNOFILE of systemd, docker run --ulimit nofile={need})",
            text::count(facts.workers, "worker"),
            facts.world_size
        ))),
        _ => Ok(Some(hard.unwrap_or(MOST_FILES).min(MOST_FILES).max(need))),
    }
}

/// A check that has begun.
pub struct Checks {
    query: Option<std::result::Result<Query, String>>,
    deadline: Instant,
}

impl Checks {
    /// Begins with what takes longest: the question to the driver, if the workers use GPUs.
    pub fn begin(devices: &Devices) -> Self {
        let query = matches!(devices, Devices::Cuda(_)).then(Query::start);
        Self { query, deadline: Instant::now() + DRIVER_PATIENCE }
    }

    /// Gathers the rest, judges, and raises the limit on open files if need be. Returns what should be told.
    ///
    /// # Errors
    /// As [`judge`].
    pub fn finish(self, devices: &Devices, world_size: usize, outputs: &Path, by_bus: bool) -> Result<Vec<String>> {
        let answer = self.query.map(|query| query.and_then(|query| query.wait(self.deadline)));
        let gpus = answer.map(|answer| answer.map(|report| of_workers(devices, &report, by_bus)));
        let limit = rustix::process::getrlimit(Resource::Nofile);
        let facts = Facts {
            workers: devices.workers(),
            world_size,
            gpus,
            shared_memory: free_space(Path::new("/dev/shm")),
            nccl_uses_shm: std::env::var("NCCL_SHM_DISABLE").map_or(true, |value| value.trim() != "1"),
            open_files: (limit.current, limit.maximum),
            folder: Some(writable(outputs)),
        };
        let judgement = judge(&facts)?;
        if let Some(current) = judgement.open_files {
            let raised = Rlimit { current: Some(current), maximum: limit.maximum };
            rustix::process::setrlimit(Resource::Nofile, raised).map_err(|error| {
                Error::environment(format!(
                    "raising the limit of open files to {current}: {error}; run: ulimit -n {current}"
                ))
            })?;
        }
        Ok(judgement.warnings)
    }
}

/// The state of each worker's GPU, as far as its entry tells which one it is.
pub fn of_workers(devices: &Devices, report: &Report, by_bus: bool) -> Vec<(String, GpuState)> {
    let Devices::Cuda(entries) = devices else { return Vec::new() };
    let located = gpu::locate(entries, &report.gpus, by_bus);
    entries.iter().zip(located).filter_map(|(entry, gpu)| Some((entry.clone(), gpu?.clone()))).collect()
}

/// Bytes that are free for this user where `folder` lies.
pub fn free_space(folder: &Path) -> Option<u64> {
    let facts = rustix::fs::statvfs(folder).ok()?;
    Some(facts.f_bavail.saturating_mul(facts.f_frsize))
}

/// The nearest folder that is there, and why it cannot be written to.
pub fn writable(folder: &Path) -> (PathBuf, Option<&'static str>) {
    let there = folder.ancestors().find(|folder| folder.exists()).filter(|folder| !folder.as_os_str().is_empty());
    let there = there.unwrap_or(Path::new(".")).to_path_buf();
    let is_read_only = rustix::fs::statvfs(&there).is_ok_and(|facts| facts.f_flag.contains(StatVfsMountFlags::RDONLY));
    let why = if !there.is_dir() {
        Some("it is no folder")
    } else if is_read_only {
        Some("its file system is read-only")
    } else if rustix::fs::access(&there, Access::WRITE_OK | Access::EXEC_OK).is_err() {
        Some("permission denied")
    } else {
        None
    };
    (there, why)
}

#[cfg(test)]
#[path = "checks/tests.rs"]
mod tests;
