//! What is to be started: program, ranks, variables, folders. Decisions only.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use fnet_protocol::cli::{BenchmarkCommand, Place, Resume, Train, WorkerCommand};
use fnet_protocol::work_dir::{self, CheckpointFile, LOGS};
use fnet_protocol::{env, exit, file_kind};

use crate::bind::Binding;
use crate::devices::Devices;
use crate::error::{Error, Result};
use crate::rendezvous::Nodes;
use crate::text;

/// Every step needs the same large tensors again. Given back to the system in between, their pages would be cleared
/// anew each time, a tenth of a training step on the CPU.
const CPU_MEMORY: &str = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1073741824:\
                          glibc.malloc.trim_threshold=1073741824:glibc.malloc.top_pad=67108864";

/// The sizes of images vary, and so do those of the tensors of a step: without segments that grow, the memory of a GPU
/// breaks into pieces that fit none of them.
const GPU_MEMORY: &str = "expandable_segments:True";

/// A job on this node.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The worker's program.
    pub program: PathBuf,
    /// What the workers run.
    pub command: WorkerCommand,
    /// Their devices.
    pub devices: Devices,
    /// The nodes.
    pub nodes: Nodes,
    /// Folder of the log per rank.
    pub logs: PathBuf,
    /// The workers' CPUs and threads.
    pub binding: Binding,
    /// Whether the allocator of the workers' device is set up for training; not if the user's variables set it up.
    pub tune_memory: bool,
    /// FNET_VERBOSITY.
    pub verbosity: i8,
    /// Number GPUs as nvidia-smi does; not if the user's CUDA_VISIBLE_DEVICES may mean another order.
    pub by_bus: bool,
}

impl Plan {
    /// The ranks of this node.
    pub fn ranks(&self) -> Vec<usize> {
        let local = self.devices.workers();
        let first = self.nodes.spot(local).first_rank;
        (first..first + local).collect()
    }

    /// Variables of worker `index` of this node; `port` is the store's.
    pub fn variables(&self, index: usize, port: u16, restarts: u32) -> Vec<(String, String)> {
        let local = self.devices.workers();
        let spot = self.nodes.spot(local);
        let mut variables: Vec<(String, String)> = [
            (env::RANK, (spot.first_rank + index).to_string()),
            (env::LOCAL_RANK, index.to_string()),
            (env::WORLD_SIZE, spot.world.to_string()),
            (env::LOCAL_WORLD_SIZE, local.to_string()),
            (env::GROUP_RANK, self.nodes.rank.to_string()),
            (env::MASTER_ADDR, self.nodes.address.clone()),
            (env::MASTER_PORT, port.to_string()),
            (env::RESTART_COUNT, restarts.to_string()),
            (env::DEVICE, self.devices.kind().name().to_owned()),
            (env::VERBOSITY, self.verbosity.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        variables.extend(self.nodes.interface.iter().cloned());
        if let Some(threads) = self.binding.threads {
            variables.push((env::OMP_NUM_THREADS.to_owned(), threads.to_string()));
        }
        if self.tune_memory {
            let (name, value) = match self.devices {
                Devices::Cpu(_) => (env::GLIBC_TUNABLES, CPU_MEMORY),
                Devices::Cuda(_) => (env::PYTORCH_ALLOC_CONF, GPU_MEMORY),
            };
            variables.push((name.to_owned(), value.to_owned()));
        }
        if let Devices::Cuda(entries) = &self.devices
            && let Some(entry) = entries.get(index)
        {
            variables.push((env::CUDA_VISIBLE_DEVICES.to_owned(), entry.clone()));
            if self.by_bus {
                variables.push(("CUDA_DEVICE_ORDER".to_owned(), "PCI_BUS_ID".to_owned()));
            }
        }
        variables
    }

    /// Log of a rank.
    pub fn log(&self, rank: usize) -> PathBuf {
        self.logs.join(format!("rank_{rank}.log"))
    }

    /// `train on 2 workers (cpu, 1 thread each)`.
    pub fn summary(&self) -> String {
        let name = self.command.to_args().first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let workers = text::count(self.devices.workers(), "worker");
        let threads =
            self.binding.threads.map_or_else(String::new, |count| format!(", {} each", text::count(count, "thread")));
        let nodes = match self.nodes.count {
            1 => String::new(),
            count => format!(
                ", node {} of {count}, which meet at {}, port {}",
                self.nodes.rank,
                self.nodes.address,
                self.nodes.port.unwrap_or(0)
            ),
        };
        format!("{name} on {workers} ({}{threads}{nodes}), logs in {}", self.devices.kind().name(), self.logs.display())
    }
}

/// Variables of the launcher's environment that mean nothing to its workers, or something else.
pub const NOT_INHERITED: [&str; 6] =
    [env::CONTROL, env::STATE_FD, env::STORE_FD, env::TORCHELASTIC_USE_AGENT_STORE, env::PORT, env::WORKER];

/// Makes a worker that is not one of several find no place in a job in its environment.
pub fn remove_ranks(worker: &mut Command) {
    for name in NOT_INHERITED.iter().chain(&[env::RANK, env::WORLD_SIZE, env::LOCAL_RANK, env::LOCAL_WORLD_SIZE]) {
        worker.env_remove(name);
    }
}

/// Whether nothing in the environment sets up the allocator of the workers' device; `is_set` tells of a variable.
pub fn may_tune_memory(devices: &Devices, is_set: impl Fn(&str) -> bool) -> bool {
    match devices {
        Devices::Cpu(_) => !is_set(env::GLIBC_TUNABLES),
        // libtorch prefers the first, and takes the second for an older name of it.
        Devices::Cuda(_) => !is_set(env::PYTORCH_ALLOC_CONF) && !is_set(env::PYTORCH_CUDA_ALLOC_CONF),
    }
}

/// Whether a command takes neither a device nor other ranks, and so no supervision.
pub fn needs_no_rank(command: &WorkerCommand) -> bool {
    match command {
        WorkerCommand::Flops(_)
        | WorkerCommand::CheckData(_)
        | WorkerCommand::PrintConfig(_)
        | WorkerCommand::Export(_)
        | WorkerCommand::Browse(_) => true,
        WorkerCommand::Benchmark(benchmark) => matches!(benchmark.what, BenchmarkCommand::Data(_)),
        WorkerCommand::Train(_) | WorkerCommand::Test(_) | WorkerCommand::Predict(_) => false,
    }
}

/// Whether a command runs on one worker whatever `--gpus` says.
pub fn is_single(command: &WorkerCommand) -> bool {
    needs_no_rank(command)
        || match command {
            WorkerCommand::Predict(_) => true,
            WorkerCommand::Benchmark(benchmark) => matches!(benchmark.what, BenchmarkCommand::Infer(_)),
            _ => false,
        }
}

/// Folder of the logs of a command.
pub fn logs(command: &WorkerCommand) -> PathBuf {
    match command {
        WorkerCommand::Train(train) => train.folder().join(LOGS),
        WorkerCommand::Test(test) => {
            work_dir::work_dir_of_checkpoint(&test.checkpoint, test.config.as_deref()).join(LOGS).join("test")
        }
        WorkerCommand::Predict(predict) => predict.out.join(LOGS),
        WorkerCommand::Benchmark(benchmark) => {
            let config = match &benchmark.what {
                BenchmarkCommand::Infer(infer) => &infer.config,
                BenchmarkCommand::Train(train) => &train.config,
                BenchmarkCommand::Data(data) => &data.config,
                BenchmarkCommand::Comm(_) | BenchmarkCommand::Launch(_) => Path::new("benchmark"),
            };
            work_dir::work_dir(config, None).join(LOGS).join("benchmark")
        }
        WorkerCommand::Flops(flops) => work_dir::work_dir(&flops.config, None).join(LOGS),
        WorkerCommand::Browse(browse) => browse.out.join(LOGS),
        WorkerCommand::CheckData(check) => work_dir::work_dir(&check.config, None).join(LOGS),
        WorkerCommand::PrintConfig(print) => work_dir::work_dir(&print.config, None).join(LOGS),
        WorkerCommand::Export(export) => {
            work_dir::work_dir_of_checkpoint(&export.checkpoint, export.config.as_deref()).join(LOGS)
        }
    }
}

/// Refuses inputs that do not exist, and a PyTorch file without its config, before a folder is made for the outputs.
///
/// # Errors
/// A config (exit code 2), checkpoint or picture (exit code 3) that does not exist; a missing `--config` (exit code 2),
/// with the line to run.
pub fn check_inputs(place: &Place, command: &WorkerCommand) -> Result<()> {
    let config = |path: &Path| match file_kind::not_a_config(path) {
        _ if !path.exists() => Err(Error::usage(format!("config {}: no such file", path.display()))),
        Some(why) => Err(Error::usage(format!("config {}: {why}", path.display()))),
        None => Ok(()),
    };
    let data = |what: &str, path: &Path| {
        let message = || format!("{what} {}: no such file", path.display());
        if path.exists() { Ok(()) } else { Err(Error::new(exit::DATA, message())) }
    };
    let weights = |path: &Path| {
        data("checkpoint", path)?;
        file_kind::not_a_checkpoint(path)
            .map_or(Ok(()), |why| Err(Error::new(exit::DATA, format!("checkpoint {}: {why}", path.display()))))
    };
    match command {
        WorkerCommand::Train(train) => {
            config(&train.config)?;
            if let Some(Resume::From(checkpoint)) = &train.resume {
                weights(checkpoint)?;
            }
            train.load_from.as_deref().map_or(Ok(()), weights)
        }
        WorkerCommand::Test(test) => {
            weights(&test.checkpoint)?;
            test.config.as_deref().map_or(Ok(()), config)
        }
        WorkerCommand::Predict(predict) => {
            weights(&predict.checkpoint)?;
            predict.images.iter().try_for_each(|path| data("picture or folder", path))?;
            predict.config.as_deref().map_or(Ok(()), config)
        }
        WorkerCommand::Benchmark(benchmark) => match &benchmark.what {
            BenchmarkCommand::Infer(infer) => {
                config(&infer.config)?;
                infer.checkpoint.as_deref().map_or(Ok(()), weights)
            }
            BenchmarkCommand::Train(train) => config(&train.config),
            BenchmarkCommand::Data(data) => config(&data.config),
            BenchmarkCommand::Comm(_) | BenchmarkCommand::Launch(_) => Ok(()),
        },
        WorkerCommand::Flops(flops) => config(&flops.config),
        WorkerCommand::Browse(browse) => config(&browse.config),
        WorkerCommand::CheckData(check) => config(&check.config),
        WorkerCommand::PrintConfig(print) => config(&print.config),
        WorkerCommand::Export(export) => {
            weights(&export.checkpoint)?;
            export.config.as_deref().map_or(Ok(()), config)
        }
    }?;
    match command.with_missing_config() {
        None => Ok(()),
        Some(complete) => {
            let line = line(place, complete.to_args());
            Err(Error::usage(format!(
                "a PyTorch file does not say what model it is of; give the config of the model:\n  {line}"
            )))
        }
    }
}

/// Refuses `--json` where nothing is printed for programs.
///
/// # Errors
/// A `train` or `test` with `--json` that is no dry run (exit code 2).
pub fn check_json(command: &WorkerCommand) -> Result<()> {
    match command {
        WorkerCommand::Train(train) if train.json => {
            Err(Error::usage("--json goes with --dry-run; the log of a training for programs is <time>.log.json"))
        }
        WorkerCommand::Test(test) if test.json => {
            Err(Error::usage("--json goes with --dry-run; for the metrics give --metrics FILE"))
        }
        _ => Ok(()),
    }
}

/// A line that users can run: this program, where to run, and a command.
fn line(place: &Place, command: Vec<OsString>) -> String {
    let mut words = vec!["fnet-launch".into()];
    words.extend(place.to_args());
    words.extend(command);
    text::shell_line(&words)
}

/// Refuses to train into a folder that holds checkpoints unless told to go on from them.
///
/// # Errors
/// Names the newest checkpoint and the two lines to choose from (exit code 2).
pub fn check_overwrite(place: &Place, train: &Train, found: &[CheckpointFile]) -> Result<()> {
    let Some(newest) = found.first().filter(|_| train.resume.is_none()) else { return Ok(()) };
    let folder = train.folder();
    let go_on = Train { resume: Some(Resume::Newest), load_from: None, ..train.clone() };
    let mut other = folder.clone().into_os_string();
    other.push("_2");
    let anew = Train { work_dir: Some(other.into()), ..train.clone() };
    Err(Error::usage(format!(
        "{} holds checkpoints; the newest is {}. To go on from it:\n  {}\nTo start anew in another folder:\n  {}",
        folder.display(),
        newest.path.display(),
        line(place, go_on.to_args()),
        line(place, anew.to_args())
    )))
}

/// The command of a restart: goes on from the newest checkpoint if this job has written one, else as it was given. `before`
/// is what the folder held at its start: the clock of a file server may be another than this machine's.
pub fn resumed(train: &Train, found: &[CheckpointFile], before: &[CheckpointFile]) -> Train {
    let ours = found.first().is_some_and(|newest| !before.contains(newest));
    if ours { Train { resume: Some(Resume::Newest), load_from: None, ..train.clone() } } else { train.clone() }
}

/// The command that goes on from the newest checkpoint; only `train` can.
pub fn from_newest(command: &WorkerCommand) -> WorkerCommand {
    match command {
        WorkerCommand::Train(train) => {
            WorkerCommand::Train(Train { resume: Some(Resume::Newest), load_from: None, ..train.clone() })
        }
        other => other.clone(),
    }
}

/// Finds the worker's program: FNET_WORKER, then beside the launcher, then on PATH.
///
/// # Errors
/// Says where it was looked for (exit code 6).
pub fn find_worker(own: Option<&OsStr>, launcher: Option<&Path>, path: Option<&OsStr>) -> Result<PathBuf> {
    const NAME: &str = "fnet-worker";
    if let Some(own) = own.filter(|text| !text.is_empty()) {
        let program = PathBuf::from(own);
        return if program.is_file() {
            Ok(program)
        } else {
            Err(Error::environment(format!("FNET_WORKER={}: no such file", program.display())))
        };
    }
    let beside = launcher.and_then(Path::parent).map(|folder| folder.join(NAME));
    if let Some(program) = beside.as_deref().filter(|program| program.is_file()) {
        return Ok(program.to_path_buf());
    }
    let on_path = path.map(|path| std::env::split_paths(path).map(|folder| folder.join(NAME)).collect::<Vec<_>>());
    if let Some(program) = on_path.into_iter().flatten().find(|program| program.is_file()) {
        return Ok(program);
    }
    Err(Error::environment(format!(
        "cannot find {NAME}; looked for {} and on PATH. Build it with `make setup`, or name it in FNET_WORKER",
        beside.map_or_else(|| "it beside this program".to_owned(), |program| program.display().to_string())
    )))
}

#[cfg(test)]
mod tests;
