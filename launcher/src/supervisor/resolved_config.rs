//! The config of a command, which a separate worker reads before anything is started, to report a mistake once.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use fnet_protocol::cli::{BenchmarkCommand, WorkerCommand};
use fnet_protocol::env;

use crate::child::{self, Failure};
use crate::error::Result;
use crate::plan::{self, Plan};

/// Time to load the worker's libraries and read the config, possibly from a slow network drive.
const READ_TIMEOUT: Duration = Duration::from_secs(300);

/// The resolved config, as `print-config` prints it; empty if the command has none.
///
/// # Errors
/// The worker's error with its exit code, or why the worker does not answer.
pub async fn read(plan: &Plan) -> Result<String> {
    let Some((config, set)) = named(&plan.command) else { return Ok(String::new()) };
    let mut worker = Command::new(&plan.program);
    worker.arg("print-config").args(set.iter().map(|value| format!("--set={value}"))).arg("--").arg(config);
    plan::remove_ranks(&mut worker);
    worker.env(env::DEVICE, "cpu").env(env::VERBOSITY, "-1");
    let answer = child::ask(worker, READ_TIMEOUT).await.and_then(|answer| {
        let text = String::from_utf8_lossy(&answer.stdout).into_owned();
        if text.trim().is_empty() { Err(Failure::NoAnswer("printed no config")) } else { Ok(text) }
    });
    answer.map_err(|failure| failure.of_worker(&plan.program, "reading the config"))
}

fn named(command: &WorkerCommand) -> Option<(&Path, &[String])> {
    match command {
        WorkerCommand::Train(train) => Some((&train.config, &train.set)),
        WorkerCommand::Test(test) => Some((test.config.as_deref()?, &test.set)),
        WorkerCommand::Predict(predict) => Some((predict.config.as_deref()?, &predict.set)),
        WorkerCommand::Benchmark(benchmark) => match &benchmark.what {
            BenchmarkCommand::Train(train) => Some((&train.config, &train.set)),
            BenchmarkCommand::Infer(infer) => Some((&infer.config, &infer.set)),
            _ => None,
        },
        _ => None,
    }
}
