//! `doctor`: checks this machine and suggests fixes.

mod diagnosis;
mod gpus;
mod machine;
mod network;
mod worker;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fnet_protocol::cli::{Doctor, LaunchOptions};
use fnet_protocol::exit;
use serde::Serialize;

use self::diagnosis::{Diagnosis, Rating};
use crate::console::Console;
use crate::error::Result;
use crate::plan::{gpu, nvml};

/// Time for the driver to answer. Without persistence mode it initializes each GPU first.
const DRIVER_TIMEOUT: Duration = Duration::from_secs(20);

/// The report for programs.
#[derive(Serialize)]
struct DoctorReport<'a> {
    able: bool,
    #[serde(rename = "findings")]
    diagnoses: &'a [Diagnosis],
}

/// Prints the diagnoses and returns the exit code: 6 if no job will run.
/// Errors: invalid options of several nodes (exit code 2).
pub fn run(options: &LaunchOptions, command: &Doctor, worker: Result<PathBuf>) -> Result<i32> {
    let query = nvml::Query::start();
    let console = Console::new(options);
    let mut diagnoses = machine::diagnose(Path::new("/"));
    diagnoses.extend(worker::diagnose(worker));
    let deadline = std::time::Instant::now() + DRIVER_TIMEOUT;
    let report = query.and_then(|query| query.wait(deadline));
    let gpus = gpus::diagnose(&gpu::detect(Path::new("/")), report.as_ref());
    diagnoses.splice(0..0, gpus);
    diagnoses.extend(network::diagnose(options, &console)?);
    let able = diagnoses.iter().all(|diagnosis| diagnosis.rating != Rating::Bad);
    if command.json {
        if let Ok(line) = serde_json::to_string(&DoctorReport { able, diagnoses: &diagnoses }) {
            // A reader that closed the pipe has read enough.
            let _ = writeln!(std::io::stdout(), "{line}");
        }
    } else {
        diagnoses.iter().for_each(|diagnosis| console.result(&text(diagnosis)));
    }
    Ok(if able { exit::SUCCESS } else { exit::ENVIRONMENT })
}

fn text(diagnosis: &Diagnosis) -> String {
    let mark = match diagnosis.rating {
        Rating::Good => "ok  ",
        Rating::Doubtful => "warn",
        Rating::Bad => "BAD ",
    };
    let found = diagnosis.found.replace('\n', &format!("\n{:20}", ""));
    let line = format!("{mark} {:<14} {found}", diagnosis.what);
    match &diagnosis.remedy {
        Some(remedy) => format!("{line}\n     {:<14} -> {remedy}", ""),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_is_shown_if_something_is_wrong() {
        assert_eq!(text(&Diagnosis::good("disk", "9 GiB free")), "ok   disk           9 GiB free");
        let bad = text(&Diagnosis::bad("worker", "absent", "run make setup"));
        let lines: Vec<&str> = bad.lines().map(str::trim_start).collect();
        assert_eq!(lines, ["BAD  worker         absent", "-> run make setup"]);
    }
}
