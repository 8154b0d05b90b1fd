//! Checks of the command line and the inputs before anything is started.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use fnet_protocol::cli::{BenchmarkCommand, CommandLine, Launch, Predict, Resume, Train, WorkerCommand};
use fnet_protocol::work_dir::CheckpointFile;
use fnet_protocol::{exit, file_kind};

use crate::error::{Error, Result};
use crate::text;

/// Refuses missing inputs and files of the wrong kind, before an output folder is created.
/// Errors: a config (exit code 2), checkpoint or image (exit code 3) that does not exist or is another file; a missing
/// `--config` (exit code 2), with the line to run.
pub fn check(launch: &Launch, command: &WorkerCommand) -> Result<()> {
    let config = |path: &Path| match file_kind::not_a_config(path) {
        _ if !path.exists() => Err(Error::usage(format!("config {}: no such file", path.display()))),
        Some(why) => Err(Error::usage(format!("config {}: {why}", path.display()))),
        None => Ok(()),
    };
    let data = |what: &str, path: &Path| {
        let message = || format!("{what} {}: no such file", path.display());
        if path.exists() { Ok(()) } else { Err(Error::new(exit::DATA, message())) }
    };
    let weights = |path: &Path| {
        data("checkpoint", path)?;
        file_kind::not_a_checkpoint(path)
            .map_or(Ok(()), |why| Err(Error::new(exit::DATA, format!("checkpoint {}: {why}", path.display()))))
    };
    match command {
        WorkerCommand::Train(train) => {
            config(&train.config)?;
            // What the first start began from may be gone when an automatic resume needs it no more.
            if train.auto_resume {
                return Ok(());
            }
            if let Some(Resume::From(checkpoint)) = &train.resume {
                weights(checkpoint)?;
            }
            train.load_from.as_deref().map_or(Ok(()), weights)
        }
        WorkerCommand::Test(test) => {
            weights(&test.checkpoint)?;
            test.config.as_deref().map_or(Ok(()), config)
        }
        WorkerCommand::Evaluate(evaluate) => {
            config(&evaluate.config)?;
            evaluate.results.iter().try_for_each(|path| data("results", path))
        }
        WorkerCommand::Report(report) => report.folders.iter().try_for_each(|path| data("work folder", path)),
        WorkerCommand::Predict(predict) => {
            weights(&predict.checkpoint)?;
            let mut named = predict.images.iter().filter(|path| !Predict::is_pattern(path));
            named.try_for_each(|path| data("image or folder", path))?;
            predict.list.as_deref().map_or(Ok(()), |list| data("list", list))?;
            predict.config.as_deref().map_or(Ok(()), config)
        }
        WorkerCommand::Benchmark(benchmark) => match &benchmark.what {
            BenchmarkCommand::Infer(infer) => {
                config(&infer.config)?;
                infer.checkpoint.as_deref().map_or(Ok(()), weights)
            }
            BenchmarkCommand::Train(train) => config(&train.config),
            BenchmarkCommand::Data(data) => config(&data.config),
            BenchmarkCommand::Comm(_) | BenchmarkCommand::Launch(_) => Ok(()),
        },
        WorkerCommand::Flops(flops) => config(&flops.config),
        WorkerCommand::Browse(browse) => config(&browse.config),
        WorkerCommand::CheckData(check) => config(&check.config),
        WorkerCommand::PrintConfig(print) => config(&print.config),
        WorkerCommand::ConvertConfig(convert) => match file_kind::not_a_python_config(&convert.config) {
            None => Ok(()),
            Some(why) => Err(Error::usage(format!("config {}: {why}", convert.config.display()))),
        },
        WorkerCommand::Export(export) => {
            weights(&export.checkpoint)?;
            export.config.as_deref().map_or(Ok(()), config)
        }
    }?;
    if command.lacks_config() {
        let line = line(launch, &launch.line.clone().with("config", "CONFIG.toml"));
        return Err(Error::usage(format!(
            "a PyTorch file does not contain the config of its model; give it:\n  {line}"
        )));
    }
    Ok(())
}

/// Refuses options of `--dry-run` without it (exit code 2).
pub fn check_dry_run_options(command: &WorkerCommand) -> Result<()> {
    match command {
        WorkerCommand::Train(train) if train.step_time.is_some() => {
            Err(Error::usage("--step-time requires --dry-run: it forecasts a job without starting it"))
        }
        WorkerCommand::Train(train) if train.json => {
            Err(Error::usage("--json requires --dry-run; a training writes <time>.log.json for programs"))
        }
        WorkerCommand::Test(test) if test.json => {
            Err(Error::usage("--json requires --dry-run; to write the metrics use --metrics FILE"))
        }
        _ => Ok(()),
    }
}

/// Refuses to train into a folder with checkpoints without `--resume` (exit code 2); suggests two lines to run instead.
pub fn check_overwrite(launch: &Launch, train: &Train, found: &[CheckpointFile]) -> Result<()> {
    let Some(newest) = found.first().filter(|_| train.resumes().is_none()) else { return Ok(()) };
    let folder = train.folder();
    let mut other = folder.clone().into_os_string();
    other.push("_2");
    Err(Error::usage(format!(
        "{} contains checkpoints; the newest is {}. To resume from it:\n  {}\nTo start over in another folder:\n  {}",
        folder.display(),
        newest.path.display(),
        line(launch, &launch.line.clone().without("load-from").without("match-classes").with("resume", "")),
        line(launch, &launch.line.clone().with("work-dir", other))
    )))
}

/// Finds the worker: FNET_WORKER, else beside the launcher, else on PATH.
pub fn find_worker(own: Option<&OsStr>, launcher: Option<&Path>, path: Option<&OsStr>) -> Result<PathBuf> {
    const NAME: &str = "fnet-worker";
    if let Some(own) = own.filter(|text| !text.is_empty()) {
        let program = PathBuf::from(own);
        return if program.is_file() {
            Ok(program)
        } else {
            Err(Error::environment(format!("FNET_WORKER={}: no such file", program.display())))
        };
    }
    let beside = launcher.and_then(Path::parent).map(|folder| folder.join(NAME));
    if let Some(program) = beside.as_deref().filter(|program| program.is_file()) {
        return Ok(program.to_path_buf());
    }
    let on_path = path.map(|path| std::env::split_paths(path).map(|folder| folder.join(NAME)).collect::<Vec<_>>());
    if let Some(program) = on_path.into_iter().flatten().find(|program| program.is_file()) {
        return Ok(program);
    }
    Err(Error::environment(format!(
        "cannot find {NAME}; looked for {} and on PATH. Build it with `make setup`, or set FNET_WORKER",
        beside.map_or_else(|| "it beside this program".to_owned(), |program| program.display().to_string())
    )))
}

fn line(launch: &Launch, command: &CommandLine) -> String {
    text::shell_line(&launch.line_with(command))
}
