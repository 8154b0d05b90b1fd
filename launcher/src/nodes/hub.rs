//! What node 0's launcher decides for all nodes, as a state machine: what nodes say goes in, what they are told comes
//! out, no I/O.
//!
//! The nodes meet, say that they are ready, are started together, and end together: a failure, a request to stop or a
//! lost node on one of them is told to all, and how the attempt ended is one answer for all of them. Each attempt
//! begins with all nodes ready anew.

use std::time::{Duration, Instant};

use fnet_protocol::exit;

use super::message::{Beat, End, Hello, Start, ToHub, ToNode};
use super::roll::{self, Admission, Present};
use super::verdict::{self, Fate, Final};
use crate::text;

/// Time between signs of life, and between calls of [`Hub::tick`].
pub const PULSE: Duration = Duration::from_secs(1);
/// Time between lines that say what is waited for.
pub const REMIND: Duration = Duration::from_secs(30);
/// A gap between calls of [`Hub::tick`] that shows that the launcher itself was stopped.
const STALL: Duration = Duration::from_secs(5);

/// A connection.
pub type Line = u64;
/// The line of node 0, which needs no socket.
pub const OWN_LINE: Line = 0;

/// What happens.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A node says hello over a new line.
    Hello {
        /// Who.
        hello: Hello,
        /// Where it comes from.
        address: String,
        /// The address of this machine at which it came in.
        arrived_at: String,
    },
    /// A node says something else.
    Said(ToHub),
    /// A line has ended.
    Closed(String),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Tell the node on this line.
    Tell(Line, ToNode),
    /// Close this line when all is written.
    Close(Line),
}

/// How long to wait.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Patience {
    /// For all nodes to meet.
    pub join: Duration,
    /// For a sign of life.
    pub silence: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Not all nodes are there, or not all are ready to start.
    Waiting,
    Running,
    /// The job has ended for a reason that all were told.
    Over,
}

struct Node {
    line: Line,
    address: String,
    hello: Hello,
    heard: Instant,
    beats: (Vec<Beat>, Instant),
    /// The attempt for which it is ready.
    ready: Option<u32>,
    failed_as: Option<usize>,
    fate: Option<Fate>,
    /// Whether its line has ended, or it counts as lost.
    is_lost: bool,
}

impl Node {
    fn new(line: Line, address: String, hello: Hello, now: Instant) -> Self {
        let beats = (Vec::new(), now);
        Self { line, address, hello, heard: now, beats, ready: None, failed_as: None, fate: None, is_lost: false }
    }

    fn name(&self) -> String {
        let address = if self.address.is_empty() { String::new() } else { format!(", {}", self.address) };
        format!("node {} ({}{address})", self.hello.node, self.hello.host)
    }
}

/// The state.
pub struct Hub {
    nodes: Vec<Option<Node>>,
    stage: Stage,
    attempt: u32,
    patience: Patience,
    /// When the nodes began to meet.
    began: Instant,
    reminded: Instant,
    last_tick: Instant,
    /// Where the other nodes find the store.
    store: Option<(u16, bool)>,
    /// Where the first node came in: the address that the workers of node 0 are known by.
    arrived_at: Option<String>,
    failures: usize,
    /// Nodes of this job that are refused since it is complete or over.
    refused: Option<(i32, String)>,
}

impl Hub {
    /// A job whose node 0 says `hello`.
    pub fn new(hello: Hello, patience: Patience, now: Instant) -> Self {
        let mut nodes: Vec<Option<Node>> = (0..hello.nodes).map(|_| None).collect();
        if let Some(first) = nodes.first_mut() {
            *first = Some(Node::new(OWN_LINE, String::new(), hello, now));
        }
        Self {
            nodes,
            stage: Stage::Waiting,
            attempt: 0,
            patience,
            began: now,
            reminded: now,
            last_tick: now,
            store: None,
            arrived_at: None,
            failures: 0,
            refused: None,
        }
    }

    /// Something happened on a line.
    pub fn on(&mut self, line: Line, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::Hello { hello, address, arrived_at } => self.on_hello(line, hello, address, arrived_at, now),
            Event::Said(message) => self.on_message(line, message, now),
            Event::Closed(why) => match self.position(line) {
                Some(node) => self.lose(node, exit::WORKER_LOST, why),
                None => Vec::new(),
            },
        }
    }

    fn on_hello(&mut self, line: Line, hello: Hello, address: String, at: String, now: Instant) -> Vec<Action> {
        let refuse =
            |code, message: String| vec![Action::Tell(line, ToNode::Refused { code, message }), Action::Close(line)];
        let Some(first) = self.nodes.first().and_then(Option::as_ref) else { return vec![Action::Close(line)] };
        let others: Vec<Present<'_>> = self
            .known()
            .filter(|node| node.line != OWN_LINE)
            .map(|node| Present { hello: &node.hello, address: &node.address })
            .collect();
        match roll::admit(&first.hello, &others, &hello, &address) {
            Admission::Stranger(text) => refuse(exit::USAGE, text),
            _ if self.refused.is_some() || self.is_complete() => {
                let (code, text) = self.refused.clone().unwrap_or((
                    exit::ENVIRONMENT,
                    format!(
                        "the job at this port runs already, with all its {}",
                        text::count(self.nodes.len(), "node")
                    ),
                ));
                refuse(code, text)
            }
            Admission::Conflict(text) => {
                let mut actions = refuse(exit::USAGE, text.clone());
                actions.extend(self.end_all(exit::USAGE, text));
                actions
            }
            Admission::Welcome => {
                let number = hello.node;
                let node = Node::new(line, address, hello, now);
                let text = format!("{} is here", node.name());
                self.arrived_at.get_or_insert(at);
                if let Some(place) = self.nodes.get_mut(number) {
                    *place = Some(node);
                }
                let text =
                    if self.is_complete() { format!("{text}; all are") } else { format!("{text}; {}", self.missing()) };
                self.tell_all(&ToNode::News { text })
            }
        }
    }

    fn on_message(&mut self, line: Line, message: ToHub, now: Instant) -> Vec<Action> {
        let Some(position) = self.position(line) else { return Vec::new() };
        let attempt = self.attempt;
        let Some(node) = self.nodes.get_mut(position).and_then(Option::as_mut) else { return Vec::new() };
        node.heard = now;
        match message {
            ToHub::Beats { seen } => {
                node.beats = (seen, now);
                Vec::new()
            }
            ToHub::Ready { attempt, port, resume } => {
                node.ready = Some(attempt);
                if position == 0
                    && let Some(port) = port
                {
                    self.store = Some((port, resume));
                }
                if position == 0 && !self.is_complete() {
                    return vec![Action::Tell(line, ToNode::News { text: self.missing() })];
                }
                self.start_if_ready()
            }
            ToHub::Failing { attempt: of, rank } if of == attempt && self.stage == Stage::Running => {
                self.note_failure(position);
                self.tell_others(position, &ToNode::PeerFailed { rank })
            }
            ToHub::Ended { attempt: of, end } if of == attempt && self.stage == Stage::Running => {
                node.fate.get_or_insert(Fate::Ended(end));
                self.agree_if_ended()
            }
            ToHub::Stop(stop) => self.tell_others(position, &ToNode::Stop(stop)),
            ToHub::Broken { code, message } => self.lose(position, code, message),
            ToHub::Hello(_) | ToHub::Failing { .. } | ToHub::Ended { .. } | ToHub::Unknown => Vec::new(),
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant) -> Vec<Action> {
        if now.duration_since(self.last_tick) > STALL {
            // This launcher was stopped; what the others said meanwhile waits to be read.
            self.known_mut().for_each(|node| node.heard = now);
        }
        self.last_tick = now;
        let mut actions = self.share_beats(now);
        let silence = self.patience.silence;
        let mute: Vec<usize> = self
            .known()
            .filter(|node| node.line != OWN_LINE && !node.is_lost && now.duration_since(node.heard) > silence)
            .map(|node| node.hello.node)
            .collect();
        for position in mute {
            let reason = format!("gave no sign of life for {} s (--node-timeout)", silence.as_secs_f64());
            let line = self.nodes.get(position).and_then(Option::as_ref).map(|node| node.line);
            actions.extend(self.lose(position, exit::WORKER_LOST, reason));
            actions.extend(line.map(Action::Close));
        }
        if self.stage == Stage::Waiting && self.attempt == 0 && !self.is_complete() {
            if now.duration_since(self.began) >= self.patience.join {
                let text = format!("{} within {} s (--join-timeout)", self.missing(), self.patience.join.as_secs_f64());
                actions.extend(self.end_all(exit::ENVIRONMENT, text.replacen("waiting for", "no word from", 1)));
            } else if now.duration_since(self.reminded) >= REMIND {
                self.reminded = now;
                actions.extend(self.tell_all(&ToNode::News { text: self.missing() }));
            }
        }
        actions
    }

    /// `waiting for node 2 of 3`.
    pub fn missing(&self) -> String {
        let absent: Vec<usize> =
            self.nodes.iter().enumerate().filter(|(_, node)| node.is_none()).map(|(number, _)| number).collect();
        format!("waiting for {} of {}", roll::names(&absent), self.nodes.len())
    }

    fn share_beats(&self, now: Instant) -> Vec<Action> {
        let of = |node: &Node| -> Vec<Beat> {
            let later = now.saturating_duration_since(node.beats.1);
            node.beats.0.iter().map(|beat| Beat::from(&beat.seen().later(later))).collect()
        };
        let all: Vec<(Line, Vec<Beat>)> =
            self.known().filter(|node| !node.is_lost).map(|node| (node.line, of(node))).collect();
        let others =
            |line: Line| all.iter().filter(|(of, _)| *of != line).flat_map(|(_, beats)| beats.clone()).collect();
        all.iter().map(|(line, _)| Action::Tell(*line, ToNode::Beats { seen: others(*line) })).collect()
    }

    fn start_if_ready(&mut self) -> Vec<Action> {
        let next = self.nodes.first().and_then(Option::as_ref).and_then(|node| node.ready);
        let (Some(attempt), Some((port, resume))) = (next, self.store) else { return Vec::new() };
        let waits = self.stage == Stage::Waiting && self.is_complete();
        if !waits || self.known().any(|node| node.ready != Some(attempt)) {
            return Vec::new();
        }
        (self.stage, self.attempt, self.failures) = (Stage::Running, attempt, 0);
        for node in self.known_mut() {
            (node.failed_as, node.fate, node.ready) = (None, None, None);
            node.beats.0.clear();
        }
        let (first_ranks, world) = self.ranks();
        let start = |node: &Node| {
            let first_rank = first_ranks.get(node.hello.node).copied().unwrap_or(0);
            let address = if node.line == OWN_LINE { self.arrived_at.clone() } else { None };
            Action::Tell(node.line, ToNode::Start(Start { attempt, first_rank, world, address, port, resume }))
        };
        self.known().map(start).collect()
    }

    /// A node is gone or gives up.
    fn lose(&mut self, position: usize, code: i32, reason: String) -> Vec<Action> {
        let attempt = self.attempt;
        let Some(node) = self.nodes.get_mut(position).and_then(Option::as_mut).filter(|node| !node.is_lost) else {
            return Vec::new();
        };
        let name = node.name();
        node.is_lost = true;
        match self.stage {
            Stage::Over => Vec::new(),
            // Its workers had ended; it is missed only if there is another attempt.
            Stage::Running if node.fate.is_some() => Vec::new(),
            Stage::Running => {
                node.fate = Some(Fate::Lost { code, reason });
                self.note_failure(position);
                let rank = self.ranks().0.get(position).copied().unwrap_or(0);
                let mut actions = self.tell_others(position, &ToNode::PeerFailed { rank });
                actions.extend(self.agree_if_ended());
                actions
            }
            // Before the first start another launcher may take its place, unless it has said what is wrong.
            Stage::Waiting if attempt == 0 && position != 0 && code == exit::WORKER_LOST && !self.was_started() => {
                if let Some(place) = self.nodes.get_mut(position) {
                    *place = None;
                }
                self.tell_all(&ToNode::News { text: format!("{name} has left ({reason}); {}", self.missing()) })
            }
            Stage::Waiting => self.end_all(code, format!("{name} is lost: {reason}")),
        }
    }

    fn was_started(&self) -> bool {
        self.known().any(|node| node.fate.is_some())
    }

    fn note_failure(&mut self, position: usize) {
        let order = self.failures;
        if let Some(node) = self.nodes.get_mut(position).and_then(Option::as_mut)
            && node.failed_as.is_none()
        {
            node.failed_as = Some(order);
            self.failures += 1;
        }
    }

    fn agree_if_ended(&mut self) -> Vec<Action> {
        if self.known().any(|node| node.fate.is_none()) {
            return Vec::new();
        }
        let (first_ranks, _) = self.ranks();
        let finals: Vec<Final> = self
            .known()
            .filter_map(|node| {
                Some(Final {
                    name: node.name(),
                    first_rank: first_ranks.get(node.hello.node).copied()?,
                    failed_as: node.failed_as,
                    is_gone: node.is_lost,
                    fate: node.fate.clone()?,
                })
            })
            .collect();
        let end: End = verdict::merge(&finals);
        self.stage = Stage::Waiting;
        let mut actions = self.tell_all(&ToNode::Agreed { attempt: self.attempt, end });
        actions.extend(self.start_if_ready());
        actions
    }

    /// The job cannot start, or not again: every node is told.
    fn end_all(&mut self, code: i32, message: String) -> Vec<Action> {
        self.stage = Stage::Over;
        self.refused = Some((code, message.clone()));
        self.tell_all(&ToNode::Refused { code, message })
    }

    fn is_complete(&self) -> bool {
        self.nodes.iter().all(Option::is_some)
    }

    fn ranks(&self) -> (Vec<usize>, usize) {
        let workers: Vec<usize> =
            self.nodes.iter().map(|node| node.as_ref().map_or(0, |node| node.hello.workers)).collect();
        roll::ranks(&workers)
    }

    fn known(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().flatten()
    }

    fn known_mut(&mut self) -> impl Iterator<Item = &mut Node> {
        self.nodes.iter_mut().flatten()
    }

    fn position(&self, line: Line) -> Option<usize> {
        self.known().find(|node| node.line == line).map(|node| node.hello.node)
    }

    fn tell_all(&self, message: &ToNode) -> Vec<Action> {
        self.known().filter(|node| !node.is_lost).map(|node| Action::Tell(node.line, message.clone())).collect()
    }

    fn tell_others(&self, position: usize, message: &ToNode) -> Vec<Action> {
        let others = self.known().filter(|node| node.hello.node != position && !node.is_lost);
        others.map(|node| Action::Tell(node.line, message.clone())).collect()
    }
}

#[cfg(test)]
pub mod tests;
