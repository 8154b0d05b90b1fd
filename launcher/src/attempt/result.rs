//! How an attempt ended.

use std::time::Duration;

use fnet_protocol::message::StopReason;
use serde::{Deserialize, Serialize};

use super::cause::Cause;

/// How an attempt ended, on one node or for the whole job. Launchers send it to each other.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AttemptResult {
    /// The end of the workers.
    pub end: AttemptEnd,
    /// Whether any worker had finished its start-up.
    pub was_ready: bool,
    /// Whether a stop was requested.
    pub stop_requested: bool,
    /// Completed steps in the newest checkpoint of this attempt.
    pub saved_step: Option<u64>,
    /// How long it ran.
    pub ran: Duration,
    /// Nodes that are lost.
    pub lost_nodes: Vec<String>,
    /// Whether the attempt ended only because other nodes take part from now on.
    #[serde(default)]
    pub goes_on: bool,
}

/// The end of an attempt's workers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptEnd {
    /// All workers finished, or were killed because of a failure on another node.
    #[default]
    Done,
    /// Stopped on request.
    Stopped {
        reason: StopReason,
        /// Whether every worker reached the point of saving.
        saved: bool,
    },
    /// A worker failed.
    Failed {
        /// The first cause.
        cause: Box<Cause>,
        /// Whether all workers that failed only lost a peer.
        is_echo: bool,
    },
}

impl AttemptResult {
    /// The result of a node that was lost, with the rank of its first worker.
    pub fn of_lost_node(node: &str, first_rank: usize, exit_code: i32, reason: &str) -> Self {
        let cause = Cause::of_node(first_rank, exit_code, format!("its {node} is lost: {reason}"));
        Self {
            end: AttemptEnd::Failed { cause: Box::new(cause), is_echo: false },
            lost_nodes: vec![node.to_owned()],
            ..Self::default()
        }
    }

    /// The first cause, if a worker failed.
    pub fn cause(&self) -> Option<&Cause> {
        match &self.end {
            AttemptEnd::Failed { cause, .. } => Some(cause),
            AttemptEnd::Done | AttemptEnd::Stopped { .. } => None,
        }
    }

    /// Adds the name of the node to the cause.
    #[must_use]
    pub fn on_node(mut self, node: &str) -> Self {
        if let AttemptEnd::Failed { cause, .. } = &mut self.end {
            cause.reason += &format!(", on {node}");
        }
        self
    }

    /// Merges the results of nodes, in the order in which the nodes failed. The first failure that does not only follow from a
    /// lost peer is the cause.
    pub fn merge(mut results: Vec<Self>) -> Self {
        let is_echo = |result: &Self| matches!(result.end, AttemptEnd::Failed { is_echo: true, .. });
        results.sort_by_key(is_echo);
        let mut failures = results.iter().filter_map(|result| Some((result.cause()?, is_echo(result))));
        let stopped = results.iter().find_map(|result| match result.end {
            AttemptEnd::Stopped { reason, .. } => Some(reason),
            _ => None,
        });
        let end = match (failures.next(), stopped) {
            // This node only lost ranks that had stopped.
            (Some((_, true)), Some(reason)) => AttemptEnd::Stopped { reason, saved: false },
            (Some((first, is_echo)), _) => {
                let mut cause = Box::new(first.clone());
                for (other, _) in failures {
                    cause.others.push((other.rank, other.reason.clone()));
                    cause.others.extend(other.others.iter().cloned());
                }
                AttemptEnd::Failed { cause, is_echo }
            }
            (None, Some(reason)) => {
                let is_saved = |end: &AttemptEnd| !matches!(end, AttemptEnd::Stopped { saved: false, .. });
                AttemptEnd::Stopped { reason, saved: results.iter().all(|result| is_saved(&result.end)) }
            }
            (None, None) => AttemptEnd::Done,
        };
        Self {
            end,
            was_ready: results.iter().any(|result| result.was_ready),
            stop_requested: results.iter().any(|result| result.stop_requested),
            saved_step: results.iter().filter_map(|result| result.saved_step).max(),
            ran: results.iter().map(|result| result.ran).max().unwrap_or(Duration::ZERO),
            lost_nodes: results.into_iter().flat_map(|result| result.lost_nodes).collect(),
            goes_on: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use fnet_protocol::exit;

    use super::*;

    fn result(end: AttemptEnd) -> AttemptResult {
        AttemptResult { end, was_ready: true, ran: Duration::from_secs(5), ..AttemptResult::default() }
    }

    fn failed(rank: usize, reason: &str, is_echo: bool) -> AttemptResult {
        let cause = Box::new(Cause::of_node(rank, exit::WORKER_LOST, reason.to_owned()));
        result(AttemptEnd::Failed { cause, is_echo })
    }

    fn stopped(saved: bool) -> AttemptResult {
        result(AttemptEnd::Stopped { reason: StopReason::Interrupted, saved })
    }

    #[test]
    fn a_lost_connection_on_one_node_is_not_the_cause_of_a_failure_on_another() {
        let merged = AttemptResult::merge(vec![
            failed(0, "connection closed by peer", true).on_node("node 0"),
            failed(3, "killed by SIGKILL", false).on_node("node 1"),
        ]);
        let AttemptEnd::Failed { cause, is_echo: false } = merged.end else { panic!("{merged:?}") };
        assert_eq!((cause.rank, cause.reason.as_str()), (3, "killed by SIGKILL, on node 1"));
        assert_eq!(cause.others, [(0, "connection closed by peer, on node 0".to_owned())]);
        assert!(merged.lost_nodes.is_empty());
    }

    #[test]
    fn of_two_failures_the_first_one_is_the_cause() {
        let merged = AttemptResult::merge(vec![failed(2, "killed", false), failed(0, "killed", false)]);
        assert_eq!(merged.cause().map(|cause| cause.rank), Some(2));
    }

    #[test]
    fn a_lost_node_is_the_cause_and_prevents_a_restart() {
        let lost = AttemptResult::of_lost_node("node 1", 2, exit::WORKER_LOST, "no heartbeat for 60 s");
        let merged = AttemptResult::merge(vec![failed(0, "timed out", true), lost]);
        let cause = merged.cause().unwrap();
        assert_eq!((cause.rank, cause.exit_code), (2, exit::WORKER_LOST));
        assert!(cause.reason.contains("node 1 is lost: no heartbeat"), "{}", cause.reason);
        assert_eq!(merged.lost_nodes, ["node 1"]);
        assert!(merged.was_ready && merged.ran == Duration::from_secs(5));
    }

    #[test]
    fn a_stop_is_a_stop_of_all_nodes() {
        let end = |results| AttemptResult::merge(results).end;
        assert_eq!(end(vec![stopped(true), stopped(true)]), stopped(true).end);
        assert_eq!(end(vec![stopped(true), stopped(false)]), stopped(false).end);
        assert_eq!(end(vec![failed(0, "connection closed", true), stopped(true)]), stopped(false).end);
    }

    #[test]
    fn a_job_is_done_when_all_nodes_are() {
        assert_eq!(
            AttemptResult::merge(vec![result(AttemptEnd::Done), result(AttemptEnd::Done)]),
            result(AttemptEnd::Done)
        );
    }
}
