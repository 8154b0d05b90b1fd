//! `--dry-run`: what a job would do, on what, and what is in its way. A worker tells what needs the config and the data.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use fnet_protocol::cli::{Place, WorkerCommand};
use fnet_protocol::estimate::{DiskEstimate, Estimate, MemoryEstimate};
use fnet_protocol::{env, exit};
use serde::Serialize;

use crate::child::{self, Failure};
use crate::devices::Devices;
use crate::error::{Doing, Error, Result};
use crate::limits::{self, Memory};
use crate::plan::{self, Plan};
use crate::show::Show;
use crate::{checks, nvml, text};

/// Time that the driver has to answer; nothing waits for the job to start.
const DRIVER_PATIENCE: Duration = Duration::from_secs(5);
/// An estimate must be so far above what there is to count as an error.
const MARGIN: f64 = 1.25;

/// All that is told.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    estimate: Estimate,
    nodes: usize,
    node_rank: usize,
    /// The workers of this node.
    workers: Vec<WorkerPlace>,
    /// OMP_NUM_THREADS of each, unless the user has set it.
    #[serde(skip_serializing_if = "Option::is_none")]
    threads: Option<usize>,
    /// Why the workers have these CPUs.
    binding: String,
    /// What would keep the job from running.
    problems: Vec<String>,
}

/// Where a worker would run.
#[derive(Debug, Serialize)]
struct WorkerPlace {
    rank: usize,
    device: String,
    /// Its CPUs; all, if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpus: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_node: Option<usize>,
    /// Bytes of the device: in all and free. Absent if the driver does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<[u64; 2]>,
}

/// Prints what the job would do and returns the exit code: 0 if nothing is in its way.
///
/// # Errors
/// Another command than `train` or `test` (exit code 2); a worker that cannot be started.
pub fn run(place: &Place, plan: &Plan) -> Result<i32> {
    let json = match &plan.command {
        WorkerCommand::Train(train) => train.json,
        WorkerCommand::Test(test) => test.json,
        _ => return Err(Error::usage("--dry-run goes with train and test; leave it out")),
    };
    let world_size = plan.nodes.spot(plan.devices.workers()).world;
    let show = Show::new(place);
    let mut estimate = ask_worker(plan, world_size, &show)?;
    let workers = workers(plan);
    let memory = limits::memory(Path::new("/"));
    let mut problems = Vec::new();
    problems.extend(estimate.disk.as_ref().and_then(|disk| judge_disk(disk, &estimate.work_dir)));
    for (is_problem, text) in judge_memory(&estimate.memory, &workers, &plan.devices, memory) {
        if is_problem { problems.push(text) } else { estimate.warnings.push(text) }
    }
    let report = Report {
        estimate,
        nodes: plan.nodes.count,
        node_rank: plan.nodes.rank,
        workers,
        threads: plan.binding.threads,
        binding: plan.binding.reason.clone(),
        problems,
    };
    if json {
        let line = serde_json::to_string(&report).doing(|| "the report as JSON".to_owned())?;
        // A reader that closed the pipe has read enough.
        let _ = writeln!(std::io::stdout(), "{line}");
    } else {
        show.print(&describe(&report, memory));
    }
    report.problems.iter().for_each(|problem| show.error(problem));
    Ok(if report.problems.is_empty() { exit::SUCCESS } else { exit::ENVIRONMENT })
}

/// What a single worker tells.
///
/// # Errors
/// Why it does not, in its own words if it has any.
fn ask_worker(plan: &Plan, world_size: usize, show: &Show) -> Result<Estimate> {
    let mut worker = Command::new(&plan.program);
    worker.args(plan.command.to_args());
    plan::remove_ranks(&mut worker);
    // The weights are of the same size everywhere, so no GPU is touched.
    worker.env(env::DEVICE, "cpu").env(env::DRY_RUN, world_size.to_string()).env(env::VERBOSITY, "-1");
    let answer = child::ask_blocking(worker, Duration::MAX).and_then(|answer| {
        if !answer.stderr.is_empty() {
            show.print(&answer.stderr);
        }
        serde_json::from_slice(&answer.stdout).map_err(|_| Failure::NoAnswer("did not say what it would do"))
    });
    answer.map_err(|failure| failure.of_worker(&plan.program, "estimating the job"))
}

fn workers(plan: &Plan) -> Vec<WorkerPlace> {
    let report = matches!(plan.devices, Devices::Cuda(_)).then(|| nvml::query(DRIVER_PATIENCE));
    let states = match report {
        Some(Ok(report)) => checks::of_workers(&plan.devices, &report, plan.by_bus),
        _ => Vec::new(),
    };
    let worker = |(index, rank): (usize, usize)| {
        let share = plan.binding.shares.get(index);
        let (device, memory) = match &plan.devices {
            Devices::Cpu(_) => ("cpu".to_owned(), None),
            Devices::Cuda(entries) => {
                let entry = entries.get(index).map_or("", String::as_str);
                let state = states.iter().find(|(of, _)| of == entry).map(|(_, state)| state);
                let name = state.map_or_else(String::new, |state| format!(" ({})", state.name));
                (format!("cuda {entry}{name}"), state.map(|state| [state.memory_total, state.memory_free]))
            }
        };
        let cpus = share.map(|share| share.cpus.to_string());
        WorkerPlace { rank, device, cpus, memory_node: share.and_then(|share| share.node), memory }
    };
    plan.ranks().into_iter().enumerate().map(worker).collect()
}

fn judge_disk(disk: &DiskEstimate, folder: &Path) -> Option<String> {
    (disk.free < disk.needed).then(|| {
        format!(
            "the checkpoints need {} in {}, and {} are free: free some space, give --work-dir on another disk, or keep \
             fewer with checkpoint.keep_last",
            text::bytes(disk.needed),
            folder.display(),
            text::bytes(disk.free)
        )
    })
}

/// What is to be said of the memory, and whether it would keep the job from running.
fn judge_memory(
    estimate: &MemoryEstimate,
    workers: &[WorkerPlace],
    devices: &Devices,
    memory: Memory,
) -> Vec<(bool, String)> {
    let remedy =
        "lower data.samples_per_gpu, make the pictures smaller (data.pipeline.scales), or set train.amp = \"bf16\"";
    #[expect(clippy::cast_precision_loss, reason = "compared with a margin")]
    let judge = |what: &str, need: u64, total: u64, free: u64, remedy: &str| {
        let is_problem = need as f64 > total as f64 * MARGIN;
        (need > free && total > 0).then(|| {
            let (need, free, total) = (text::bytes(need), text::bytes(free), text::bytes(total));
            (is_problem, format!("{what} about {need}, and {free} of {total} are free; {remedy}"))
        })
    };
    match devices {
        Devices::Cpu(count) => {
            let need = estimate.total.saturating_mul(*count as u64);
            let what = format!("{} of this node will take", text::count(*count, "worker"));
            let remedy = format!("{remedy}, or start fewer workers");
            judge(&what, need, memory.total, memory.available, &remedy).into_iter().collect()
        }
        Devices::Cuda(_) => workers
            .iter()
            .filter_map(|worker| {
                let [total, free] = worker.memory?;
                judge(
                    &format!("rank {} will take on {}", worker.rank, worker.device),
                    estimate.total,
                    total,
                    free,
                    remedy,
                )
            })
            .collect(),
    }
}

fn describe(report: &Report, memory: Memory) -> String {
    let Report { estimate, .. } = report;
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<12} {value}");
    };
    line("config", format!("{}, {:.2} M parameters", estimate.config, estimate.parameters as f64 / 1e6));
    line("outputs", estimate.work_dir.display().to_string());
    let nodes = if report.nodes > 1 {
        format!(" on {} nodes, this is {}", report.nodes, report.node_rank)
    } else {
        String::new()
    };
    let threads = report.threads.map_or_else(|| "OMP_NUM_THREADS".to_owned(), |threads| text::count(threads, "thread"));
    line("workers", format!("{}{nodes}, {threads} each; {}", estimate.world_size, report.binding));
    for worker in &report.workers {
        let cpus = worker.cpus.as_ref().map_or_else(|| "all CPUs".to_owned(), |cpus| format!("CPUs {cpus}"));
        let node = worker.memory_node.map_or_else(String::new, |node| format!(", memory of node {node}"));
        line("", format!("rank {}: {}, {cpus}{node}", worker.rank, worker.device));
    }
    for set in &estimate.datasets {
        let facts = format!("{} pictures, {} classes, {}", set.images, set.classes, set.annotation_file.display());
        line(&set.split, facts);
    }
    if let Some(training) = &estimate.training {
        let done = match training.epochs_done {
            0 => String::new(),
            done => format!(", {done} of them done"),
        };
        line(
            "steps",
            format!(
                "{} epochs{done} of {} iterations, {} in all; {} pictures per worker, {} per update; learning rate {}",
                training.epochs,
                training.iterations_per_epoch,
                training.iterations,
                training.samples_per_gpu,
                training.effective_batch,
                training.learning_rate
            ),
        );
    }
    let parts = estimate.memory;
    line(
        "memory",
        format!(
            "about {} per worker at {} x {}x{}: weights {}, gradients {}, optimizer {}, activations {}, program {}",
            text::bytes(parts.total),
            parts.batch,
            parts.shape[0],
            parts.shape[1],
            text::bytes(parts.weights),
            text::bytes(parts.gradients),
            text::bytes(parts.optimizer),
            text::bytes(parts.activations),
            text::bytes(parts.fixed)
        ),
    );
    let limit = memory.limit.map_or("", |_| " (the limit of the control group)");
    line(
        "",
        format!("this machine: {} of {}{limit} available", text::bytes(memory.available), text::bytes(memory.total)),
    );
    if let Some(disk) = &estimate.disk {
        line(
            "disk",
            format!(
                "{} per checkpoint, {} at most at a time; {} still needed, {} free",
                text::bytes(disk.checkpoint),
                disk.count,
                text::bytes(disk.needed),
                text::bytes(disk.free)
            ),
        );
    }
    for warning in &estimate.warnings {
        line("warning", warning.clone());
    }
    out.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn memory(total: u64, available: u64) -> Memory {
        Memory { total, available, limit: None }
    }

    fn estimate(total: u64) -> MemoryEstimate {
        MemoryEstimate { total, ..MemoryEstimate::default() }
    }

    #[test]
    fn an_estimate_must_be_well_above_what_there_is_to_be_an_error() {
        let judge = |need: u64, machine| judge_memory(&estimate(need), &[], &Devices::Cpu(2), machine);
        assert_eq!(judge(GIB, memory(8 * GIB, 4 * GIB)), []);
        let told = judge(3 * GIB, memory(8 * GIB, 4 * GIB));
        let [(false, text)] = told.as_slice() else { panic!("{told:?}") };
        assert!(
            text.contains("2 workers of this node will take about 6.0 GiB, and 4.0 GiB of 8.0 GiB are free"),
            "{text}"
        );
        assert!(judge(6 * GIB, memory(8 * GIB, 4 * GIB))[0].0);
        assert_eq!(judge(6 * GIB, memory(0, 0)), [], "a system that does not say");
    }

    #[test]
    fn each_gpu_is_judged_by_its_own_memory() {
        let worker =
            |rank, memory| WorkerPlace { rank, device: format!("cuda {rank}"), cpus: None, memory_node: None, memory };
        let workers = [worker(0, Some([80 * GIB, 79 * GIB])), worker(1, Some([80 * GIB, 3 * GIB])), worker(2, None)];
        let devices = Devices::Cuda(vec!["0".into(), "1".into(), "2".into()]);
        let told = judge_memory(&estimate(10 * GIB), &workers, &devices, Memory::default());
        assert_eq!(told.len(), 1);
        assert!(!told[0].0 && told[0].1.contains("rank 1"), "{told:?}");
    }

    #[test]
    fn a_disk_without_room_for_all_checkpoints_is_in_the_way() {
        let disk = |free| DiskEstimate { checkpoint: GIB, count: 12, needed: 12 * GIB, free };
        assert_eq!(judge_disk(&disk(12 * GIB), Path::new("w")), None);
        let text = judge_disk(&disk(11 * GIB), Path::new("w")).unwrap();
        assert!(text.contains("need 12.0 GiB in w, and 11.0 GiB are free") && text.contains("keep_last"), "{text}");
    }
}
