//! The worker: one rank of a job.

mod allocator;
mod commands;
mod getnameinfo_numeric;
mod libtorch_messages;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::error::ErrorKind as ClapErrorKind;
use log::LevelFilter;

use fnet_common::{Error, logger, process};
use fnet_distributed::likely_rank;
use fnet_protocol::cli::Worker;
use fnet_protocol::client::Client;
use fnet_protocol::{env, estimate, exit, outlet, status, stop};

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == estimate::LIBRARIES) {
        return print_libraries();
    }
    let arguments = match Worker::from_arguments(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(error) => return print_usage(&error),
    };
    process::keep_cpus_from_openmp();
    process::set_return_memory(allocator::return_memory);
    process::end(run(&arguments))
}

/// Prints the versions of the libraries for `fnet-launch doctor`.
fn print_libraries() -> ExitCode {
    let checked = (!torch_ext::cuda::TORCH_CUDA_VERSION.is_empty()).then(torch_ext::cuda::check_libraries);
    let (nccl, cuda_error) = match checked {
        None => (None, None),
        Some(Ok(version)) => (Some(version), None),
        Some(Err(error)) => (None, Some(error.to_string())),
    };
    let libraries = estimate::Libraries {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        libtorch: option_env!("FNET_TORCH_VERSION").unwrap_or("unknown").to_owned(),
        cuda: torch_ext::cuda::TORCH_CUDA_VERSION.to_owned(),
        nccl,
        cuda_error,
    };
    match serde_json::to_string(&libraries) {
        Ok(line) => println!("{line}"),
        Err(error) => eprintln!("error: {error}"),
    }
    process::end(exit::SUCCESS)
}

/// Prints help and version to stdout with exit code 0, and errors to stderr with the exit code for a wrong command line.
fn print_usage(error: &clap::Error) -> ExitCode {
    // A closed pipe must not hide the exit code.
    let _ = error.print();
    match error.kind() {
        ClapErrorKind::DisplayHelp | ClapErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => ExitCode::from(exit::USAGE as u8),
    }
}

/// Runs the command, reports the result, and returns the exit code.
fn run(arguments: &Worker) -> i32 {
    let rank = likely_rank(|name| std::env::var(name).ok());
    let verbosity = std::env::var(env::VERBOSITY).ok().and_then(|level| level.parse::<i32>().ok()).unwrap_or(0);
    logger::init(rank, level_of(verbosity));
    if let Err(error) = libtorch_messages::take_messages_of_libraries() {
        log::warn!("{error}");
    }
    let control = match status::adopt_from_environment().and_then(|()| Client::from_environment(rank)) {
        Ok(control) => control,
        Err(error) => {
            outlet::stderr(format!("error: {error}\n"));
            return exit::BUG;
        }
    };
    control.report_panics();
    if let Err(error) = stop::listen_to_signals() {
        outlet::stderr(format!("warning: cannot handle signals, so they end this process without saving: {error}\n"));
    }
    let result = catch_unwind(AssertUnwindSafe(|| commands::run(&arguments.command, &control)));
    let error = match result {
        Ok(Ok(code)) => {
            control.done();
            return code;
        }
        Ok(Err(error)) => error,
        Err(payload) => Error::from_panic(payload.as_ref()),
    };
    // The launcher prints it, and writes it to the log of the rank.
    if !control.failed(error.failure()) {
        outlet::stderr(format!("error: {error}\n"));
    }
    error.exit_code()
}

fn level_of(verbosity: i32) -> LevelFilter {
    match verbosity {
        ..0 => LevelFilter::Warn,
        0 => LevelFilter::Info,
        _ => LevelFilter::Debug,
    }
}
