//! The messages between the launchers of a job's nodes: one JSON object per line, UTF-8, over TCP.
//!
//! Every launcher talks to that of node 0, whose coordinator decides for all; node 0 itself takes part like the others,
//! without a socket. All nodes run the same version: the coordinator checks that.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use fnet_protocol::links::Links;
use fnet_protocol::message::StopReason;
use serde::{Deserialize, Serialize};

use crate::attempt::restart::RestartBudget;
use crate::attempt::result::AttemptResult;
use crate::attempt::status::RankStatus;

/// Version of these messages.
pub const PROTOCOL: u32 = 5;
/// Maximum length of a line; a node of a thousand workers stays far below.
pub const MAX_LINE: usize = 1 << 20;
/// Maximum length of an error that a node reports in its introduction.
const MAX_ERROR: usize = 1 << 16;
/// Maximum number of workers of a node.
const MAX_WORKERS: usize = 4096;

/// The number of a connection.
pub type ConnectionId = u64;

/// The introduction of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// [`PROTOCOL`] of the sender.
    pub protocol: u32,
    /// Rank of the node; with MIN:MAX the one that it would like to have.
    pub node: usize,
    /// Number of nodes: N or MAX of `--nnodes`.
    pub nodes: usize,
    /// MIN of `--nnodes MIN:MAX`.
    #[serde(default)]
    pub min_nodes: Option<usize>,
    /// Number of its workers.
    pub workers: usize,
    /// Its host name.
    pub host: String,
    /// Command and name of the work folder, which identify the job.
    pub job: String,
    /// A digest of its programs.
    #[serde(default)]
    pub build: String,
    /// What must be equal on all nodes, with the names that users know.
    pub settings: BTreeMap<String, String>,
    /// Why the node cannot take part: it only reports that.
    #[serde(default)]
    pub failed: Option<EarlyFailure>,
}

/// Why a node fails before it has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlyFailure {
    /// Exit code of the job.
    pub code: i32,
    /// What happened.
    pub message: String,
}

impl Hello {
    /// Whether it is plausible by itself.
    pub fn is_sound(&self) -> bool {
        let is_word = |text: &str| !text.is_empty() && text.len() <= 255 && !text.chars().any(char::is_control);
        self.min_nodes.map_or(self.node < self.nodes, |min| (1..=self.nodes).contains(&min))
            && (1..=MAX_WORKERS).contains(&self.workers)
            && is_word(&self.host)
            && self.failed.as_ref().is_none_or(|failed| failed.message.len() <= MAX_ERROR)
            && self.job.len() <= 4096
            && !self.job.chars().any(char::is_control)
    }
}

/// A message from a node to the coordinator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToCoordinator {
    /// The first message.
    Hello(Hello),
    /// The node is ready to start the next attempt.
    Ready {
        /// Node 0 only: what it has prepared.
        lead: Option<Lead>,
    },
    /// Node 0 only: what it waits for before it is ready.
    Waits { text: String },
    /// The heartbeat of the node, sent every second.
    Heartbeat {
        /// Its workers that have not exited.
        workers: Vec<RankStatus>,
    },
    /// A worker of the node has failed; the other workers of the job cannot continue.
    Failing { attempt: u32, rank: usize },
    /// The user or the system requests a stop.
    Stop(StopRequest),
    /// All workers of the node have exited.
    Ended { attempt: u32, result: AttemptResult },
    /// The state after the last completed step is on disk since the job has failed.
    Saved { attempt: u32, step: u64 },
    /// The node is ready for a probe of the network.
    ProbePrepared {
        probe: u64,
        /// Where the node listens, if it can.
        address: Option<SocketAddr>,
    },
    /// What the node has measured.
    Probed { probe: u64, received: Vec<Received> },
    /// The node cannot continue.
    Broken { code: i32, message: String },
    /// A message from a newer version.
    #[serde(other)]
    Unknown,
}

/// A message from the coordinator to a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToNode {
    /// The first line of every connection, so that a node knows what it has reached.
    Greeting {
        /// [`PROTOCOL`] of the coordinator.
        protocol: u32,
        /// Version of fnet.
        version: String,
    },
    /// The node has joined.
    Welcome {
        /// Name of a file that node 0 has written to the work folder, by which the others see that they share it.
        token: Option<String>,
    },
    /// The job refuses this node, or ends.
    Refused { code: i32, message: String },
    /// A message for the user.
    News { text: String },
    /// A node has joined or left, or its network or compute is slow: a line for the user and the status.
    Membership {
        text: String,
        /// Whether something is wrong.
        is_warning: bool,
    },
    /// Prepare for a probe of the network.
    PrepareProbe { probe: u64 },
    /// Measure the links to the other nodes.
    RunProbe {
        probe: u64,
        /// Number of this node in it.
        node: usize,
        /// Where the nodes listen, by their numbers.
        addresses: Vec<Option<SocketAddr>>,
    },
    /// Start the workers.
    Start(Box<StartAttempt>),
    /// Save and stop, because other nodes take part from then on.
    Regroup {
        /// At the end of this step, and not at the next checkpoint.
        at_once: bool,
    },
    /// The heartbeat of the coordinator.
    Heartbeat {
        /// The workers of all other nodes that have not exited.
        workers: Vec<RankStatus>,
    },
    /// A worker of another node has failed.
    PeerFailed { rank: usize },
    /// Another node has saved the state after this many completed steps since the job has failed.
    PeerSaved { step: u64 },
    /// The job shall stop.
    Stop(StopRequest),
    /// All workers of the job have exited.
    Ended {
        attempt: u32,
        /// The result for the whole job.
        result: AttemptResult,
    },
    /// Never sent: the connection to the coordinator is lost, with the reason.
    #[serde(skip)]
    Lost(String),
    /// A message from a newer version.
    #[serde(other)]
    Unknown,
}

/// A request to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRequest {
    /// Why.
    pub reason: StopReason,
    /// Whether Ctrl-C was pressed twice: stop without saving.
    pub again: bool,
}

/// What node 0 has prepared for an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lead {
    /// Port of the store.
    pub port: u16,
    /// What node 0 wants to do.
    #[serde(flatten)]
    pub wanted: Wanted,
}

/// What a node wants to do in the next attempt; with several nodes that of node 0 counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Whether to resume from the newest checkpoint.
    pub resume: bool,
    /// The generation that the attempt has of the work folder.
    pub generation: Option<u64>,
    /// The restarts that are left, which a node that joins later does not know.
    pub budget: RestartBudget,
}

/// How to start the workers of one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StartAttempt {
    /// Number of the attempt, from 0.
    pub attempt: u32,
    /// Number of the node.
    pub node: usize,
    /// Rank of the node's first worker.
    pub first_rank: usize,
    /// Number of workers of all nodes.
    pub world_size: usize,
    /// The same if all nodes were there.
    pub full_world_size: usize,
    /// Address of the store, if it differs from that at which the node has reached the coordinator.
    pub address: Option<String>,
    /// What node 0 has prepared.
    pub lead: Lead,
    /// The links between the nodes, for node 0.
    #[serde(default)]
    pub links: Option<Links>,
}

/// A link, as one of its ends has measured it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Received {
    /// Number of the other node in the probe.
    pub from: usize,
    /// Shortest round trip in milliseconds; only the side that has connected knows it.
    pub latency_ms: Option<f64>,
    /// Gbit/s from the other node to this one.
    pub gbit_per_s: Option<f64>,
    /// Seconds by which the clock of the other node is ahead.
    pub clock_offset: Option<f64>,
}

#[cfg(test)]
mod tests {
    use fnet_protocol::message::{from_line, to_line};

    use super::*;

    pub fn hello(node: usize) -> Hello {
        let settings = [("--device".to_owned(), "cpu".to_owned())].into();
        let (host, job, failed) = ("a".into(), "train cfg".into(), None);
        let (min_nodes, build) = (None, String::new());
        Hello { protocol: PROTOCOL, node, nodes: 2, min_nodes, workers: 1, host, job, build, settings, failed }
    }

    #[test]
    fn only_a_plausible_hello_is_accepted() {
        assert!(hello(1).is_sound());
        for wrong in [
            Hello { node: 2, ..hello(0) },
            Hello { workers: 0, ..hello(0) },
            Hello { workers: usize::MAX, ..hello(0) },
            Hello { host: String::new(), ..hello(0) },
            Hello { host: "a\u{1b}[2J".into(), ..hello(0) },
            Hello { job: "x".repeat(5000), ..hello(0) },
        ] {
            assert!(!wrong.is_sound(), "{wrong:?}");
        }
        let line = to_line(&ToCoordinator::Hello(hello(1))).unwrap();
        assert_eq!(from_line::<ToCoordinator>(&line).unwrap(), ToCoordinator::Hello(hello(1)));
        for stranger in
            ["GET / HTTP/1.1", "{}", r#"{"type":"hello"}"#, r#"{"type":"hello","protocol":-1}"#, "[1]", "\u{0}"]
        {
            assert!(
                !matches!(from_line::<ToCoordinator>(stranger.as_bytes()), Ok(ToCoordinator::Hello(_))),
                "{stranger}"
            );
        }
    }
}
