//! `doctor`: whether this machine is able, what is wrong, and how to mend it.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fnet_protocol::cli::{Doctor, Place};
use fnet_protocol::exit;
use rustix::process::Resource;

use crate::gpu::Detection;
use crate::show::Show;
use crate::{error, gpu, text};

/// Oldest driver that runs CUDA 13.
const LEAST_DRIVER: u32 = 580;
/// Time in which the worker must load its libraries.
const LOAD_PATIENCE: Duration = Duration::from_secs(60);
const GIB: u64 = 1 << 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    /// Some jobs will not run, or not well.
    Doubtful,
    /// No job will run.
    Bad,
}

struct Finding {
    verdict: Verdict,
    what: &'static str,
    found: String,
    remedy: &'static str,
}

fn finding(good: bool, otherwise: Verdict, what: &'static str, found: String, remedy: &'static str) -> Finding {
    Finding { verdict: if good { Verdict::Good } else { otherwise }, what, found, remedy }
}

/// Prints what was found and returns the exit code.
pub fn run(place: &Place, _command: &Doctor, worker: error::Result<std::path::PathBuf>) -> i32 {
    let show = Show::new(place);
    let mut findings = Vec::new();
    gpus(&gpu::detect(Path::new("/")), &mut findings);
    findings.push(worker_loads(worker));
    findings.push(ports());
    findings.push(disk(Path::new("."), "disk", 10 * GIB, "free some space, or give --work-dir on another disk"));
    let shm = "give the container more (docker run --shm-size=8g); NCCL keeps its buffers there";
    findings.push(disk(Path::new("/dev/shm"), "shared memory", GIB, shm));
    findings.push(open_files());
    findings.push(processors());
    findings.push(memory());
    for finding in &findings {
        let mark = match finding.verdict {
            Verdict::Good => "ok  ",
            Verdict::Doubtful => "warn",
            Verdict::Bad => "BAD ",
        };
        show.print(&format!("{mark} {:<14} {}", finding.what, finding.found));
        if finding.verdict != Verdict::Good {
            show.print(&format!("     {:<14} -> {}", "", finding.remedy));
        }
    }
    if findings.iter().any(|finding| finding.verdict == Verdict::Bad) { exit::ENVIRONMENT } else { exit::SUCCESS }
}

fn gpus(detection: &Detection, findings: &mut Vec<Finding>) {
    let found = if detection.gpus.is_empty() {
        detection.looked.join("; ")
    } else {
        detection.gpus.iter().map(|gpu| gpu.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let remedy = "jobs run with --device cpu; for a GPU install NVIDIA's driver, and start containers with --gpus all";
    findings.push(finding(!detection.gpus.is_empty(), Verdict::Doubtful, "GPUs", found, remedy));
    if let Some(driver) = &detection.driver {
        let major = driver_major(driver);
        let good = major.is_none_or(|major| major >= LEAST_DRIVER);
        findings.push(finding(good, Verdict::Doubtful, "driver", driver.clone(), "CUDA 13 needs driver 580 or newer"));
    }
}

/// `580` of `NVIDIA UNIX x86_64 Kernel Module  580.82.07  Wed ...`.
fn driver_major(line: &str) -> Option<u32> {
    line.split_whitespace().find_map(|word| {
        let (major, rest) = word.split_once('.')?;
        rest.starts_with(|first: char| first.is_ascii_digit()).then(|| major.parse().ok())?
    })
}

fn worker_loads(worker: error::Result<std::path::PathBuf>) -> Finding {
    let remedy = "run `make setup`, which installs libtorch beside the sources and builds the worker";
    let program = match worker {
        Ok(program) => program,
        Err(error) => return finding(false, Verdict::Bad, "worker", error.message, remedy),
    };
    match answer(&program) {
        Ok(version) => {
            let found = format!("{version} loads its libraries: {}", program.display());
            finding(true, Verdict::Bad, "worker", found, remedy)
        }
        Err(why) => finding(false, Verdict::Bad, "worker", format!("{}: {why}", program.display()), remedy),
    }
}

/// What `fnet-worker --version` prints; that it runs shows that libtorch can be loaded.
fn answer(program: &Path) -> Result<String, String> {
    let mut child = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let deadline = Instant::now() + LOAD_PATIENCE;
    while child.try_wait().map_err(|error| error.to_string())?.is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("did not answer in {} s", LOAD_PATIENCE.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() && version.is_empty() {
        Err("prints no version, so it is no worker of fnet".to_owned())
    } else if output.status.success() {
        Ok(version)
    } else {
        let text = String::from_utf8_lossy(&output.stderr);
        Err(format!("{}: {}", output.status, text.lines().next().unwrap_or("no message")))
    }
}

fn ports() -> Finding {
    let bound = TcpListener::bind("127.0.0.1:0");
    let found = match &bound {
        Ok(_) => "a port of 127.0.0.1 can be bound".to_owned(),
        Err(error) => format!("127.0.0.1: {error}"),
    };
    finding(
        bound.is_ok(),
        Verdict::Bad,
        "ports",
        found,
        "the ranks meet on a TCP port; bring the loopback interface up",
    )
}

fn disk(folder: &Path, what: &'static str, least: u64, remedy: &'static str) -> Finding {
    match rustix::fs::statvfs(folder) {
        Ok(facts) => {
            let free = facts.f_bavail.saturating_mul(facts.f_frsize);
            let found = format!("{} free in {}", text::bytes(free), folder.display());
            finding(free >= least, Verdict::Doubtful, what, found, remedy)
        }
        Err(error) => finding(false, Verdict::Doubtful, what, format!("{}: {error}", folder.display()), remedy),
    }
}

fn open_files() -> Finding {
    let limit = rustix::process::getrlimit(Resource::Nofile).current;
    let found = limit.map_or_else(|| "no limit".to_owned(), |limit| format!("{limit} per process"));
    let good = limit.is_none_or(|limit| limit >= 1024);
    finding(good, Verdict::Doubtful, "open files", found, "raise it: ulimit -n 65536")
}

fn processors() -> Finding {
    let count = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    finding(count > 0, Verdict::Doubtful, "processors", text::count(count, "core"), "the system does not say how many")
}

fn memory() -> Finding {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib =
        text.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.trim().split(' ').next()?.parse::<u64>().ok());
    let available = kib.unwrap_or(0).saturating_mul(1024);
    let found = format!("{} available", text::bytes(available));
    finding(
        available >= 2 * GIB,
        Verdict::Doubtful,
        "memory",
        found,
        "a worker needs 2 GiB or more; close other programs",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drivers_version_is_found_in_its_line() {
        let line = "NVIDIA UNIX x86_64 Kernel Module  580.82.07  Wed Aug 27 17:43:23 UTC 2025";
        assert_eq!(driver_major(line), Some(580));
        let open = "NVIDIA UNIX Open Kernel Module for x86_64  575.51.03  Release Build";
        assert_eq!(driver_major(open), Some(575));
        assert_eq!(driver_major("unknown"), None);
    }

    #[test]
    fn an_old_driver_is_reported_with_the_remedy() {
        let mut findings = Vec::new();
        let driver = Some("NVIDIA UNIX x86_64 Kernel Module  470.1.2  x".to_owned());
        gpus(&Detection { gpus: vec![Default::default()], driver, looked: Vec::new() }, &mut findings);
        assert_eq!(findings[0].verdict, Verdict::Good);
        assert_eq!(findings[1].verdict, Verdict::Doubtful);
    }
}
