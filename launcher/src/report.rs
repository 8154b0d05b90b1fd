//! The report of a failure, for people and as JSON.

use std::fs;
use std::path::Path;

use fnet_protocol::exit;
use serde_json::json;

use crate::cause::Cause;
use crate::plan::Plan;

/// The report as lines; the first one is the headline.
pub fn lines(cause: &Cause, log: &Path) -> Vec<String> {
    let mut lines = vec![format!("rank {} failed: {}", cause.rank, cause.reason)];
    if let Some(doing) = &cause.doing {
        lines.push(format!("  last seen in: {doing}"));
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

/// Whether a failure at the start is reported as is: it is a mistake in the input that a worker has put into words, and has
/// nothing to do with the rank that found it, although others may have begun their work meanwhile.
pub fn is_plain(cause: &Cause, plan: &Plan) -> bool {
    let has_begun = cause.beat.as_ref().is_some_and(|beat| beat.phase.is_ready());
    let has_words = cause.backtrace.is_none() && cause.reported;
    !has_begun
        && has_words
        && (cause.exit_code == exit::USAGE || (cause.exit_code == exit::DATA && plan.nodes.count == 1))
}

/// Name of the machine-readable report of this node.
pub fn file(plan: &Plan) -> std::path::PathBuf {
    match plan.nodes.count {
        1 => plan.logs.join("failure.json"),
        _ => plan.logs.join(format!("failure_node_{}.json", plan.nodes.rank)),
    }
}

/// The report for programs.
pub fn json(plan: &Plan, cause: &Cause, restarts: u32) -> String {
    let others: Vec<_> = cause.others.iter().map(|(rank, reason)| json!({ "rank": rank, "reason": reason })).collect();
    let command: Vec<_> = plan.command.to_args().iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let report = json!({
        "rank": cause.rank,
        "exit_code": cause.exit_code,
        "reason": cause.reason,
        "doing": cause.doing,
        "phase": cause.beat.as_ref().map(|beat| beat.phase.wire()),
        "epoch": cause.beat.as_ref().map(|beat| beat.epoch),
        "step": cause.beat.as_ref().map(|beat| beat.step),
        "backtrace": cause.backtrace,
        "stderr": cause.stderr,
        "others": others,
        "log": plan.log(cause.rank),
        "command": command,
        "restarts": restarts,
    });
    format!("{report:#}\n")
}

/// Removes the report of an earlier run.
pub fn remove(plan: &Plan) {
    // None is there after a good run.
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
            doing: Some("backward, step 3".into()),
            beat: None,
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
