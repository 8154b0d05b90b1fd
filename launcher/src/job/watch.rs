//! What an attempt watches while it runs: signs of life, who hangs, who is slow, who is saving.

use std::time::Instant;

use fnet_protocol::message::{Phase, ToWorker};

use super::{Action, Job, Worker};
use crate::cause::Finding;
use crate::hang::{self, Seen};

impl Job {
    /// The rank that waits least for the others, and how much less than the one that waits most.
    pub(super) fn slowest(&self) -> Option<(usize, f64)> {
        let waits: Vec<(usize, f64)> =
            self.workers.iter().filter_map(|worker| Some((worker.rank, worker.waits?))).collect();
        let &(rank, least) = waits.iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
        let most = waits.iter().map(|&(_, seconds)| seconds).fold(0.0, f64::max);
        (waits.len() > 1).then_some((rank, most - least))
    }

    /// What was last heard of the workers that have not ended.
    pub fn seen(&self, now: Instant) -> Vec<Seen> {
        let running = self.workers.iter().filter(|worker| worker.ending.is_none());
        let seen = running.map(|worker| Seen {
            rank: worker.rank,
            age: now.duration_since(self.started),
            silent: worker.heard.map(|at| now.duration_since(at)),
            beat: worker.beat.as_ref().map(|(beat, at)| (beat.clone(), now.duration_since(*at))),
        });
        seen.collect()
    }

    pub(super) fn look_for_hangs(&mut self, now: Instant) -> Vec<Action> {
        if now < self.judge_from {
            return Vec::new();
        }
        let mut seen = self.seen(now);
        let later = now.saturating_duration_since(self.others.1);
        seen.extend(self.others.0.iter().map(|seen| seen.later(later)));
        // A worker of another node is judged there; it only explains why those here wait.
        let Some(hang) = hang::verdict(&seen, &self.limits) else { return Vec::new() };
        let Some(index) = self.workers.iter().position(|worker| worker.rank == hang.rank) else { return Vec::new() };
        self.workers[index].finding =
            Some(if hang.is_bug { Finding::Disagrees(hang.text) } else { Finding::Hang(hang.text) });
        let mut actions = vec![Action::Inspect(index), Action::Tell(index, ToWorker::Stack)];
        actions.extend(self.fail(index, now));
        actions
    }

    /// Whether a worker is writing a checkpoint and gets on with it.
    pub(super) fn is_saving(&self, now: Instant) -> bool {
        self.running().any(|index| self.saves(&self.workers[index], now))
    }

    pub(super) fn saves(&self, worker: &Worker, now: Instant) -> bool {
        worker.beat.as_ref().is_some_and(|(beat, at)| {
            beat.phase == Phase::Checkpoint
                && now.duration_since(*at) < self.limits.silence
                && beat.idle_seconds < self.limits.save.as_secs_f64()
        })
    }
}
