//! `fnet-launch`: starts one worker per GPU, supervises the workers, and reports what went wrong.
//!
//! # Modules
//!
//! Each module uses only those above it.
//!
//! | module | subject |
//! | --- | --- |
//! | [`error`], [`text`], [`output`], [`console`], [`libtorch`], [`child`], [`signals`] | foundation: errors with exit codes, formatting, output that never blocks, where libtorch is, short runs of other programs, signals |
//! | [`forecast`] | how long a job takes on many GPUs |
//! | [`plan`] | what to start: inputs, GPUs and devices, CPUs, nodes, checks of the machine |
//! | [`attempt`] | one attempt of the workers of this node, as a state machine without I/O: hangs, causes, emergency checkpoints, [`attempt::result::AttemptResult`] |
//! | [`nodes`] | the launchers of several nodes: coordinator, listener, links, merged results |
//! | [`status`] | what is known about the job, for the live line, `status.json` and `metrics.prom` |
//! | [`supervisor`] | runs attempts: processes, logs, reports, restarts |
//! | [`doctor`] | checks of this machine for the user |
//! | [`commands`] | the commands of the command line |
//!
//! The death of a worker takes this way: [`supervisor`] notices the exit of the process, the `Attempt` in [`attempt`] decides
//! what happens to the other workers and names the cause, [`nodes`] merges the results of all nodes, and the `Supervisor`
//! reports the cause, then restarts or returns its exit code.

mod attempt;
mod child;
mod commands;
mod console;
mod doctor;
mod error;
mod forecast;
mod libtorch;
mod nodes;
mod output;
mod plan;
mod signals;
mod status;
mod supervisor;
mod text;

use fnet_protocol::cli::Launch;
use fnet_protocol::outlet;

use crate::commands::hosts;
use crate::console::Console;
use crate::error::Doing;
use crate::plan::nvml;
use crate::supervisor::reaper;

fn main() {
    match std::env::args_os().nth(1) {
        Some(argument) if argument == reaper::ARGUMENT => return reaper::run(),
        Some(argument) if argument == nvml::ARGUMENT => return nvml::run(),
        Some(argument) if argument == hosts::ARGUMENT => std::process::exit(hosts::run_remote()),
        _ => {}
    }
    let launch = Launch::from_arguments(std::env::args_os()).unwrap_or_else(|error| error.exit());
    // Before there are threads.
    let libtorch = launch.options.libtorch.as_deref().filter(|folder| !folder.as_os_str().is_empty());
    let libtorch = libtorch.map_or(Ok(()), libtorch::use_folder);
    let started = output::start().doing(|| "starting the output threads".to_owned());
    let code = started.and(libtorch).and_then(|()| commands::run(&launch)).unwrap_or_else(|error| {
        Console::new(&launch.options).error(error.message());
        error.code
    });
    // A finished job must not wait for a reader that has stopped; output that the user asked for may.
    if commands::is_supervised(&launch) {
        outlet::flush_all()
    } else {
        outlet::wait_for_all()
    }
    std::process::exit(code);
}
