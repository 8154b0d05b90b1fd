//! `benchmark launch`: starts this program and another one alternately, and measures the time to the first all-reduce.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use fnet_protocol::cli::{BenchmarkLaunch, Device, Launch, LaunchOptions};
use fnet_protocol::spread::Spread;
use fnet_protocol::{clock, exit};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::console::Console;
use crate::error::{Doing, Error, Result};
use crate::plan::Plan;

/// The script for torchrun.
const SCRIPT: &str = include_str!("../../../benches/launch.py");
/// Time limit of one start.
const START_TIMEOUT: Duration = Duration::from_secs(300);
/// Time to exit after a signal.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);

/// The measurements.
#[derive(Debug, Serialize)]
struct LaunchTimes {
    device: &'static str,
    workers: usize,
    repeat: usize,
    fnet: Times,
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<Against>,
}

/// The measurements of another program.
#[derive(Debug, Serialize)]
struct Against {
    program: PathBuf,
    #[serde(flatten)]
    times: Times,
    /// Ratio of its median to fnet's.
    ratio: f64,
    /// The same for the whole run.
    ratio_whole: f64,
}

/// Times in seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Times {
    /// From the start of the program until every worker has finished its first all-reduce.
    first_all_reduce: Spread,
    /// From the start of the program to its exit.
    whole: Spread,
}

impl Times {
    fn of(starts: &[(f64, f64)]) -> Self {
        let (first, whole): (Vec<f64>, Vec<f64>) = starts.iter().copied().unzip();
        Self { first_all_reduce: Spread::of(first), whole: Spread::of(whole) }
    }
}

/// Measures, and prints the report.
/// Errors: several nodes (exit code 2), because their clocks differ; a start fails.
pub fn run(launch: &Launch, plan: &Plan, command: &BenchmarkLaunch) -> Result<i32> {
    if plan.nodes.count > 1 {
        return Err(Error::usage(
            "benchmark launch compares clocks, so it supports a single node; remove --nnodes and NNODES",
        ));
    }
    let workers = plan.devices.workers();
    let folder = tempfile::tempdir().doing(|| "creating a temporary folder".to_owned())?;
    let script = folder.path().join("launch.py");
    std::fs::write(&script, SCRIPT).doing(|| format!("writing {}", script.display()))?;
    let other = command.against.as_deref().map(find_program).transpose()?;
    let device = plan.devices.kind();
    let ours = || {
        let mut line = Command::new(std::env::current_exe().unwrap_or_else(|_| "fnet-launch".into()));
        line.args(&launch.option_words).args(["--quiet", "benchmark", "launch", "--once"]);
        line
    };
    let theirs = |program: &Path| {
        let backend = if device == Device::Cuda { "nccl" } else { "gloo" };
        let mut line = Command::new(program);
        line.args(["--nproc-per-node", &workers.to_string()]).arg(&script).arg(backend);
        line
    };
    let (mut our_starts, mut their_starts) = (Vec::new(), Vec::new());
    // The first start of each program reads its libraries from disk and does not count.
    for round in 0..=command.repeat {
        let start = measure(ours(), workers)?;
        let other = other.as_deref().map(|program| measure(theirs(program), workers)).transpose()?;
        if round > 0 {
            our_starts.push(start);
            their_starts.extend(other);
        }
    }
    let fnet = Times::of(&our_starts);
    let against = other.map(|program| {
        let times = Times::of(&their_starts);
        let ratio = times.first_all_reduce.median / fnet.first_all_reduce.median;
        let ratio_whole = times.whole.median / fnet.whole.median;
        Against { program, times, ratio, ratio_whole }
    });
    publish(
        &launch.options,
        &LaunchTimes { device: device.name(), workers, repeat: command.repeat, fnet, against },
        command.json,
    )?;
    Ok(exit::SUCCESS)
}

/// A path, or a name in `.venv/bin` or on PATH.
fn find_program(name: &Path) -> Result<PathBuf> {
    let folders: Vec<PathBuf> = if name.components().count() > 1 {
        vec![PathBuf::new()]
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::iter::once(".venv/bin".into()).chain(std::env::split_paths(&path)).collect()
    };
    let found = folders.iter().map(|folder| folder.join(name)).find(|program| program.is_file());
    let found = found.and_then(|program| program.canonicalize().ok().map(|_| program));
    found.ok_or_else(|| {
        Error::usage(format!(
            "--against {}: no such program in .venv/bin or on PATH; give its path, or remove --against",
            name.display()
        ))
    })
}

/// Seconds to the first all-reduce, and to the exit.
fn measure(mut command: Command, workers: usize) -> Result<(f64, f64)> {
    #[derive(Deserialize)]
    struct Done {
        done_ns: u64,
        world_size: usize,
    }
    let line = format!("{command:?}");
    let started = clock::monotonic();
    let output = finish(&mut command).doing(|| line.clone())?;
    let ended = clock::monotonic();
    let text = String::from_utf8_lossy(&output.stdout);
    let done = text.lines().rev().find_map(|line| serde_json::from_str::<Done>(line).ok());
    let done = done.filter(|done| output.status.success() && done.world_size == workers).ok_or_else(|| {
        let errors = String::from_utf8_lossy(&output.stderr);
        let message = format!("{line} did not start {workers} workers ({}):\n{errors}", output.status);
        Error::new(output.status.code().unwrap_or(exit::WORKER_LOST).max(1), message)
    })?;
    let seconds = |time: Duration| time.saturating_sub(started).as_secs_f64();
    Ok((seconds(Duration::from_nanos(done.done_ns)), seconds(ended)))
}

/// Runs a command within [`START_TIMEOUT`].
fn finish(command: &mut Command) -> std::io::Result<Output> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    if let Ok(output) = receiver.recv_timeout(START_TIMEOUT) {
        return output;
    }
    // SIGTERM first, so that it stops its workers.
    for signal in [Signal::TERM, Signal::KILL] {
        let _ = pid.map(|pid| kill_process(pid, signal));
        if receiver.recv_timeout(EXIT_TIMEOUT).is_ok() {
            break;
        }
    }
    Err(std::io::Error::other(format!("no all-reduce within {} s", START_TIMEOUT.as_secs())))
}

fn publish(options: &LaunchOptions, report: &LaunchTimes, json: bool) -> Result<()> {
    if json {
        let line = serde_json::to_string(report).doing(|| "the report as JSON".to_owned())?;
        return match writeln!(std::io::stdout(), "{line}") {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(Error::environment(format!("writing the report: {error}")))
            }
            _ => Ok(()),
        };
    }
    Console::new(options).result(&text(report));
    Ok(())
}

fn text(report: &LaunchTimes) -> String {
    let mut text = format!(
        "start of {} worker(s) on {}, median (min to max) of {}:\n{:<14} {:>26} {:>26}\n",
        report.workers, report.device, report.repeat, "", "first all-reduce", "whole"
    );
    let mut row = |name: &str, times: &Times| {
        let spread = |s: &Spread| format!("{:.3} s ({:.3} to {:.3})", s.median, s.min, s.max);
        let _ = writeln!(text, "{name:<14} {:>26} {:>26}", spread(&times.first_all_reduce), spread(&times.whole));
    };
    row("fnet-launch", &report.fnet);
    if let Some(against) = &report.against {
        let name = against.program.file_name().unwrap_or(against.program.as_os_str()).to_string_lossy();
        row(&name, &against.times);
        let _ = writeln!(text, "{:<14} {:>26.2} {:>26.2}", "ratio", against.ratio, against.ratio_whole);
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_compared() {
        let times = Times::of(&[(0.3, 0.5), (0.1, 0.4), (0.2, 0.9)]);
        assert_eq!(times.first_all_reduce, Spread { median: 0.2, min: 0.1, max: 0.3 });
        assert_eq!(times.whole.median, 0.5);
        let against = Against { program: "x/torchrun".into(), times: times.clone(), ratio: 9.5, ratio_whole: 8.25 };
        let report = LaunchTimes { device: "cpu", workers: 2, repeat: 3, fnet: times, against: Some(against) };
        let lines = text(&report);
        assert!(lines.contains("torchrun") && lines.contains("9.50") && lines.contains("8.25"), "{lines}");
        let json: serde_json::Value = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
        assert_eq!(json["against"]["first_all_reduce"]["median"], 0.2);
    }

    #[test]
    fn a_start_that_fails_is_reported_with_its_output() {
        let shell = |script: &str| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script]);
            measure(command, 2)
        };
        let error = shell("echo no such backend >&2; exit 6").unwrap_err();
        assert_eq!(error.code, exit::ENVIRONMENT);
        assert!(error.message().contains("no such backend"), "{error}");
        let few = shell(r#"echo '{"done_ns": 5, "world_size": 1}'"#).unwrap_err();
        assert!(few.message().contains("did not start 2 workers"), "{few}");
        let (first, whole) = shell(r#"echo '{"done_ns": 99000000000000000, "world_size": 2}'"#).unwrap();
        assert!(first > whole && whole < 60.0);
    }

    #[test]
    fn a_program_that_does_not_exist_is_named() {
        assert!(find_program(Path::new("/bin/sh")).is_ok() && find_program(Path::new("sh")).is_ok());
        let error = find_program(Path::new("no-such-torchrun")).unwrap_err();
        assert_eq!(error.code, exit::USAGE);
        assert!(error.message().contains("no-such-torchrun"), "{error}");
    }
}
