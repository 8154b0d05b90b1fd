//! The worker's commands.

mod benchmark;
mod browse;
mod check_data;
mod convert_config;
mod detector;
mod dry_run;
mod evaluate;
mod export;
mod predict;
mod report;
mod stdout;
mod test;

use detector::Host;
use stdout::print;

use fnet_common::{Error, Result};
use fnet_distributed::Communicator;
use fnet_evaluate::inference::RankResult;
use fnet_protocol::cli::{BenchmarkCommand, Flops, PrintConfig, Shape, WorkerCommand};
use fnet_protocol::client::Client;
use fnet_protocol::exit;
use fnet_protocol::message::{Phase, Progress};
use fnet_train::Ending;

/// Runs a command on this rank and returns the exit code.
/// Errors: what the user can fix, a lost peer, or a bug.
pub fn run(command: &WorkerCommand, control: &Client) -> Result<i32> {
    if let Some(ranks) = dry_run::dry_run_ranks()? {
        return print(&dry_run::dry_run(command, ranks)?);
    }
    match command {
        WorkerCommand::Train(arguments) => Ok(match fnet_train::train(arguments, control)? {
            Ending::Finished => exit::SUCCESS,
            Ending::Stopped(reason) => reason.exit_code(),
        }),
        WorkerCommand::Test(arguments) => {
            on_ranks(control, Phase::Evaluation, |host| test::test(arguments, host).map(exit_code))
        }
        WorkerCommand::Predict(arguments) => {
            let mut unreadable = Ok(());
            let code = on_ranks(control, Phase::Evaluation, |host| {
                let outcome = predict::predict(arguments, host)?.and_then(|images| {
                    unreadable = images;
                    Ok(())
                })?;
                Ok(exit_code(outcome))
            })?;
            unreadable.map(|()| code)
        }
        WorkerCommand::Benchmark(arguments) => match &arguments.what {
            BenchmarkCommand::Train(arguments) => benchmark::benchmark_train(arguments, control),
            BenchmarkCommand::Infer(arguments) => benchmark::benchmark_infer(arguments, control),
            BenchmarkCommand::Data(arguments) => benchmark::benchmark_data(arguments, control),
            BenchmarkCommand::Comm(arguments) => benchmark::benchmark_comm(arguments, control),
            BenchmarkCommand::Launch(_) => benchmark::benchmark_launch(),
        },
        WorkerCommand::Evaluate(arguments) => {
            evaluate::evaluate(arguments, &|text| control.note(text), |text| print(text).map(|_| ()))?;
            Ok(exit::SUCCESS)
        }
        WorkerCommand::Report(arguments) => {
            print(&report::report(arguments, &|text| control.note(text))?)?;
            Ok(exit::SUCCESS)
        }
        WorkerCommand::Flops(arguments) => flops(arguments),
        WorkerCommand::CheckData(arguments) => check_data::check_data(arguments, |text| print(text).map(|_| ())),
        WorkerCommand::PrintConfig(arguments) => print_config(arguments),
        WorkerCommand::Browse(arguments) => {
            let mut progress = |done: usize, total: usize| control.progress(progress_of(Phase::Data, done, total));
            browse::browse(arguments, &mut progress, &mut |text| control.note(text)).map(exit_code)
        }
        WorkerCommand::ConvertConfig(arguments) => {
            convert_config::convert_config(arguments, |text| control.note(text), |text| print(text).map(|_| ()))
        }
        WorkerCommand::Export(arguments) => print(&export::export(arguments)?),
    }
}

/// Joins the other ranks and runs `work` with them.
fn on_ranks(control: &Client, phase: Phase, work: impl FnOnce(&mut Host<'_>) -> Result<i32>) -> Result<i32> {
    let communicator = Communicator::from_environment()?;
    let mut progress = |done: usize, total: usize| {
        control.progress(progress_of(phase, done, total));
    };
    let mut say = |text: &str| control.note(text);
    let code = work(&mut Host {
        ranks: &communicator,
        device: communicator.device(),
        progress: &mut progress,
        say: &mut say,
    })?;
    // A rank that exits early would look lost to those that still work.
    communicator.leave()?;
    Ok(code)
}

fn progress_of(phase: Phase, done: usize, total: usize) -> Progress {
    Progress { phase, step: done as u64, total_steps: total as u64, ..Progress::default() }
}

fn exit_code<T>(result: RankResult<T>) -> i32 {
    match result {
        RankResult::Stopped(reason) => reason.exit_code(),
        RankResult::Here(_) | RankResult::Elsewhere => exit::SUCCESS,
    }
}

fn flops(arguments: &Flops) -> Result<i32> {
    let resolved = fnet_data::load_config(&arguments.config, &arguments.set)?;
    let (given, shape) = (arguments.shape(), arguments.padded_shape());
    let report = fnet_model::flops::count(&resolved.config.model, shape.height, shape.width)?;
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
    let resolved = fnet_data::load_config(&arguments.config, &arguments.set)?;
    fnet_model::backbones::find(&resolved.config.model.backbone.kind)?;
    if arguments.schedule {
        return print(fnet_train::schedule_table(&resolved.config, arguments.world_size)?.trim_end());
    }
    print(resolved.to_annotated_toml()?.trim_end())
}
