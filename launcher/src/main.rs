//! The supervisor: starts one worker per GPU, looks after them, and says what went wrong.

mod cause;
mod devices;
mod doctor;
mod error;
mod gpu;
mod guard;
mod hang;
mod inspect;
mod job;
mod logs;
mod memory;
mod nodes;
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

use std::env::{var, var_os};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::CommandFactory;
use clap_complete::Shell;
use fnet_protocol::cli::{Completions, Launch, LaunchCommand, Place, ShellName, WorkerCommand};
use fnet_protocol::{env, exit};

use crate::devices::Devices;
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::show::Show;

fn main() {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == guard::ARGUMENT) {
        guard::run();
        return;
    }
    let launch = Launch::from_arguments(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let code = run(&launch).unwrap_or_else(|error| {
        Show::new(&launch.place).error(&error.message);
        error.code
    });
    std::process::exit(code);
}

fn run(launch: &Launch) -> Result<i32> {
    let place = &launch.place;
    match &launch.command {
        LaunchCommand::Worker(command) if plan::needs_no_rank(command) => {
            plan::check_inputs(place, command)?;
            Err(become_worker(place, command))
        }
        LaunchCommand::Worker(command) => supervise::run(place, &plan_job(place, command)?),
        LaunchCommand::Synth(command) => synth::run(place, command).map(|()| exit::SUCCESS),
        LaunchCommand::Doctor => Ok(doctor::run(place, find_worker())),
        LaunchCommand::Completions(command) => {
            completions(command);
            Ok(exit::SUCCESS)
        }
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
    for name in plan::NOT_INHERITED.iter().chain(&[env::RANK, env::WORLD_SIZE, env::LOCAL_RANK, env::LOCAL_WORLD_SIZE])
    {
        worker.env_remove(name);
    }
    worker.env(env::DEVICE, "cpu").env(env::VERBOSITY, place.verbosity().to_string());
    let error = worker.exec();
    Error::environment(format!("starting {}: {error}", program.display()))
}

fn plan_job(place: &Place, command: &WorkerCommand) -> Result<Plan> {
    plan::check_inputs(place, command)?;
    let visible = var(env::CUDA_VISIBLE_DEVICES).ok();
    let arguments = command.to_args();
    let devices = devices::choose(place, visible.as_deref(), || gpu::detect(Path::new("/")), &arguments)?;
    let single = plan::is_single(command);
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
    let devices = if single { first_only(devices) } else { devices };
    Ok(Plan {
        program: find_worker()?,
        threads: threads(&devices, var_os(env::OMP_NUM_THREADS).is_some()),
        command: command.clone(),
        devices,
        nodes,
        logs: plan::logs(command),
        tune_memory: var_os(env::GLIBC_TUNABLES).is_none(),
        verbosity: place.verbosity(),
        by_bus: visible.is_none() && var_os("CUDA_DEVICE_ORDER").is_none(),
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

/// Cores per worker, unless the user has decided.
fn threads(devices: &Devices, is_set: bool) -> Option<usize> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (!is_set).then(|| (cores / devices.workers().max(1)).max(1))
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
