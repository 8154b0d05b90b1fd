//! `doctor`: whether this machine is able, what is wrong, and how to mend it.

mod clocks;
mod gpus;
mod machine;
mod worker;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fnet_protocol::cli::{Doctor, Place};
use fnet_protocol::exit;
use serde::Serialize;

use crate::error::Result;
use crate::show::Show;
use crate::{error, gpu, nvml};

/// Time that the driver has to answer. Without persistence mode it wakes up each GPU first.
const DRIVER_PATIENCE: Duration = Duration::from_secs(20);

/// How it stands with one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Good,
    /// Some jobs will not run, or not well.
    Doubtful,
    /// No job will run.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    what: &'static str,
    verdict: Verdict,
    found: String,
    /// What to do, where something is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Finding {
    fn good(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Good, found: found.into(), remedy: None }
    }

    fn doubtful(what: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Doubtful, found: found.into(), remedy: Some(remedy.into()) }
    }

    fn bad(what: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Bad, ..Self::doubtful(what, found, remedy) }
    }

    /// Good, or doubtful with a remedy.
    fn good_if(good: bool, what: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        if good { Self::good(what, found) } else { Self::doubtful(what, found, remedy) }
    }
}

/// What is printed for programs.
#[derive(Serialize)]
struct Report<'a> {
    able: bool,
    findings: &'a [Finding],
}

/// Prints what was found and returns the exit code: 6 if no job will run.
///
/// # Errors
/// Flags of several nodes that make no sense (exit code 2).
pub fn run(place: &Place, command: &Doctor, worker: error::Result<PathBuf>) -> Result<i32> {
    let query = nvml::Query::start();
    let show = Show::new(place);
    let mut findings = machine::findings(Path::new("/"));
    findings.extend(worker::findings(worker));
    let asked = std::time::Instant::now();
    let report = query.and_then(|query| query.wait(asked + DRIVER_PATIENCE));
    let gpus = gpus::findings(&gpu::detect(Path::new("/")), report.as_ref());
    findings.splice(0..0, gpus);
    findings.extend(clocks::findings(place, &show)?);
    let able = findings.iter().all(|finding| finding.verdict != Verdict::Bad);
    if command.json {
        if let Ok(line) = serde_json::to_string(&Report { able, findings: &findings }) {
            // A reader that closed the pipe has read enough.
            let _ = writeln!(std::io::stdout(), "{line}");
        }
    } else {
        findings.iter().for_each(|finding| show.print(&text(finding)));
    }
    Ok(if able { exit::SUCCESS } else { exit::ENVIRONMENT })
}

fn text(finding: &Finding) -> String {
    let mark = match finding.verdict {
        Verdict::Good => "ok  ",
        Verdict::Doubtful => "warn",
        Verdict::Bad => "BAD ",
    };
    let line = format!("{mark} {:<14} {}", finding.what, finding.found);
    match &finding.remedy {
        Some(remedy) => format!("{line}\n     {:<14} -> {remedy}", ""),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_is_shown_where_something_is_wrong() {
        assert_eq!(text(&Finding::good("disk", "9 GiB free")), "ok   disk           9 GiB free");
        let bad = text(&Finding::bad("worker", "absent", "run make setup"));
        let lines: Vec<&str> = bad.lines().map(str::trim_start).collect();
        assert_eq!(lines, ["BAD  worker         absent", "-> run make setup"]);
    }
}
