//! One attempt to run a job, as a state machine without I/O: events go in, actions come out.

pub mod cause;
pub mod hang;
pub mod restart;
pub mod result;
pub mod status;

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use fnet_protocol::exit;
use fnet_protocol::message::{Failure, FailureKind, FromWorker, Phase, Progress, StopReason, ToWorker, WorkerStatus};

use self::cause::{Diagnosis, Evidence, ProcessExit};
use self::hang::Limits;
use self::result::{AttemptEnd, AttemptResult};
use self::status::{JobStage, RankStatus, Usage};

/// Time for the other workers to exit by themselves after one has failed.
const PEER_EXIT_GRACE: Duration = Duration::from_secs(2);
/// Time for a killed worker to end; that of large ones takes many seconds.
pub const KILL_TIMEOUT: Duration = Duration::from_secs(60);
/// Interval of the checks for hanging workers.
const TICK: Duration = Duration::from_secs(1);
/// A gap between ticks that shows that the launcher itself was stopped, or had no CPU time.
const STALL: Duration = Duration::from_secs(3);

/// Something that happened to a worker.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// It sent a message.
    Message(FromWorker),
    /// The current status in its shared page.
    Status(WorkerStatus),
    /// What the kernel knows about it while it hangs.
    Inspected(String),
    /// It has exited; all its messages were delivered before.
    Exited(WorkerExit),
}

/// The exit of a worker.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerExit {
    /// Exit code or signal.
    pub exit: ProcessExit,
    /// The last lines of its stderr.
    pub tail: Vec<String>,
    /// The kernel's out-of-memory kill, if there was one.
    pub out_of_memory: Option<String>,
    /// The last status in its shared page; that of its last heartbeat may be a second older.
    pub status: Option<WorkerStatus>,
}

/// What the supervisor has to do; `.0` is the index of a worker.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send a message.
    Send(usize, ToWorker),
    /// Send SIGTERM.
    Terminate(usize),
    /// Send SIGKILL to the process group.
    Kill(usize),
    /// Ask the kernel about a worker that hangs.
    Inspect(usize),
    /// Print a line.
    Say(String),
    /// Show progress, with the slowest rank and for how many seconds of a step the others wait for it.
    Progress(Box<Progress>, Option<(usize, f64)>),
    /// Print a note of a worker verbatim.
    Note(String),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    Running,
    /// The workers were asked to save and stop.
    Stopping {
        reason: StopReason,
        /// When to abort the collectives of a step that takes too long; `None` once that is done.
        break_off_at: Option<Instant>,
        kill_at: Instant,
        killed: bool,
    },
    /// A worker has failed; the others exit or are killed.
    Failing {
        kill_at: Instant,
        killed: bool,
    },
}

#[derive(Default)]
struct Worker {
    evidence: Evidence,
    last_message: Option<Instant>,
    status: Option<(WorkerStatus, Instant)>,
    usage: Usage,
    /// Completed steps of the state that it can write since the job has failed.
    ready_step: Option<u64>,
    /// It was chosen to write the emergency checkpoint.
    is_chosen: bool,
}

impl Worker {
    fn new(rank: usize) -> Self {
        Self { evidence: Evidence { rank, ..Evidence::default() }, ..Self::default() }
    }

    fn is_running(&self) -> bool {
        self.evidence.exit.is_none()
    }

    /// Whether a request to stop explains its failure: it lost a rank that stopped before it, or the signal that a batch
    /// system sends to every process killed it before it handled signals.
    fn failed_by_stop(&self) -> bool {
        const SIGINT: i32 = 2;
        const SIGUSR1: i32 = 10;
        const SIGTERM: i32 = 15;
        match &self.evidence.failure {
            _ if self.evidence.diagnosis.is_some() => false,
            Some(failure) => failure.kind == FailureKind::PeerLost,
            None => matches!(self.evidence.exit, Some(ProcessExit::Signal(SIGINT | SIGUSR1 | SIGTERM))),
        }
    }
}

/// One attempt to run the workers of this node.
pub struct Attempt {
    workers: Vec<Worker>,
    stage: Stage,
    started: Instant,
    last_tick: Instant,
    /// No worker is judged before this time.
    judge_from: Instant,
    failures: usize,
    was_ready: bool,
    /// Why the workers stop.
    stop: Option<StopReason>,
    /// Whether the user or the system requested that.
    stop_requested: bool,
    /// Whether the attempt was asked to end for other nodes.
    regroup: bool,
    grace: Duration,
    limits: Limits,
    /// The workers of other nodes, and when that was received.
    remote: (Vec<RankStatus>, Instant),
    /// Whether the workers can write an emergency checkpoint.
    is_train: bool,
    /// Once a worker has failed or collectives were aborted: until when the others may report the state that they can save.
    ready_by: Option<Instant>,
    /// Completed steps of a state that another node has saved since then.
    peer_saved: Option<u64>,
    /// What the launcher waits for was reported.
    said_waiting: bool,
    /// The emergency checkpoint is on disk.
    emergency_saved: bool,
    saved_step: Option<u64>,
    /// When a worker was killed last.
    killed_at: Option<Instant>,
}

impl Attempt {
    /// An attempt whose workers, with these ranks, have just been started.
    pub fn new(ranks: &[usize], is_train: bool, grace: Duration, limits: Limits, now: Instant) -> Self {
        Self {
            workers: ranks.iter().map(|&rank| Worker::new(rank)).collect(),
            stage: Stage::Running,
            started: now,
            last_tick: now,
            judge_from: now,
            failures: 0,
            was_ready: false,
            stop: None,
            stop_requested: false,
            regroup: false,
            grace,
            limits,
            remote: (Vec::new(), now),
            is_train,
            ready_by: None,
            peer_saved: None,
            said_waiting: false,
            emergency_saved: false,
            saved_step: None,
            killed_at: None,
        }
    }

    /// A rank that has not ended although it was killed long ago: the kernel waits for a disk or driver.
    pub fn unkillable_rank(&self, now: Instant) -> Option<usize> {
        let is_late = self.killed_at.is_some_and(|at| now.duration_since(at) >= KILL_TIMEOUT);
        let mut left = self.workers.iter().filter(|worker| worker.is_running() && worker.evidence.killed_by_launcher);
        left.next().filter(|_| is_late).map(|worker| worker.evidence.rank)
    }

    /// The first rank of this node that has failed.
    pub fn failed_rank(&self) -> Option<usize> {
        self.workers.iter().find(|worker| worker.evidence.failed_as == Some(0)).map(|worker| worker.evidence.rank)
    }

    /// Completed steps in the emergency checkpoint of this node, once it is on disk.
    pub fn emergency_step(&self) -> Option<u64> {
        self.saved_step.filter(|&step| self.emergency_saved && self.peer_saved < Some(step))
    }

    /// Why a stop was requested, if it was.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.stop.filter(|_| self.stop_requested || !self.regroup)
    }

    /// When [`Attempt::on_tick`] is due.
    pub fn next_tick(&self) -> Instant {
        let tick = self.last_tick + TICK;
        match self.stage {
            Stage::Stopping { break_off_at, kill_at, killed: false, .. } => {
                break_off_at.unwrap_or(kill_at).min(kill_at).min(tick)
            }
            Stage::Failing { kill_at, killed: false } => kill_at.min(tick),
            _ => tick,
        }
    }

    /// The last known status of the workers that have not exited.
    pub fn statuses(&self, now: Instant) -> Vec<RankStatus> {
        let running = self.workers.iter().filter(|worker| worker.is_running());
        let status = |worker: &Worker| RankStatus {
            rank: worker.evidence.rank,
            age: now.duration_since(self.started),
            silent: worker.last_message.map(|at| now.duration_since(at)),
            status: worker.status.as_ref().map(|(status, at)| status::after(status, now.duration_since(*at))),
            usage: worker.usage,
        };
        running.map(status).collect()
    }

    /// The same with the workers of other nodes.
    pub fn all_statuses(&self, now: Instant) -> Vec<RankStatus> {
        let age = now.saturating_duration_since(self.remote.1);
        let remote = self.remote.0.iter().map(|status| status.after(age));
        self.statuses(now).into_iter().chain(remote).collect()
    }

    /// What the launcher does with the workers, and the first failure if there is one.
    pub fn stage(&self) -> (JobStage, Option<String>) {
        let stage = match self.stage {
            Stage::Running => JobStage::Running,
            Stage::Stopping { .. } => JobStage::Stopping,
            Stage::Failing { .. } => JobStage::Failing,
        };
        let cause = if self.failures > 0 { cause::first(&self.evidence()) } else { None };
        (stage, cause.map(|cause| format!("rank {} failed: {}", cause.rank, cause.reason)))
    }

    /// Images that all ranks have finished in the evaluation after `epoch`.
    pub fn images_done(&self, epoch: u64) -> u64 {
        let local = self.workers.iter().filter_map(|worker| worker.status.as_ref().map(|(status, _)| status));
        let remote = self.remote.0.iter().filter_map(|worker| worker.status.as_ref());
        let is_evaluating = |status: &&WorkerStatus| {
            status.epoch == epoch && matches!(status.phase, Phase::Evaluation | Phase::Summary)
        };
        local.chain(remote).filter(is_evaluating).map(|status| status.step).sum()
    }

    /// The resident memory of worker `index` now.
    pub fn set_memory(&mut self, index: usize, bytes: Option<u64>) {
        if let Some(worker) = self.workers.get_mut(index) {
            worker.usage.memory_bytes = bytes;
        }
    }

    /// The result, once every worker has exited.
    pub fn result(&self, now: Instant) -> Option<AttemptResult> {
        if self.running().next().is_some() {
            return None;
        }
        let evidence = self.evidence();
        let failed = || self.workers.iter().filter(|worker| worker.evidence.failed_as.is_some());
        let all_done = evidence.iter().all(|one| one.exit == Some(ProcessExit::Code(exit::SUCCESS)));
        let end = match (cause::first(&evidence), self.stop) {
            (Some(_), Some(reason)) if failed().all(Worker::failed_by_stop) => {
                AttemptEnd::Stopped { reason, saved: self.emergency_saved }
            }
            (Some(cause), _) => AttemptEnd::Failed {
                cause: Box::new(cause),
                is_echo: failed().all(|worker| cause::is_echo(&worker.evidence)),
            },
            (None, Some(reason)) if !all_done => {
                AttemptEnd::Stopped { reason, saved: evidence.iter().all(|one| !one.killed_by_launcher) }
            }
            (None, _) => AttemptEnd::Done,
        };
        Some(AttemptResult {
            end,
            was_ready: self.was_ready,
            stop_requested: self.stop_reason().is_some(),
            saved_step: self.saved_step,
            ran: now.duration_since(self.started),
            lost_nodes: Vec::new(),
            goes_on: false,
        })
    }

    fn evidence(&self) -> Vec<Evidence> {
        let of = |worker: &Worker| {
            let at_failure = worker.evidence.failure.as_ref().and_then(|failure| failure.at.as_deref().cloned());
            let status = at_failure.or_else(|| worker.status.as_ref().map(|(status, _)| status.clone()));
            Evidence { status, ..worker.evidence.clone() }
        };
        self.workers.iter().map(of).collect()
    }

    fn running(&self) -> impl Iterator<Item = usize> + use<'_> {
        self.workers.iter().enumerate().filter(|(_, worker)| worker.is_running()).map(|(index, _)| index)
    }

    /// Updates the status of the workers of other nodes.
    pub fn on_remote_statuses(&mut self, statuses: Vec<RankStatus>, now: Instant) {
        self.remote = (statuses, now);
    }

    /// A rank of any node has failed, or its node is lost: reports it once to the workers of this node.
    pub fn on_peer_failed(&mut self, rank: usize, now: Instant) -> Vec<Action> {
        let is_first = self.ready_by.is_none();
        self.expect_states(now);
        match self.stage {
            Stage::Running => self.stage = Stage::Failing { kill_at: now + PEER_EXIT_GRACE, killed: false },
            // The grace period continues: another rank may be saving. But no rank may wait for this one.
            Stage::Stopping { killed: false, .. } if is_first => {}
            Stage::Stopping { .. } | Stage::Failing { .. } => return Vec::new(),
        }
        let others = self.running().filter(|&index| self.workers[index].evidence.rank != rank);
        others.map(|index| Action::Send(index, ToWorker::PeerLost { rank })).collect()
    }

    /// From now on the workers may report the states that they can save: for the grace period, or, if they are about to be
    /// killed, for half of the time until then.
    fn expect_states(&mut self, now: Instant) {
        let time = match self.stage {
            Stage::Stopping { kill_at, .. } => kill_at.saturating_duration_since(now) / 2,
            Stage::Running | Stage::Failing { .. } => self.grace,
        };
        self.ready_by.get_or_insert(now + time);
    }

    /// Another node has saved the state after this many completed steps since the job failed.
    pub fn on_peer_saved(&mut self, step: u64, now: Instant) -> Vec<Action> {
        self.peer_saved = self.peer_saved.max(Some(step));
        self.saved_step = self.saved_step.max(Some(step));
        self.choose_emergency_writer(now)
    }

    /// Something happened to worker `index`.
    pub fn on_event(&mut self, index: usize, event: Event, now: Instant) -> Vec<Action> {
        let Some(worker) = self.workers.get_mut(index) else { return Vec::new() };
        match event {
            Event::Message(message) => {
                worker.last_message = Some(now);
                self.on_message(index, message, now)
            }
            Event::Status(status) => {
                // A worker with progress is alive, even if a launcher without CPU time has not read its messages yet.
                let idle = Duration::try_from_secs_f64(status.idle_seconds).ok();
                worker.last_message = worker.last_message.max(idle.and_then(|idle| now.checked_sub(idle)));
                self.on_status(index, status, now);
                Vec::new()
            }
            Event::Inspected(found) => {
                if let Some(Diagnosis::Hang(text)) = &mut worker.evidence.diagnosis {
                    *text += &format!("; {found}");
                }
                Vec::new()
            }
            Event::Exited(mut exited) => {
                if let Some(status) = exited.status.take() {
                    self.on_event(index, Event::Status(status), now);
                }
                let mut actions = self.on_exit(index, exited, now);
                actions.extend(self.choose_emergency_writer(now));
                actions
            }
        }
    }

    fn on_message(&mut self, index: usize, message: FromWorker, now: Instant) -> Vec<Action> {
        let worker = &mut self.workers[index];
        match message {
            FromWorker::Heartbeat(status) => {
                self.on_status(index, status, now);
                Vec::new()
            }
            FromWorker::Progress(progress) => {
                let usage = &mut worker.usage;
                usage.note_step(&progress);
                usage.peak_memory_bytes = progress.memory_bytes.or(usage.peak_memory_bytes);
                let Progress { phase, epoch, step, .. } = progress;
                self.on_status(index, WorkerStatus { phase, epoch, step, ..WorkerStatus::default() }, now);
                if index == 0 { vec![Action::Progress(Box::new(progress), self.slowest())] } else { Vec::new() }
            }
            FromWorker::Stack { text } => {
                worker.evidence.stack = Some(text);
                Vec::new()
            }
            FromWorker::Failed(failure) => {
                worker.evidence.failure.get_or_insert(failure);
                self.fail(index, now)
            }
            FromWorker::Saved { step, .. } => self.on_saved(index, step, now),
            FromWorker::StateReady { step } => {
                worker.ready_step = Some(step);
                self.choose_emergency_writer(now)
            }
            FromWorker::Note { text } => vec![Action::Note(text)],
            // The supervisor's status takes these.
            FromWorker::Started { .. } | FromWorker::Evaluated(_) => Vec::new(),
            FromWorker::Hello { .. } | FromWorker::Done | FromWorker::Unknown => Vec::new(),
        }
    }

    fn on_status(&mut self, index: usize, status: WorkerStatus, now: Instant) {
        self.was_ready |= status.phase.is_ready();
        // Only heartbeats include the activity; the shared page does not.
        let old = self.workers[index].status.take().and_then(|(old, _)| old.activity);
        let activity = status.activity.clone().or(old.filter(|_| status.idle_seconds > 1.0));
        self.workers[index].status = Some((WorkerStatus { activity, ..status }, now));
    }

    fn on_exit(&mut self, index: usize, exited: WorkerExit, now: Instant) -> Vec<Action> {
        let worker = &mut self.workers[index];
        let is_mute = worker.last_message.is_none();
        let evidence = &mut worker.evidence;
        (evidence.exit, evidence.tail) = (Some(exited.exit), exited.tail);
        if let (Some(text), false, None) = (exited.out_of_memory, evidence.killed_by_launcher, &evidence.diagnosis) {
            evidence.diagnosis = Some(Diagnosis::OutOfMemory(text));
        }
        match exited.exit {
            ProcessExit::Code(exit::SUCCESS) if is_mute && evidence.failure.is_none() => {
                let message = "exited with code 0 before it had started: FNET_WORKER, or the fnet-worker beside fnet-launch, \
                               is not the worker of this version; run `fnet-launch doctor`";
                let kind = FailureKind::Environment;
                evidence.failure = Some(Failure { kind, message: message.to_owned(), backtrace: None, at: None });
                self.fail(index, now)
            }
            ProcessExit::Code(exit::SUCCESS) => Vec::new(),
            ProcessExit::Code(code @ (exit::STOPPED | exit::INTERRUPTED)) => {
                let reason = if code == exit::INTERRUPTED { StopReason::Interrupted } else { StopReason::Terminated };
                // A batch system may signal workers directly, and all of them stop together.
                if self.stage == Stage::Running { self.begin_stop(reason, now) } else { Vec::new() }
            }
            _ if evidence.killed_by_launcher => Vec::new(),
            // The SIGTERM of a request to stop terminates a worker that did not handle signals yet.
            ProcessExit::Signal(15) if matches!(self.stage, Stage::Stopping { .. }) => {
                evidence.killed_by_launcher = true;
                Vec::new()
            }
            _ => self.fail(index, now),
        }
    }

    /// Worker `index` has failed. The first failure is passed on to the others.
    fn fail(&mut self, index: usize, now: Instant) -> Vec<Action> {
        let evidence = &mut self.workers[index].evidence;
        if evidence.failed_as.is_none() {
            evidence.failed_as = Some(self.failures);
            self.failures += 1;
        }
        let rank = evidence.rank;
        self.on_peer_failed(rank, now)
    }

    /// The user or the system requests a stop; `at_once` (a second Ctrl-C) kills the workers.
    pub fn on_stop(&mut self, reason: StopReason, at_once: bool, now: Instant) -> Vec<Action> {
        if self.stop_reason().is_none() {
            self.stop = Some(reason);
        }
        self.stop_requested = true;
        let mut actions = match self.stage {
            Stage::Running => self.begin_stop(reason, now),
            _ if reason == StopReason::Interrupted && !at_once => {
                vec![Action::Say("the job is about to stop; Ctrl-C again stops at once".to_owned())]
            }
            Stage::Stopping { .. } | Stage::Failing { .. } => Vec::new(),
        };
        if at_once {
            actions.push(Action::Say("stopping now".to_owned()));
            actions.extend(self.kill_all());
        }
        actions
    }

    /// Other nodes shall take part: the workers save and stop, at their next checkpoint or `at_once`.
    pub fn on_regroup(&mut self, at_once: bool, now: Instant) -> Vec<Action> {
        self.regroup = true;
        match self.stage {
            Stage::Running if at_once => self.begin_stop(StopReason::Terminated, now),
            Stage::Running => self.running().map(|index| Action::Send(index, ToWorker::StopAtCheckpoint)).collect(),
            Stage::Stopping { .. } | Stage::Failing { .. } => Vec::new(),
        }
    }

    fn begin_stop(&mut self, reason: StopReason, now: Instant) -> Vec<Action> {
        self.stop.get_or_insert(reason);
        let break_off_at = (self.is_train && self.was_ready).then(|| now + self.grace / 2);
        self.stage = Stage::Stopping { reason, break_off_at, kill_at: now + self.grace, killed: false };
        let more = match reason {
            StopReason::Interrupted => "; Ctrl-C again stops at once",
            StopReason::Terminated if self.stop_reason().is_none() => ", to go on with other nodes",
            StopReason::Terminated => "",
        };
        let text = format!("saving and stopping (at most {} s){more}", self.grace.as_secs_f64());
        let mut actions = vec![Action::Say(text)];
        for index in self.running() {
            // The message first: unlike the signal, it says why.
            actions.push(Action::Send(index, ToWorker::Stop { reason }));
            actions.push(Action::Terminate(index));
        }
        actions
    }

    /// Time has passed.
    pub fn on_tick(&mut self, now: Instant) -> Vec<Action> {
        let gap = now.duration_since(self.last_tick);
        if gap > STALL {
            // The launcher was stopped, and perhaps the workers with it, so silence means nothing.
            self.started += gap;
            self.judge_from = now + self.limits.silence.min(self.limits.step);
            // What they still have to say waits to be read, and what they still have to do took no time.
            self.ready_by = self.ready_by.map(|end| end + gap);
            self.killed_at = self.killed_at.map(|at| at + gap);
            match &mut self.stage {
                Stage::Running => {}
                Stage::Failing { kill_at, .. } => *kill_at += gap,
                Stage::Stopping { break_off_at, kill_at, .. } => {
                    *kill_at += gap;
                    *break_off_at = break_off_at.map(|at| at + gap);
                }
            }
            for worker in &mut self.workers {
                worker.last_message = worker.last_message.map(|_| now);
            }
        }
        self.last_tick = now;
        match self.stage {
            Stage::Running => self.find_hang(now),
            Stage::Stopping { reason, kill_at, killed: false, .. } if now >= kill_at => {
                if self.running().any(|index| self.is_saving(&self.workers[index], now)) {
                    let kill_at = now + self.grace.max(TICK);
                    self.stage = Stage::Stopping { reason, break_off_at: None, kill_at, killed: false };
                    return vec![Action::Say("waiting for a checkpoint that is still being written".to_owned())];
                }
                let text = format!("not stopped within {} s (--grace): killing the workers", self.grace.as_secs_f64());
                let mut actions = vec![Action::Say(text)];
                actions.extend(self.kill_all());
                actions
            }
            Stage::Stopping { reason, break_off_at: Some(at), kill_at, killed: false } if now >= at => {
                self.stage = Stage::Stopping { reason, break_off_at: None, kill_at, killed: false };
                self.break_off(now)
            }
            Stage::Failing { kill_at, killed: false } if now >= kill_at => self.kill_idle(now),
            Stage::Stopping { .. } | Stage::Failing { .. } => self.choose_emergency_writer(now),
        }
    }

    /// Half of the grace period is over: unless the workers are saving, the step that they are in is given up, so that the
    /// state before it can be saved.
    fn break_off(&mut self, now: Instant) -> Vec<Action> {
        let running: Vec<usize> = self.running().collect();
        if self.ready_by.is_some() || running.iter().any(|&index| self.is_saving(&self.workers[index], now)) {
            return Vec::new();
        }
        self.expect_states(now);
        let text = format!(
            "not stopped within {} s (half of --grace): giving up the current step, to save the last completed one",
            self.grace.as_secs_f64() / 2.0
        );
        let mut actions = vec![Action::Say(text)];
        actions.extend(running.into_iter().map(|index| Action::Send(index, ToWorker::BreakOff)));
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

    fn kill(&mut self, workers: Vec<usize>) -> Vec<Action> {
        for &index in &workers {
            self.workers[index].evidence.killed_by_launcher = true;
            self.killed_at = Some(self.last_tick);
        }
        workers.into_iter().map(Action::Kill).collect()
    }

    /// The rank that waits least for the others, and how much less than the rank that waits most.
    fn slowest(&self) -> Option<(usize, f64)> {
        let local = self.workers.iter().map(|worker| (worker.evidence.rank, worker.usage));
        let remote = self.remote.0.iter().map(|worker| (worker.rank, worker.usage));
        let waits: Vec<(usize, f64)> =
            local.chain(remote).filter_map(|(rank, usage)| Some((rank, usage.wait_seconds?))).collect();
        let &(rank, least) = waits.iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
        let most = waits.iter().map(|&(_, seconds)| seconds).fold(0.0, f64::max);
        (waits.len() > 1).then_some((rank, most - least))
    }

    fn find_hang(&mut self, now: Instant) -> Vec<Action> {
        if now < self.judge_from {
            return Vec::new();
        }
        let Some(hang) = hang::find(&self.all_statuses(now), &self.limits) else { return Vec::new() };
        // The launcher of its node reports a hang there; here it only explains why ranks wait.
        let position = self.workers.iter().position(|worker| worker.evidence.rank == hang.rank);
        let Some(index) = position else { return Vec::new() };
        let diagnosis = if hang.is_bug { Diagnosis::CollectiveMismatch } else { Diagnosis::Hang };
        self.workers[index].evidence.diagnosis = Some(diagnosis(hang.text));
        let mut actions = vec![Action::Inspect(index), Action::Send(index, ToWorker::Stack)];
        actions.extend(self.fail(index, now));
        actions
    }

    /// Whether a worker writes a checkpoint and makes progress with it.
    fn is_saving(&self, worker: &Worker, now: Instant) -> bool {
        worker.status.as_ref().is_some_and(|(status, at)| {
            status.phase == Phase::Checkpoint
                && now.duration_since(*at) < self.limits.silence
                && status.idle_seconds < self.limits.save.as_secs_f64()
        })
    }
}

// The emergency checkpoint: after a failure, of the surviving workers the one with the most completed steps writes its state
// before all are killed.
impl Attempt {
    /// Chooses the writer, once no other worker may still report a state.
    fn choose_emergency_writer(&mut self, now: Instant) -> Vec<Action> {
        let this = &*self;
        let running = || this.running().map(move |index| (index, &this.workers[index]));
        let is_due = this.ready_by.is_some() && !this.emergency_saved;
        if !is_due || running().any(|(_, worker)| this.may_become_ready(worker, now)) {
            return Vec::new();
        }
        let highest = running().filter_map(|(_, worker)| worker.ready_step).max();
        if highest.is_some() && highest <= this.peer_saved {
            return self.release_workers(None, now);
        }
        if running().any(|(_, worker)| worker.is_chosen) {
            return Vec::new();
        }
        let ready = running()
            .filter(|(_, worker)| !worker.evidence.killed_by_launcher)
            .filter_map(|(index, worker)| Some((worker.ready_step?, Reverse(worker.evidence.rank), index)));
        let Some((.., index)) = ready.max() else { return Vec::new() };
        self.workers[index].is_chosen = true;
        vec![Action::Send(index, ToWorker::EmergencyCheckpoint)]
    }

    /// Whether a worker may soon report the state after its last completed step: it has finished its start-up and is alive.
    fn may_become_ready(&self, worker: &Worker, now: Instant) -> bool {
        // A worker that writes the last checkpoint of the job may take as long as that takes.
        let in_time = self.ready_by.is_some_and(|end| now < end) || self.is_saving(worker, now);
        let is_alive = worker.last_message.is_some_and(|at| now.duration_since(at) < self.limits.silence);
        let was_ready = worker.status.as_ref().is_some_and(|(status, _)| status.phase.is_ready());
        let is_sound = worker.evidence.diagnosis.is_none() && !worker.evidence.killed_by_launcher;
        self.is_train && worker.ready_step.is_none() && in_time && is_alive && was_ready && is_sound
    }

    /// Kills the workers that have nothing to save.
    fn kill_idle(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = self.choose_emergency_writer(now);
        let is_needed = |worker: &Worker| {
            let writes = worker.is_chosen && self.is_saving(worker, now);
            let waits = worker.ready_step.is_some() && !worker.is_chosen;
            !self.emergency_saved && (writes || waits || self.may_become_ready(worker, now))
        };
        let (needed, idle): (Vec<usize>, Vec<usize>) = self
            .running()
            .filter(|&index| !self.workers[index].evidence.killed_by_launcher)
            .partition(|&index| is_needed(&self.workers[index]));
        self.stage = Stage::Failing { kill_at: now + TICK, killed: needed.is_empty() };
        actions.extend(self.kill(idle));
        actions.extend(self.say_waiting(&needed));
        // The last worker without a state may just have been killed.
        actions.extend(self.choose_emergency_writer(now));
        actions
    }

    /// Says once why the job does not end yet although a worker has failed.
    fn say_waiting(&mut self, needed: &[usize]) -> Option<Action> {
        if self.said_waiting || needed.is_empty() {
            return None;
        }
        let cause = cause::first(&self.evidence())?;
        self.said_waiting = true;
        let ranks: Vec<String> = needed.iter().map(|&index| self.workers[index].evidence.rank.to_string()).collect();
        Some(Action::Say(format!(
            "rank {} failed: {}; waiting for the last completed step, which rank {} may still save (at most {} s, --grace; \
             longer while the file is being written)",
            cause.rank,
            cause.reason.lines().next().unwrap_or_default(),
            ranks.join(", "),
            self.grace.as_secs_f64()
        )))
    }

    /// A checkpoint is on disk. If it is the emergency checkpoint, the other workers are no longer needed.
    fn on_saved(&mut self, index: usize, step: u64, now: Instant) -> Vec<Action> {
        self.saved_step = self.saved_step.max(Some(step));
        let worker = &self.workers[index];
        // The chosen worker may still have been busy with an older one.
        if !(worker.is_chosen && worker.ready_step.is_some_and(|ready| step >= ready)) {
            return Vec::new();
        }
        self.release_workers(Some(index), now)
    }

    /// The last completed step is on disk: ends the workers that were waiting to save it, but not the one that has done so.
    fn release_workers(&mut self, writer: Option<usize>, now: Instant) -> Vec<Action> {
        self.emergency_saved = true;
        if let Stage::Failing { killed: false, .. } = self.stage {
            self.stage = Stage::Failing { kill_at: now + PEER_EXIT_GRACE, killed: false };
        }
        let waiting =
            self.running().filter(|&other| Some(other) != writer && self.workers[other].ready_step.is_some()).collect();
        self.kill(waiting)
    }
}

#[cfg(test)]
mod emergency_tests;
#[cfg(test)]
mod tests;
