//! The report of a failure, for the user and as JSON.

use std::fs;
use std::path::Path;

use fnet_protocol::exit;
use fnet_protocol::message::{Phase, WorkerStatus};
use serde_json::json;

use crate::attempt::cause::Cause;
use crate::attempt::status::describe;
use crate::plan::Plan;

/// The report as lines; the first one is the headline.
pub fn lines(cause: &Cause, log: &Path) -> Vec<String> {
    let mut lines = vec![format!("rank {} failed: {}", cause.rank, cause.reason)];
    if let Some(status) = &cause.status {
        lines.push(format!("  last seen in: {}", describe(status)));
    }
    if let Some(backtrace) = &cause.backtrace {
        lines.push("  stack:".to_owned());
        lines.extend(backtrace.lines().map(|line| format!("    {line}")));
    }
    if !cause.stderr.is_empty() {
        lines.push("  its last lines:".to_owned());
        lines.extend(cause.stderr.iter().map(|line| format!("    | {line}")));
    }
    for (rank, reason) in &cause.others {
        lines.push(format!("  after it, rank {rank}: {}", reason.lines().next().unwrap_or_default()));
    }
    lines.push(format!("  full log: {}", log.display()));
    lines
}

/// Whether to print only the reason of a failure: a worker has reported a mistake in the input during start-up, which has
/// nothing to do with its rank.
pub fn is_plain(cause: &Cause, plan: &Plan) -> bool {
    // Before the first step, a checkpoint is read.
    let is_starting =
        |status: &WorkerStatus| !status.phase.is_ready() || (status.phase == Phase::Checkpoint && status.step == 0);
    cause.status.as_ref().is_none_or(is_starting)
        && cause.backtrace.is_none()
        && cause.reported
        && (cause.exit_code == exit::USAGE || (cause.exit_code == exit::DATA && plan.nodes.count == 1))
}

/// The report file of this node.
pub fn file(plan: &Plan) -> std::path::PathBuf {
    match plan.nodes.count {
        1 => plan.logs.join("failure.json"),
        _ => plan.logs.join(format!("failure_node_{}.json", plan.nodes.rank)),
    }
}

/// The report for programs.
pub fn json(plan: &Plan, cause: &Cause, restarts: u32) -> String {
    let others: Vec<_> = cause.others.iter().map(|(rank, reason)| json!({ "rank": rank, "reason": reason })).collect();
    let command: Vec<_> = plan.worker_line().words().iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let status = cause.status.as_ref();
    let report = json!({
        "rank": cause.rank,
        "exit_code": cause.exit_code,
        "reason": cause.reason,
        "doing": status.map(describe),
        "phase": status.map(|status| status.phase),
        "epoch": status.map(|status| status.epoch),
        "step": status.map(|status| status.step),
        "backtrace": cause.backtrace,
        "stderr": cause.stderr,
        "others": others,
        "log": plan.log(cause.rank),
        "command": command,
        "restarts": restarts,
    });
    format!("{report:#}\n")
}

/// Removes the report of an earlier run, if there is one.
pub fn remove(plan: &Plan) {
    let _ = fs::remove_file(file(plan));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_says_who_why_where_and_what_followed() {
        let cause = Cause {
            rank: 1,
            exit_code: 4,
            reason: "killed by SIGKILL".into(),
            reported: false,
            status: Some(WorkerStatus { phase: Phase::Backward, step: 3, ..WorkerStatus::default() }),
            backtrace: None,
            stderr: vec!["last words".into()],
            others: vec![(0, "connection closed\nmore".into())],
        };
        assert_eq!(
            lines(&cause, Path::new("logs/rank_1.log")),
            [
                "rank 1 failed: killed by SIGKILL",
                "  last seen in: backward, step 3",
                "  its last lines:",
                "    | last words",
                "  after it, rank 0: connection closed",
                "  full log: logs/rank_1.log",
            ]
        );
    }
}
