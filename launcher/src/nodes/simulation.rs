//! The protocol of the nodes in a simulated cluster: coordinators, followers, attempts and restart budgets are the product's
//! own, the rest (network, clocks, workers, the shared folder, the loop that starts launchers again) is a model.
//!
//! A run is a function of its choices: the delay of each message, and which fault happens when. Choices are random with a seed,
//! or all combinations of a small case. Messages of a connection keep their order, as over TCP: loss is delay, a cut holds
//! everything back, and a broken connection loses what is on its way.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::time::{Duration, Instant};

use fnet_protocol::message::{Failure, FailureKind, FromWorker, Phase, StopReason, ToWorker, WorkerStatus};
use fnet_protocol::{exit, generation};

use super::coordinator::tests::{hello, lead};
use super::coordinator::{self, Coordinator, Elastic, LOCAL, Timeouts};
use super::follower::Follower;
use super::message::{Hello, Lead, StartAttempt, ToCoordinator, ToNode, Wanted};
use crate::attempt::cause::ProcessExit;
use crate::attempt::hang::tests::LIMITS;
use crate::attempt::restart::{Decision, RestartBudget};
use crate::attempt::result::{AttemptEnd, AttemptResult};
use crate::attempt::{Action, Attempt, Event, WorkerExit};

/// Steps of a job, and of a checkpoint.
const STEPS: u64 = 12;
const INTERVAL: u64 = 4;
/// Milliseconds: of a step, between ticks, without a heartbeat, to join, of faults, and of a whole run.
const STEP: u64 = 1000;
const TICK: u64 = 2000;
const SILENCE: u64 = 8000;
const JOIN: u64 = 20_000;
const FAULTS: u64 = 24_000;
const END: u64 = 600_000;

/// Where choices come from.
enum Choices {
    Random(u64),
    /// All combinations of the first choices: what was chosen, and of how many; the rest is 0.
    All {
        chosen: Vec<(u64, u64)>,
        next: usize,
        depth: usize,
    },
}

impl Choices {
    /// A number below `count`.
    fn below(&mut self, count: u64) -> u64 {
        match self {
            Choices::Random(state) => {
                *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
                let mut mixed = *state;
                mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
                (mixed ^ (mixed >> 31)) % count
            }
            Choices::All { chosen, next, depth } => {
                *next += 1;
                match chosen.get(*next - 1) {
                    Some(&(choice, _)) => choice,
                    None if *next <= *depth => {
                        chosen.push((0, count));
                        0
                    }
                    None => 0,
                }
            }
        }
    }

    fn is_random(&self) -> bool {
        matches!(self, Choices::Random(_))
    }

    /// The next combination; `false` after the last one.
    fn advance(chosen: &mut Vec<(u64, u64)>) -> bool {
        while let Some((choice, count)) = chosen.pop() {
            if choice + 1 < count {
                chosen.push((choice + 1, count));
                return true;
            }
        }
        false
    }
}

/// What happens at a time.
#[derive(Debug)]
enum What {
    /// The loop of a host starts a launcher.
    Launch(usize),
    Tick(usize, u64),
    Dial(usize, u64),
    Begin(usize, u64),
    ToCoordinator(u64, coordinator::Event),
    ToNode(u64, ToNode),
    /// Between a coordinator and its own node.
    Local(usize, u64, LocalMessage),
    Worker(usize, u64, u64, OfWorker),
    Step(u64),
    Fault,
}

#[derive(Debug)]
enum LocalMessage {
    Up(ToCoordinator),
    Down(ToNode),
}

#[derive(Debug)]
enum OfWorker {
    Told(ToWorker),
    Completed(u64, Option<i32>),
    Saved { step: u64, exit: Option<i32>, ends: bool },
    Exits(ProcessExit),
}

struct Connection {
    host: usize,
    life: u64,
    to: usize,
    to_life: u64,
    /// When the last message arrives, to the coordinator and to the node.
    last: [u64; 2],
}

#[derive(Default)]
struct Host {
    /// Its number of launchers so far.
    lives: u64,
    launcher: Option<Launcher>,
    /// How far its clock is ahead.
    ahead: u64,
    paused_until: u64,
    is_cut: bool,
    is_down: bool,
}

struct Launcher {
    life: u64,
    coordinator: Option<Coordinator>,
    connection: u64,
    heard: u64,
    dials_until: u64,
    follower: Follower,
    attempt: Option<Attempt>,
    /// The result of its workers, while it waits for that of all.
    result: Option<AttemptResult>,
    worker: Option<Worker>,
    budget: RestartBudget,
    resume: bool,
    generation: Option<u64>,
    /// The most steps that one of its workers has completed.
    held: u64,
}

struct Worker {
    generation: u64,
    rank: usize,
    done: u64,
    is_training: bool,
    is_broken: bool,
    /// It ends, or has ended.
    ends: bool,
    stop: bool,
    at_checkpoint: bool,
}

/// The ranks of a generation.
#[derive(Default)]
struct Group {
    world: usize,
    resume: bool,
    ranks: BTreeMap<usize, (usize, u64)>,
    completed: usize,
    step: u64,
}

/// The shared folder.
#[derive(Default)]
struct Folder {
    generation: u64,
    /// The generation that wrote each checkpoint.
    files: BTreeMap<u64, u64>,
}

struct Simulation {
    choices: Choices,
    base: Instant,
    now: u64,
    number: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    /// By their numbers.
    events: Vec<Option<What>>,
    connections: Vec<Connection>,
    hosts: Vec<Host>,
    hello: Hello,
    /// The host at the address of node 0.
    leader: usize,
    has_locks: bool,
    heals_at: u64,
    folder: Folder,
    groups: HashMap<u64, Group>,
    /// Who took each generation.
    taken: HashMap<u64, (usize, u64)>,
    is_done: bool,
    budget: RestartBudget,
    faults: u64,
    /// In a small case, what happens before has no choices.
    focus: u64,
    /// Whether each event is printed.
    is_traced: bool,
}

impl Simulation {
    fn new(mut choices: Choices, template: &(Hello, RestartBudget)) -> Self {
        let is_small = !choices.is_random();
        // Few nodes are the most frequent case.
        let most = |choices: &mut Choices| match choices.below(64) {
            0 => 62,
            1..=4 => 14,
            5..=20 => 6,
            _ => 2,
        };
        let count = if is_small {
            3
        } else {
            let most = most(&mut choices);
            2 + choices.below(most + 1) as usize
        };
        let max = if is_small { 2 } else { 2 + choices.below(count as u64 - 1) as usize };
        let min = if is_small || choices.below(4) > 0 { Some(1 + choices.below(max as u64) as usize) } else { None };
        let hosts = (0..count).map(|_| Host::default()).collect();
        let mut world = Self {
            base: Instant::now(),
            now: 0,
            number: 0,
            queue: BinaryHeap::new(),
            events: vec![None],
            connections: vec![],
            hosts,
            hello: Hello { nodes: max, min_nodes: min, ..template.0.clone() },
            leader: 0,
            has_locks: choices.below(2) == 0,
            heals_at: 0,
            folder: Folder::default(),
            groups: HashMap::new(),
            taken: HashMap::new(),
            is_done: false,
            budget: template.1.clone(),
            faults: if is_small { 1 } else { choices.below(6) },
            focus: 0,
            is_traced: number("FNET_SIM_SEED").is_some(),
            choices,
        };
        // Without MIN:MAX there are no spares.
        let used = if world.hello.min_nodes.is_some() { count } else { max };
        world.hosts.truncate(used);
        for host in 0..used {
            let at = if is_small { host as u64 } else { world.choices.below(5000) };
            world.at(at, What::Launch(host));
        }
        for _ in 0..world.faults {
            let at = if is_small { 4000 + 700 * world.choices.below(6) } else { world.choices.below(FAULTS) };
            world.at(at, What::Fault);
            world.focus = at;
        }
        world
    }

    fn at(&mut self, time: u64, what: What) {
        self.number += 1;
        self.queue.push(Reverse((time.max(self.now), self.number)));
        self.events.push(Some(what));
    }

    fn delay(&mut self) -> u64 {
        match self.choices.is_random() && self.choices.below(16) > 0 {
            true => 1 + self.choices.below(30),
            false => 1 + self.up_to(2000),
        }
    }

    /// A time of less than `count`; in a small case the shortest or the longest.
    fn up_to(&mut self, count: u64) -> u64 {
        match self.choices.is_random() {
            true => self.choices.below(count),
            false if self.now < self.focus => 0,
            false => (count - 1) * self.choices.below(2),
        }
    }

    fn clock(&self, host: usize) -> Instant {
        self.base + Duration::from_millis(self.now + self.hosts[host].ahead)
    }

    /// Runs to the end of the job.
    fn run(mut self) -> (u64, Choices) {
        while let Some(Reverse((time, number))) = self.queue.pop() {
            let Some(what) = self.events.get_mut(number as usize).and_then(Option::take) else { continue };
            self.now = time;
            if self.is_traced && !matches!(what, What::Tick(..)) {
                eprintln!("{time:6} ms {what:?}");
            }
            assert!(time < END, "the job neither ends nor makes progress: checkpoints {:?}", self.folder.files);
            self.handle(what);
            if self.is_done {
                break;
            }
        }
        assert!(self.is_done, "nothing happens any more");
        (self.number, self.choices)
    }

    fn is_alive(&self, host: usize, life: u64) -> bool {
        self.hosts[host].launcher.as_ref().is_some_and(|launcher| launcher.life == life)
    }

    fn launcher(&mut self, host: usize) -> &mut Launcher {
        self.hosts[host].launcher.as_mut().unwrap()
    }

    fn handle(&mut self, what: What) {
        let (host, life) = match &what {
            What::Tick(host, life) | What::Dial(host, life) | What::Begin(host, life) => (*host, *life),
            What::Local(host, life, _) | What::Worker(host, life, ..) => (*host, *life),
            What::ToCoordinator(id, _) => {
                let connection = &self.connections[*id as usize - 1];
                (connection.to, connection.to_life)
            }
            What::ToNode(id, _) => {
                let connection = &self.connections[*id as usize - 1];
                (connection.host, connection.life)
            }
            What::Launch(host) => return self.launch(*host),
            What::Step(generation) => return self.step(*generation),
            What::Fault => return self.fault(),
        };
        if !self.is_alive(host, life) {
            return;
        }
        if self.now < self.hosts[host].paused_until {
            // It is stopped; everything waits in order.
            let until = self.hosts[host].paused_until;
            return self.at(until, what);
        }
        match what {
            What::ToCoordinator(id, event) => {
                if self.is_cut(id) {
                    self.connections[id as usize - 1].last[0] = self.heals_at;
                    return self.at(self.heals_at, What::ToCoordinator(id, event));
                }
                self.tell_coordinator(host, id, event);
            }
            What::ToNode(id, message) => {
                if self.is_cut(id) {
                    self.connections[id as usize - 1].last[1] = self.heals_at;
                    return self.at(self.heals_at, What::ToNode(id, message));
                }
                // An older connection that this launcher has given up.
                if self.launcher(host).connection == id {
                    self.launcher(host).heard = self.now;
                    self.hear(host, message);
                }
            }
            What::Local(_, _, LocalMessage::Up(message)) => {
                self.tell_coordinator(host, LOCAL, coordinator::Event::Message(message));
            }
            What::Local(_, _, LocalMessage::Down(message)) => self.hear(host, message),
            What::Tick(..) => self.tick(host),
            What::Dial(..) => self.dial(host),
            What::Begin(..) => self.begin(host),
            What::Worker(_, _, generation, event) => self.worker(host, generation, event),
            What::Launch(_) | What::Step(_) | What::Fault => {}
        }
    }

    fn is_cut(&self, id: u64) -> bool {
        let connection = &self.connections[id as usize - 1];
        self.hosts[connection.host].is_cut != self.hosts[connection.to].is_cut
    }

    /// Sends over a connection; `way` 0 is to the coordinator. Messages keep their order.
    fn arrives(&mut self, id: u64, way: usize) -> u64 {
        let earliest = self.now + self.delay();
        let last = &mut self.connections[id as usize - 1].last[way];
        *last = earliest.max(*last);
        *last
    }

    fn send(&mut self, host: usize, message: ToCoordinator) {
        let launcher = self.launcher(host);
        let life = launcher.life;
        match launcher.coordinator.is_some() {
            true => self.at(self.now, What::Local(host, life, LocalMessage::Up(message))),
            false => {
                let id = launcher.connection;
                if id > 0 {
                    let at = self.arrives(id, 0);
                    self.at(at, What::ToCoordinator(id, coordinator::Event::Message(message)));
                }
            }
        }
    }

    fn tell_coordinator(&mut self, host: usize, id: u64, event: coordinator::Event) {
        let now = self.clock(host);
        let Some(coordinator) = &mut self.launcher(host).coordinator else { return };
        let actions = coordinator.on_event(id, event, now);
        self.execute_of_coordinator(host, actions);
    }

    fn execute_of_coordinator(&mut self, host: usize, actions: Vec<coordinator::Action>) {
        let life = self.launcher(host).life;
        for action in actions {
            match action {
                coordinator::Action::Send(LOCAL, ToNode::Heartbeat { .. }) => {}
                coordinator::Action::Send(LOCAL, message) => {
                    self.at(self.now, What::Local(host, life, LocalMessage::Down(message)));
                }
                coordinator::Action::Send(id, message) => {
                    let at = self.arrives(id, 1);
                    self.at(at, What::ToNode(id, message));
                }
                coordinator::Action::Close(id) => {
                    let at = self.arrives(id, 1);
                    self.at(at, What::ToNode(id, ToNode::Lost("closed".into())));
                }
            }
        }
    }

    fn launch(&mut self, host: usize) {
        if self.hosts[host].launcher.is_some() {
            return;
        }
        if self.hosts[host].is_down {
            return self.at(self.now + 3000, What::Launch(host));
        }
        // Whatever starts launchers gives the address of another host if that of node 0 has failed.
        let leader = &self.hosts[self.leader];
        if leader.is_down || leader.is_cut != self.hosts[host].is_cut && self.choices.below(2) == 0 {
            self.leader = host;
        }
        let is_first = host == self.leader;
        let leads = |host: &Host| host.launcher.as_ref().is_some_and(|one| one.coordinator.is_some());
        if is_first && self.has_locks && self.hosts.iter().any(leads) {
            return self.at(self.now + 2000, What::Launch(host));
        }
        self.hosts[host].lives += 1;
        let (life, now) = (self.hosts[host].lives, self.clock(host));
        let hello = Hello { node: host, ..self.hello.clone() };
        let timeouts = Timeouts { join: Duration::from_millis(JOIN), silence: Duration::from_millis(SILENCE) };
        let grow_after = (is_first && self.choices.below(2) == 0).then_some(Duration::from_secs(3));
        let elastic = Elastic { settle: Duration::from_secs(2), grow_after };
        let has_probes = self.choices.is_random();
        let coordinator = || {
            let coordinator = Coordinator::new(Hello { node: 0, ..hello }, timeouts, now).with_elastic(elastic);
            if has_probes { coordinator.with_probes(None) } else { coordinator }
        };
        self.hosts[host].launcher = Some(Launcher {
            life,
            coordinator: is_first.then(coordinator),
            connection: 0,
            heard: self.now,
            dials_until: self.now + JOIN,
            follower: Follower::default(),
            attempt: None,
            result: None,
            worker: None,
            budget: self.budget.clone(),
            resume: !self.folder.files.is_empty(),
            generation: None,
            held: 0,
        });
        self.at(self.now + TICK, What::Tick(host, life));
        match is_first {
            true => self.begin(host),
            false => self.dial(host),
        }
    }

    fn dial(&mut self, host: usize) {
        let leader = self.leader;
        let life = self.launcher(host).life;
        if self.now >= self.launcher(host).dials_until {
            return self.end(host, exit::ENVIRONMENT);
        }
        let is_there = self.hosts[leader].launcher.as_ref().is_some_and(|one| one.coordinator.is_some());
        if leader == host || !is_there || self.hosts[leader].is_cut != self.hosts[host].is_cut {
            return self.at(self.now + 1000, What::Dial(host, life));
        }
        let to_life = self.launcher(leader).life;
        self.connections.push(Connection { host, life, to: leader, to_life, last: [0; 2] });
        let id = self.connections.len() as u64;
        let hello = Hello { node: self.number_of(host), ..self.hello.clone() };
        let at = self.arrives(id, 0);
        let (address, local_address) = (String::new(), String::new());
        self.at(at, What::ToCoordinator(id, coordinator::Event::Hello { hello, address, local_address }));
        (self.launcher(host).connection, self.launcher(host).heard) = (id, self.now);
        // The answer does not come: it dials again, and the first connection ends later.
        if self.hello.min_nodes.is_some() && self.choices.is_random() && self.choices.below(16) == 0 {
            self.launcher(host).connection = 0;
            let at = self.arrives(id, 0) + self.delay() * 20;
            self.at(at, What::ToCoordinator(id, coordinator::Event::Closed("given up".into())));
            self.at(self.now + 1000, What::Dial(host, life));
        }
    }

    /// Ranks of nodes in a job with all its nodes: that of node 0 changes places with the host that is node 0.
    fn number_of(&self, host: usize) -> usize {
        if host == 0 { self.leader } else { host }
    }

    fn begin(&mut self, host: usize) {
        let (newest, leader) = (self.folder.generation, host);
        let launcher = self.launcher(host);
        let (life, budget, resume) = (launcher.life, launcher.budget.clone(), launcher.resume);
        if launcher.coordinator.is_none() {
            return self.send(host, ToCoordinator::Ready { lead: None });
        }
        let Some(next) = generation::after(newest, launcher.generation) else { return self.end(host, exit::USAGE) };
        launcher.generation = Some(next);
        self.folder.generation = next;
        assert_eq!(self.taken.insert(next, (leader, life)), None, "generation {next} was taken twice");
        let lead = Some(Lead { port: 4000, wanted: Wanted { resume, generation: Some(next), budget } });
        self.send(host, ToCoordinator::Ready { lead });
    }

    /// The launcher ends; what has started it starts it again, unless the job is done.
    fn end(&mut self, host: usize, code: i32) {
        if code == exit::SUCCESS {
            assert!(self.folder.files.contains_key(&STEPS), "the job ends without its last checkpoint");
            self.is_done = true;
        }
        if self.launcher(host).coordinator.is_some() && code != exit::STOPPED {
            let broken = ToCoordinator::Broken { code, message: "it ends".into() };
            self.tell_coordinator(host, LOCAL, coordinator::Event::Message(broken));
        }
        self.remove(host, true);
        let pause = 1000 + self.up_to(3000);
        self.at(self.now + pause, What::Launch(host));
    }

    /// The launcher is gone, with its worker; other hosts notice if its connections end with it.
    fn remove(&mut self, host: usize, closes: bool) {
        let Some(launcher) = self.hosts[host].launcher.take() else { return };
        for id in 1..=self.connections.len() as u64 {
            let connection = &self.connections[id as usize - 1];
            if closes && (connection.host, connection.life) == (host, launcher.life) {
                let at = self.arrives(id, 0);
                self.at(at, What::ToCoordinator(id, coordinator::Event::Closed("ended".into())));
            } else if closes && (connection.to, connection.to_life) == (host, launcher.life) {
                let at = self.arrives(id, 1);
                self.at(at, What::ToNode(id, ToNode::Lost("ended".into())));
            }
        }
    }

    fn tick(&mut self, host: usize) {
        let (now, clock) = (self.now, self.clock(host));
        let launcher = self.launcher(host);
        let life = launcher.life;
        if let Some(coordinator) = &mut launcher.coordinator {
            let actions = coordinator.on_tick(clock);
            self.execute_of_coordinator(host, actions);
        } else if launcher.connection > 0 {
            if now - launcher.heard > SILENCE {
                self.hear(host, ToNode::Lost("silent".into()));
            } else {
                self.send(host, ToCoordinator::Heartbeat { workers: Vec::new() });
            }
        }
        if !self.is_alive(host, life) {
            return;
        }
        if let Some(attempt) = &mut self.launcher(host).attempt {
            let actions = attempt.on_tick(clock);
            self.execute(host, actions);
        }
        self.at(self.now + TICK, What::Tick(host, life));
    }

    /// A message of the coordinator reaches a node.
    fn hear(&mut self, host: usize, message: ToNode) {
        // Now and then a probe is not answered.
        match message {
            ToNode::PrepareProbe { .. } | ToNode::RunProbe { .. } if self.choices.below(16) == 0 => return,
            ToNode::PrepareProbe { probe } => {
                return self.send(host, ToCoordinator::ProbePrepared { probe, address: None });
            }
            ToNode::RunProbe { probe, .. } => {
                return self.send(host, ToCoordinator::Probed { probe, received: Vec::new() });
            }
            _ => {}
        }
        let clock = self.clock(host);
        let launcher = self.launcher(host);
        if let Some(attempt) = &mut launcher.attempt {
            let actions = launcher.follower.deliver(message, attempt, clock);
            return self.execute(host, actions);
        }
        if let Some(result) = &launcher.result {
            if let Some(result) = launcher.follower.result_of_all(message, &result.clone(), "node 0") {
                self.finish(host, result);
            }
            return;
        }
        match message {
            ToNode::Welcome { .. } => self.begin(host),
            ToNode::Start(start) => self.start(host, *start),
            ToNode::Refused { code: exit::WORKER_LOST, .. } | ToNode::Lost(_) => self.end(host, exit::STOPPED),
            ToNode::Refused { code, .. } => self.end(host, code),
            ToNode::Stop(_) => self.end(host, exit::STOPPED),
            _ => {}
        }
    }

    fn start(&mut self, host: usize, start: StartAttempt) {
        let clock = self.clock(host);
        let generation = start.lead.wanted.generation.unwrap();
        let launcher = self.launcher(host);
        let life = launcher.life;
        launcher.follower.begin(start.attempt);
        (launcher.budget, launcher.resume) = (start.lead.wanted.budget, start.lead.wanted.resume);
        launcher.attempt = Some(Attempt::new(&[start.first_rank], true, Duration::from_secs(30), LIMITS, clock));
        launcher.worker = Some(Worker {
            generation,
            rank: start.first_rank,
            done: 0,
            is_training: false,
            is_broken: false,
            ends: false,
            stop: false,
            at_checkpoint: false,
        });
        let group = self.groups.entry(generation).or_default();
        (group.world, group.resume) = (start.world_size, start.lead.wanted.resume);
        let twin = group.ranks.insert(start.first_rank, (host, life));
        assert_eq!(twin, None, "generation {generation} has two nodes with rank {}", start.first_rank);
        // They meet only if none is gone again.
        let ranks: Vec<(usize, u64)> = group.ranks.values().copied().collect();
        let is_here = |&(host, life): &(usize, u64)| {
            let launcher = self.hosts[host].launcher.as_ref().filter(|launcher| launcher.life == life);
            let worker = launcher.and_then(|launcher| launcher.worker.as_ref());
            worker.is_some_and(|worker| worker.generation == generation && !worker.is_broken && !worker.ends)
        };
        if ranks.len() == start.world_size && ranks.iter().all(is_here) {
            self.start_training(generation);
        }
    }

    fn start_training(&mut self, generation: u64) {
        let group = &self.groups[&generation];
        let newest = self.folder.files.keys().next_back().copied().unwrap_or(0);
        let from = if group.resume { newest } else { 0 };
        for (host, life) in group.ranks.values().copied().collect::<Vec<_>>() {
            if !self.is_alive(host, life) {
                continue;
            }
            let launcher = self.launcher(host);
            let held = launcher.held;
            assert!(from >= held, "generation {generation} goes back to step {from}, host {host} has completed {held}");
            if let Some(worker) = launcher.worker.as_mut().filter(|worker| !worker.is_broken && !worker.ends) {
                (worker.done, worker.is_training) = (from, true);
                self.report(host, Event::Message(FromWorker::Heartbeat(status(from))));
            }
        }
        self.groups.entry(generation).or_default().step = from;
        self.at(self.now + STEP, What::Step(generation));
    }

    /// All ranks of a generation complete a step, if all of them can.
    fn step(&mut self, generation: u64) {
        let Some(group) = self.groups.get(&generation) else { return };
        let ranks: Vec<(usize, u64)> = group.ranks.values().copied().collect();
        // A job that resumes from its last checkpoint has nothing left to train.
        let step = (group.step + 1).min(STEPS);
        let (mut stop, mut at_checkpoint) = (false, false);
        for &(host, life) in &ranks {
            let Some(launcher) = self.hosts[host].launcher.as_ref().filter(|one| one.life == life) else { return };
            let Some(worker) = launcher.worker.as_ref() else { return };
            if worker.generation != generation || worker.is_broken || worker.ends || !worker.is_training {
                return;
            }
            stop |= worker.stop;
            at_checkpoint |= worker.at_checkpoint;
        }
        if ranks.iter().any(|&(host, _)| self.hosts[host].is_cut != self.hosts[ranks[0].0].is_cut) {
            return self.at(self.now + STEP, What::Step(generation));
        }
        let ends = match step {
            STEPS => Some(exit::SUCCESS),
            _ if stop || at_checkpoint && step.is_multiple_of(INTERVAL) => Some(exit::STOPPED),
            _ => None,
        };
        if let Some(group) = self.groups.get_mut(&generation) {
            (group.step, group.completed) = (step, 0);
        }
        for (host, life) in ranks {
            let at = self.now + self.up_to(300);
            self.at(at, What::Worker(host, life, generation, OfWorker::Completed(step, ends)));
        }
    }

    fn worker(&mut self, host: usize, generation: u64, event: OfWorker) {
        let now = self.now;
        let launcher = self.launcher(host);
        let life = launcher.life;
        let Some(worker) = launcher.worker.as_mut().filter(|worker| worker.generation == generation) else { return };
        match event {
            OfWorker::Completed(step, ends) if !worker.is_broken && !worker.ends => {
                worker.done = step;
                let rank = worker.rank;
                launcher.held = launcher.held.max(step);
                self.report(host, Event::Message(FromWorker::Heartbeat(status(step))));
                if rank == 0 && (step.is_multiple_of(INTERVAL) || ends.is_some()) {
                    let saved = OfWorker::Saved { step, exit: None, ends: ends.is_some() };
                    let at = now + 100 + self.up_to(400);
                    self.at(at, What::Worker(host, life, generation, saved));
                }
                let group = self.groups.entry(generation).or_default();
                group.completed += 1;
                if group.completed == group.world && ends.is_none() {
                    self.at(now + STEP, What::Step(generation));
                }
            }
            OfWorker::Completed(..) => {}
            OfWorker::Saved { step, exit: code, ends } if !worker.ends => {
                let is_saved = self.write(generation, step);
                match is_saved {
                    true => self.report(host, Event::Message(FromWorker::Saved { path: "a".into(), step })),
                    // It was cut off.
                    false => return self.exits(host, generation, ProcessExit::Code(exit::WORKER_LOST)),
                }
                if let Some(code) = code {
                    self.exits(host, generation, ProcessExit::Code(code));
                }
                // All ranks wait for the file before they exit.
                let group = &self.groups[&generation];
                if ends && group.completed == group.world {
                    let code = if step == STEPS { exit::SUCCESS } else { exit::STOPPED };
                    for (host, life) in group.ranks.values().copied().collect::<Vec<_>>() {
                        let at = now + self.up_to(200);
                        let exits = OfWorker::Exits(ProcessExit::Code(code));
                        self.at(at, What::Worker(host, life, generation, exits));
                    }
                } else if ends {
                    let again = OfWorker::Saved { step, exit: None, ends: true };
                    self.at(now + 200, What::Worker(host, life, generation, again));
                }
            }
            OfWorker::Saved { .. } => {}
            OfWorker::Exits(ProcessExit::Code(_)) if worker.is_broken => {}
            OfWorker::Exits(exit) => self.exits(host, generation, exit),
            OfWorker::Told(message) if !worker.ends => match message {
                ToWorker::Stop { .. } if worker.is_training => worker.stop = true,
                ToWorker::Stop { .. } => self.exits(host, generation, ProcessExit::Code(exit::STOPPED)),
                ToWorker::StopAtCheckpoint => worker.at_checkpoint = true,
                ToWorker::PeerLost { .. } | ToWorker::BreakOff if !worker.is_broken => {
                    worker.is_broken = true;
                    let (step, is_training) = (worker.done, worker.is_training);
                    let (kind, message) = (FailureKind::PeerLost, "gone".to_owned());
                    let failure = Failure { kind, message, backtrace: None, at: None };
                    self.report(host, Event::Message(FromWorker::Failed(failure)));
                    let saving = WorkerStatus { phase: Phase::Checkpoint, ..status(step) };
                    self.report(host, Event::Message(FromWorker::Heartbeat(saving)));
                    match is_training && step > 0 {
                        true => self.report(host, Event::Message(FromWorker::StateReady { step })),
                        false => self.exits(host, generation, ProcessExit::Code(exit::WORKER_LOST)),
                    }
                }
                ToWorker::EmergencyCheckpoint => {
                    let saved = OfWorker::Saved { step: worker.done, exit: Some(exit::WORKER_LOST), ends: false };
                    let at = now + 50 + self.up_to(500);
                    self.at(at, What::Worker(host, life, generation, saved));
                }
                _ => {}
            },
            OfWorker::Told(_) => {}
        }
    }

    fn exits(&mut self, host: usize, generation: u64, exit: ProcessExit) {
        let Some(launcher) = &mut self.hosts[host].launcher else { return };
        match launcher.worker.as_mut().filter(|worker| worker.generation == generation && !worker.ends) {
            Some(worker) => worker.ends = true,
            None => return,
        }
        self.report(host, Event::Exited(WorkerExit { exit, tail: Vec::new(), out_of_memory: None, status: None }));
    }

    /// A checkpoint gets its name.
    fn write(&mut self, generation: u64, step: u64) -> bool {
        let folder = &mut self.folder;
        if !generation::may_write(folder.generation, generation) {
            return false;
        }
        let newest = folder.files.values().max().copied().unwrap_or(0);
        assert!(newest <= generation, "generation {generation} writes step {step} after generation {newest}");
        folder.files.insert(step, generation);
        true
    }

    /// Something happens to the worker of a host.
    fn report(&mut self, host: usize, event: Event) {
        let clock = self.clock(host);
        let Some(attempt) = self.hosts[host].launcher.as_mut().and_then(|one| one.attempt.as_mut()) else { return };
        let actions = attempt.on_event(0, event, clock);
        self.execute(host, actions);
    }

    /// Executes what an attempt asks for, and tells the coordinator what it has to know.
    fn execute(&mut self, host: usize, actions: Vec<Action>) {
        let (life, clock) = (self.launcher(host).life, self.clock(host));
        let generation = self.launcher(host).worker.as_ref().map_or(0, |worker| worker.generation);
        for action in actions {
            let told = match action {
                Action::Send(_, message) => OfWorker::Told(message),
                Action::Kill(_) => OfWorker::Exits(ProcessExit::Signal(9)),
                _ => continue,
            };
            let at = self.now + if self.choices.is_random() { self.choices.below(20) } else { 0 };
            self.at(at, What::Worker(host, life, generation, told));
        }
        let launcher = self.launcher(host);
        let Some(attempt) = &launcher.attempt else { return };
        let messages = launcher.follower.report(attempt);
        let ended = attempt.result(clock);
        messages.into_iter().for_each(|message| self.send(host, message));
        if let Some(result) = ended {
            let launcher = self.launcher(host);
            launcher.attempt = None;
            let ended = launcher.follower.ended(&result);
            self.send(host, ended);
            match self.launcher(host).follower.result_alone(&result, "node 0") {
                Some(result) => self.finish(host, result),
                None => self.launcher(host).result = Some(result),
            }
        }
    }

    /// What the supervisor does with the result of an attempt.
    fn finish(&mut self, host: usize, result: AttemptResult) {
        let (now, is_saved) = (self.now, !self.folder.files.is_empty());
        let launcher = self.launcher(host);
        (launcher.result, launcher.worker) = (None, None);
        let life = launcher.life;
        let cause = match &result.end {
            AttemptEnd::Done => return self.end(host, exit::SUCCESS),
            AttemptEnd::Stopped { .. } if result.goes_on => {
                launcher.budget.note(&result);
                launcher.resume = is_saved;
                return self.at(now, What::Begin(host, life));
            }
            AttemptEnd::Stopped { .. } => return self.end(host, exit::STOPPED),
            AttemptEnd::Failed { cause, .. } => cause,
        };
        match launcher.budget.decide(true, true, &result, cause) {
            Decision::GiveUp { code, .. } => self.end(host, code),
            Decision::Restart { pause, .. } => {
                launcher.resume = is_saved;
                let pause = u64::try_from(pause.as_millis()).unwrap();
                self.at(now + pause, What::Begin(host, life));
            }
        }
    }

    fn fault(&mut self) {
        let count = self.hosts.len() as u64;
        let host = self.choices.below(count) as usize;
        let kind = self.choices.below(if self.choices.is_random() { 8 } else { 3 });
        let life = self.hosts[host].launcher.as_ref().map(|launcher| launcher.life);
        match (kind, life) {
            // SIGKILL to a launcher.
            (0, Some(_)) => {
                self.remove(host, true);
                self.at(self.now + 3000, What::Launch(host));
            }
            // SIGKILL to a worker.
            (1, Some(life)) => {
                let launcher = self.launcher(host);
                if let Some(worker) = &mut launcher.worker {
                    // What it has completed is lost with it.
                    (worker.is_broken, launcher.held) = (true, 0);
                    let generation = worker.generation;
                    let killed = OfWorker::Exits(ProcessExit::Signal(9));
                    self.at(self.now, What::Worker(host, life, generation, killed));
                }
            }
            // The machine fails: nobody is notified.
            (2 | 3, _) => {
                self.remove(host, false);
                self.hosts[host].is_down = self.choices.below(2) == 0;
                self.at(self.now + 4000, What::Launch(host));
            }
            // Some hosts are cut off from the others, for a while.
            (4, _) if self.now >= self.heals_at => {
                for host in 0..self.hosts.len() {
                    self.hosts[host].is_cut = self.choices.below(3) == 0;
                }
                self.heals_at = self.now + 500 + self.choices.below(20_000);
                self.at(self.heals_at, What::Fault);
                self.faults += 1;
            }
            // A launcher is suspended, and its worker with it.
            (5, Some(_)) => self.hosts[host].paused_until = self.now + self.choices.below(15_000),
            (6, _) => self.hosts[host].ahead += self.choices.below(100_000),
            (7, Some(_)) => {
                let clock = self.clock(host);
                let launcher = self.launcher(host);
                if let Some(attempt) = &mut launcher.attempt {
                    let stop = launcher.follower.stop(StopReason::Terminated, false);
                    let actions = attempt.on_stop(StopReason::Terminated, false, clock);
                    self.send(host, stop);
                    self.execute(host, actions);
                }
            }
            _ => {}
        }
        if self.now >= self.heals_at {
            self.hosts.iter_mut().for_each(|host| host.is_cut = false);
        }
        self.faults = self.faults.saturating_sub(1);
        if self.faults == 0 {
            self.hosts.iter_mut().for_each(|host| host.is_down = false);
        }
    }
}

fn status(step: u64) -> WorkerStatus {
    WorkerStatus { phase: Phase::Data, epoch: 1, step, ..WorkerStatus::default() }
}

fn template() -> (Hello, RestartBudget) {
    let ToCoordinator::Ready { lead: Some(lead) } = lead(false) else { panic!("no budget") };
    (hello(0, 1), lead.wanted.budget)
}

/// Runs one schedule. A failure prints the line that runs it again.
fn run_seed(seed: u64, template: &(Hello, RestartBudget)) -> u64 {
    struct Replay(u64);
    impl Drop for Replay {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!(
                    "replay: FNET_SIM_SEED={} cargo test --release --workspace random_schedules_of_the_nodes",
                    self.0
                );
            }
        }
    }
    let _replay = Replay(seed);
    Simulation::new(Choices::Random(seed), template).run().0
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn random_schedules_of_the_nodes_keep_what_is_promised() {
    let template = template();
    if let Some(seed) = number("FNET_SIM_SEED") {
        run_seed(seed, &template);
        return;
    }
    let (count, started) = (number("FNET_SIM_SCHEDULES").unwrap_or(10_000), Instant::now());
    let events: u64 = (0..count).map(|seed| run_seed(seed, &template)).sum();
    println!("{count} schedules, {events} events, {:.1} s", started.elapsed().as_secs_f64());
}

#[test]
fn all_schedules_of_a_small_case_keep_what_is_promised() {
    let template = template();
    let depth = number("FNET_SIM_DEPTH").map_or(11, |depth| usize::try_from(depth).unwrap());
    let (mut chosen, mut count) = (Vec::new(), 0);
    loop {
        let choices = Choices::All { chosen, next: 0, depth };
        let (_, choices) = Simulation::new(choices, &template).run();
        let Choices::All { chosen: tried, .. } = choices else { panic!("other choices") };
        (chosen, count) = (tried, count + 1);
        if !Choices::advance(&mut chosen) {
            break;
        }
    }
    println!("{count} schedules");
}
