//! The plan of a job on this node: program, devices, ranks, variables, folders.

pub mod bind;
pub mod checks;
pub mod devices;
pub mod gpu;
pub mod host_memory;
pub mod inputs;
pub mod interfaces;
pub mod nvml;
pub mod rendezvous;
pub mod secret;
pub mod topology;

use std::cell::OnceCell;
use std::env::{var, var_os};
use std::path::{Path, PathBuf};
use std::process::Command;

use fnet_protocol::cli::{BenchmarkCommand, CommandLine, Launch, LaunchOptions, NodeCount, Resume, WorkerCommand};
use fnet_protocol::env;
use fnet_protocol::work_dir::{self, CheckpointFile, LOGS};

use self::bind::{Binding, UserSettings};
use self::checks::Checks;
use self::devices::Devices;
use self::gpu::{Detection, Gpu};
use self::rendezvous::Nodes;
use self::topology::Topology;
use crate::console::Console;
use crate::error::{Doing, Error, Result};
use crate::text;

/// Settings of the allocator on the CPU. Every step needs the same large tensors; if their memory were returned to the
/// kernel in between, clearing the pages again would take a tenth of a training step.
const CPU_ALLOCATOR: &str = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1073741824:\
                          glibc.malloc.trim_threshold=1073741824:glibc.malloc.top_pad=67108864";

/// Settings of the allocator on GPUs. The sizes of images vary, and so do those of the tensors of a step: without segments
/// that grow, the memory of a GPU breaks into pieces that fit none of them.
const GPU_ALLOCATOR: &str = "expandable_segments:True";

/// The plan of a job on this node.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The worker's program.
    pub program: PathBuf,
    pub command: WorkerCommand,
    /// The same in words, as given by the user.
    pub line: CommandLine,
    /// Resume from the newest checkpoint, whatever the command says.
    pub resume: bool,
    /// The devices of the workers.
    pub devices: Devices,
    pub nodes: Nodes,
    /// Folder of the logs, one per rank.
    pub logs: PathBuf,
    /// CPUs and threads of the workers.
    pub binding: Binding,
    /// Whether the allocator of the workers' device is set up for training; not if the user's variables set it up.
    pub tune_memory: bool,
    /// FNET_VERBOSITY.
    pub verbosity: i8,
    /// Whether CUDA numbers GPUs as nvidia-smi does; not if the user's CUDA_VISIBLE_DEVICES may mean another order.
    pub by_bus: bool,
}

impl Plan {
    /// Plans a job.
    /// Errors: the command line is wrong, inputs are missing, or this machine cannot run the job.
    pub fn new(launch: &Launch, command: &WorkerCommand) -> Result<Self> {
        inputs::check(launch, command)?;
        let options = &devices::with_variable(&launch.options, var(env::PET_NPROC_PER_NODE).ok().as_deref())?;
        let visible = var(env::CUDA_VISIBLE_DEVICES).ok();
        let by_bus = is_by_bus(visible.as_deref());
        let found = OnceCell::new();
        let detect = || found.get_or_init(|| gpu::detect(Path::new("/")));
        let devices = devices::choose(options, visible.as_deref(), detect, &launch.line.words())?;
        let single = is_single(command);
        let devices = if single { devices.first_only() } else { devices };
        if let Some(found) = found.get() {
            devices::refuse_slices_of_one_gpu(&devices, &found.gpus, &launch.line.words())?;
        }
        let checks = Checks::begin(&devices);
        if !single {
            rendezvous::refuse_solo(options, |name| var(name).ok())?;
        }
        let nodes = if single {
            let nnodes = Some(NodeCount { max: 1, min: None });
            let one_node = LaunchOptions { nnodes, node_rank: None, ..options.clone() };
            rendezvous::resolve(&one_node, |_| None)?
        } else {
            rendezvous::resolve(options, |name| var(name).ok())?
        };
        if let (Some(min), false) = (nodes.min, matches!(command, WorkerCommand::Train(_))) {
            return Err(Error::usage(format!(
                "--nnodes {min}:{}: only train can go on with other nodes; give the number of nodes",
                nodes.count
            )));
        }
        if let Some(name) = &options.iface {
            interfaces::check(name, &interfaces::all()?)?;
        }
        let plan = Self {
            program: find_worker()?,
            binding: bind_workers(options, &devices, found.get(), by_bus)?,
            command: command.clone(),
            line: launch.line.clone(),
            resume: false,
            nodes,
            logs: logs(command),
            tune_memory: may_tune_memory(&devices, |name| var_os(name).is_some()),
            verbosity: options.verbosity(),
            by_bus: visible.is_none() && by_bus,
            devices,
        };
        // A node that comes later finds the checkpoints of the job that it joins.
        if let (WorkerCommand::Train(train), true) = (command, plan.nodes.min.is_none() || plan.nodes.rank == 0) {
            inputs::check_overwrite(launch, train, &plan.checkpoints()?)?;
        }
        let warnings = checks.finish(&plan.devices, plan.world_size(), &plan.logs, by_bus)?;
        warnings.iter().for_each(|warning| Console::new(options).say(&format!("warning: {warning}")));
        Ok(plan)
    }

    pub fn worker_line(&self) -> CommandLine {
        let line = self.line.clone();
        if self.resume {
            line.without("load-from").without("match-classes").without("auto-resume").with("resume", "")
        } else {
            line
        }
    }

    /// Whether the job is a training, which can resume from checkpoints.
    pub fn is_train(&self) -> bool {
        matches!(self.command, WorkerCommand::Train(_))
    }

    /// Whether whatever has started this training shall start it again if it cannot go on without a lost node.
    pub fn starts_again(&self) -> bool {
        let WorkerCommand::Train(train) = &self.command else { return false };
        train.auto_resume || matches!(train.resume, Some(Resume::Auto(_))) || self.nodes.min.is_some()
    }

    /// The checkpoints in the folder of a training; none for other commands.
    pub fn checkpoints(&self) -> Result<Vec<CheckpointFile>> {
        let WorkerCommand::Train(train) = &self.command else { return Ok(Vec::new()) };
        let folder = train.folder();
        work_dir::checkpoints(&folder).doing(|| format!("reading {}", folder.display()))
    }

    /// Number of workers of all nodes.
    pub fn world_size(&self) -> usize {
        self.nodes.rank_range(self.devices.workers()).world_size
    }

    /// The ranks of this node.
    pub fn ranks(&self) -> Vec<usize> {
        let local = self.devices.workers();
        let first = self.nodes.rank_range(local).first;
        (first..first + local).collect()
    }

    /// Environment variables of worker `index` of this node; `port` is that of the store.
    pub fn variables(&self, index: usize, port: u16, restarts: u32, generation: Option<u64>) -> Vec<(String, String)> {
        let local = self.devices.workers();
        let ranks = self.nodes.rank_range(local);
        let mut variables: Vec<(String, String)> = [
            (env::RANK, (ranks.first + index).to_string()),
            (env::LOCAL_RANK, index.to_string()),
            (env::WORLD_SIZE, ranks.world_size.to_string()),
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
        if self.nodes.min.is_some() {
            variables.push((env::FULL_WORLD_SIZE.to_owned(), ranks.full_world_size.to_string()));
        }
        if let Some(generation) = generation {
            variables.push((env::GENERATION.to_owned(), generation.to_string()));
        }
        if let Some(threads) = self.binding.threads {
            variables.push((env::OMP_NUM_THREADS.to_owned(), threads.to_string()));
        }
        if self.tune_memory {
            let (name, value) = match self.devices {
                Devices::Cpu(_) => (env::GLIBC_TUNABLES, CPU_ALLOCATOR),
                Devices::Cuda(_) => (env::PYTORCH_ALLOC_CONF, GPU_ALLOCATOR),
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

    pub fn log(&self, rank: usize) -> PathBuf {
        self.logs.join(format!("rank_{rank}.log"))
    }

    /// `train on 2 workers (cpu, 1 thread each)`.
    pub fn summary(&self) -> String {
        let name = self.line.name();
        let workers = text::count(self.devices.workers(), "worker");
        let threads =
            self.binding.threads.map_or_else(String::new, |count| format!(", {} each", text::count(count, "thread")));
        let nodes = match self.nodes.count {
            1 => String::new(),
            count => format!(
                ", node {} of {}{count}, rendezvous at {}, port {}",
                self.nodes.rank,
                self.nodes.min.map_or_else(String::new, |min| format!("{min} to ")),
                self.nodes.address,
                self.nodes.port.unwrap_or(0)
            ),
        };
        format!("{name} on {workers} ({}{threads}{nodes}), logs in {}", self.devices.kind().name(), self.logs.display())
    }
}

/// Variables in the environment of the launcher that have no meaning, or another one, for its workers.
pub const NOT_INHERITED: [&str; 10] = [
    env::CONTROL,
    env::STATUS_FD,
    env::STORE_FD,
    env::TORCHELASTIC_USE_AGENT_STORE,
    env::PORT,
    env::WORKER,
    env::JOB_SECRET,
    env::GENERATION,
    env::FULL_WORLD_SIZE,
    env::LINKS,
];

/// Removes the variables of a job from the environment of a single worker.
pub fn remove_ranks(worker: &mut Command) {
    for name in NOT_INHERITED.iter().chain(&[env::RANK, env::WORLD_SIZE, env::LOCAL_RANK, env::LOCAL_WORLD_SIZE]) {
        worker.env_remove(name);
    }
}

/// Whether nothing in the environment sets up the allocator of the workers' device; `is_set` tells of a variable.
fn may_tune_memory(devices: &Devices, is_set: impl Fn(&str) -> bool) -> bool {
    match devices {
        Devices::Cpu(_) => !is_set(env::GLIBC_TUNABLES),
        // libtorch prefers the first, and takes the second for an older name of it.
        Devices::Cuda(_) => !is_set(env::PYTORCH_ALLOC_CONF) && !is_set(env::PYTORCH_CUDA_ALLOC_CONF),
    }
}

/// Whether a command uses neither a device nor other ranks, and so needs no supervision.
pub fn needs_no_rank(command: &WorkerCommand) -> bool {
    match command {
        WorkerCommand::Flops(_)
        | WorkerCommand::CheckData(_)
        | WorkerCommand::PrintConfig(_)
        | WorkerCommand::Evaluate(_)
        | WorkerCommand::Export(_)
        | WorkerCommand::Report(_)
        | WorkerCommand::Browse(_)
        | WorkerCommand::ConvertConfig(_) => true,
        WorkerCommand::Benchmark(benchmark) => matches!(benchmark.what, BenchmarkCommand::Data(_)),
        WorkerCommand::Train(_) | WorkerCommand::Test(_) | WorkerCommand::Predict(_) => false,
    }
}

/// Whether a command runs on one worker regardless of `--gpus`.
pub fn is_single(command: &WorkerCommand) -> bool {
    needs_no_rank(command)
        || match command {
            WorkerCommand::Predict(_) => true,
            WorkerCommand::Benchmark(benchmark) => matches!(benchmark.what, BenchmarkCommand::Infer(_)),
            _ => false,
        }
}

/// The log folder of a command.
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
        WorkerCommand::Evaluate(evaluate) => work_dir::work_dir(&evaluate.config, None).join(LOGS),
        WorkerCommand::Report(report) => report.page().with_file_name(LOGS),
        WorkerCommand::CheckData(check) => work_dir::work_dir(&check.config, None).join(LOGS),
        WorkerCommand::PrintConfig(print) => work_dir::work_dir(&print.config, None).join(LOGS),
        WorkerCommand::ConvertConfig(convert) => work_dir::work_dir(&convert.config, None).join(LOGS),
        WorkerCommand::Export(export) => {
            work_dir::work_dir_of_checkpoint(&export.checkpoint, export.config.as_deref()).join(LOGS)
        }
    }
}

/// Finds the worker on this machine.
pub fn find_worker() -> Result<PathBuf> {
    let launcher = std::env::current_exe().ok();
    inputs::find_worker(var_os(env::WORKER).as_deref(), launcher.as_deref(), var_os("PATH").as_deref())
}

/// Whether CUDA numbers the GPUs as nvidia-smi does: workers are configured so, unless the user's variables may mean
/// another order.
fn is_by_bus(visible: Option<&str>) -> bool {
    match var("CUDA_DEVICE_ORDER") {
        Ok(order) => order == "PCI_BUS_ID",
        Err(_) => visible.is_none(),
    }
}

/// CPUs and threads of the workers.
fn bind_workers(
    options: &LaunchOptions,
    devices: &Devices,
    found: Option<&Detection>,
    by_bus: bool,
) -> Result<Binding> {
    let root = Path::new("/");
    let topology = Topology::read(root, &topology::allowed());
    let gpus = match (devices, found) {
        (Devices::Cuda(entries), Some(found)) => {
            let located = Gpu::locate(entries, &found.gpus, by_bus);
            Some(located.into_iter().map(|gpu| gpu::near(root, gpu)).collect::<Vec<_>>())
        }
        _ => None,
    };
    bind::decide(&bind::Inputs {
        option: &options.bind,
        topology: &topology,
        gpus: gpus.as_deref(),
        workers: devices.workers(),
        user: &UserSettings::read(|name| var(name).ok()),
    })
}

#[cfg(test)]
mod tests;
