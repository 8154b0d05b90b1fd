//! The worker: one rank of a job.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::error::ErrorKind as ClapErrorKind;
use fnet::{Error, ErrorKind, commands, distributed, logging, process};
use fnet_protocol::cli::Worker;
use fnet_protocol::client::Client;
use fnet_protocol::message::{Failure, FailureKind};
use fnet_protocol::{env, exit, state, stop};
use log::LevelFilter;

fn main() -> ExitCode {
    let arguments = match Worker::from_arguments(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(error) => return print_usage(&error),
    };
    process::keep_cpus_from_openmp();
    process::end(run(&arguments))
}

/// Help and version go to stdout with code 0, mistakes to stderr with the code for a wrong command line.
fn print_usage(error: &clap::Error) -> ExitCode {
    // A closed pipe must not hide the exit code.
    let _ = error.print();
    match error.kind() {
        ClapErrorKind::DisplayHelp | ClapErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => ExitCode::from(exit::USAGE as u8),
    }
}

/// Runs the command, reports how it ended, and returns the exit code.
fn run(arguments: &Worker) -> i32 {
    let rank = distributed::likely_rank(|name| std::env::var(name).ok());
    let verbosity = std::env::var(env::VERBOSITY).ok().and_then(|level| level.parse::<i32>().ok()).unwrap_or(0);
    logging::init(rank, level_of(verbosity));
    let control = match state::adopt_from_environment().and_then(|()| Client::from_environment(rank)) {
        Ok(control) => control,
        Err(error) => {
            eprintln!("error: {error}");
            return exit::BUG;
        }
    };
    control.report_panics();
    if let Err(error) = stop::listen_to_signals() {
        eprintln!("warning: signals end this process without saving: {error}");
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
    eprintln!("error: {error}");
    control.failed(Failure { kind: failure_kind(error.kind()), message: error.to_string(), backtrace: None });
    error.exit_code()
}

fn level_of(verbosity: i32) -> LevelFilter {
    match verbosity {
        ..0 => LevelFilter::Warn,
        0 => LevelFilter::Info,
        _ => LevelFilter::Debug,
    }
}

fn failure_kind(kind: ErrorKind) -> FailureKind {
    match kind {
        ErrorKind::Bug => FailureKind::Bug,
        ErrorKind::Usage => FailureKind::Usage,
        ErrorKind::Data => FailureKind::Data,
        ErrorKind::Distributed => FailureKind::PeerLost,
        ErrorKind::OutOfMemory => FailureKind::OutOfMemory,
        ErrorKind::Environment => FailureKind::Environment,
    }
}
