//! The worker's commands: from what was typed to what is done.

use std::io::Write;

use fnet_protocol::cli::{BenchmarkCommand, Flops, PrintConfig, Shape, WorkerCommand};
use fnet_protocol::client::Client;
use fnet_protocol::exit;
use fnet_protocol::message::{Phase, Progress};

use crate::distributed::World;
use crate::error::{Error, Result};
use crate::evaluate::commands::Host;
use crate::evaluate::inference::Outcome;
use crate::train::Ending;
use crate::{config, evaluate, tools, train};

/// Runs a command on this rank and returns the exit code.
///
/// # Errors
/// What the user can mend, a lost peer, or a bug.
pub fn run(command: &WorkerCommand, control: &Client) -> Result<i32> {
    if let Some(ranks) = tools::dry_run_ranks()? {
        return print(&tools::dry_run(command, ranks)?);
    }
    match command {
        WorkerCommand::Train(arguments) => Ok(match train::train(arguments, control)? {
            Ending::Finished => exit::SUCCESS,
            Ending::Stopped(reason) => reason.exit_code(),
        }),
        WorkerCommand::Test(arguments) => {
            on_ranks(control, Phase::Evaluation, |host| evaluate::commands::test(arguments, host).map(exit_code))
        }
        WorkerCommand::Predict(arguments) => {
            on_ranks(control, Phase::Evaluation, |host| evaluate::commands::predict(arguments, host).map(exit_code))
        }
        WorkerCommand::Benchmark(arguments) => match &arguments.what {
            BenchmarkCommand::Train(arguments) => tools::benchmark_train(arguments, control),
            BenchmarkCommand::Infer(arguments) => tools::benchmark_infer(arguments, control),
            BenchmarkCommand::Data(arguments) => tools::benchmark_data(arguments, control),
            BenchmarkCommand::Comm(arguments) => tools::benchmark_comm(arguments, control),
            BenchmarkCommand::Launch(_) => tools::benchmark_launch(),
        },
        WorkerCommand::Flops(arguments) => flops(arguments),
        WorkerCommand::CheckData(arguments) => tools::check_data(arguments, |text| print(text).map(|_| ())),
        WorkerCommand::PrintConfig(arguments) => print_config(arguments),
        WorkerCommand::Browse(arguments) => {
            let mut progress = |done: usize, total: usize| control.progress(headway(Phase::Data, done, total));
            evaluate::commands::browse(arguments, &mut progress, &mut |text| control.note(text)).map(exit_code)
        }
        WorkerCommand::Export(arguments) => {
            control.note(tools::export(arguments)?);
            Ok(exit::SUCCESS)
        }
    }
}

/// Joins the other ranks and does some work over pictures with them.
fn on_ranks(control: &Client, phase: Phase, work: impl FnOnce(&mut Host<'_>) -> Result<i32>) -> Result<i32> {
    let world = World::from_environment()?;
    let mut progress = |done: usize, total: usize| {
        control.progress(headway(phase, done, total));
    };
    let mut say = |text: &str| control.note(text);
    let code = work(&mut Host { ranks: &world, device: world.device(), progress: &mut progress, say: &mut say })?;
    // A rank that ended early would look lost to those that still work.
    world.leave()?;
    Ok(code)
}

fn headway(phase: Phase, done: usize, total: usize) -> Progress {
    Progress { phase, step: done as u64, total_steps: total as u64, ..Progress::default() }
}

fn exit_code<T>(outcome: Outcome<T>) -> i32 {
    match outcome {
        Outcome::Stopped(reason) => reason.exit_code(),
        Outcome::Here(_) | Outcome::Elsewhere => exit::SUCCESS,
    }
}

fn flops(arguments: &Flops) -> Result<i32> {
    let resolved = config::load(&arguments.config, &arguments.set)?;
    let (given, shape) = (arguments.shape(), arguments.padded_shape());
    let report = tools::flops::count(&resolved.config.model, shape.height, shape.width)?;
    if arguments.json {
        let json = serde_json::to_string(&report).map_err(|error| Error::bug(error.to_string()))?;
        return print(&json);
    }
    if given != shape {
        let text = |shape: Shape| format!("(3, {}, {})", shape.height, shape.width);
        print(&format!("Use size divisor set input shape from {} to {}", text(given), text(shape)))?;
    }
    print(&report.to_string())
}

fn print_config(arguments: &PrintConfig) -> Result<i32> {
    print(config::print_config(&arguments.config, &arguments.set)?.trim_end())
}

/// Writes to stdout. A reader that closed the pipe has read enough.
fn print(text: &str) -> Result<i32> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::environment(format!("writing to stdout: {error}")))
        }
        _ => Ok(exit::SUCCESS),
    }
}
