//! The config of a command, read before anything is started, to report a mistake once.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use fnet_protocol::cli::{BenchmarkCommand, WorkerCommand};
use fnet_protocol::message::Failure;

use super::disk;
use crate::error::{Error, Result};

/// Time to read the config, possibly from a slow network drive.
pub const READ_TIMEOUT: Duration = Duration::from_secs(300);

/// The fields of the resolved config and their values as TOML, by dotted path; none if the command has no config. The classes
/// of `data.classes = "auto"` are left out: the workers read them.
/// Errors: a mistake in the config.
pub async fn read(command: &WorkerCommand) -> Result<BTreeMap<String, String>> {
    let Some((path, overrides)) = named(command) else { return Ok(BTreeMap::new()) };
    let (path, overrides) = (path.to_owned(), overrides.to_vec());
    let shown = path.display().to_string();
    let reading = move || {
        let resolved = fnet_config::load_for_check(path, &overrides, &|_| Err(Failure::usage("not read here")))?;
        fnet_config::leaves_of(&resolved.config.to_toml()?)
    };
    let fields = disk::within(READ_TIMEOUT, format!("reading the config {shown}"), reading).await?;
    fields.map_err(|failure: Failure| Error::new(failure.kind.exit_code(), failure.message))
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
