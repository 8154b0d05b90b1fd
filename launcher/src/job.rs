//! One attempt to run a job, as a state machine: events in, actions out, no I/O.

use std::time::{Duration, Instant};

use fnet_protocol::exit;
use fnet_protocol::message::{Failure, FailureKind, FromWorker, Heartbeat, Progress, StopReason, ToWorker};

use crate::cause::{self, Cause, Ending, Evidence, Finding};
use crate::hang::{Limits, Seen};

/// Time that the other workers have to end by themselves after one has failed.
const SETTLE: Duration = Duration::from_secs(2);
/// Time between looks for hanging workers.
const TICK: Duration = Duration::from_secs(1);
/// A gap between looks that shows that the launcher itself was stopped, or had no processor.
const STALL: Duration = Duration::from_secs(3);

/// What happens to a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A worker says something.
    Message(FromWorker),
    /// What a worker's page tells at this moment.
    State(Heartbeat),
    /// What the system knows of a worker that hangs.
    Inspected(String),
    /// A worker has ended; all it said has been delivered.
    Ended(Death),
}

/// The end of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death {
    /// How.
    pub ending: Ending,
    /// The last lines of its stderr.
    pub tail: Vec<String>,
    /// What the kernel says, if it may have killed it for memory.
    pub memory: Option<String>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send a message to worker `.0`.
    Tell(usize, ToWorker),
    /// Send SIGTERM to worker `.0`.
    Terminate(usize),
    /// Send SIGKILL to the process group of worker `.0`.
    Kill(usize),
    /// Ask the system about worker `.0`, which hangs.
    Inspect(usize),
    /// Print for people.
    Say(String),
    /// Show progress, with the rank that the others wait for longest and for how many seconds of a step.
    Progress(Progress, Option<(usize, f64)>),
    /// Print a worker's note as it stands.
    Note(String),
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Every worker finished.
    Done,
    /// Stopped on request; `saved` says whether every worker ended by itself.
    Stopped {
        /// Why.
        reason: StopReason,
        /// Whether every worker came to the point of saving.
        saved: bool,
    },
    /// A worker failed.
    Failed(Box<Cause>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    Running,
    /// Workers were asked to save and stop.
    Stopping {
        reason: StopReason,
        kill_at: Instant,
        killed: bool,
    },
    /// A worker has failed; the others end or are ended.
    Failing {
        kill_at: Instant,
        killed: bool,
    },
}

struct Worker {
    rank: usize,
    heard: Option<Instant>,
    beat: Option<(Heartbeat, Instant)>,
    ending: Option<Ending>,
    failed_as: Option<usize>,
    failure: Option<Failure>,
    finding: Option<Finding>,
    ended_by_us: bool,
    stack: Option<String>,
    tail: Vec<String>,
    /// Seconds of a step that it waits for the others, smoothed.
    waits: Option<f64>,
    /// Steps in the state that it holds since the job has broken off.
    holds: Option<u64>,
    /// It was chosen to write that state.
    rescues: bool,
}

impl Worker {
    /// Whether a request to stop explains its failure: it misses a rank that ended before it, or the signal that a batch
    /// system sends to every process ended it while it was not listening yet.
    fn fell_to_a_stop(&self) -> bool {
        const SIGINT: i32 = 2;
        const SIGUSR1: i32 = 10;
        const SIGTERM: i32 = 15;
        match &self.failure {
            _ if self.finding.is_some() => false,
            Some(failure) => failure.kind == FailureKind::PeerLost,
            None => matches!(self.ending, Some(Ending::Signal(SIGINT | SIGUSR1 | SIGTERM))),
        }
    }
}

/// The state of one attempt.
pub struct Job {
    workers: Vec<Worker>,
    stage: Stage,
    started: Instant,
    last_tick: Instant,
    /// No worker is judged before this time.
    judge_from: Instant,
    failures: usize,
    was_ready: bool,
    stop: Option<StopReason>,
    grace: Duration,
    limits: Limits,
    /// What is known of the workers of other nodes, and since when.
    others: (Vec<Seen>, Instant),
    /// Whether its workers can write the state that they hold when the job breaks off.
    is_train: bool,
    /// When the job broke off.
    broken: Option<Instant>,
    /// It was told what the launcher waits for since.
    told: bool,
    /// That state is on the disk.
    rescued: bool,
    /// Steps in the newest checkpoint that was written.
    saved_step: Option<u64>,
}

impl Job {
    /// A job whose workers, of these ranks, have just been started.
    pub fn new(ranks: &[usize], is_train: bool, grace: Duration, limits: Limits, now: Instant) -> Self {
        let worker = |&rank| Worker {
            rank,
            heard: None,
            beat: None,
            ending: None,
            failed_as: None,
            failure: None,
            finding: None,
            ended_by_us: false,
            stack: None,
            tail: Vec::new(),
            waits: None,
            holds: None,
            rescues: false,
        };
        Self {
            workers: ranks.iter().map(worker).collect(),
            stage: Stage::Running,
            started: now,
            last_tick: now,
            judge_from: now,
            failures: 0,
            was_ready: false,
            stop: None,
            grace,
            limits,
            others: (Vec::new(), now),
            is_train,
            broken: None,
            told: false,
            rescued: false,
            saved_step: None,
        }
    }

    /// What is known of the workers of other nodes.
    pub fn hear_of_others(&mut self, seen: Vec<Seen>, now: Instant) {
        self.others = (seen, now);
    }

    /// A rank has failed, here or on another node, or its node is lost: the workers here are told, once, that they cannot go
    /// on without it.
    pub fn peer_failed(&mut self, rank: usize, now: Instant) -> Vec<Action> {
        let is_first = self.broken.is_none();
        self.broken.get_or_insert(now);
        match self.stage {
            Stage::Running => self.stage = Stage::Failing { kill_at: now + SETTLE, killed: false },
            // The grace period stands: another rank may be saving. What waits for this one shall not.
            Stage::Stopping { killed: false, .. } if is_first => {}
            Stage::Stopping { .. } | Stage::Failing { .. } => return Vec::new(),
        }
        let others = self.running().filter(|&index| self.workers[index].rank != rank);
        others.map(|index| Action::Tell(index, ToWorker::PeerLost { rank })).collect()
    }

    /// The first rank here that has failed.
    pub fn failed_rank(&self) -> Option<usize> {
        self.workers.iter().find(|worker| worker.failed_as == Some(0)).map(|worker| worker.rank)
    }

    /// Whether all that failed here only lost another rank.
    pub fn only_echoes(&self) -> bool {
        self.evidence().iter().filter(|one| one.failed_as.is_some()).all(cause::is_echo)
    }

    /// Why a stop was requested, if it was.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.stop
    }

    /// Whether any worker had begun its work.
    pub fn was_ready(&self) -> bool {
        self.was_ready
    }

    /// Steps in the newest checkpoint that this attempt has written, or found to hold all that was done.
    pub fn saved_step(&self) -> Option<u64> {
        self.saved_step
    }

    /// Whether a stop was requested.
    pub fn stop_requested(&self) -> bool {
        self.stop.is_some()
    }

    /// When [`Job::tick`] is next due.
    pub fn next_tick(&self) -> Instant {
        let kill_at = match self.stage {
            Stage::Stopping { kill_at, killed: false, .. } | Stage::Failing { kill_at, killed: false } => Some(kill_at),
            _ => None,
        };
        let tick = self.last_tick + TICK;
        kill_at.map_or(tick, |kill_at| kill_at.min(tick))
    }

    /// Something happened to worker `index`.
    pub fn on(&mut self, index: usize, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::Message(message) => self.on_message(index, message, now),
            Event::State(beat) => {
                self.sign_of_life(index, &beat, now);
                self.observe(index, beat, now);
                Vec::new()
            }
            Event::Inspected(facts) => {
                if let Some(Finding::Hang(text)) =
                    self.workers.get_mut(index).and_then(|worker| worker.finding.as_mut())
                {
                    *text += &format!("; {facts}");
                }
                Vec::new()
            }
            Event::Ended(death) => self.on_ended(index, death, now),
        }
    }

    fn on_message(&mut self, index: usize, message: FromWorker, now: Instant) -> Vec<Action> {
        let Some(worker) = self.workers.get_mut(index) else { return Vec::new() };
        worker.heard = Some(now);
        match message {
            FromWorker::Heartbeat(beat) => {
                self.observe(index, beat, now);
                Vec::new()
            }
            FromWorker::Progress(progress) => {
                if let Some(waited) = progress.waited_seconds {
                    worker.waits = Some(worker.waits.map_or(waited, |before| 0.8 * before + 0.2 * waited));
                }
                let beat = Heartbeat {
                    phase: progress.phase,
                    epoch: progress.epoch,
                    step: progress.step,
                    ..Heartbeat::default()
                };
                self.observe(index, beat, now);
                if index == 0 { vec![Action::Progress(progress, self.slowest())] } else { Vec::new() }
            }
            FromWorker::Stack { text } => {
                worker.stack = Some(text);
                Vec::new()
            }
            FromWorker::Failed(failure) => {
                if worker.failure.is_none() {
                    worker.failure = Some(failure);
                }
                self.fail(index, now)
            }
            FromWorker::Saved { step, .. } => self.on_saved(index, step, now),
            FromWorker::Holds { step } => {
                worker.holds = Some(step);
                self.see_to_rescue(now)
            }
            FromWorker::Note { text } => vec![Action::Note(text)],
            FromWorker::Hello { .. } | FromWorker::Done | FromWorker::Unknown => Vec::new(),
        }
    }

    /// A worker that has just got on lives, even if a launcher with little processor time has not read its messages yet.
    fn sign_of_life(&mut self, index: usize, state: &Heartbeat, now: Instant) {
        let headway = Duration::try_from_secs_f64(state.idle_seconds).ok().and_then(|idle| now.checked_sub(idle));
        if let Some(worker) = self.workers.get_mut(index) {
            worker.heard = worker.heard.max(headway);
        }
    }

    fn observe(&mut self, index: usize, beat: Heartbeat, now: Instant) {
        let Some(worker) = self.workers.get_mut(index) else { return };
        self.was_ready |= beat.phase.is_ready();
        // The page does not tell what its threads are busy with; heartbeats do.
        let activity = beat.activity.clone().or_else(|| worker.beat.as_ref().and_then(|(old, _)| old.activity.clone()));
        let activity = activity.filter(|_| beat.activity.is_some() || beat.idle_seconds > 1.0);
        worker.beat = Some((Heartbeat { activity, ..beat }, now));
    }

    fn on_ended(&mut self, index: usize, death: Death, now: Instant) -> Vec<Action> {
        let mut actions = self.judge_end(index, death, now);
        actions.extend(self.see_to_rescue(now));
        actions
    }

    fn judge_end(&mut self, index: usize, death: Death, now: Instant) -> Vec<Action> {
        let Some(worker) = self.workers.get_mut(index) else { return Vec::new() };
        let ending = death.ending;
        worker.ending = Some(ending);
        worker.tail = death.tail;
        if let (Some(text), false, None) = (death.memory, worker.ended_by_us, &worker.finding) {
            worker.finding = Some(Finding::OutOfMemory(text));
        }
        match ending {
            Ending::Code(exit::SUCCESS) if worker.heard.is_none() && worker.failure.is_none() => {
                let message = "ended with code 0 before it had begun: FNET_WORKER, or the fnet-worker beside fnet-launch, is \
                               not the worker of this version; run `fnet-launch doctor`";
                let kind = FailureKind::Environment;
                worker.failure = Some(Failure { kind, message: message.to_owned(), backtrace: None, at: None });
                self.fail(index, now)
            }
            Ending::Code(exit::SUCCESS) => Vec::new(),
            Ending::Code(code @ (exit::STOPPED | exit::INTERRUPTED)) => {
                let reason = if code == exit::INTERRUPTED { StopReason::Interrupted } else { StopReason::Terminated };
                // Its own doing: a batch system may signal workers directly, and they agree to stop.
                if self.stage == Stage::Running { self.begin_stop(reason, now) } else { Vec::new() }
            }
            _ if worker.ended_by_us => Vec::new(),
            // The SIGTERM that comes with a request to stop ends a worker that was not listening yet.
            Ending::Signal(15) if matches!(self.stage, Stage::Stopping { .. }) => {
                worker.ended_by_us = true;
                Vec::new()
            }
            _ => self.fail(index, now),
        }
    }

    /// Worker `index` has failed. The first failure tells the others, and gives them a moment.
    fn fail(&mut self, index: usize, now: Instant) -> Vec<Action> {
        let Some(worker) = self.workers.get_mut(index) else { return Vec::new() };
        if worker.failed_as.is_none() {
            worker.failed_as = Some(self.failures);
            self.failures += 1;
        }
        let rank = worker.rank;
        self.peer_failed(rank, now)
    }

    /// The user or the system asks to stop. A second Ctrl-C stops at once.
    pub fn stop(&mut self, reason: StopReason, now: Instant) -> Vec<Action> {
        let again = self.stop.is_some();
        self.stop.get_or_insert(reason);
        match self.stage {
            Stage::Running => self.begin_stop(reason, now),
            Stage::Stopping { .. } | Stage::Failing { .. } if again && reason == StopReason::Interrupted => {
                let mut actions = vec![Action::Say("stopping now".to_owned())];
                actions.extend(self.kill_all());
                actions
            }
            Stage::Stopping { .. } | Stage::Failing { .. } => Vec::new(),
        }
    }

    fn begin_stop(&mut self, reason: StopReason, now: Instant) -> Vec<Action> {
        self.stop.get_or_insert(reason);
        self.stage = Stage::Stopping { reason, kill_at: now + self.grace, killed: false };
        let more = if reason == StopReason::Interrupted { "; Ctrl-C again stops at once" } else { "" };
        let text = format!("saving and stopping ({} s at most){more}", self.grace.as_secs_f64());
        let mut actions = vec![Action::Say(text)];
        for index in self.running() {
            // The message first: it says why, and a signal does not.
            actions.push(Action::Tell(index, ToWorker::Stop { reason }));
            actions.push(Action::Terminate(index));
        }
        actions
    }

    fn kill_all(&mut self) -> Vec<Action> {
        match &mut self.stage {
            Stage::Stopping { killed, .. } | Stage::Failing { killed, .. } => *killed = true,
            Stage::Running => {}
        }
        let running = self.running().collect();
        self.kill(running)
    }

    fn running(&self) -> impl Iterator<Item = usize> + use<'_> {
        self.workers.iter().enumerate().filter(|(_, worker)| worker.ending.is_none()).map(|(index, _)| index)
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant) -> Vec<Action> {
        let gap = now.duration_since(self.last_tick);
        if gap > STALL {
            // The launcher was stopped, and perhaps the workers with it: nothing was heard for that reason.
            self.started += gap;
            self.judge_from = now + self.limits.silence.min(self.limits.step);
            for worker in &mut self.workers {
                worker.heard = worker.heard.map(|_| now);
            }
        }
        self.last_tick = now;
        match self.stage {
            Stage::Running => self.look_for_hangs(now),
            Stage::Stopping { reason, kill_at, killed: false } if now >= kill_at => {
                if self.is_saving(now) {
                    self.stage = Stage::Stopping { reason, kill_at: now + self.grace.max(TICK), killed: false };
                    return vec![Action::Say("a checkpoint is still being written; waiting for it".to_owned())];
                }
                let seconds = self.grace.as_secs_f64();
                let mut actions =
                    vec![Action::Say(format!("not stopped within {seconds} s (--grace): ending the workers"))];
                actions.extend(self.kill_all());
                actions
            }
            Stage::Failing { kill_at, killed: false } if now >= kill_at => self.kill_unless_rescuing(now),
            Stage::Stopping { .. } | Stage::Failing { .. } => self.see_to_rescue(now),
        }
    }

    /// How the attempt ended, once every worker has.
    pub fn outcome(&self) -> Option<Outcome> {
        if self.running().next().is_some() {
            return None;
        }
        if let Some(cause) = cause::first(&self.evidence()) {
            let stopped = self.workers.iter().filter(|worker| worker.failed_as.is_some()).all(Worker::fell_to_a_stop);
            return Some(match self.stop {
                Some(reason) if stopped => Outcome::Stopped { reason, saved: false },
                _ => Outcome::Failed(Box::new(cause)),
            });
        }
        let all_done = self.workers.iter().all(|worker| worker.ending == Some(Ending::Code(exit::SUCCESS)));
        Some(match self.stop {
            Some(reason) if !all_done => {
                Outcome::Stopped { reason, saved: self.workers.iter().all(|worker| !worker.ended_by_us) }
            }
            _ => Outcome::Done,
        })
    }

    fn evidence(&self) -> Vec<Evidence> {
        self.workers
            .iter()
            .map(|worker| Evidence {
                rank: worker.rank,
                failed_as: worker.failed_as,
                ending: worker.ending,
                failure: worker.failure.clone(),
                finding: worker.finding.clone(),
                ended_by_us: worker.ended_by_us,
                beat: worker
                    .failure
                    .as_ref()
                    .and_then(|failure| failure.at.clone())
                    .or_else(|| worker.beat.as_ref().map(|(beat, _)| beat.clone())),
                stack: worker.stack.clone(),
                tail: worker.tail.clone(),
            })
            .collect()
    }
}

mod rescue;
#[cfg(test)]
mod rescue_tests;
#[cfg(test)]
mod tests;
mod watch;
