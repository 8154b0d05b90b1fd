//! `--dry-run`: what a job would do, where, and what prevents it. A worker estimates what depends on config and data.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use fnet_protocol::cli::{LaunchOptions, WorkerCommand};
use fnet_protocol::estimate::{DiskEstimate, Estimate, MemoryEstimate};
use fnet_protocol::{env, exit};
use serde::Serialize;

use crate::child::{self, Failure};
use crate::console::Console;
use crate::error::{Doing, Error, Result};
use crate::forecast::{Forecast, Job, Links};
use crate::plan::devices::Devices;
use crate::plan::host_memory::{self, Memory};
use crate::plan::{self, Plan, checks, nvml};
use crate::text;

/// Time for the driver to answer.
const DRIVER_TIMEOUT: Duration = Duration::from_secs(5);
/// An estimate must exceed the total memory by this factor to count as an error.
const MARGIN: f64 = 1.25;

#[derive(Debug, Serialize)]
struct DryRunReport {
    #[serde(flatten)]
    estimate: Estimate,
    nodes: usize,
    node_rank: usize,
    /// With several nodes: where they meet, and whether strangers are kept out.
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<String>,
    /// The workers of this node.
    workers: Vec<WorkerPlacement>,
    /// OMP_NUM_THREADS of each worker, unless the user has set it.
    #[serde(skip_serializing_if = "Option::is_none")]
    threads: Option<usize>,
    /// Why the workers have these CPUs.
    binding: String,
    /// How long the job takes, with a measured step time.
    #[serde(skip_serializing_if = "Option::is_none")]
    forecast: Option<Forecast>,
    /// What prevents the job from running.
    problems: Vec<String>,
}

/// Where a worker would run.
#[derive(Debug, Serialize)]
struct WorkerPlacement {
    rank: usize,
    device: String,
    /// Its CPUs; all if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpus: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_node: Option<usize>,
    /// Total and free memory of the device in bytes, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<[u64; 2]>,
}

/// Prints what the job would do and returns the exit code: 0 if nothing prevents it.
/// Errors: another command than `train` or `test` (exit code 2); the worker fails.
pub fn run(options: &LaunchOptions, plan: &Plan) -> Result<i32> {
    let json = match &plan.command {
        WorkerCommand::Train(train) => train.json,
        WorkerCommand::Test(test) => test.json,
        _ => return Err(Error::usage("--dry-run supports train and test only; remove it")),
    };
    let console = Console::new(options);
    let mut estimate = ask_worker(plan, &console)?;
    let workers = workers(plan);
    let memory = host_memory::memory(Path::new("/"));
    let mut problems = Vec::new();
    problems.extend(estimate.disk.as_ref().and_then(|disk| judge_disk(disk, &estimate.work_dir)));
    for (is_problem, text) in judge_memory(&estimate.memory, &workers, &plan.devices, memory) {
        if is_problem { problems.push(text) } else { estimate.warnings.push(text) }
    }
    let report = DryRunReport {
        forecast: forecast(plan, &estimate),
        estimate,
        nodes: plan.nodes.count,
        node_rank: plan.nodes.rank,
        network: (plan.nodes.count > 1).then(|| {
            let (address, port) = (&plan.nodes.address, plan.nodes.port.unwrap_or(0));
            format!("node 0 at {address}, port {port}, {}", plan.nodes.trust())
        }),
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
        console.result(&describe(&report, memory));
    }
    report.problems.iter().for_each(|problem| console.error(problem));
    Ok(if report.problems.is_empty() { exit::SUCCESS } else { exit::ENVIRONMENT })
}

/// How long the job takes, if `--step-time` says how long a step does.
#[expect(clippy::cast_precision_loss, reason = "a few digits are shown")]
fn forecast(plan: &Plan, estimate: &Estimate) -> Option<Forecast> {
    let WorkerCommand::Train(train) = &plan.command else { return None };
    let (step, training) = (train.step_time?, estimate.training.as_ref()?);
    let mut links = if matches!(plan.devices, Devices::Cuda(_)) { Links::NCCL } else { Links::GLOO };
    if let Some([within, between]) = train.links {
        links.bandwidth = [within * 1e9, between * 1e9];
    }
    let job = Job {
        nodes: plan.nodes.count,
        per_node: estimate.world_size.div_ceil(plan.nodes.count),
        step,
        images: training.samples_per_gpu,
        accumulate: training.accumulate,
        gradients: training.gradients as f64,
        as_bfloat16: training.as_bfloat16,
        steps: training.iterations_per_epoch,
        epochs: training.epochs - training.epochs_done.min(training.epochs),
        evaluated: training.evaluated,
        checkpoint: estimate.disk.as_ref().map_or(0.0, |disk| disk.checkpoint as f64),
    };
    Some(job.forecast(&links))
}

/// The estimate of a single worker.
fn ask_worker(plan: &Plan, console: &Console) -> Result<Estimate> {
    let mut worker = Command::new(&plan.program);
    worker.args(plan.line.words());
    plan::remove_ranks(&mut worker);
    // Weights have the same size on all devices, so no GPU is used.
    worker.env(env::DEVICE, "cpu").env(env::DRY_RUN, plan.world_size().to_string()).env(env::VERBOSITY, "-1");
    let answer = child::ask_blocking(worker, Duration::MAX).and_then(|answer| {
        if !answer.stderr.is_empty() {
            console.print(&answer.stderr);
        }
        serde_json::from_slice(&answer.stdout).map_err(|_| Failure::NoAnswer("did not print an estimate"))
    });
    answer.map_err(|failure| failure.of_worker(&plan.program, "estimating the job"))
}

fn workers(plan: &Plan) -> Vec<WorkerPlacement> {
    let report = matches!(plan.devices, Devices::Cuda(_)).then(|| nvml::query(DRIVER_TIMEOUT));
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
        WorkerPlacement { rank, device, cpus, memory_node: share.and_then(|share| share.node), memory }
    };
    plan.ranks().into_iter().enumerate().map(worker).collect()
}

fn judge_disk(disk: &DiskEstimate, folder: &Path) -> Option<String> {
    (disk.free < disk.needed).then(|| {
        format!(
            "the checkpoints need {} in {}, and {} are free: free some space, use --work-dir on another disk, or keep \
             fewer checkpoints with checkpoint.keep_last",
            text::bytes(disk.needed),
            folder.display(),
            text::bytes(disk.free)
        )
    })
}

/// Problems with memory, and whether each prevents the job.
fn judge_memory(
    estimate: &MemoryEstimate,
    workers: &[WorkerPlacement],
    devices: &Devices,
    memory: Memory,
) -> Vec<(bool, String)> {
    let remedy = "lower data.samples_per_gpu, use smaller images (data.pipeline.scales), or set train.amp = \"bf16\"";
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
            let what = format!("{} of this node will use", text::count(*count, "worker"));
            let remedy = format!("{remedy}, or start fewer workers");
            judge(&what, need, memory.total, memory.available, &remedy).into_iter().collect()
        }
        Devices::Cuda(_) => workers
            .iter()
            .filter_map(|worker| {
                let [total, free] = worker.memory?;
                judge(
                    &format!("rank {} will use on {}", worker.rank, worker.device),
                    estimate.total,
                    total,
                    free,
                    remedy,
                )
            })
            .collect(),
    }
}

fn describe(report: &DryRunReport, memory: Memory) -> String {
    let DryRunReport { estimate, .. } = report;
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
    if let Some(network) = &report.network {
        line("network", network.clone());
    }
    for set in &estimate.datasets {
        let epoch = match set.images_per_epoch {
            images if images == set.images => String::new(),
            images => format!(" ({images} per epoch)"),
        };
        let text = format!("{} images{epoch}, {} classes, {}", set.images, set.classes, set.annotation_file.display());
        line(&set.split, text);
    }
    if let Some(training) = &estimate.training {
        let done = match training.epochs_done {
            0 => String::new(),
            done => format!(", {done} of them done"),
        };
        line(
            "steps",
            format!(
                "{} epochs{done} of {} iterations, {} in total; {} images per worker, {} per update; learning rate {}",
                training.epochs,
                training.iterations_per_epoch,
                training.iterations,
                training.samples_per_gpu,
                training.effective_batch,
                training.learning_rate
            ),
        );
    }
    if let Some(forecast) = &report.forecast {
        line("forecast", forecast.to_string());
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
                "{} per checkpoint, at most {} at a time; {} still needed, {} free",
                text::bytes(disk.checkpoint),
                disk.count,
                text::bytes(disk.needed),
                text::bytes(disk.free)
            ),
        );
    }
    for warning in &estimate.warnings {
        line("warning", warning.trim_start_matches("warning: ").to_owned());
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
    fn an_estimate_must_exceed_the_total_memory_well_to_be_an_error() {
        let judge = |need: u64, machine| judge_memory(&estimate(need), &[], &Devices::Cpu(2), machine);
        assert_eq!(judge(GIB, memory(8 * GIB, 4 * GIB)), []);
        let problems = judge(3 * GIB, memory(8 * GIB, 4 * GIB));
        let [(false, text)] = problems.as_slice() else { panic!("{problems:?}") };
        assert!(
            text.contains("2 workers of this node will use about 6.0 GiB, and 4.0 GiB of 8.0 GiB are free"),
            "{text}"
        );
        assert!(judge(6 * GIB, memory(8 * GIB, 4 * GIB))[0].0);
        assert_eq!(judge(6 * GIB, memory(0, 0)), [], "the memory is unknown");
    }

    #[test]
    fn each_gpu_is_judged_by_its_own_memory() {
        let worker = |rank, memory| WorkerPlacement {
            rank,
            device: format!("cuda {rank}"),
            cpus: None,
            memory_node: None,
            memory,
        };
        let workers = [worker(0, Some([80 * GIB, 79 * GIB])), worker(1, Some([80 * GIB, 3 * GIB])), worker(2, None)];
        let devices = Devices::Cuda(vec!["0".into(), "1".into(), "2".into()]);
        let problems = judge_memory(&estimate(10 * GIB), &workers, &devices, Memory::default());
        assert_eq!(problems.len(), 1);
        assert!(!problems[0].0 && problems[0].1.contains("rank 1"), "{problems:?}");
    }

    #[test]
    fn a_disk_without_room_for_all_checkpoints_prevents_the_job() {
        let disk = |free| DiskEstimate { checkpoint: GIB, count: 12, needed: 12 * GIB, free };
        assert_eq!(judge_disk(&disk(12 * GIB), Path::new("w")), None);
        let text = judge_disk(&disk(11 * GIB), Path::new("w")).unwrap();
        assert!(text.contains("need 12.0 GiB in w, and 11.0 GiB are free") && text.contains("keep_last"), "{text}");
    }
}
