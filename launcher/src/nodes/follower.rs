//! What a node does in an attempt with the coordinator's messages, and what it tells the coordinator, without I/O.

use std::time::Instant;

use fnet_protocol::exit;
use fnet_protocol::message::StopReason;

use super::message::{StopRequest, ToCoordinator, ToNode};
use crate::attempt::result::AttemptResult;
use crate::attempt::{Action, Attempt};

/// A node's part in an attempt.
#[derive(Debug, Default)]
pub struct Follower {
    attempt: u32,
    sent_failure: bool,
    sent_stop: bool,
    sent_saved: bool,
    lost: Option<Lost>,
}

/// The connection to the coordinator is lost.
#[derive(Debug)]
struct Lost {
    reason: String,
    /// Whether a worker of this node had failed before.
    after_failure: bool,
}

impl Follower {
    /// The attempt with this number begins.
    pub fn begin(&mut self, attempt: u32) {
        *self = Self { attempt, lost: self.lost.take(), ..Self::default() };
    }

    /// Whether the coordinator is lost.
    pub fn is_alone(&self) -> bool {
        self.lost.is_some()
    }

    /// Passes a message on to the attempt.
    pub fn deliver(&mut self, message: ToNode, attempt: &mut Attempt, now: Instant) -> Vec<Action> {
        match message {
            ToNode::Heartbeat { workers } => {
                attempt.on_remote_statuses(workers, now);
                Vec::new()
            }
            ToNode::PeerFailed { rank } => attempt.on_peer_failed(rank, now),
            ToNode::PeerSaved { step } => attempt.on_peer_saved(step, now),
            ToNode::Regroup { at_once } => attempt.on_regroup(at_once, now),
            ToNode::Stop(stop) => {
                self.sent_stop = true;
                match attempt.stop_reason() {
                    Some(_) if !stop.again => Vec::new(),
                    _ => attempt.on_stop(stop.reason, stop.again, now),
                }
            }
            ToNode::News { text } => vec![Action::Say(text)],
            ToNode::Lost(reason) | ToNode::Refused { message: reason, .. } => {
                self.set_lost(reason);
                attempt.on_peer_failed(0, now)
            }
            ToNode::Greeting { .. }
            | ToNode::Welcome { .. }
            | ToNode::Membership { .. }
            | ToNode::PrepareProbe { .. }
            | ToNode::RunProbe { .. }
            | ToNode::Start(_)
            | ToNode::Ended { .. }
            | ToNode::Unknown => Vec::new(),
        }
    }

    /// What the coordinator has to know about the attempt and was not sent yet.
    pub fn report(&mut self, attempt: &Attempt) -> Vec<ToCoordinator> {
        let mut messages = Vec::new();
        if let Some(rank) = attempt.failed_rank().filter(|_| !self.sent_failure) {
            self.sent_failure = true;
            messages.push(ToCoordinator::Failing { attempt: self.attempt, rank });
        }
        if let Some(step) = attempt.emergency_step().filter(|_| !self.sent_saved) {
            self.sent_saved = true;
            messages.push(ToCoordinator::Saved { attempt: self.attempt, step });
        }
        if let Some(reason) = attempt.stop_reason().filter(|_| !self.sent_stop) {
            messages.push(self.stop(reason, false));
        }
        messages
    }

    /// A stop was requested on this node.
    pub fn stop(&mut self, reason: StopReason, again: bool) -> ToCoordinator {
        self.sent_stop = true;
        ToCoordinator::Stop(StopRequest { reason, again })
    }

    /// The workers of this node have exited.
    pub fn ended(&self, result: &AttemptResult) -> ToCoordinator {
        ToCoordinator::Ended { attempt: self.attempt, result: result.clone() }
    }

    /// The result of all nodes, if `message` has it; `result` is that of this node.
    pub fn result_of_all(
        &mut self,
        message: ToNode,
        result: &AttemptResult,
        coordinator: &str,
    ) -> Option<AttemptResult> {
        match message {
            ToNode::Ended { attempt, result } if attempt == self.attempt => return Some(result),
            ToNode::Lost(reason) | ToNode::Refused { message: reason, .. } => self.set_lost(reason),
            _ => {}
        }
        self.result_alone(result, coordinator)
    }

    /// The result of the attempt without the coordinator, if that is lost.
    pub fn result_alone(&self, result: &AttemptResult, coordinator: &str) -> Option<AttemptResult> {
        let lost = self.lost.as_ref()?;
        let of_coordinator = AttemptResult::of_lost_node(coordinator, 0, exit::WORKER_LOST, &lost.reason);
        let result = result.clone().on_node("this node");
        Some(AttemptResult::merge(if lost.after_failure {
            vec![result, of_coordinator]
        } else {
            vec![of_coordinator, result]
        }))
    }

    fn set_lost(&mut self, reason: String) {
        self.lost.get_or_insert(Lost { reason, after_failure: self.sent_failure });
    }
}
