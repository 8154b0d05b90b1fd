//! What `train` or `test` would do, as one JSON object for the launcher (see [`fnet_protocol::estimate`]).

use std::path::Path;

use tch::Device;

use fnet_common::{Error, Result};
use fnet_data::{Dataset, Severity, check_before_job, check_classes};
use fnet_protocol::cli::{Test, WorkerCommand};
use fnet_protocol::env;
use fnet_protocol::estimate::Estimate;
use fnet_protocol::work_dir::work_dir_of_checkpoint;

use super::detector::{Wanted, build};
use super::test::measured;

/// The number of ranks in FNET_DRY_RUN, if it is set.
/// Errors: a usage error if it is not a number.
pub fn dry_run_ranks() -> Result<Option<usize>> {
    let Some(text) = std::env::var_os(env::DRY_RUN) else { return Ok(None) };
    let ranks = text.to_str().and_then(|text| text.parse().ok()).filter(|&ranks: &usize| ranks > 0);
    let wrong = || Error::usage(format!("{}={}: expected a number of workers", env::DRY_RUN, text.to_string_lossy()));
    ranks.map(Some).ok_or_else(wrong)
}

/// What the command would do on `ranks` ranks, as JSON. Nothing is written.
/// Errors: the errors of the command; a usage error for commands other than `train` and `test`.
pub fn dry_run(command: &WorkerCommand, ranks: usize) -> Result<String> {
    let estimate = match command {
        WorkerCommand::Train(arguments) => fnet_train::forecast(arguments, ranks)?,
        WorkerCommand::Test(arguments) => test(arguments, ranks)?,
        _ => return Err(Error::usage("--dry-run supports train and test only")),
    };
    serde_json::to_string(&estimate).map_err(|error| Error::bug(error.to_string()))
}

fn test(arguments: &Test, ranks: usize) -> Result<Estimate> {
    let trained = build(&Wanted::of_test(arguments), Device::Cpu)?;
    let config = &trained.config;
    let dataset = Dataset::open(&config.data, arguments.split)?.without_repetitions();
    check_classes(config, &[&dataset])?;
    let kinds = match arguments.format_only {
        true => Vec::new(),
        false => measured(arguments, config)?,
    };
    let mut warnings = dataset.diagnostics().lines(Severity::Warning);
    warnings.extend(dataset.other_validation_part(trained.validation_part.as_deref()));
    warnings.extend(check_before_job(config, &[&dataset], &kinds)?);
    let name = |path: &Path| path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    Ok(Estimate {
        config: name(arguments.config.as_deref().unwrap_or(&arguments.checkpoint)),
        work_dir: work_dir_of_checkpoint(&arguments.checkpoint, arguments.config.as_deref()),
        world_size: ranks,
        datasets: fnet_train::facts(&dataset),
        training: None,
        parameters: trained.parameters.count() as u64,
        memory: fnet_train::of_inference(config, &trained.parameters)?,
        disk: None,
        warnings,
    })
}
