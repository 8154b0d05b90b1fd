//! The supervisor: starts one worker per GPU, looks after them, and says what went wrong.

mod benchmark;
mod bind;
mod cause;
mod checks;
mod child;
mod claim;
mod config;
mod devices;
mod doctor;
mod dry_run;
mod error;
mod gpu;
mod guard;
mod hang;
mod inspect;
mod job;
mod limits;
mod logs;
mod memory;
mod nodes;
mod nvml;
mod output;
mod plan;
mod process;
mod rendezvous;
mod report;
mod restart;
mod show;
mod signals;
mod streams;
mod supervise;
mod synth;
mod text;
mod topology;

use std::env::{var, var_os};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::CommandFactory;
use clap_complete::Shell;
use fnet_protocol::cli::{
    Benchmark, BenchmarkCommand, BenchmarkLaunch, Completions, Launch, LaunchCommand, Place, ShellName, WorkerCommand,
};
use fnet_protocol::{env, exit};

use crate::bind::{Binding, UserSettings};
use crate::checks::Checks;
use crate::devices::Devices;
use crate::error::{Doing, Error, Result};
use crate::gpu::Detection;
use crate::plan::Plan;
use crate::show::Show;
use crate::topology::Topology;

fn main() {
    match std::env::args_os().nth(1) {
        Some(argument) if argument == guard::ARGUMENT => return guard::run(),
        Some(argument) if argument == nvml::ARGUMENT => return nvml::run(),
        _ => {}
    }
    let launch = Launch::from_arguments(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let started = output::start().doing(|| "starting the threads for the output".to_owned());
    let code = started.and_then(|()| run(&launch)).unwrap_or_else(|error| {
        Show::new(&launch.place).error(error.message());
        error.code
    });
    // A job that is over must not wait for a reader that has stopped; what a person has asked for may.
    output::flush(is_supervised(&launch).then_some(output::FLUSH_TIMEOUT));
    std::process::exit(code);
}

fn run(launch: &Launch) -> Result<i32> {
    let place = &launch.place;
    match &launch.command {
        LaunchCommand::Worker(command) if place.dry_run => dry_run::run(place, &plan_job(place, command)?),
        LaunchCommand::Worker(command) if plan::needs_no_rank(command) => {
            plan::check_inputs(place, command)?;
            Err(become_worker(place, command))
        }
        LaunchCommand::Worker(command) => {
            plan::check_json(command)?;
            match launch_benchmark(command) {
                Some(benchmark) => benchmark::run(place, &plan_job(place, command)?, benchmark),
                None => supervise::run(place, || plan_job(place, command)),
            }
        }
        LaunchCommand::Synth(command) => synth::run(place, command).map(|()| exit::SUCCESS),
        LaunchCommand::Doctor(command) => doctor::run(place, command, find_worker()),
        LaunchCommand::Completions(command) => {
            completions(command);
            Ok(exit::SUCCESS)
        }
    }
}

/// Whether workers are started and looked after.
fn is_supervised(launch: &Launch) -> bool {
    match &launch.command {
        LaunchCommand::Worker(command) => {
            !launch.place.dry_run && !plan::needs_no_rank(command) && launch_benchmark(command).is_none()
        }
        _ => false,
    }
}

/// The `benchmark launch` that starts this program again and again.
fn launch_benchmark(command: &WorkerCommand) -> Option<&BenchmarkLaunch> {
    match command {
        WorkerCommand::Benchmark(Benchmark { what: BenchmarkCommand::Launch(launch) }) if !launch.once => Some(launch),
        _ => None,
    }
}

fn find_worker() -> Result<PathBuf> {
    let launcher = std::env::current_exe().ok();
    plan::find_worker(var_os(env::WORKER).as_deref(), launcher.as_deref(), var_os("PATH").as_deref())
}

/// Commands that need no supervision: this process becomes the worker, with its stdin, stdout and stderr.
fn become_worker(place: &Place, command: &WorkerCommand) -> Error {
    let program = match find_worker() {
        Ok(program) => program,
        Err(error) => return error,
    };
    let mut worker = Command::new(&program);
    worker.args(command.to_args());
    plan::remove_ranks(&mut worker);
    worker.env(env::DEVICE, "cpu").env(env::VERBOSITY, place.verbosity().to_string());
    let error = worker.exec();
    Error::environment(format!("starting {}: {error}", program.display()))
}

fn plan_job(place: &Place, command: &WorkerCommand) -> Result<Plan> {
    plan::check_inputs(place, command)?;
    let visible = var(env::CUDA_VISIBLE_DEVICES).ok();
    let by_bus = is_by_bus(visible.as_deref());
    let arguments = command.to_args();
    let found = std::cell::OnceCell::new();
    let detect = || found.get_or_init(|| gpu::detect(Path::new("/")));
    let devices = devices::choose(place, visible.as_deref(), detect, &arguments)?;
    let single = plan::is_single(command);
    let devices = if single { first_only(devices) } else { devices };
    if let Some(found) = found.get() {
        devices::refuse_slices_of_one_gpu(&devices, &found.gpus, &arguments)?;
    }
    let checks = Checks::begin(&devices);
    let nodes = if single {
        rendezvous::resolve(&Place { nnodes: Some(1), node_rank: None, ..place.clone() }, |_| None)?
    } else {
        rendezvous::resolve(place, |name| var(name).ok())?
    };
    if let Some(name) = &place.iface {
        nodes::interfaces::check(name, &nodes::interfaces::all()?)?;
    }
    if let WorkerCommand::Train(train) = command {
        plan::check_overwrite(place, train, &supervise::checkpoints_of(train)?)?;
    }
    let logs = plan::logs(command);
    let plan = Plan {
        program: find_worker()?,
        binding: bind_workers(place, &devices, found.get(), by_bus)?,
        command: command.clone(),
        nodes,
        logs,
        tune_memory: plan::may_tune_memory(&devices, |name| var_os(name).is_some()),
        verbosity: place.verbosity(),
        by_bus: visible.is_none() && by_bus,
        devices,
    };
    let world_size = plan.nodes.spot(plan.devices.workers()).world;
    let warnings = checks.finish(&plan.devices, world_size, &plan.logs, by_bus)?;
    warnings.iter().for_each(|warning| Show::new(place).say(&format!("warning: {warning}")));
    Ok(plan)
}

/// Whether CUDA numbers the GPUs as nvidia-smi does: the workers are told to unless the user's variables may mean
/// another order.
fn is_by_bus(visible: Option<&str>) -> bool {
    match var("CUDA_DEVICE_ORDER") {
        Ok(order) => order == "PCI_BUS_ID",
        Err(_) => visible.is_none(),
    }
}

/// The CPUs and threads of the workers.
fn bind_workers(place: &Place, devices: &Devices, found: Option<&Detection>, by_bus: bool) -> Result<Binding> {
    let root = Path::new("/");
    let topology = Topology::read(root, &topology::allowed());
    let gpus = match (devices, found) {
        (Devices::Cuda(entries), Some(found)) => {
            let located = gpu::locate(entries, &found.gpus, by_bus);
            Some(located.into_iter().map(|gpu| gpu::near(root, gpu)).collect::<Vec<_>>())
        }
        _ => None,
    };
    bind::decide(&bind::Facts {
        wish: &place.bind,
        topology: &topology,
        gpus: gpus.as_deref(),
        workers: devices.workers(),
        user: &UserSettings::read(|name| var(name).ok()),
    })
}

fn first_only(devices: Devices) -> Devices {
    match devices {
        Devices::Cpu(_) => Devices::Cpu(1),
        Devices::Cuda(mut entries) => {
            entries.truncate(1);
            Devices::Cuda(entries)
        }
    }
}

fn completions(command: &Completions) {
    let shell = match command.shell {
        ShellName::Bash => Shell::Bash,
        ShellName::Elvish => Shell::Elvish,
        ShellName::Fish => Shell::Fish,
        ShellName::Powershell => Shell::PowerShell,
        ShellName::Zsh => Shell::Zsh,
    };
    clap_complete::generate(shell, &mut Launch::command(), "fnet-launch", &mut std::io::stdout());
}
