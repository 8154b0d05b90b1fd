//! What the launchers of a job's nodes say to each other: one JSON object per line, UTF-8, over TCP.
//!
//! Every launcher talks to node 0's, whose [`Hub`](super::hub::Hub) decides for all; node 0's own workers are looked
//! after by a node like the others, without a socket in between. Fields and types that a reader does not know are left
//! out, but all nodes run the same version anyway: the hub sees to it.

use std::collections::BTreeMap;
use std::time::Duration;

use fnet_protocol::message::{Heartbeat, StopReason};
use serde::{Deserialize, Serialize};

use crate::cause::Cause;
use crate::hang::Seen;

/// Version of these messages.
pub const PROTOCOL: u32 = 1;
/// Longest line; a node of a thousand workers stays far below.
pub const LONGEST_LINE: usize = 1 << 20;
/// Most workers of a node.
const MOST_WORKERS: usize = 4096;

/// Who a node is, and what it is about to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// [`PROTOCOL`] of the sender.
    pub protocol: u32,
    /// Rank of the node.
    pub node: usize,
    /// Number of nodes that it was told of.
    pub nodes: usize,
    /// Its workers.
    pub workers: usize,
    /// Name of the machine.
    pub host: String,
    /// Command and name of the work folder: nodes with another one belong to another job.
    pub job: String,
    /// What must be equal on all nodes, by the name that people know it by.
    pub terms: BTreeMap<String, String>,
}

impl Hello {
    /// Whether it makes sense by itself.
    pub fn is_sound(&self) -> bool {
        let is_word = |text: &str| !text.is_empty() && text.len() <= 255 && !text.chars().any(char::is_control);
        self.node < self.nodes
            && (1..=MOST_WORKERS).contains(&self.workers)
            && is_word(&self.host)
            && self.job.len() <= 4096
            && !self.job.chars().any(char::is_control)
    }
}

/// What a node tells the hub.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToHub {
    /// The first message.
    Hello(Hello),
    /// The node can start this attempt.
    Ready {
        /// Attempts before it.
        attempt: u32,
        /// Node 0 only: port of the store.
        port: Option<u16>,
        /// Node 0 only: whether to go on from the newest checkpoint.
        resume: bool,
    },
    /// Sent every second: what is known of the node's workers.
    Beats {
        /// Those that have not ended.
        seen: Vec<Beat>,
    },
    /// A worker of the node has failed; the others of the job cannot go on.
    Failing {
        /// The attempt.
        attempt: u32,
        /// The worker's rank.
        rank: usize,
    },
    /// The user or the system asks the job to stop.
    Stop(Stop),
    /// All workers of the node have ended.
    Ended {
        /// The attempt.
        attempt: u32,
        /// How.
        end: End,
    },
    /// The node cannot go on.
    Broken {
        /// The exit code that it means.
        code: i32,
        /// What happened.
        message: String,
    },
    /// A message of a newer version.
    #[serde(other)]
    Unknown,
}

/// What the hub tells a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToNode {
    /// The first line of every connection, so that a node knows whom it has reached.
    Greeting {
        /// [`PROTOCOL`] of the hub.
        protocol: u32,
        /// Version of fnet.
        version: String,
    },
    /// The job does not take this node, or ends.
    Refused {
        /// The exit code that it means.
        code: i32,
        /// Why.
        message: String,
    },
    /// For people.
    News {
        /// One line.
        text: String,
    },
    /// Start the workers.
    Start(Start),
    /// What is known of the workers of all other nodes.
    Beats {
        /// Those that have not ended.
        seen: Vec<Beat>,
    },
    /// A worker of another node has failed.
    PeerFailed {
        /// Its rank.
        rank: usize,
    },
    /// The job is asked to stop.
    Stop(Stop),
    /// How the attempt ended, for the whole job.
    Agreed {
        /// The attempt.
        attempt: u32,
        /// The end.
        end: End,
    },
    /// Never sent: the connection to the hub is lost, with the reason.
    #[serde(skip)]
    Lost(String),
    /// A message of a newer version.
    #[serde(other)]
    Unknown,
}

/// A request to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Why.
    pub reason: StopReason,
    /// Whether it was asked for twice: at once, without saving.
    pub again: bool,
}

/// How to start the workers of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Attempts before this one.
    pub attempt: u32,
    /// Rank of the node's first worker.
    pub first_rank: usize,
    /// Workers of all nodes.
    pub world: usize,
    /// Address of the store, if it is another one than that at which the node has reached the hub.
    pub address: Option<String>,
    /// Port of the store.
    pub port: u16,
    /// Whether to go on from the newest checkpoint.
    pub resume: bool,
}

/// What is known of one worker, as [`Seen`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Beat {
    rank: usize,
    age: f64,
    silent: Option<f64>,
    beat: Option<Heartbeat>,
    ago: f64,
}

impl From<&Seen> for Beat {
    fn from(seen: &Seen) -> Self {
        Self {
            rank: seen.rank,
            age: seen.age.as_secs_f64(),
            silent: seen.silent.map(|time| time.as_secs_f64()),
            beat: seen.beat.as_ref().map(|(beat, _)| Heartbeat::clone(beat)),
            ago: seen.beat.as_ref().map_or(0.0, |(_, ago)| ago.as_secs_f64()),
        }
    }
}

impl Beat {
    /// As it was when it was sent.
    pub fn seen(&self) -> Seen {
        let time = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or_default();
        Seen {
            rank: self.rank,
            age: time(self.age),
            silent: self.silent.map(time),
            beat: self.beat.as_ref().map(|beat| (Heartbeat::clone(beat), time(self.ago))),
        }
    }
}

/// How an attempt ended, on one node or for the whole job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// What became of the workers.
    pub how: How,
    /// Whether any worker had begun its work.
    pub was_ready: bool,
    /// Whether a stop was requested.
    pub stop_requested: bool,
    /// Steps in the newest checkpoint that was written.
    #[serde(default)]
    pub saved_step: Option<u64>,
    /// How long it ran.
    pub seconds: f64,
    /// A node that is gone, so that the job cannot start again.
    pub gone: Option<String>,
}

/// What became of the workers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum How {
    /// They finished, or were ended for a failure on another node.
    Done,
    /// Stopped on request.
    Stopped {
        /// Why.
        reason: StopReason,
        /// Whether every worker came to the point of saving.
        saved: bool,
    },
    /// One failed.
    Failed {
        /// The first.
        cause: Box<Cause>,
        /// Whether all that failed only lost another rank.
        is_echo: bool,
    },
}

#[cfg(test)]
mod tests {
    use fnet_protocol::message::{from_line, to_line};

    use super::*;

    pub fn hello(node: usize) -> Hello {
        let terms = [("--device".to_owned(), "cpu".to_owned())].into();
        Hello { protocol: PROTOCOL, node, nodes: 2, workers: 1, host: "a".into(), job: "train cfg".into(), terms }
    }

    #[test]
    fn only_a_sound_hello_is_one() {
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
        let line = to_line(&ToHub::Hello(hello(1))).unwrap();
        assert_eq!(from_line::<ToHub>(&line).unwrap(), ToHub::Hello(hello(1)));
        for stranger in
            ["GET / HTTP/1.1", "{}", r#"{"type":"hello"}"#, r#"{"type":"hello","protocol":-1}"#, "[1]", "\u{0}"]
        {
            assert!(!matches!(from_line::<ToHub>(stranger.as_bytes()), Ok(ToHub::Hello(_))), "{stranger}");
        }
    }

    #[test]
    fn what_is_seen_ages_on_its_way() {
        let second = Duration::from_secs(1);
        let beat: Heartbeat = from_line(br#"{"phase":"data","epoch":1,"step":7,"idle_seconds":3.0}"#).unwrap();
        let seen = Seen { rank: 3, age: second * 9, silent: Some(second), beat: Some((beat, second)) };
        let line = to_line(&ToHub::Beats { seen: vec![Beat::from(&seen)] }).unwrap();
        let Ok(ToHub::Beats { seen: read }) = from_line::<ToHub>(&line) else { panic!("another message") };
        let later = read[0].seen().later(second);
        assert_eq!((later.rank, later.age, later.silent), (3, second * 10, Some(second * 2)));
        assert_eq!(later.beat.unwrap().1, second * 2);
    }
}
