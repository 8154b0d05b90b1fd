//! Keeps the status of a job up to date.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use fnet_protocol::cli::WorkerCommand;
use fnet_protocol::generation::Fence;
use fnet_protocol::links::Links;
use fnet_protocol::message::{FromWorker, Phase, Progress};
use fnet_protocol::{exit, work_dir::Writer};

use super::files::{self, ERROR, Files, INFO, WARNING};
use super::{GpuUse, JobEnd, JobStatus, MembershipChange, RankState, Restart, SavedCheckpoint, now};
use crate::attempt::cause::Cause;
use crate::attempt::status::{JobStage, RankStatus};
use crate::attempt::{Attempt, Event};
use crate::nodes::Membership;
use crate::plan::Plan;
use crate::plan::devices::Devices;
use crate::plan::nvml::{self, GpuState};
use crate::text;

/// Interval of the writes while the launcher waits.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// Lines about nodes that have joined or left in the status.
const MAX_MEMBERSHIP: usize = 20;
/// Interval of the questions to the driver about the GPUs.
const GPU_INTERVAL: Duration = Duration::from_secs(15);
/// Time for the driver to answer.
const DRIVER_TIMEOUT: Duration = Duration::from_secs(10);

/// The status of a job, and its files.
pub struct Keeper {
    status: JobStatus,
    /// Of a training, on node 0.
    files: Option<Files>,
    /// The attempt that writes them.
    fence: Option<Fence>,
    began: Instant,
    /// Lines that were said before rank 0 had a log.
    unwritten: Vec<String>,
    /// The furthest training step, and when it was completed.
    furthest: (u64, Instant),
    /// Since when the job makes no progress because of a failure, and the seconds lost before.
    losing: Option<(Instant, f64)>,
    /// The first images of the evaluation in progress, and when they were done.
    first_images: Option<(u64, Instant)>,
    /// Whether the last step, or all images of the evaluation in progress, were done when last asked.
    was_complete: bool,
    /// Restarts that the text log has.
    logged_restarts: usize,
    /// Lines about nodes that have joined or left, which are not in the status yet.
    membership: Membership,
    gpus: Arc<Mutex<Vec<GpuUse>>>,
}

impl Keeper {
    /// The status of a job that is about to start. Its lock of the work folder makes it the only writer.
    pub fn new(plan: &Plan) -> Self {
        let began = Instant::now();
        let words: Vec<_> = ["fnet-launch".into()].into_iter().chain(std::env::args_os().skip(1)).collect();
        let folder = match &plan.command {
            WorkerCommand::Train(train) if plan.nodes.rank == 0 => Some(train.folder()),
            _ => None,
        };
        let work_dir = folder.clone().unwrap_or_else(|| plan.logs.clone());
        let status = JobStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            command: text::shell_line(&words),
            work_dir: std::path::absolute(&work_dir).unwrap_or(work_dir),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            launcher: Writer::this(),
            world_size: plan.world_size(),
            started: now(),
            updated: now(),
            ..JobStatus::default()
        };
        let gpus: Arc<Mutex<Vec<GpuUse>>> = Arc::default();
        if let (Some(_), Devices::Cuda(entries)) = (&folder, &plan.devices) {
            watch_gpus(plan, entries.clone(), Arc::downgrade(&gpus));
        }
        let mut keeper = Self {
            status,
            // Without a thread, the job runs without these files.
            files: folder.and_then(|folder| Files::start(folder).ok()),
            fence: None,
            began,
            unwritten: Vec::new(),
            furthest: (0, began),
            losing: None,
            first_images: None,
            was_complete: false,
            logged_restarts: 0,
            membership: Membership::default(),
            gpus,
        };
        keeper.event(INFO, &format!("start: {}", keeper.status.command.clone()));
        keeper
    }

    pub fn status(&self) -> &JobStatus {
        &self.status
    }

    /// Time since the start.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// Adds a line to the text log, and writes the status at once.
    pub fn event(&mut self, level: &str, text: &str) {
        if let Some(files) = &self.files {
            match &self.status.log {
                Some(log) => files.append(log, files::line(level, text)),
                None => self.unwritten.push(files::line(level, text)),
            }
        }
        self.write();
    }

    /// From now on the status is that of this generation of the work folder. A newer one has its own.
    pub fn set_generation(&mut self, folder: PathBuf, own: u64) {
        self.fence = Some(Fence { folder, own });
    }

    /// The launcher enters a stage.
    pub fn set_stage(&mut self, stage: JobStage) {
        self.status.stage = stage;
        self.write();
    }

    /// The result of `work`, while which the status is written every second.
    pub async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = tokio::time::sleep(WRITE_INTERVAL) => {
                    self.update_gpus();
                    self.note_membership();
                    self.write();
                }
            }
        }
    }

    /// From now on, lines about nodes that join or leave go to the status and the text log.
    pub fn watch_membership(&mut self, membership: Membership) {
        self.membership = membership;
    }

    fn note_membership(&mut self) {
        let lines = std::mem::take(&mut *self.membership.borrow_mut());
        for (text, is_warning) in lines {
            if self.status.membership.len() >= MAX_MEMBERSHIP {
                self.status.membership.remove(0);
            }
            self.status.membership.push(MembershipChange { at: now(), text: text.clone() });
            self.event(if is_warning { WARNING } else { INFO }, &text);
        }
    }

    /// The workers of a job of `world_size` start, on nodes with these links. What an earlier attempt did last is kept.
    pub fn begin_attempt(&mut self, world_size: usize, links: Option<&Links>) {
        self.note_membership();
        self.status.world_size = world_size;
        self.status.network = links.and_then(Links::summary);
        self.status.problem = None;
        (self.status.evaluating, self.first_images) = (None, None);
        self.set_stage(JobStage::Running);
    }

    /// A worker of this node has sent a message.
    pub fn on_event(&mut self, event: &Event) {
        match event {
            Event::Message(FromWorker::Started { log }) => self.on_log(log.clone()),
            Event::Message(FromWorker::Evaluated(evaluated)) => {
                self.status.evaluation = Some(evaluated.clone());
                (self.status.evaluating, self.first_images) = (None, None);
                self.write();
            }
            Event::Message(FromWorker::Saved { path, step }) => {
                self.status.checkpoint = Some(SavedCheckpoint { path: path.clone(), step: *step, at: now() });
                self.write();
            }
            _ => {}
        }
    }

    fn on_log(&mut self, log: PathBuf) {
        if let Some(files) = &self.files {
            std::mem::take(&mut self.unwritten).into_iter().for_each(|line| files.append(&log, line));
        }
        self.status.log = Some(log);
        let is_new = self.status.restarts.len() > self.logged_restarts;
        self.logged_restarts = self.status.restarts.len();
        if let (Some(last), true) = (self.status.restarts.last(), is_new) {
            let text =
                format!("restart {} after rank {} failed: {}", self.status.restarts.len(), last.rank, last.reason);
            self.event(INFO, &text);
        } else {
            self.write();
        }
    }

    /// Rank 0 (on other nodes: the first one) has made progress.
    pub fn on_progress(&mut self, progress: Progress, slowest: Option<(usize, f64)>, attempt: &Attempt, at: Instant) {
        self.status.slowest = slowest;
        match progress.phase {
            Phase::Evaluation | Phase::Summary => {
                self.status.evaluating = Some(progress);
                self.count_images(attempt, at);
            }
            _ => {
                if progress.step > self.furthest.0 {
                    self.furthest = (progress.step, at);
                    if let Some((since, before)) = self.losing.take() {
                        self.status.lost_seconds = before + at.duration_since(since).as_secs_f64();
                    }
                }
                (self.status.evaluating, self.first_images) = (None, None);
                self.status.training = Some(progress);
            }
        }
    }

    /// Whether the last step, or all images of the evaluation in progress, are done since the last call.
    pub fn is_just_complete(&mut self, attempt: &Attempt, at: Instant) -> bool {
        self.count_images(attempt, at);
        let current = self.status.evaluating.as_ref().or(self.status.training.as_ref());
        let is_complete = current.is_some_and(|progress| progress.step == progress.total_steps);
        !std::mem::replace(&mut self.was_complete, is_complete) && is_complete
    }

    /// Adds up the images of an evaluation over all ranks.
    fn count_images(&mut self, attempt: &Attempt, at: Instant) {
        let Some(progress) = &mut self.status.evaluating else { return };
        progress.step =
            attempt.images_done(progress.epoch).clamp(progress.step, progress.total_steps.max(progress.step));
        let (first, since) = *self.first_images.get_or_insert((progress.step, at));
        let seconds = at.duration_since(since).as_secs_f64();
        if progress.step > first && seconds > 0.0 {
            #[expect(clippy::cast_precision_loss, reason = "far fewer images")]
            let (done, left) =
                ((progress.step - first) as f64, progress.total_steps.saturating_sub(progress.step) as f64);
            progress.images_per_second = Some(done / seconds);
            progress.eta_seconds = Some(left * seconds / done);
        }
    }

    /// A second has passed.
    pub fn on_tick(&mut self, attempt: &Attempt, at: Instant) {
        self.count_images(attempt, at);
        self.note_membership();
        let status = &mut self.status;
        (status.stage, status.problem) = attempt.stage();
        let seconds = |time: Duration| time.as_secs_f64();
        let state = |of: RankStatus| RankState {
            rank: of.rank,
            silent_seconds: of.silent.map(seconds),
            status: of.status,
            usage: of.usage,
        };
        status.ranks = attempt.all_statuses(at).into_iter().map(state).collect();
        self.update_gpus();
        self.write();
    }

    fn update_gpus(&mut self) {
        self.status.gpus.clone_from(&self.gpus.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The workers have exited after a failure.
    pub fn on_failure(&mut self, cause: &Cause) {
        self.status.ranks.clear();
        self.status.problem = Some(format!("rank {} failed: {}", cause.rank, cause.reason));
        let since = self.furthest.1;
        self.losing.get_or_insert((since, self.status.lost_seconds));
    }

    /// The job restarts.
    pub fn on_restart(&mut self, cause: &Cause) {
        let Cause { rank, exit_code, reason, .. } = cause;
        self.status.restarts.push(Restart { at: now(), rank: *rank, exit_code: *exit_code, reason: reason.clone() });
        self.status.stage = JobStage::Waiting;
    }

    /// The job has ended with this code, because of `error` if the launcher itself has failed.
    pub fn end(&mut self, exit_code: i32, error: Option<&str>) {
        self.note_membership();
        let is_failure = !matches!(exit_code, exit::SUCCESS | exit::STOPPED | exit::INTERRUPTED);
        let status = &mut self.status;
        let reason = error.map(str::to_owned).or(status.problem.take()).filter(|_| is_failure);
        status.stage = JobStage::Ended;
        status.ranks.clear();
        status.gpus.clear();
        status.evaluating = None;
        status.problem = None;
        let because = reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        status.end = Some(JobEnd { at: now(), exit_code, reason });
        let level = if is_failure { ERROR } else { INFO };
        let age = text::clock(self.age().as_secs_f64());
        self.event(level, &format!("end after {age} with code {exit_code} ({}){because}", exit::meaning(exit_code)));
    }

    /// Waits until the files are written, unless the disk takes nothing for `timeout`.
    pub fn flush(&self, timeout: Duration) {
        if let Some(files) = &self.files {
            files.flush(timeout);
        }
    }

    fn write(&mut self) {
        self.status.updated = now();
        if let Some((since, before)) = self.losing {
            self.status.lost_seconds = before + since.elapsed().as_secs_f64();
        }
        if let Some(files) = &self.files {
            files.write(&self.status, self.fence.as_ref());
        }
    }
}

/// Asks the driver about the workers' GPUs at intervals, until the keeper is gone. Without an answer, their use is unknown.
fn watch_gpus(plan: &Plan, entries: Vec<String>, to: Weak<Mutex<Vec<GpuUse>>>) {
    let (by_bus, ranks) = (plan.by_bus, plan.ranks());
    let ask = move || {
        loop {
            let gpus = nvml::query(DRIVER_TIMEOUT)
                .map_or_else(|_| Vec::new(), |report| gpu_uses(&ranks, &entries, &report.gpus, by_bus));
            let Some(to) = to.upgrade() else { return };
            *to.lock().unwrap_or_else(PoisonError::into_inner) = gpus;
            drop(to);
            thread::sleep(GPU_INTERVAL);
        }
    };
    // Without a thread, their use is unknown.
    let _ = thread::Builder::new().name("gpus".to_owned()).spawn(ask);
}

/// The use of each rank's GPU, as far as its entry in CUDA_VISIBLE_DEVICES identifies it.
pub(super) fn gpu_uses(ranks: &[usize], entries: &[String], found: &[GpuState], by_bus: bool) -> Vec<GpuUse> {
    let located = ranks.iter().zip(entries).zip(GpuState::locate(entries, found, by_bus));
    let uses = located.filter_map(|((&rank, device), state)| {
        let state = state?;
        Some(GpuUse {
            rank,
            device: device.clone(),
            busy_percent: state.busy_percent,
            memory_used_bytes: state.memory_total.saturating_sub(state.memory_free),
            memory_total_bytes: state.memory_total,
        })
    });
    uses.collect()
}
