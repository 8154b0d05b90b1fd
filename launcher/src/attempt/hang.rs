//! Whether a worker hangs: a pure function of the last known status of each.

use std::time::Duration;

use fnet_protocol::message::{Operation, Phase};

use super::status::{self, RankStatus};
use crate::text::ranks;

/// Maximum times without progress.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Until a worker has finished its start-up.
    pub start: Duration,
    /// In one phase of a training step.
    pub step: Duration,
    /// In evaluation: without a finished image.
    pub evaluation: Duration,
    /// In a checkpoint: without anything written or read.
    pub save: Duration,
    /// Without any message.
    pub silence: Duration,
}

/// Ranks that wait this long in different collectives with the same number will wait forever. At most half of the step
/// timeout is used, to find it before that timeout.
const MISMATCH_TIMEOUT: Duration = Duration::from_secs(5);

/// A worker that hangs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hang {
    /// Its rank.
    pub rank: usize,
    /// What it was doing and for how long; which ranks wait for it.
    pub text: String,
    /// Whether it is a bug: the ranks are in different collectives.
    pub is_bug: bool,
}

impl RankStatus {
    /// Time without progress.
    fn idle(&self) -> Duration {
        let seconds = self.status.as_ref().map(|status| status.idle_seconds);
        seconds.map_or(self.age, |seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default())
    }

    fn phase(&self) -> Phase {
        self.status.as_ref().map_or(Phase::Start, |status| status.phase)
    }

    /// The number and kind of the collective in which it waits for other ranks.
    fn waits_in(&self) -> Option<(u64, Operation)> {
        let status = self.status.as_ref().filter(|status| status.operation != Operation::None)?;
        Some((status.collective, status.operation))
    }

    /// How far it is.
    fn position(&self) -> (u64, u64, u64) {
        self.status.as_ref().map_or((0, 0, 0), |status| (status.collective, status.epoch, status.step))
    }

    /// The time limit of its phase, and the option that sets it.
    fn limit(&self, limits: &Limits) -> (Duration, &'static str) {
        match self.phase() {
            Phase::Start | Phase::Index | Phase::Unknown => (limits.start, "--start-timeout"),
            Phase::Evaluation | Phase::Summary => (limits.evaluation, "--eval-timeout"),
            Phase::Checkpoint => (limits.save, "--save-timeout"),
            Phase::Data | Phase::Forward | Phase::Backward | Phase::AllReduce | Phase::Optimizer => {
                (limits.step, "--step-timeout")
            }
        }
    }

    /// Whether it does work for which the others may wait.
    fn is_long_work(&self) -> bool {
        matches!(self.phase(), Phase::Checkpoint | Phase::Evaluation | Phase::Summary | Phase::Index)
            && self.waits_in().is_none()
    }

    fn describe(&self) -> String {
        self.status.as_ref().map_or_else(|| Phase::Start.name().to_owned(), status::describe)
    }
}

/// The worker that blocks the job, if there is one.
pub fn find(running: &[RankStatus], limits: &Limits) -> Option<Hang> {
    if let Some(hang) = mismatch(running, MISMATCH_TIMEOUT.min(limits.step / 2)) {
        return Some(hang);
    }
    let hang = |worker: &RankStatus, text: String| Some(Hang { rank: worker.rank, text, is_bug: false });
    if let Some(mute) = running.iter().find(|worker| worker.silent.is_some_and(|silent| silent > limits.silence)) {
        let text = format!(
            "sent no heartbeat for {} s (--silence-timeout){}",
            mute.silent.unwrap_or_default().as_secs(),
            mute.status
                .as_ref()
                .map_or_else(String::new, |status| format!("; last seen in {}", status::describe(status)))
        );
        return hang(mute, text + &waiting_for(mute, running));
    }
    if let Some(absent) = running.iter().find(|worker| worker.silent.is_none() && worker.age > limits.start) {
        let seconds = absent.age.as_secs();
        return hang(absent, format!("sent no message within {seconds} s after its start (--start-timeout)"));
    }
    // While one rank evaluates or saves and makes progress, the others may wait for it.
    let has_progress = running.iter().any(|worker| worker.is_long_work() && worker.idle() <= worker.limit(limits).0);
    let late = |worker: &&RankStatus| worker.silent.is_some() && worker.idle() > worker.limit(limits).0;
    let may_judge = |worker: &&RankStatus| worker.is_long_work() || !has_progress;
    // The rank for which the others wait: not in a collective itself, furthest behind, idle for the longest time.
    let culprit = running
        .iter()
        .filter(late)
        .filter(may_judge)
        .min_by_key(|worker| (worker.waits_in().is_some(), worker.position(), std::cmp::Reverse(worker.idle())))?;
    // If all late ranks wait in a collective, the rank for which they wait is not late yet.
    if culprit.waits_in().is_some() && running.iter().any(|worker| worker.waits_in().is_none()) {
        return None;
    }
    let (doing, seconds, (_, option)) = (culprit.describe(), culprit.idle().as_secs(), culprit.limit(limits));
    let mut text = format!("has been in {doing} for {seconds} s ({option})");
    text += &activity(culprit);
    if culprit.waits_in().is_some() && running.len() > 1 {
        text += "; all ranks wait for each other, so the network between them may be broken";
    }
    hang(culprit, text + &waiting_for(culprit, running))
}

/// Ranks that wait in different collectives with the same number; the minority is wrong.
fn mismatch(running: &[RankStatus], timeout: Duration) -> Option<Hang> {
    let waits: Vec<(&RankStatus, u64, Operation)> =
        running.iter().filter_map(|worker| worker.waits_in().map(|(number, what)| (worker, number, what))).collect();
    if waits.len() < running.len() || waits.iter().any(|(worker, ..)| worker.idle() < timeout) {
        return None;
    }
    let (rank, text) = status::odd_one_out(
        &waits.iter().map(|&(worker, number, what)| (worker.rank, number, what)).collect::<Vec<_>>(),
    )?;
    Some(Hang { rank, text, is_bug: true })
}

/// The activity of a rank, to append to its status.
fn activity(worker: &RankStatus) -> String {
    let activity = worker.status.as_ref().and_then(|status| status.activity.as_ref());
    activity.map_or_else(String::new, |activity| format!(", {} for {} s", activity.what, activity.seconds as u64))
}

/// The ranks that wait for another one, to append to its status.
fn waiting_for(culprit: &RankStatus, running: &[RankStatus]) -> String {
    let mut waiting: Vec<(usize, u64, Operation)> = running
        .iter()
        .filter(|worker| worker.rank != culprit.rank)
        .filter_map(|worker| worker.waits_in().map(|(number, what)| (worker.rank, number, what)))
        .collect();
    waiting.sort_unstable_by_key(|&(rank, ..)| rank);
    let Some(&(_, number, what)) = waiting.first() else { return String::new() };
    let same: Vec<usize> = waiting.iter().filter(|&&(_, other, _)| other == number).map(|&(rank, ..)| rank).collect();
    let verb = if same.len() == 1 { "waits" } else { "wait" };
    format!("; {} {verb} in {} (collective {number})", ranks(&same), what.name())
}

#[cfg(test)]
pub mod tests;
