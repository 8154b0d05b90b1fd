//! How an attempt ended.

use std::time::Duration;

use fnet_protocol::message::StopReason;
use serde::{Deserialize, Serialize};

use super::cause::Cause;

/// How an attempt ended, on one node or for the whole job. Launchers send it to each other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptEnd {
    /// All workers finished, or were killed because of a failure on another node.
    Done,
    /// Stopped on request.
    Stopped {
        /// Why.
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
            was_ready: false,
            stop_requested: false,
            saved_step: None,
            ran: Duration::ZERO,
            lost_nodes: vec![node.to_owned()],
            goes_on: false,
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
}
