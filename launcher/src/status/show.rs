//! A status for people: one line that fits a terminal, and a page.

use std::fmt::Write;

use fnet_protocol::exit;
use fnet_protocol::message::{Phase, Progress};
use serde_json::Value;

use super::{JobState, JobStatus, STALE};
use crate::attempt::status::{JobStage, describe};
use crate::text;

/// A rank for which the others wait longer than this in a step, in seconds, is named.
const LATE: f64 = 0.01;
/// The widest bar in columns.
const MAX_BAR: usize = 40;
/// A narrower bar shows too little.
const MIN_BAR: usize = 8;
/// Time without progress after which a rank's state says so.
const IDLE: f64 = 5.0;

/// What the live line shows: its text changes at once when this does.
pub fn key(status: &JobStatus) -> (&'static str, u64) {
    match current(status) {
        Some(progress) => (name(progress), progress.epoch),
        None => ("start", 0),
    }
}

/// The evaluation in progress, or the last training step.
fn current(status: &JobStatus) -> Option<&Progress> {
    status.evaluating.as_ref().or(status.training.as_ref())
}

/// The name of a phase; the parts of a training step share one.
fn name(progress: &Progress) -> &'static str {
    match progress.phase {
        Phase::Evaluation | Phase::Summary => "evaluate",
        Phase::Checkpoint => "save",
        Phase::Start | Phase::Index | Phase::Unknown => "start",
        Phase::Data | Phase::Forward | Phase::Backward | Phase::AllReduce | Phase::Optimizer => "train",
    }
}

/// The progress of the job in a line of at most `width` columns; without one, on a line of any length and without a bar. What
/// matters least is left out first.
pub fn line(status: &JobStatus, width: Option<usize>) -> String {
    let Some(progress) = current(status) else { return fit(starting(status), width) };
    let what = name(progress);
    let is_evaluation = what == "evaluate";
    let heading = match (progress.epochs, width) {
        (0, _) => what.to_owned(),
        (epochs, Some(width)) if width < 60 => format!("{what} {}/{epochs}", progress.epoch),
        (epochs, _) => format!("{what} epoch {}/{epochs}", progress.epoch),
    };
    let count = format!("{}/{}{}", progress.step, progress.total_steps, if is_evaluation { " images" } else { "" });
    // In the order of the line, each with its rank in importance.
    let parts: Vec<(usize, String)> = [
        (2, progress.loss.map(|loss| format!("loss {loss:.4}"))),
        (3, progress.images_per_second.map(|speed| format!("{speed:.1} img/s"))),
        (4, progress.memory_bytes.map(text::bytes)),
        (
            5,
            status
                .slowest
                .filter(|&(_, late)| late >= LATE && !is_evaluation)
                .map(|(rank, late)| format!("slowest rank {rank} (+{late:.2} s)")),
        ),
        (1, stuck(status).or(progress.eta_seconds.map(|seconds| format!("ETA {}", text::clock(seconds))))),
    ]
    .into_iter()
    .filter_map(|(importance, part)| Some((importance, part?)))
    .collect();
    let together = |bar: &str, most: usize| {
        let shown: Vec<&str> =
            parts.iter().filter(|(importance, _)| *importance <= most).map(|(_, part)| part.as_str()).collect();
        let words = [&heading[..], bar, &count[..], &shown.join(", ")];
        words.iter().filter(|word| !word.is_empty()).copied().collect::<Vec<_>>().join(" ")
    };
    let Some(width) = width else { return together("", usize::MAX) };
    let Some(most) = (0..=5).rev().find(|&most| together("", most).chars().count() <= width) else {
        return fit(together("", 0), Some(width));
    };
    let room = width.saturating_sub(together("", most).chars().count() + 1).min(MAX_BAR);
    if room < MIN_BAR || progress.total_steps == 0 {
        return together("", most);
    }
    let room_steps = u128::from(progress.step.min(progress.total_steps)) * room as u128;
    let full = usize::try_from(room_steps / u128::from(progress.total_steps)).unwrap_or(room);
    together(&format!("{}{}", "█".repeat(full), "░".repeat(room - full)), most)
}

/// For how long no rank makes progress, if that is long.
fn stuck(status: &JobStatus) -> Option<String> {
    let idle = status.ranks.iter().filter_map(|rank| Some(rank.status.as_ref()?.idle_seconds));
    let least = idle.min_by(f64::total_cmp).filter(|&seconds| seconds > IDLE)?;
    Some(format!("no progress for {}", text::clock(least)))
}

/// What the first rank does before the first step.
fn starting(status: &JobStatus) -> String {
    let first = status.ranks.first();
    let doing = first.and_then(|rank| rank.status.as_ref()).map(|of| (of.phase.name(), of.idle_seconds));
    match (status.stage, doing) {
        (JobStage::Waiting, _) => "waiting for the other nodes".to_owned(),
        (_, Some((phase, seconds))) => format!("start: {phase}, {}", text::clock(seconds)),
        (_, None) => format!("start: {}", text::count(status.world_size, "worker")),
    }
}

fn fit(line: String, width: Option<usize>) -> String {
    width.map_or_else(|| line.clone(), |width| line.chars().take(width).collect())
}

/// Whether the job runs, in one sentence.
pub fn describe_state(status: &JobStatus, state: JobState, now: f64) -> String {
    let process = status.launcher.process();
    let silent = text::clock(now - status.updated);
    match (state, &status.end) {
        (JobState::Ended, Some(end)) => {
            let meaning = match end.exit_code {
                exit::SUCCESS => "ended: done".to_owned(),
                exit::STOPPED | exit::INTERRUPTED => {
                    format!("stopped on request (code {}); run again with --resume", end.exit_code)
                }
                code => format!("failed with code {code} ({})", exit::meaning(code)),
            };
            let took = text::clock(end.at - status.started);
            format!("{meaning}, {} ago, after {took}", text::clock(now - end.at))
        }
        (JobState::Killed, _) => format!(
            "killed: its launcher (process {process}) is gone for at most {silent} and has written no end; run again with --resume"
        ),
        (JobState::Stalled, _) => format!(
            "silent for {silent}: its launcher (process {process}) is stopped (kill -CONT {process} continues it), or the disk \
             does not respond"
        ),
        (JobState::Unknown, _) => format!(
            "silent for more than {} s: its launcher (process {process} on {}) was killed, its machine failed, or the disk does \
             not respond",
            STALE.as_secs(),
            status.host
        ),
        _ => match status.stage {
            JobStage::Waiting if status.restarts.is_empty() => "waiting for the other nodes".to_owned(),
            JobStage::Waiting => "about to restart".to_owned(),
            JobStage::Stopping => "saving and stopping, as requested".to_owned(),
            JobStage::Failing => "a worker has failed; the others save what they have".to_owned(),
            JobStage::Running | JobStage::Ended | JobStage::Unknown => "running".to_owned(),
        },
    }
}

/// The page of `status`.
pub fn page(status: &JobStatus, state: JobState, now: f64) -> String {
    let mut out = String::new();
    let mut row = |name: &str, value: String| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{name:<12} {value}");
    };
    row("job", format!("{}: {}", status.work_dir.display(), describe_state(status, state, now)));
    let reason = status.end.as_ref().and_then(|end| end.reason.as_ref()).or(status.problem.as_ref());
    if let Some(reason) = reason {
        row("cause", indented(reason));
    }
    let is_over = matches!(state, JobState::Ended | JobState::Killed);
    let until = status.end.as_ref().map_or(if is_over { status.updated } else { now }, |end| end.at);
    row("started", format!("{} on {}, {} ago", date(status.started), status.host, text::clock(now - status.started)));
    row("command", status.command.clone());
    if let Some(step) = current(status) {
        let plain = JobStatus { slowest: None, ..status.clone() };
        let eta = if is_over { Progress { eta_seconds: None, ..step.clone() } } else { step.clone() };
        let plain = match status.evaluating {
            Some(_) => JobStatus { evaluating: Some(eta), ..plain },
            None => JobStatus { training: Some(eta), ..plain },
        };
        row(if is_over { "last step" } else { "progress" }, line(&plain, None));
    } else if !is_over {
        row("progress", starting(status));
    }
    if let Some(step) = &status.training {
        let mut numbers: Vec<String> =
            step.learning_rate.map(|rate| format!("learning rate {rate:.4e}")).into_iter().collect();
        let known = step.losses.iter().filter(|(name, _)| *name != "loss");
        numbers.extend(known.map(|(name, value)| format!("{name} {}", number(value))));
        if !numbers.is_empty() {
            row("losses", numbers.join(", "));
        }
    }
    if let Some(evaluation) = &status.evaluation {
        let metrics = evaluation.metrics.iter().filter(|(_, value)| value.is_number());
        let metrics: Vec<String> = metrics.map(|(name, value)| format!("{name} {}", number(value))).collect();
        row("evaluation", format!("epoch {}: {}", evaluation.epoch, metrics.join(", ")));
    }
    if let Some(checkpoint) = &status.checkpoint {
        let age = text::clock(now - checkpoint.at);
        row("checkpoint", format!("{}, step {}, {age} ago", checkpoint.path.display(), checkpoint.step));
    }
    let share = 100.0 * status.lost_seconds / (until - status.started).max(1.0);
    let lost = match status.lost_seconds {
        seconds if seconds < 60.0 => format!(", {seconds:.1} s lost ({share:.1} %)"),
        seconds => format!(", {} lost ({share:.1} %)", text::clock(seconds)),
    };
    row("restarts", format!("{}{}", status.restarts.len(), if status.lost_seconds > 0.0 { &lost } else { "" }));
    for restart in &status.restarts {
        let Some(first) = restart.reason.lines().next() else { continue };
        row("", format!("{}: rank {} failed, code {}: {first}", date(restart.at), restart.rank, restart.exit_code));
    }
    for (index, change) in status.membership.iter().enumerate() {
        row(if index == 0 { "nodes" } else { "" }, format!("{}: {}", date(change.at), change.text));
    }
    if let Some(log) = &status.log {
        row("log", log.display().to_string());
    }
    ranks(status, &mut row);
    out
}

/// A table of the ranks.
fn ranks(status: &JobStatus, row: &mut impl FnMut(&str, String)) {
    let bytes = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), text::bytes);
    for (index, rank) in status.ranks.iter().enumerate() {
        if index == 0 {
            row("ranks", format!("{:>4} {:>10} {:>10} {:>8}  {}", "rank", "memory", "peak", "waits", "state"));
        }
        let mut state = rank.status.as_ref().map_or_else(|| "not started yet".to_owned(), describe);
        if let Some(of) = rank.status.as_ref().filter(|of| of.idle_seconds > IDLE) {
            state += &format!(", no progress for {}", text::clock(of.idle_seconds));
            if let Some(activity) = &of.activity {
                state += &format!(" ({} for {})", activity.what, text::clock(activity.seconds));
            }
        }
        if let Some(silent) = rank.silent_seconds.filter(|&silent| silent > IDLE) {
            state += &format!(", no heartbeat for {}", text::clock(silent));
        }
        let waits = rank.usage.wait_seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.2} s"));
        let memory = (bytes(rank.usage.memory_bytes), bytes(rank.usage.peak_memory_bytes));
        row("", format!("{:>4} {:>10} {:>10} {waits:>8}  {state}", rank.rank, memory.0, memory.1));
    }
    for gpu in &status.gpus {
        let busy = gpu.busy_percent.map_or_else(String::new, |percent| format!("{percent} % busy, "));
        let (used, total) = (text::bytes(gpu.memory_used_bytes), text::bytes(gpu.memory_total_bytes));
        row("", format!("{:>4} GPU {}: {busy}{used} of {total} used", gpu.rank, gpu.device));
    }
}

fn number(value: &Value) -> String {
    value.as_f64().map_or_else(|| "not finite".to_owned(), |value| format!("{value:.4}"))
}

/// The further lines of a text, below its first.
fn indented(text: &str) -> String {
    text.replace('\n', &format!("\n{:<13}", ""))
}

fn date(seconds: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "whole seconds")]
    let time = jiff::Timestamp::from_second(seconds as i64).unwrap_or_default();
    time.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}
