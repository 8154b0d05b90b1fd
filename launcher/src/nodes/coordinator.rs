//! The coordinator in node 0's launcher, as a state machine without I/O: events go in, actions come out.
//!
//! The nodes join, report that they are ready, start together, and end together: a failure, a request to stop or a lost
//! node is passed on to all, and all receive the same result of the attempt. Each attempt begins when all nodes are ready.
//!
//! With `--nnodes MIN:MAX` each attempt has its own members. A node that joins while an attempt runs waits for the next one; if
//! there is room for it, the attempt is asked to end at a checkpoint. A lost node is left out of the next attempt.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use fnet_protocol::exit;
use fnet_protocol::message::StopReason;

use super::admission::{self, Admission, Present};
use super::message::{ConnectionId, Hello, Lead, StartAttempt, ToCoordinator, ToNode};
use super::probing::Probing;
use super::slow::{Diagnosis, Load, Watch};
use crate::attempt::result::{AttemptEnd, AttemptResult};
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
/// Nodes of a job with `--nnodes MIN:MAX` that may wait beside its MAX.
const MAX_SPARES: usize = 64;
/// A gap between ticks that shows that the launcher itself was stopped.
const STALL: Duration = Duration::from_secs(5);

/// The connection of node 0, which has no socket.
pub const LOCAL: ConnectionId = 0;

/// Something that happened on a connection.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A node has connected.
    Hello {
        hello: Hello,
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

/// The times of a job with `--nnodes MIN:MAX`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Elastic {
    /// How long to wait for more nodes than the minimum, since the last one came.
    pub settle: Duration,
    /// How long a node waits for a checkpoint at most before the attempt is stopped for it.
    pub grow_after: Option<Duration>,
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
    /// Its introduction; `node` is the number that it has been given.
    hello: Hello,
    joined: Instant,
    last_message: Instant,
    /// Its workers, and when they were reported.
    workers: (Vec<RankStatus>, Instant),
    /// Whether it is ready to start the next attempt.
    is_ready: bool,
    /// Whether it takes part in the attempt that runs, or took part in the last one.
    is_member: bool,
    /// Position in the order in which nodes failed.
    failed_as: Option<usize>,
    result: Option<AttemptResult>,
    /// Whether its connection has ended, or it counts as lost.
    is_lost: bool,
    /// Whether its workers have finished their start-up in an earlier attempt.
    has_worked: bool,
}

impl Node {
    fn new(connection: ConnectionId, address: String, hello: Hello, now: Instant) -> Self {
        Self {
            connection,
            address,
            hello,
            joined: now,
            last_message: now,
            workers: (Vec::new(), now),
            is_ready: false,
            is_member: false,
            failed_as: None,
            result: None,
            is_lost: false,
            has_worked: false,
        }
    }

    fn name(&self) -> String {
        let address = if self.address.is_empty() { String::new() } else { format!(", {}", self.address) };
        format!("node {} ({}{address})", self.hello.node, self.hello.host)
    }
}

/// Decides for all nodes of a job.
pub struct Coordinator {
    /// The nodes that have joined, by their numbers; the first one is node 0.
    nodes: Vec<Node>,
    /// MAX of `--nnodes`.
    max: usize,
    /// MIN of `--nnodes MIN:MAX`; `None` if the job always has all its nodes.
    min: Option<usize>,
    elastic: Elastic,
    stage: Stage,
    /// Number of the attempt that runs, or of the last one.
    attempt: u32,
    /// Whether an attempt was started.
    was_started: bool,
    timeouts: Timeouts,
    /// Since when it waits for nodes.
    began: Instant,
    /// When the last node came while no attempt ran.
    last_joined: Instant,
    last_reminder: Instant,
    last_tick: Instant,
    /// The name of node 0's file in the work folder.
    token: Option<String>,
    /// What node 0 has prepared for the next attempt.
    lead: Option<Lead>,
    /// What node 0 waits for before it is ready; the other nodes are given their time to join after that.
    waits: Option<String>,
    /// The address of node 0 that the first other node has reached.
    local_address: Option<String>,
    failures: usize,
    /// Whether the attempt was asked to end for new nodes: at a checkpoint, or at once.
    regroup: Option<bool>,
    /// Whether a stop was requested.
    stop_requested: bool,
    /// Why the job has ended; nodes that join later are refused for this reason.
    refused: Option<(i32, String)>,
    /// Nodes that have received an answer.
    told: BTreeSet<usize>,
    /// If the job cannot start: until when to wait for absent nodes to report that to them.
    tell_until: Instant,
    probing: Probing,
    /// The bandwidth in Gbit/s that is expected between nodes.
    expected: Option<f64>,
    slow: Watch,
}

impl Coordinator {
    /// A job with this introduction of node 0.
    pub fn new(hello: Hello, timeouts: Timeouts, now: Instant) -> Self {
        Self {
            max: hello.nodes,
            min: hello.min_nodes,
            nodes: vec![Node::new(LOCAL, String::new(), hello, now)],
            elastic: Elastic { settle: Duration::ZERO, grow_after: None },
            stage: Stage::Waiting,
            attempt: 0,
            was_started: false,
            timeouts,
            began: now,
            last_joined: now,
            last_reminder: now,
            last_tick: now,
            token: None,
            lead: None,
            waits: None,
            local_address: None,
            failures: 0,
            regroup: None,
            stop_requested: false,
            refused: None,
            told: BTreeSet::new(),
            tell_until: now + EARLY_FAILURE_GRACE.min(timeouts.join),
            probing: Probing::default(),
            expected: None,
            slow: Watch::default(),
        }
    }

    /// The same with probes of the network, whose links shall have the bandwidth that is `expected`, if any.
    pub fn with_probes(self, expected: Option<f64>) -> Self {
        Self { probing: Probing::on(), expected, ..self }
    }

    /// The same with the name of node 0's file in the work folder, which all nodes must find.
    pub fn with_token(self, token: Option<String>) -> Self {
        Self { token, ..self }
    }

    /// The same with the times of a job whose nodes may come and go.
    pub fn with_elastic(self, elastic: Elastic) -> Self {
        Self { elastic, ..self }
    }

    /// The coordinator of a job that cannot start because of `error`, which it reports to all nodes.
    pub fn of_failed(hello: Hello, error: (i32, String), timeouts: Timeouts, now: Instant) -> Self {
        let mut coordinator = Self::new(hello, timeouts, now);
        coordinator.end_all(error.0, error.1);
        coordinator
    }

    /// Whether the job cannot start and absent nodes, which would wait for it, may still join.
    pub fn has_untold_nodes(&self, now: Instant) -> bool {
        let is_untold = |number: &usize| !self.told.contains(number);
        self.refused.is_some() && now < self.tell_until && self.absent_numbers().iter().any(is_untold)
    }

    /// Something happened on a connection.
    pub fn on_event(&mut self, connection: ConnectionId, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::Hello { hello, address, local_address } => {
                self.on_hello(connection, hello, address, local_address, now)
            }
            Event::Message(message) => self.on_message(connection, message, now),
            Event::Closed(why) => match self.index(connection) {
                Some(index) => self.lose(index, exit::WORKER_LOST, why, now),
                None => Vec::new(),
            },
        }
    }

    fn on_hello(
        &mut self,
        connection: ConnectionId,
        mut hello: Hello,
        address: String,
        local_address: String,
        now: Instant,
    ) -> Vec<Action> {
        let refuse = |code, message| refuse(connection, code, message);
        let Some((first, others)) = self.nodes.split_first() else { return vec![Action::Close(connection)] };
        let others: Vec<Present<'_>> =
            others.iter().map(|node| Present { hello: &node.hello, address: &node.address }).collect();
        let admission = admission::admit(&first.hello, &others, &hello, &address);
        if !matches!(admission, Admission::OtherJob(_)) {
            self.told.insert(hello.node);
        }
        let is_elastic = self.min.is_some();
        let (theirs, ours) = (hello.build.clone(), first.hello.build.clone());
        match admission {
            Admission::OtherJob(text) => refuse(exit::USAGE, text),
            _ if self.refused.is_some() || !is_elastic && self.is_complete() => {
                let nodes = text::count(self.max, "node");
                let running = format!("the job at this port is already running with all its {nodes}");
                let (code, text) = self.refused.clone().unwrap_or((exit::ENVIRONMENT, running));
                refuse(code, text)
            }
            Admission::Conflict(_) | Admission::Welcome if let Some(failed) = &hello.failed => {
                let text = format!("node {} ({}, {address}) failed: {}", hello.node, hello.host, failed.message);
                self.reject(connection, failed.code, text)
            }
            Admission::Conflict(text) => self.reject(connection, exit::USAGE, text),
            Admission::Welcome if self.nodes.len() >= self.max + MAX_SPARES => {
                let text = format!("{MAX_SPARES} nodes wait beside the {} of this job already", self.max);
                refuse(exit::ENVIRONMENT, text)
            }
            Admission::Welcome => {
                if is_elastic {
                    hello.node = self.free_number(hello.node);
                }
                let node = Node::new(connection, address, hello, now);
                let name = node.name();
                self.local_address.get_or_insert(local_address);
                let place = self.nodes.partition_point(|other| other.hello.node < node.hello.node);
                self.nodes.insert(place, node);
                if self.stage == Stage::Waiting {
                    self.last_joined = now;
                }
                let more = if self.is_complete() && !is_elastic { "all nodes have".to_owned() } else { self.missing() };
                let mut actions = vec![Action::Send(connection, ToNode::Welcome { token: self.token.clone() })];
                actions.extend(self.tell(format!("{name} has joined; {more}")));
                if theirs != ours {
                    actions.extend(self.warn(format!(
                        "{name} runs another build of fnet than node 0, of the same version (digest {theirs} there, {ours} on node \
                         0); copy the same programs to all nodes"
                    )));
                }
                let waits = self.waits.clone().map(|text| ToNode::News { text });
                actions.extend(waits.map(|news| Action::Send(connection, news)));
                actions
            }
        }
    }

    /// Refuses a node without which a job cannot go on, unless nodes may come and go.
    fn reject(&mut self, connection: ConnectionId, code: i32, text: String) -> Vec<Action> {
        let mut actions = refuse(connection, code, text.clone());
        actions.extend(if self.min.is_some() { self.tell(text) } else { self.end_all(code, text) });
        actions
    }

    /// The number of a new node: the one that it asks for if that is free, else the lowest that is.
    fn free_number(&self, wanted: usize) -> usize {
        let is_free = |number: &usize| self.nodes.iter().all(|node| node.hello.node != *number);
        let lowest = || (1..).find(is_free).unwrap_or(wanted);
        if wanted < self.max && is_free(&wanted) { wanted } else { lowest() }
    }

    fn on_message(&mut self, connection: ConnectionId, message: ToCoordinator, now: Instant) -> Vec<Action> {
        let Some(index) = self.index(connection) else { return Vec::new() };
        let attempt = self.attempt;
        let Some(node) = self.nodes.get_mut(index).filter(|node| !node.is_lost) else { return Vec::new() };
        node.last_message = now;
        let is_current = |of: u32| of == attempt && self.stage == Stage::Running && node.is_member;
        match message {
            ToCoordinator::Heartbeat { workers } => {
                node.workers = (workers, now);
                Vec::new()
            }
            ToCoordinator::Ready { lead } => {
                node.is_ready = true;
                let mut actions = Vec::new();
                if connection == LOCAL {
                    self.lead = lead;
                    if self.waits.take().is_some() {
                        self.began = now;
                    }
                    if !self.is_complete() {
                        actions.push(Action::Send(connection, ToNode::News { text: self.missing() }));
                    }
                }
                actions.extend(self.start_if_ready(now));
                actions.extend(self.ask_to_regroup(now));
                actions
            }
            ToCoordinator::Waits { text } if connection == LOCAL => {
                self.waits = Some(format!("node 0 waits: {text}"));
                Vec::new()
            }
            ToCoordinator::Failing { attempt: of, rank } if is_current(of) => {
                self.note_failure(index);
                self.send_to_others(index, &ToNode::PeerFailed { rank })
            }
            ToCoordinator::Ended { attempt: of, result } if is_current(of) => {
                let name = node.name();
                node.result.get_or_insert_with(|| result.on_node(&name));
                if self.members().filter(|node| node.result.is_some()).count() == 1 {
                    self.last_reminder = now;
                }
                self.end_if_all_have(now)
            }
            ToCoordinator::Saved { attempt: of, step } if is_current(of) => {
                self.send_to_others(index, &ToNode::PeerSaved { step })
            }
            // A node that waits for its turn leaves alone, also between two attempts.
            ToCoordinator::Stop(_) if self.was_started && !node.is_member => Vec::new(),
            ToCoordinator::Stop(stop) => {
                self.stop_requested = true;
                self.send_to_others(index, &ToNode::Stop(stop))
            }
            ToCoordinator::ProbePrepared { probe, address } => {
                sends(self.probing.on_prepared(connection, probe, address, now))
            }
            ToCoordinator::Probed { probe, received } => {
                self.probing.on_probed(connection, probe, received);
                self.end_probe(now)
            }
            ToCoordinator::Broken { code, message } => self.lose(index, code, message, now),
            ToCoordinator::Hello(_)
            | ToCoordinator::Waits { .. }
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
            self.nodes.iter_mut().for_each(|node| node.last_message = now);
        }
        self.last_tick = now;
        let mut actions = self.heartbeats(now);
        let silence = self.timeouts.silence;
        let is_silent =
            |node: &&Node| node.connection != LOCAL && !node.is_lost && now.duration_since(node.last_message) > silence;
        let silent: Vec<ConnectionId> = self.nodes.iter().filter(is_silent).map(|node| node.connection).collect();
        for connection in silent {
            let reason = format!("sent no heartbeat for {} s (--node-timeout)", silence.as_secs_f64());
            if let Some(index) = self.index(connection) {
                actions.extend(self.lose(index, exit::WORKER_LOST, reason, now));
                actions.push(Action::Close(connection));
            }
        }
        actions.extend(self.remind_at_the_end(now));
        actions.extend(sends(self.probing.on_tick(now)));
        actions.extend(self.end_probe(now));
        actions.extend(self.watch_speed(now));
        actions.extend(self.start_if_ready(now));
        actions.extend(self.ask_to_regroup(now));
        let is_short = match self.min {
            None => !self.was_started && !self.is_complete(),
            Some(min) => self.alive().count() < min,
        };
        if self.stage == Stage::Waiting && is_short && self.waits.is_none() {
            if now.duration_since(self.began) >= self.timeouts.join {
                let (code, text) = self.too_few();
                actions.extend(self.end_all(code, text));
                self.tell_until = now;
            } else if now.duration_since(self.last_reminder) >= REMINDER_INTERVAL {
                self.last_reminder = now;
                actions.extend(self.send_to_all(&ToNode::News { text: self.missing() }));
            }
        }
        actions
    }

    /// Why a job ends for which too few nodes have come.
    fn too_few(&self) -> (i32, String) {
        let seconds = self.timeouts.join.as_secs_f64();
        match self.min {
            None => (exit::ENVIRONMENT, format!("{} did not join within {seconds} s (--join-timeout)", self.absent())),
            Some(min) => {
                let (here, least) = (text::count(self.alive().count(), "node"), format!("at least {min} (--nnodes)"));
                match self.was_started {
                    false => {
                        (exit::ENVIRONMENT, format!("{here} of {least} joined within {seconds} s (--join-timeout)"))
                    }
                    true => (
                        exit::WORKER_LOST,
                        format!("{here} of {least} left, and no other joined within {seconds} s (--join-timeout)"),
                    ),
                }
            }
        }
    }

    /// Tells the nodes whose workers have exited for which others they wait.
    fn remind_at_the_end(&mut self, now: Instant) -> Vec<Action> {
        let (ended, busy): (Vec<&Node>, Vec<&Node>) = self.members().partition(|node| node.result.is_some());
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

    /// `waiting for node 2 of 3`; with MIN:MAX how many nodes are there, and what happens next.
    fn missing(&self) -> String {
        let Some(min) = self.min else { return format!("waiting for {}", self.absent()) };
        let (here, max) = (self.alive().count(), self.max);
        let count = format!("{} of {min} to {max}", text::count(here, "node"));
        match self.stage {
            Stage::Running if self.alive().filter(|node| node.is_member).count() < max => {
                format!("{count}; the next attempt takes it in, at the latest after the next checkpoint")
            }
            Stage::Running => format!("{count}; it replaces a node that leaves"),
            _ if here < min => format!("{count}; waiting for others"),
            _ => count,
        }
    }

    fn absent_numbers(&self) -> Vec<usize> {
        (0..self.max).filter(|number| self.nodes.iter().all(|node| node.hello.node != *number)).collect()
    }

    /// `node 2 of 3`.
    fn absent(&self) -> String {
        format!("{} of {}", admission::names(&self.absent_numbers()), self.max)
    }

    /// Sends each node the workers of all others.
    fn heartbeats(&self, now: Instant) -> Vec<Action> {
        let of = |node: &Node| -> Vec<RankStatus> {
            let age = now.saturating_duration_since(node.workers.1);
            node.workers.0.iter().map(|status| status.after(age)).collect()
        };
        let all: Vec<(ConnectionId, Vec<RankStatus>)> = self.alive().map(|node| (node.connection, of(node))).collect();
        let others = |connection: ConnectionId| {
            all.iter().filter(|(of, _)| *of != connection).flat_map(|(_, workers)| workers.clone()).collect()
        };
        let heartbeat = |connection| Action::Send(connection, ToNode::Heartbeat { workers: others(connection) });
        all.iter().map(|(connection, _)| heartbeat(*connection)).collect()
    }

    /// The numbers of the next attempt's members, once it can start.
    fn next_members(&self, now: Instant) -> Option<Vec<usize>> {
        let ready = || self.alive().filter(|node| node.is_ready);
        let numbers = |nodes: &[&Node]| nodes.iter().map(|node| node.hello.node).collect();
        let Some(min) = self.min else {
            let all: Vec<&Node> = ready().collect();
            return (all.len() == self.max).then(|| numbers(&all));
        };
        // Those that go on are waited for, others not.
        if self.alive().any(|node| node.is_member && !node.is_ready) {
            return None;
        }
        let mut all: Vec<&Node> = ready().collect();
        // Those that were members stay members.
        all.sort_by_key(|node| (!node.is_member, node.hello.node));
        let stay = all.iter().filter(|node| node.is_member).count();
        let is_settled = now.duration_since(self.last_joined) >= self.elastic.settle;
        let is_enough = all.len() >= self.max || all.len() >= min && (stay >= min || is_settled);
        all.truncate(self.max);
        is_enough.then(|| numbers(&all))
    }

    fn start_if_ready(&mut self, now: Instant) -> Vec<Action> {
        if self.stage != Stage::Waiting || self.lead.is_none() {
            return Vec::new();
        }
        let (Some(members), Some(lead)) = (self.next_members(now), &self.lead) else { return Vec::new() };
        let lead = lead.clone();
        let connections: Vec<ConnectionId> =
            self.alive().filter(|node| members.contains(&node.hello.node)).map(|node| node.connection).collect();
        if self.probing.is_due(&connections) {
            let is_running = self.probing.is_running(&connections);
            return if is_running { Vec::new() } else { sends(self.probing.begin(connections, now)) };
        }
        self.attempt += u32::from(self.was_started);
        (self.stage, self.was_started, self.lead) = (Stage::Running, true, None);
        (self.failures, self.regroup, self.stop_requested) = (0, None, false);
        for node in &mut self.nodes {
            node.is_member = members.contains(&node.hello.node);
            (node.failed_as, node.result) = (None, None);
            node.is_ready &= !node.is_member;
            node.workers.0.clear();
        }
        let members: Vec<&Node> = self.members().collect();
        let workers: Vec<usize> = members.iter().map(|node| node.hello.workers).collect();
        let (first_ranks, world_size) = admission::ranks(&workers);
        // Nodes that are absent count as if they had as many workers as node 0.
        let absent = self.max.saturating_sub(members.len()) * workers.first().copied().unwrap_or(1);
        let mut actions = Vec::new();
        if self.min.is_some() {
            let numbers: Vec<usize> = members.iter().map(|node| node.hello.node).collect();
            let text = format!(
                "attempt {} on {}, {}",
                self.attempt + 1,
                admission::names(&numbers),
                text::count(world_size, "worker")
            );
            actions.extend(self.tell(text));
        }
        actions.extend(members.iter().zip(first_ranks).map(|(node, first_rank)| {
            let start = StartAttempt {
                attempt: self.attempt,
                node: node.hello.node,
                first_rank,
                world_size,
                full_world_size: world_size + absent,
                address: if node.connection == LOCAL { self.local_address.clone() } else { None },
                lead: lead.clone(),
                links: if node.connection == LOCAL { self.probing.links.clone() } else { None },
            };
            Action::Send(node.connection, ToNode::Start(Box::new(start)))
        }));
        actions
    }

    /// The links were measured: reports them, and starts the attempt or judges the one that runs.
    fn end_probe(&mut self, now: Instant) -> Vec<Action> {
        let names: BTreeMap<ConnectionId, String> = self.alive().map(|node| (node.connection, node.name())).collect();
        let Some((members, links)) = self.probing.end(&names, now) else { return Vec::new() };
        if self.stage == Stage::Running {
            let diagnoses = self.slow.on_links(&links, self.probing.links.as_ref());
            return self.tell_diagnoses(diagnoses, now);
        }
        if self.stage == Stage::Over {
            return Vec::new();
        }
        let summary = links.summary().map(|summary| summary.to_string());
        let mut actions =
            self.tell(summary.unwrap_or_else(|| "the network between the nodes was not measured".to_owned()));
        actions.extend(links.slow().into_iter().flat_map(|slow| self.warn(links.explain(slow))));
        if let Some((pair, text)) = self.expected.and_then(|expected| links.refusal(expected)) {
            // A job that has trained goes on without a newcomer.
            let is_new = |node: &&Node| !node.is_member && node.connection != LOCAL;
            let of_pair = |node: &&Node| pair.iter().any(|&at| members.get(at) == Some(&node.connection));
            let newcomer = self.alive().filter(of_pair).find(is_new).map(|node| (node.connection, node.name()));
            match newcomer {
                _ if !self.was_started => {
                    actions.extend(self.end_all(exit::ENVIRONMENT, text));
                    return actions;
                }
                Some((connection, name)) => {
                    self.nodes.retain(|node| node.connection != connection);
                    actions.extend(self.tell(format!("{name} is refused: {text}")));
                    actions.extend(refuse(connection, exit::ENVIRONMENT, text));
                }
                None => actions.extend(self.warn(text)),
            }
        }
        self.probing.accept(members, links);
        actions.extend(self.start_if_ready(now));
        actions
    }

    /// Looks for nodes that hold up the others.
    fn watch_speed(&mut self, now: Instant) -> Vec<Action> {
        if self.stage != Stage::Running {
            return Vec::new();
        }
        let steps = self.members().flat_map(|node| &node.workers.0).filter_map(|worker| worker.status.as_ref());
        let steps = steps.filter(|status| status.phase.is_step()).map(|status| status.step);
        let Some(step) = steps.max() else { return Vec::new() };
        let loads = self.members().map(|node| Load::of(node.hello.node, node.name(), &node.workers.0));
        let Some(loads) = loads.collect::<Option<Vec<Load>>>() else { return Vec::new() };
        let diagnoses = self.slow.on_tick(step, &loads);
        self.tell_diagnoses(diagnoses, now)
    }

    fn tell_diagnoses(&mut self, diagnoses: Vec<Diagnosis>, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        for diagnosis in diagnoses {
            actions.extend(match diagnosis {
                Diagnosis::Say(text, true) => self.warn(text),
                Diagnosis::Say(text, false) => self.tell(text),
                Diagnosis::Measure => {
                    let members = self.alive().filter(|node| node.is_member).map(|node| node.connection).collect();
                    sends(self.probing.begin(members, now))
                }
            });
        }
        actions
    }

    /// Asks the attempt that runs to end, if nodes wait for which it has room: at its next checkpoint, or at once when they have
    /// waited for long.
    fn ask_to_regroup(&mut self, now: Instant) -> Vec<Action> {
        let members = self.alive().filter(|node| node.is_member).count();
        let waiting = self.alive().filter(|node| node.is_ready && !node.is_member).map(|node| node.joined).min();
        let (Some(since), Stage::Running, 0, None) =
            (waiting, self.stage, self.failures, self.regroup.filter(|&now| now))
        else {
            return Vec::new();
        };
        let at_once = self.elastic.grow_after.is_some_and(|after| now.duration_since(since) >= after);
        if members >= self.max || self.regroup == Some(at_once) {
            return Vec::new();
        }
        self.regroup = Some(at_once);
        let members = || self.members().filter(|node| !node.is_lost);
        let mut actions: Vec<Action> =
            members().map(|node| Action::Send(node.connection, ToNode::Regroup { at_once })).collect();
        let when = if at_once { "now (--elastic-grow-after)" } else { "at its next checkpoint" };
        let text = format!("the attempt ends {when}, to take in other nodes");
        actions.extend(members().map(|node| Action::Send(node.connection, ToNode::News { text: text.clone() })));
        actions
    }

    /// A node is lost or gives up.
    fn lose(&mut self, index: usize, code: i32, reason: String, now: Instant) -> Vec<Action> {
        let Some(node) = self.nodes.get_mut(index).filter(|node| !node.is_lost) else { return Vec::new() };
        let (name, is_first, is_member) = (node.name(), node.connection == LOCAL, node.is_member);
        node.is_lost = true;
        if self.stage == Stage::Waiting {
            // Others may start together now.
            self.probing.cancel();
        }
        let is_elastic = self.min.is_some();
        match self.stage {
            Stage::Over => Vec::new(),
            // Its workers had exited; the loss matters only if there is another attempt.
            Stage::Running if node.result.is_some() => {
                node.result.iter_mut().for_each(|result| result.lost_nodes.push(name.clone()));
                Vec::new()
            }
            Stage::Running if is_member => {
                let rank = self.first_rank(index);
                let result = AttemptResult::of_lost_node(&name, rank, code, &reason);
                if let Some(node) = self.nodes.get_mut(index) {
                    node.result = Some(result);
                }
                self.note_failure(index);
                let mut actions = self.send_to_others(index, &ToNode::PeerFailed { rank });
                if is_elastic {
                    actions.extend(self.tell(format!("{name} has left ({reason})")));
                }
                actions.extend(self.end_if_all_have(now));
                actions
            }
            // Before the first start another launcher may replace it, unless it has reported an error; later with MIN:MAX only.
            _ if !is_first && (is_elastic || !self.was_started && code == exit::WORKER_LOST) => {
                self.nodes.remove(index);
                let mut actions = self.tell(format!("{name} has left ({reason}); {}", self.missing()));
                actions.extend(self.start_if_ready(now));
                actions
            }
            _ => {
                let what = if code == exit::WORKER_LOST { "is lost" } else { "failed" };
                self.end_all(code, format!("{name} {what}: {reason}"))
            }
        }
    }

    fn note_failure(&mut self, index: usize) {
        let order = self.failures;
        if let Some(node) = self.nodes.get_mut(index)
            && node.failed_as.is_none()
        {
            node.failed_as = Some(order);
            self.failures += 1;
        }
    }

    fn end_if_all_have(&mut self, now: Instant) -> Vec<Action> {
        if self.members().any(|node| node.result.is_none()) {
            return Vec::new();
        }
        let mut nodes: Vec<&Node> = self.members().collect();
        nodes.sort_by_key(|node| node.failed_as.unwrap_or(usize::MAX));
        let mut result = AttemptResult::merge(nodes.into_iter().filter_map(|node| node.result.clone()).collect());
        (self.stage, self.began, self.last_reminder) = (Stage::Waiting, now, now);
        self.probing.cancel();
        let mut actions = Vec::new();
        if let Some((names, reason)) = self.newcomers_at_fault(&result) {
            let refused = ToNode::Ended { attempt: self.attempt, result: result.clone() };
            for node in self.nodes.extract_if(.., |node| names.contains(&node.name())).filter(|node| !node.is_lost) {
                actions.push(Action::Send(node.connection, refused.clone()));
                actions.push(Action::Close(node.connection));
            }
            actions.extend(self.warn(format!("{} cannot take part: {reason}", text::list(&names))));
            (result.end, result.goes_on) = (AttemptEnd::Stopped { reason: StopReason::Terminated, saved: true }, true);
        } else {
            result.goes_on = self.goes_on(&result);
        }
        for node in self.nodes.iter_mut().filter(|node| node.is_member) {
            node.has_worked |= node.result.as_ref().is_some_and(|result| result.was_ready);
        }
        let ended = ToNode::Ended { attempt: self.attempt, result };
        let members = self.alive().filter(|node| node.is_member);
        actions.extend(members.map(|node| Action::Send(node.connection, ended.clone())));
        if self.min.is_some() {
            self.nodes.retain(|node| !node.is_lost || node.connection == LOCAL);
        }
        actions.extend(self.start_if_ready(now));
        actions
    }

    /// The new members because of which an attempt has failed in a way that would recur with them, and the reason: the others,
    /// whose workers have worked before, go on without them.
    fn newcomers_at_fault(&self, result: &AttemptResult) -> Option<(Vec<String>, String)> {
        let cause = result.cause()?;
        let is_led = self.nodes.first().is_some_and(|first| first.has_worked && !first.is_lost);
        let would_recur = matches!(cause.exit_code, exit::USAGE | exit::DATA | exit::ENVIRONMENT);
        let is_stop = self.stop_requested || result.stop_requested;
        if self.min.is_none() || !is_led || !would_recur || is_stop {
            return None;
        }
        let is_new = |node: &&Node| !node.has_worked && node.result.as_ref().is_some_and(|result| !result.was_ready);
        let has_failed = |node: &&Node| {
            let end = node.result.as_ref().map(|result| &result.end);
            matches!(end, Some(AttemptEnd::Failed { is_echo: false, .. }))
        };
        let (mut failed, others): (Vec<&Node>, Vec<&Node>) = self.members().filter(is_new).partition(has_failed);
        // That data differ is seen on all ranks, and may be reported by one of another node first.
        if failed.is_empty() && cause.exit_code == exit::DATA {
            failed = others;
        }
        let names: Vec<String> = failed.into_iter().map(Node::name).collect();
        (!names.is_empty()).then(|| (names, format!("rank {} failed: {}", cause.rank, cause.reason)))
    }

    /// Whether an attempt has ended only because other nodes take part from now on.
    fn goes_on(&self, result: &AttemptResult) -> bool {
        let is_led = self.nodes.first().is_some_and(|first| !first.is_lost);
        let is_change = match &result.end {
            AttemptEnd::Done => false,
            AttemptEnd::Stopped { .. } => self.regroup.is_some(),
            // These would fail again with any nodes.
            AttemptEnd::Failed { cause, .. } => {
                !result.lost_nodes.is_empty() && !matches!(cause.exit_code, exit::USAGE | exit::DATA)
            }
        };
        self.min.is_some() && is_led && is_change && !self.stop_requested && !result.stop_requested
    }

    /// The job cannot start or restart.
    fn end_all(&mut self, code: i32, message: String) -> Vec<Action> {
        self.stage = Stage::Over;
        self.refused = Some((code, message.clone()));
        self.send_to_all(&ToNode::Refused { code, message })
    }

    fn is_complete(&self) -> bool {
        self.nodes.len() >= self.max
    }

    /// The rank of a member's first worker.
    fn first_rank(&self, index: usize) -> usize {
        self.nodes.iter().take(index).filter(|node| node.is_member).map(|node| node.hello.workers).sum()
    }

    fn alive(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| !node.is_lost)
    }

    fn members(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.is_member)
    }

    fn index(&self, connection: ConnectionId) -> Option<usize> {
        self.nodes.iter().position(|node| node.connection == connection)
    }

    /// Tells all nodes who has joined or left.
    fn tell(&self, text: String) -> Vec<Action> {
        self.send_to_all(&ToNode::Membership { text, is_warning: false })
    }

    /// Tells all nodes that something is wrong.
    fn warn(&self, text: String) -> Vec<Action> {
        self.send_to_all(&ToNode::Membership { text, is_warning: true })
    }

    fn send_to_all(&self, message: &ToNode) -> Vec<Action> {
        self.alive().map(|node| Action::Send(node.connection, message.clone())).collect()
    }

    fn send_to_others(&self, index: usize, message: &ToNode) -> Vec<Action> {
        let others = self.nodes.iter().enumerate().filter(|(other, node)| *other != index && !node.is_lost);
        others.map(|(_, node)| Action::Send(node.connection, message.clone())).collect()
    }
}

fn sends(messages: Vec<(ConnectionId, ToNode)>) -> Vec<Action> {
    messages.into_iter().map(|(connection, message)| Action::Send(connection, message)).collect()
}

fn refuse(connection: ConnectionId, code: i32, message: String) -> Vec<Action> {
    vec![Action::Send(connection, ToNode::Refused { code, message }), Action::Close(connection)]
}

#[cfg(test)]
pub mod tests;
