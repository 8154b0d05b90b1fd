//! The commands of the command line.

mod benchmark;
mod documents;
mod dry_run;
pub mod hosts;
mod status;
mod synth;

use std::os::unix::process::CommandExt;
use std::process::Command;

use fnet_protocol::cli::{Benchmark, BenchmarkCommand, BenchmarkLaunch, Launch, LaunchCommand, WorkerCommand};
use fnet_protocol::{env, exit};

use crate::error::{Error, Result};
use crate::plan::{self, Plan, inputs};
use crate::{doctor, libtorch, supervisor};

/// Runs a command and returns the exit code.
pub fn run(launch: &Launch) -> Result<i32> {
    let options = &launch.options;
    let hosts = hosts::find(options)?;
    if !hosts.is_empty() {
        return hosts::run(launch, &hosts);
    }
    match &launch.command {
        LaunchCommand::Worker(command) if options.dry_run => dry_run::run(options, &Plan::new(launch, command)?),
        LaunchCommand::Worker(command) if plan::needs_no_rank(command) => {
            inputs::check(launch, command)?;
            Err(become_worker(launch))
        }
        LaunchCommand::Worker(command) => {
            inputs::check_dry_run_options(command)?;
            match repeated_launch(command) {
                Some(benchmark) => benchmark::run(launch, &Plan::new(launch, command)?, benchmark),
                None => supervisor::run(launch, command),
            }
        }
        LaunchCommand::Synth(command) => synth::run(options, command).map(|()| exit::SUCCESS),
        LaunchCommand::Status(command) => status::run(command),
        LaunchCommand::Doctor(command) => doctor::run(options, command, plan::find_worker()),
        LaunchCommand::Completions(command) => {
            documents::completions(command);
            Ok(exit::SUCCESS)
        }
        LaunchCommand::Man(command) => documents::manual(command).map(|()| exit::SUCCESS),
    }
}

/// Whether a command starts and supervises workers.
pub fn is_supervised(launch: &Launch) -> bool {
    match &launch.command {
        LaunchCommand::Worker(command) => {
            !launch.options.dry_run && !plan::needs_no_rank(command) && repeated_launch(command).is_none()
        }
        _ => false,
    }
}

/// The `benchmark launch` that starts this program repeatedly.
fn repeated_launch(command: &WorkerCommand) -> Option<&BenchmarkLaunch> {
    match command {
        WorkerCommand::Benchmark(Benchmark { what: BenchmarkCommand::Launch(launch) }) if !launch.once => Some(launch),
        _ => None,
    }
}

/// Replaces this process by the worker, for commands without supervision.
fn become_worker(launch: &Launch) -> Error {
    let program = match plan::find_worker() {
        Ok(program) => program,
        Err(error) => return error,
    };
    if let Err(error) = libtorch::check(&program) {
        return error;
    }
    let mut worker = Command::new(&program);
    worker.args(launch.line.words());
    plan::remove_ranks(&mut worker);
    worker.env(env::DEVICE, "cpu").env(env::VERBOSITY, launch.options.verbosity().to_string());
    let error = worker.exec();
    Error::environment(format!("starting {}: {error}", program.display()))
}
