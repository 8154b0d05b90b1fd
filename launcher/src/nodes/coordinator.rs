//! The coordinator in node 0's launcher, as a state machine without I/O: events go in, actions come out.
//!
//! The nodes join, report that they are ready, start together, and end together: a failure, a request to stop or a lost
//! node is passed on to all, and all receive the same result of the attempt. Each attempt begins when all nodes are ready.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use fnet_protocol::exit;

use super::admission::{self, Admission, Present};
use super::merge_results::merge;
use super::message::{Hello, StartAttempt, ToCoordinator, ToNode};
use crate::attempt::result::AttemptResult;
use crate::attempt::status::RankStatus;
use crate::text;

/// Interval of heartbeats, and of calls of [`Coordinator::on_tick`].
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Interval of the messages about missing nodes.
pub const REMINDER_INTERVAL: Duration = Duration::from_secs(30);
/// How long a job that cannot start waits for nodes to report that to them: those that were started together join by then.
pub const EARLY_FAILURE_GRACE: Duration = Duration::from_secs(10);
/// Interval of the messages at the end of an attempt about nodes for which others wait.
const END_REMINDER_INTERVAL: Duration = Duration::from_secs(10);
/// A gap between ticks that shows that the launcher itself was stopped.
const STALL: Duration = Duration::from_secs(5);

/// The number of a connection.
pub type ConnectionId = u64;
/// The connection of node 0, which has no socket.
pub const LOCAL: ConnectionId = 0;

/// Something that happened on a connection.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A node has connected.
    Hello {
        /// Its introduction.
        hello: Hello,
        /// Its address.
        address: String,
        /// The address of this machine that it has reached.
        local_address: String,
    },
    /// A node has sent another message.
    Message(ToCoordinator),
    /// The connection has ended, with the reason.
    Closed(String),
}

/// What the listener has to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send a message.
    Send(ConnectionId, ToNode),
    /// Close the connection once all messages are written.
    Close(ConnectionId),
}

/// How long to wait for nodes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timeouts {
    /// Until all nodes must have joined.
    pub join: Duration,
    /// Maximum time without a heartbeat.
    pub silence: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Not all nodes have joined, or not all are ready to start.
    Waiting,
    Running,
    /// The job has ended for a reason that was sent to all nodes.
    Over,
}

struct Node {
    connection: ConnectionId,
    address: String,
    hello: Hello,
    last_message: Instant,
    /// Its workers, and when they were reported.
    workers: (Vec<RankStatus>, Instant),
    /// The attempt for which it is ready.
    ready: Option<u32>,
    /// Position in the order in which nodes failed.
    failed_as: Option<usize>,
    result: Option<AttemptResult>,
    /// Whether its connection has ended, or it counts as lost.
    is_lost: bool,
}

impl Node {
    fn new(connection: ConnectionId, address: String, hello: Hello, now: Instant) -> Self {
        let (last_message, workers) = (now, (Vec::new(), now));
        let (ready, failed_as, result, is_lost) = (None, None, None, false);
        Self { connection, address, hello, last_message, workers, ready, failed_as, result, is_lost }
    }

    fn name(&self) -> String {
        let address = if self.address.is_empty() { String::new() } else { format!(", {}", self.address) };
        format!("node {} ({}{address})", self.hello.node, self.hello.host)
    }
}

/// Decides for all nodes of a job.
pub struct Coordinator {
    nodes: Vec<Option<Node>>,
    stage: Stage,
    attempt: u32,
    timeouts: Timeouts,
    /// When the first node joined.
    began: Instant,
    last_reminder: Instant,
    last_tick: Instant,
    /// The name of node 0's file in the work folder.
    token: Option<String>,
    /// The port of the store, and whether to resume from the newest checkpoint.
    store: Option<(u16, bool)>,
    /// The address of node 0 that the first other node has reached.
    local_address: Option<String>,
    failures: usize,
    /// Why the job has ended; nodes that join later are refused for this reason.
    refused: Option<(i32, String)>,
    /// Nodes that have received an answer.
    told: BTreeSet<usize>,
    /// If the job cannot start: until when to wait for absent nodes to report that to them.
    tell_until: Instant,
}

impl Coordinator {
    /// A job with this introduction of node 0.
    pub fn new(hello: Hello, timeouts: Timeouts, now: Instant) -> Self {
        let mut nodes: Vec<Option<Node>> = (0..hello.nodes).map(|_| None).collect();
        if let Some(first) = nodes.first_mut() {
            *first = Some(Node::new(LOCAL, String::new(), hello, now));
        }
        Self {
            nodes,
            stage: Stage::Waiting,
            attempt: 0,
            timeouts,
            began: now,
            last_reminder: now,
            last_tick: now,
            token: None,
            store: None,
            local_address: None,
            failures: 0,
            refused: None,
            told: BTreeSet::new(),
            tell_until: now + EARLY_FAILURE_GRACE.min(timeouts.join),
        }
    }

    /// The same with the name of node 0's file in the work folder, which all nodes must find.
    pub fn with_token(self, token: Option<String>) -> Self {
        Self { token, ..self }
    }

    /// The coordinator of a job that cannot start because of `error`, which it reports to all nodes.
    pub fn of_failed(hello: Hello, error: (i32, String), timeouts: Timeouts, now: Instant) -> Self {
        let mut coordinator = Self::new(hello, timeouts, now);
        coordinator.end_all(error.0, error.1);
        coordinator
    }

    /// Whether the job cannot start and absent nodes, which would wait for it, may still join.
    pub fn has_untold_nodes(&self, now: Instant) -> bool {
        let is_untold = |(number, node): (usize, &Option<Node>)| node.is_none() && !self.told.contains(&number);
        self.refused.is_some() && now < self.tell_until && self.nodes.iter().enumerate().any(is_untold)
    }

    /// Something happened on a connection.
    pub fn on_event(&mut self, connection: ConnectionId, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::Hello { hello, address, local_address } => {
                self.on_hello(connection, hello, address, local_address, now)
            }
            Event::Message(message) => self.on_message(connection, message, now),
            Event::Closed(why) => match self.position(connection) {
                Some(node) => self.lose(node, exit::WORKER_LOST, why),
                None => Vec::new(),
            },
        }
    }

    fn on_hello(
        &mut self,
        connection: ConnectionId,
        hello: Hello,
        address: String,
        local_address: String,
        now: Instant,
    ) -> Vec<Action> {
        let refuse = |code, message: String| {
            vec![Action::Send(connection, ToNode::Refused { code, message }), Action::Close(connection)]
        };
        let Some(first) = self.nodes.first().and_then(Option::as_ref) else { return vec![Action::Close(connection)] };
        let others: Vec<Present<'_>> = self
            .joined()
            .filter(|node| node.connection != LOCAL)
            .map(|node| Present { hello: &node.hello, address: &node.address })
            .collect();
        let admission = admission::admit(&first.hello, &others, &hello, &address);
        if !matches!(admission, Admission::OtherJob(_)) {
            self.told.insert(hello.node);
        }
        match admission {
            Admission::OtherJob(text) => refuse(exit::USAGE, text),
            _ if self.refused.is_some() || self.is_complete() => {
                let nodes = text::count(self.nodes.len(), "node");
                let running = format!("the job at this port is already running with all its {nodes}");
                let (code, text) = self.refused.clone().unwrap_or((exit::ENVIRONMENT, running));
                refuse(code, text)
            }
            Admission::Conflict(_) | Admission::Welcome if let Some(failed) = &hello.failed => {
                let text = format!("node {} ({}, {address}) failed: {}", hello.node, hello.host, failed.message);
                let mut actions = refuse(failed.code, text.clone());
                actions.extend(self.end_all(failed.code, text));
                actions
            }
            Admission::Conflict(text) => {
                let mut actions = refuse(exit::USAGE, text.clone());
                actions.extend(self.end_all(exit::USAGE, text));
                actions
            }
            Admission::Welcome => {
                let number = hello.node;
                let node = Node::new(connection, address, hello, now);
                let name = node.name();
                self.local_address.get_or_insert(local_address);
                if let Some(slot) = self.nodes.get_mut(number) {
                    *slot = Some(node);
                }
                let more = if self.is_complete() { "all nodes have".to_owned() } else { self.missing() };
                let text = format!("{name} has joined; {more}");
                let mut actions = vec![Action::Send(connection, ToNode::Welcome { token: self.token.clone() })];
                actions.extend(self.send_to_all(&ToNode::News { text }));
                actions
            }
        }
    }

    fn on_message(&mut self, connection: ConnectionId, message: ToCoordinator, now: Instant) -> Vec<Action> {
        let Some(position) = self.position(connection) else { return Vec::new() };
        let attempt = self.attempt;
        let Some(node) = self.nodes.get_mut(position).and_then(Option::as_mut) else { return Vec::new() };
        node.last_message = now;
        match message {
            ToCoordinator::Heartbeat { workers } => {
                node.workers = (workers, now);
                Vec::new()
            }
            ToCoordinator::Ready { attempt, port, resume } => {
                node.ready = Some(attempt);
                if position == 0
                    && let Some(port) = port
                {
                    self.store = Some((port, resume));
                }
                if position == 0 && !self.is_complete() {
                    return vec![Action::Send(connection, ToNode::News { text: self.missing() })];
                }
                self.start_if_ready()
            }
            ToCoordinator::Failing { attempt: of, rank } if of == attempt && self.stage == Stage::Running => {
                self.note_failure(position);
                self.send_to_others(position, &ToNode::PeerFailed { rank })
            }
            ToCoordinator::Ended { attempt: of, result } if of == attempt && self.stage == Stage::Running => {
                let name = node.name();
                node.result.get_or_insert_with(|| result.on_node(&name));
                if self.joined().filter(|node| node.result.is_some()).count() == 1 {
                    self.last_reminder = now;
                }
                self.end_if_all_have()
            }
            ToCoordinator::Saved { attempt: of, step } if of == attempt && self.stage == Stage::Running => {
                self.send_to_others(position, &ToNode::PeerSaved { step })
            }
            ToCoordinator::Stop(stop) => self.send_to_others(position, &ToNode::Stop(stop)),
            ToCoordinator::Broken { code, message } => self.lose(position, code, message),
            ToCoordinator::Hello(_)
            | ToCoordinator::Failing { .. }
            | ToCoordinator::Saved { .. }
            | ToCoordinator::Ended { .. }
            | ToCoordinator::Unknown => Vec::new(),
        }
    }

    /// Time has passed.
    pub fn on_tick(&mut self, now: Instant) -> Vec<Action> {
        if now.duration_since(self.last_tick) > STALL {
            // This launcher was stopped; the messages of the others have not been read yet.
            self.joined_mut().for_each(|node| node.last_message = now);
        }
        self.last_tick = now;
        let mut actions = self.heartbeats(now);
        let silence = self.timeouts.silence;
        let silent: Vec<usize> = self
            .joined()
            .filter(|node| node.connection != LOCAL && !node.is_lost && now.duration_since(node.last_message) > silence)
            .map(|node| node.hello.node)
            .collect();
        for position in silent {
            let reason = format!("sent no heartbeat for {} s (--node-timeout)", silence.as_secs_f64());
            let connection = self.nodes.get(position).and_then(Option::as_ref).map(|node| node.connection);
            actions.extend(self.lose(position, exit::WORKER_LOST, reason));
            actions.extend(connection.map(Action::Close));
        }
        actions.extend(self.remind_at_the_end(now));
        if self.stage == Stage::Waiting && self.attempt == 0 && !self.is_complete() {
            if now.duration_since(self.began) >= self.timeouts.join {
                let (absent, seconds) = (self.absent(), self.timeouts.join.as_secs_f64());
                let text = format!("{absent} did not join within {seconds} s (--join-timeout)");
                actions.extend(self.end_all(exit::ENVIRONMENT, text));
                self.tell_until = now;
            } else if now.duration_since(self.last_reminder) >= REMINDER_INTERVAL {
                self.last_reminder = now;
                actions.extend(self.send_to_all(&ToNode::News { text: self.missing() }));
            }
        }
        actions
    }

    /// Tells the nodes whose workers have exited for which others they wait.
    fn remind_at_the_end(&mut self, now: Instant) -> Vec<Action> {
        let (ended, busy): (Vec<&Node>, Vec<&Node>) = self.joined().partition(|node| node.result.is_some());
        let is_due = now.duration_since(self.last_reminder) >= END_REMINDER_INTERVAL;
        if self.stage != Stage::Running || ended.is_empty() || !is_due {
            return Vec::new();
        }
        let names: Vec<String> = busy.iter().map(|node| node.name()).collect();
        let text = format!("waiting for the workers of {} to exit", text::list(&names));
        let news = |node: &&Node| Action::Send(node.connection, ToNode::News { text: text.clone() });
        let actions = ended.iter().filter(|node| !node.is_lost).map(news).collect();
        self.last_reminder = now;
        actions
    }

    /// `waiting for node 2 of 3`.
    fn missing(&self) -> String {
        format!("waiting for {}", self.absent())
    }

    /// `node 2 of 3`.
    fn absent(&self) -> String {
        let absent: Vec<usize> =
            self.nodes.iter().enumerate().filter(|(_, node)| node.is_none()).map(|(number, _)| number).collect();
        format!("{} of {}", admission::names(&absent), self.nodes.len())
    }

    /// Sends each node the workers of all others.
    fn heartbeats(&self, now: Instant) -> Vec<Action> {
        let of = |node: &Node| -> Vec<RankStatus> {
            let age = now.saturating_duration_since(node.workers.1);
            node.workers.0.iter().map(|status| status.after(age)).collect()
        };
        let present = self.joined().filter(|node| !node.is_lost);
        let all: Vec<(ConnectionId, Vec<RankStatus>)> = present.map(|node| (node.connection, of(node))).collect();
        let others = |connection: ConnectionId| {
            all.iter().filter(|(of, _)| *of != connection).flat_map(|(_, workers)| workers.clone()).collect()
        };
        let heartbeat = |connection| Action::Send(connection, ToNode::Heartbeat { workers: others(connection) });
        all.iter().map(|(connection, _)| heartbeat(*connection)).collect()
    }

    fn start_if_ready(&mut self) -> Vec<Action> {
        let next = self.nodes.first().and_then(Option::as_ref).and_then(|node| node.ready);
        let (Some(attempt), Some((port, resume))) = (next, self.store) else { return Vec::new() };
        let waits = self.stage == Stage::Waiting && self.is_complete();
        if !waits || self.joined().any(|node| node.ready != Some(attempt)) {
            return Vec::new();
        }
        (self.stage, self.attempt, self.failures) = (Stage::Running, attempt, 0);
        for node in self.joined_mut() {
            (node.failed_as, node.result, node.ready) = (None, None, None);
            node.workers.0.clear();
        }
        let (first_ranks, world_size) = self.ranks();
        let start = |node: &Node| {
            let first_rank = first_ranks.get(node.hello.node).copied().unwrap_or(0);
            let address = if node.connection == LOCAL { self.local_address.clone() } else { None };
            let start = StartAttempt { attempt, first_rank, world_size, address, port, resume };
            Action::Send(node.connection, ToNode::Start(start))
        };
        self.joined().map(start).collect()
    }

    /// A node is lost or gives up.
    fn lose(&mut self, position: usize, code: i32, reason: String) -> Vec<Action> {
        let attempt = self.attempt;
        let Some(node) = self.nodes.get_mut(position).and_then(Option::as_mut).filter(|node| !node.is_lost) else {
            return Vec::new();
        };
        let name = node.name();
        node.is_lost = true;
        match self.stage {
            Stage::Over => Vec::new(),
            // Its workers had exited; the loss matters only if there is another attempt.
            Stage::Running if node.result.is_some() => {
                node.result.iter_mut().for_each(|result| result.lost_nodes.push(name.clone()));
                Vec::new()
            }
            Stage::Running => {
                let rank = self.ranks().0.get(position).copied().unwrap_or(0);
                let result = AttemptResult::of_lost_node(&name, rank, code, &reason);
                if let Some(node) = self.nodes.get_mut(position).and_then(Option::as_mut) {
                    node.result = Some(result);
                }
                self.note_failure(position);
                let mut actions = self.send_to_others(position, &ToNode::PeerFailed { rank });
                actions.extend(self.end_if_all_have());
                actions
            }
            // Before the first start another launcher may replace it, unless it has reported an error.
            Stage::Waiting if attempt == 0 && position != 0 && code == exit::WORKER_LOST && !self.was_started() => {
                if let Some(slot) = self.nodes.get_mut(position) {
                    *slot = None;
                }
                self.send_to_all(&ToNode::News { text: format!("{name} has left ({reason}); {}", self.missing()) })
            }
            Stage::Waiting => {
                let what = if code == exit::WORKER_LOST { "is lost" } else { "failed" };
                self.end_all(code, format!("{name} {what}: {reason}"))
            }
        }
    }

    fn was_started(&self) -> bool {
        self.joined().any(|node| node.result.is_some())
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

    fn end_if_all_have(&mut self) -> Vec<Action> {
        if self.joined().any(|node| node.result.is_none()) {
            return Vec::new();
        }
        let mut nodes: Vec<&Node> = self.joined().collect();
        nodes.sort_by_key(|node| node.failed_as.unwrap_or(usize::MAX));
        let result = merge(nodes.into_iter().filter_map(|node| node.result.clone()).collect());
        self.stage = Stage::Waiting;
        let mut actions = self.send_to_all(&ToNode::Ended { attempt: self.attempt, result });
        actions.extend(self.start_if_ready());
        actions
    }

    /// The job cannot start or restart.
    fn end_all(&mut self, code: i32, message: String) -> Vec<Action> {
        self.stage = Stage::Over;
        self.refused = Some((code, message.clone()));
        self.send_to_all(&ToNode::Refused { code, message })
    }

    fn is_complete(&self) -> bool {
        self.nodes.iter().all(Option::is_some)
    }

    fn ranks(&self) -> (Vec<usize>, usize) {
        let workers: Vec<usize> =
            self.nodes.iter().map(|node| node.as_ref().map_or(0, |node| node.hello.workers)).collect();
        admission::ranks(&workers)
    }

    fn joined(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().flatten()
    }

    fn joined_mut(&mut self) -> impl Iterator<Item = &mut Node> {
        self.nodes.iter_mut().flatten()
    }

    fn position(&self, connection: ConnectionId) -> Option<usize> {
        self.joined().find(|node| node.connection == connection).map(|node| node.hello.node)
    }

    fn send_to_all(&self, message: &ToNode) -> Vec<Action> {
        self.joined().filter(|node| !node.is_lost).map(|node| Action::Send(node.connection, message.clone())).collect()
    }

    fn send_to_others(&self, position: usize, message: &ToNode) -> Vec<Action> {
        let others = self.joined().filter(|node| node.hello.node != position && !node.is_lost);
        others.map(|node| Action::Send(node.connection, message.clone())).collect()
    }
}

#[cfg(test)]
pub mod tests;
