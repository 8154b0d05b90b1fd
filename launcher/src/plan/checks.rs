//! Checks whether this machine can run a job, before it starts.
//!
//! The state of the machine is collected while the job is planned, and judged by [`judge`]. Rank 0 checks what depends on
//! the config, the data or the model.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access, StatVfsMountFlags};
use rustix::process::{Resource, Rlimit};

use super::devices::Devices;
use super::nvml::{DriverReport, GpuState, Query};
use crate::error::{Error, Result};
use crate::text;

/// Time for the driver to answer; a slow driver does not delay the job.
const DRIVER_TIMEOUT: Duration = Duration::from_millis(150);
/// A GPU needs this much for the CUDA context and the kernels of the libraries.
const MIN_GPU_MEMORY: u64 = 1 << 30;
/// Descriptors of the launcher per worker (pipes, logs, control channel, process), with a reserve.
const FILES_PER_WORKER: u64 = 12;
/// Descriptors of a worker per peer (one connection per process group), with a reserve.
const FILES_PER_PEER: u64 = 4;
/// Other descriptors of a process.
const FILES: u64 = 256;
/// Maximum limit to set; some programs iterate over all descriptors up to the limit.
const MAX_FILES: u64 = 1 << 20;
/// NCCL uses some MiB of shared memory per pair of GPUs.
const SHARED_MEMORY: u64 = 256 << 20;
/// NCCL cannot start with less.
const MIN_SHARED_MEMORY: u64 = 8 << 20;

/// The state of the machine, as far as it matters to a job.
#[derive(Debug, Clone, Default)]
pub struct MachineState {
    /// Number of workers of this node.
    pub workers: usize,
    /// Number of workers of the job.
    pub world_size: usize,
    /// The workers' GPUs with their entries of CUDA_VISIBLE_DEVICES; `Err` if the driver did not answer.
    pub gpus: Option<std::result::Result<Vec<(String, GpuState)>, String>>,
    /// Free bytes in /dev/shm, if it exists.
    pub shared_memory: Option<u64>,
    /// Whether NCCL may use shared memory (NCCL_SHM_DISABLE).
    pub nccl_uses_shm: bool,
    /// Soft and hard limit on open files; `None` is unlimited.
    pub open_files: (Option<u64>, Option<u64>),
    /// The output folder or its nearest existing parent, and why it is not writable.
    pub folder: Option<(PathBuf, Option<&'static str>)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckResult {
    /// Warnings for the user.
    pub warnings: Vec<String>,
    /// The limit on open files to set.
    pub open_files: Option<u64>,
}

/// Judges the state of the machine.
/// Errors: the machine cannot run the job (exit code 6).
pub fn judge(state: &MachineState) -> Result<CheckResult> {
    let mut warnings = Vec::new();
    if let Some((folder, Some(why))) = &state.folder {
        return Err(Error::environment(format!(
            "cannot write to {}: {why}; choose another folder with --work-dir",
            folder.display()
        )));
    }
    match &state.gpus {
        Some(Ok(gpus)) => {
            for (entry, gpu) in gpus {
                warnings.extend(judge_gpu(entry, gpu)?);
            }
            warnings.extend(judge_shared_memory(state)?);
        }
        Some(Err(_)) => warnings.extend(judge_shared_memory(state)?),
        None => {}
    }
    Ok(CheckResult { warnings, open_files: judge_files(state)? })
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
    if gpu.memory_free < MIN_GPU_MEMORY && gpu.memory_total >= MIN_GPU_MEMORY {
        let users = if others.is_empty() { "processes that the driver does not name".to_owned() } else { others };
        return Err(Error::environment(format!(
            "GPU {entry} ({}) has {} of {} free, too little to start: it is used by {users}. Stop them, or choose other \
             GPUs with --gpus",
            gpu.name,
            text::bytes(gpu.memory_free),
            text::bytes(gpu.memory_total)
        )));
    }
    if !others.is_empty() {
        if gpu.shared == Some(false) {
            return Err(Error::environment(format!(
                "GPU {entry} ({}) allows one process at a time (compute mode EXCLUSIVE_PROCESS) and is used by {others}. \
                 Stop it, or choose other GPUs with --gpus",
                gpu.name
            )));
        }
        warnings.push(format!(
            "GPU {entry} ({}) is also used by {others}; {} of {} are free",
            gpu.name,
            text::bytes(gpu.memory_free),
            text::bytes(gpu.memory_total)
        ));
    }
    if let Some(errors) = gpu.ecc_errors.filter(|&errors| errors > 0) {
        warnings.push(format!(
            "GPU {entry} ({}) has had {errors} uncorrectable memory errors since the last reboot; `fnet-launch doctor` \
             suggests what to do",
            gpu.name
        ));
    }
    Ok(warnings)
}

fn judge_shared_memory(state: &MachineState) -> Result<Option<String>> {
    if state.workers < 2 || !state.nccl_uses_shm {
        return Ok(None);
    }
    let remedy = "start the container with --shm-size=1g or --ipc=host, or set NCCL_SHM_DISABLE=1 (slower)";
    let free = state.shared_memory.unwrap_or(0);
    if free < MIN_SHARED_MEMORY {
        return Err(Error::environment(format!(
            "{} are free in /dev/shm, too little for NCCL to start; {remedy}",
            text::bytes(free)
        )));
    }
    let small = free < SHARED_MEMORY;
    Ok(small.then(|| format!("only {} are free in /dev/shm, which NCCL may fill; {remedy}", text::bytes(free))))
}

/// The limit to set, if the current one is too small.
fn judge_files(state: &MachineState) -> Result<Option<u64>> {
    let (soft, hard) = state.open_files;
    let need = FILES + (state.workers as u64 * FILES_PER_WORKER).max(state.world_size as u64 * FILES_PER_PEER);
    if soft.is_none_or(|soft| soft >= need) {
        return Ok(None);
    }
    match hard {
        Some(hard) if hard < need => Err(Error::environment(format!(
            "{} of {} need {need} open files in one process, and the limit is {hard}; raise it (ulimit -Hn, \
             /etc/security/limits.conf, LimitNOFILE of systemd, docker run --ulimit nofile={need})",
            text::count(state.workers, "worker"),
            state.world_size
        ))),
        _ => Ok(Some(hard.unwrap_or(MAX_FILES).min(MAX_FILES).max(need))),
    }
}

/// Checks in progress.
pub struct Checks {
    query: Option<std::result::Result<Query, String>>,
    deadline: Instant,
}

impl Checks {
    /// Starts the slowest part: the query to the driver, if the workers use GPUs.
    pub fn begin(devices: &Devices) -> Self {
        let query = matches!(devices, Devices::Cuda(_)).then(Query::start);
        Self { query, deadline: Instant::now() + DRIVER_TIMEOUT }
    }

    /// Collects the rest, judges, and raises the limit on open files if necessary. Returns warnings.
    /// Errors: the machine cannot run the job (exit code 6).
    pub fn finish(self, devices: &Devices, world_size: usize, outputs: &Path, by_bus: bool) -> Result<Vec<String>> {
        let answer = self.query.map(|query| query.and_then(|query| query.wait(self.deadline)));
        let gpus = answer.map(|answer| answer.map(|report| of_workers(devices, &report, by_bus)));
        let limit = rustix::process::getrlimit(Resource::Nofile);
        let state = MachineState {
            workers: devices.workers(),
            world_size,
            gpus,
            shared_memory: free_space(Path::new("/dev/shm")),
            nccl_uses_shm: std::env::var("NCCL_SHM_DISABLE").map_or(true, |value| value.trim() != "1"),
            open_files: (limit.current, limit.maximum),
            folder: Some(writable(outputs)),
        };
        let result = judge(&state)?;
        if let Some(current) = result.open_files {
            let raised = Rlimit { current: Some(current), maximum: limit.maximum };
            rustix::process::setrlimit(Resource::Nofile, raised).map_err(|error| {
                Error::environment(format!(
                    "raising the limit of open files to {current}: {error}; run: ulimit -n {current}"
                ))
            })?;
        }
        Ok(result.warnings)
    }
}

/// The state of each worker's GPU, as far as its entry identifies it.
pub fn of_workers(devices: &Devices, report: &DriverReport, by_bus: bool) -> Vec<(String, GpuState)> {
    let Devices::Cuda(entries) = devices else { return Vec::new() };
    let located = GpuState::locate(entries, &report.gpus, by_bus);
    entries.iter().zip(located).filter_map(|(entry, gpu)| Some((entry.clone(), gpu?.clone()))).collect()
}

/// Free bytes for this user in the file system of `folder`.
pub fn free_space(folder: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// The nearest existing parent of a folder, and why it is not writable.
pub fn writable(folder: &Path) -> (PathBuf, Option<&'static str>) {
    let there = folder.ancestors().find(|folder| folder.exists()).filter(|folder| !folder.as_os_str().is_empty());
    let there = there.unwrap_or(Path::new(".")).to_path_buf();
    let is_read_only = rustix::fs::statvfs(&there).is_ok_and(|stat| stat.f_flag.contains(StatVfsMountFlags::RDONLY));
    let why = if !there.is_dir() {
        Some("it is not a folder")
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
