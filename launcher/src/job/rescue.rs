//! How a job that has broken off keeps its last step: of the workers that are left, the one whose state has most steps
//! writes it before all end.

use std::cmp::Reverse;
use std::time::Instant;

use fnet_protocol::message::ToWorker;

use super::{Action, Job, SETTLE, Stage, TICK, Worker};
use crate::cause;

impl Job {
    /// Chooses who writes, once every worker that may still come to hold its state does.
    pub(super) fn see_to_rescue(&mut self, now: Instant) -> Vec<Action> {
        let left: Vec<&Worker> = self.running().map(|index| &self.workers[index]).collect();
        let is_open = self.broken.is_some() && !self.rescued && !left.iter().any(|worker| worker.rescues);
        if !is_open || left.iter().any(|worker| self.may_come_to_hold(worker, now)) {
            return Vec::new();
        }
        let holding = self.running().filter_map(|index| {
            let worker = &self.workers[index];
            worker.holds.filter(|_| !worker.ended_by_us).map(|step| (step, Reverse(worker.rank), index))
        });
        let Some((.., index)) = holding.max() else { return Vec::new() };
        self.workers[index].rescues = true;
        vec![Action::Tell(index, ToWorker::Rescue)]
    }

    /// Whether a worker will soon have broken off what it does, and hold the state after its last completed step: it had
    /// begun its work, and shows signs of life.
    fn may_come_to_hold(&self, worker: &Worker, now: Instant) -> bool {
        // One that is writing the last checkpoint of the job has the time that this takes.
        let in_time = self.broken.is_some_and(|at| now < at + self.grace) || self.saves(worker, now);
        let lives = worker.heard.is_some_and(|at| now.duration_since(at) < self.limits.silence);
        let has_begun = worker.beat.as_ref().is_some_and(|(beat, _)| beat.phase.is_ready());
        let is_sound = worker.finding.is_none() && !worker.ended_by_us;
        self.is_train && worker.holds.is_none() && in_time && lives && has_begun && is_sound
    }

    /// Ends the workers that have nothing to save.
    pub(super) fn kill_unless_rescuing(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = self.see_to_rescue(now);
        let is_excused = |worker: &Worker| {
            let writes = worker.rescues && self.saves(worker, now);
            let waits = worker.holds.is_some() && !worker.rescues && !worker.ended_by_us;
            !self.rescued && (writes || waits || self.may_come_to_hold(worker, now))
        };
        let (stay, go): (Vec<usize>, Vec<usize>) = self
            .running()
            .filter(|&index| !self.workers[index].ended_by_us)
            .partition(|&index| is_excused(&self.workers[index]));
        self.stage = Stage::Failing { kill_at: now + TICK, killed: stay.is_empty() };
        actions.extend(self.kill(go));
        actions.extend(self.tell_wait(&stay));
        // Who was waited for may be gone now.
        actions.extend(self.see_to_rescue(now));
        actions
    }

    /// Says, once, why the job does not end yet although a worker has failed.
    fn tell_wait(&mut self, stay: &[usize]) -> Option<Action> {
        if self.told || stay.is_empty() {
            return None;
        }
        let cause = cause::first(&self.evidence())?;
        self.told = true;
        let ranks: Vec<String> = stay.iter().map(|&index| self.workers[index].rank.to_string()).collect();
        Some(Action::Say(format!(
            "rank {} failed: {}; waiting for the last completed step, which rank {} may still save ({} s, --grace; longer \
             while the file is being written)",
            cause.rank,
            cause.reason.lines().next().unwrap_or_default(),
            ranks.join(", "),
            self.grace.as_secs_f64()
        )))
    }

    /// A checkpoint is on the disk. If it is that of the last step, nothing keeps the others any more.
    pub(super) fn on_saved(&mut self, index: usize, step: u64, now: Instant) -> Vec<Action> {
        self.saved_step = self.saved_step.max(Some(step));
        // Its writer may still have been busy with an older one.
        let is_last = |worker: &Worker| worker.rescues && worker.holds.is_some_and(|holds| step >= holds);
        if !self.workers.get(index).is_some_and(is_last) {
            return Vec::new();
        }
        self.rescued = true;
        if let Stage::Failing { killed: false, .. } = self.stage {
            self.stage = Stage::Failing { kill_at: now + SETTLE, killed: false };
        }
        let waiting: Vec<usize> =
            self.running().filter(|&other| other != index && self.workers[other].holds.is_some()).collect();
        self.kill(waiting)
    }

    pub(super) fn kill(&mut self, workers: Vec<usize>) -> Vec<Action> {
        for &index in &workers {
            self.workers[index].ended_by_us = true;
        }
        workers.into_iter().map(Action::Kill).collect()
    }
}
