//! The config of a command, read by a worker of its own before anything is started: a mistake in it is one plain error.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use fnet_protocol::cli::{BenchmarkCommand, PrintConfig, WorkerCommand};
use fnet_protocol::env;

use crate::child::{self, Failure};
use crate::error::Result;
use crate::plan::{self, Plan};

/// Time to load the worker's libraries and read the config, from a slow network drive.
const PATIENCE: Duration = Duration::from_secs(300);

/// The config as the worker resolves it, in the form of `print-config`; empty if the command names none.
///
/// # Errors
/// What is wrong with it, in the worker's words and with its code; or why the worker does not answer.
pub async fn resolve(plan: &Plan) -> Result<String> {
    let Some((config, set)) = named(&plan.command) else { return Ok(String::new()) };
    let mut worker = Command::new(&plan.program);
    worker.args(WorkerCommand::PrintConfig(PrintConfig { config, set }).to_args());
    plan::remove_ranks(&mut worker);
    worker.env(env::DEVICE, "cpu").env(env::VERBOSITY, "-1");
    let answer = child::ask(worker, PATIENCE).await.and_then(|answer| {
        let text = String::from_utf8_lossy(&answer.stdout).into_owned();
        if text.trim().is_empty() { Err(Failure::NoAnswer("printed no config")) } else { Ok(text) }
    });
    answer.map_err(|failure| failure.of_worker(&plan.program, "reading the config"))
}

fn named(command: &WorkerCommand) -> Option<(PathBuf, Vec<String>)> {
    match command {
        WorkerCommand::Train(train) => Some((train.config.clone(), train.set.clone())),
        WorkerCommand::Test(test) => Some((test.config.clone()?, test.set.clone())),
        WorkerCommand::Predict(predict) => Some((predict.config.clone()?, predict.set.clone())),
        WorkerCommand::Benchmark(benchmark) => match &benchmark.what {
            BenchmarkCommand::Train(train) => Some((train.config.clone(), train.set.clone())),
            BenchmarkCommand::Infer(infer) => Some((infer.config.clone(), infer.set.clone())),
            _ => None,
        },
        _ => None,
    }
}
