//! Whether a worker hangs: a pure function of what was last heard of each.

use std::time::Duration;

use fnet_protocol::message::{Heartbeat, Operation, Phase};

use crate::cause;
use crate::text::ranks;

/// Longest times without headway.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Until a worker has begun its work.
    pub start: Duration,
    /// In one part of a training step.
    pub step: Duration,
    /// In evaluation: no picture finished.
    pub evaluation: Duration,
    /// In a checkpoint: nothing written or read.
    pub save: Duration,
    /// Without any message.
    pub silence: Duration,
}

/// Ranks that wait in different collectives of the same number for this long will wait for ever. Half of a shorter
/// deadline does too, so that it is found before the deadline.
const DISAGREEMENT: Duration = Duration::from_secs(5);

/// What was last heard of a worker that has not ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Rank in the job.
    pub rank: usize,
    /// Since it was started.
    pub age: Duration,
    /// Since its last message; `None` if there was none.
    pub silent: Option<Duration>,
    /// Its last state, and how long ago that was.
    pub beat: Option<(Heartbeat, Duration)>,
}

/// A worker that hangs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hang {
    /// Its rank.
    pub rank: usize,
    /// What it was doing and for how long; whom it keeps waiting.
    pub text: String,
    /// Exit code of the job: ranks that disagree are a fault of the program, everything else is a hang.
    pub is_bug: bool,
}

impl Seen {
    /// The same, so much later, if nothing more was heard.
    pub fn later(&self, time: Duration) -> Self {
        Self {
            rank: self.rank,
            age: self.age + time,
            silent: self.silent.map(|silent| silent + time),
            beat: self.beat.as_ref().map(|(beat, ago)| (Heartbeat::clone(beat), *ago + time)),
        }
    }

    /// Time without headway.
    fn idle(&self) -> Duration {
        match &self.beat {
            Some((beat, ago)) => Duration::try_from_secs_f64(beat.idle_seconds).unwrap_or_default() + *ago,
            None => self.age,
        }
    }

    fn phase(&self) -> Phase {
        self.beat.as_ref().map_or(Phase::Start, |(beat, _)| beat.phase)
    }

    /// The collective in which it waits for other ranks, with its number.
    fn waits_in(&self) -> Option<(u64, Operation)> {
        let (beat, _) = self.beat.as_ref()?;
        (beat.operation != Operation::None).then_some((beat.collective, beat.operation))
    }

    /// How far it has come.
    fn place(&self) -> (u64, u64, u64) {
        self.beat.as_ref().map_or((0, 0, 0), |(beat, _)| (beat.collective, beat.epoch, beat.step))
    }

    fn limit(&self, limits: &Limits) -> Duration {
        match self.phase() {
            Phase::Start | Phase::Index | Phase::Unknown => limits.start,
            Phase::Evaluation | Phase::Summary => limits.evaluation,
            Phase::Checkpoint => limits.save,
            Phase::Data | Phase::Forward | Phase::Backward | Phase::AllReduce | Phase::Optimizer => limits.step,
        }
    }

    /// Whether it does work that the others rightly wait for.
    fn is_long_work(&self) -> bool {
        matches!(self.phase(), Phase::Checkpoint | Phase::Evaluation | Phase::Summary | Phase::Index)
            && self.waits_in().is_none()
    }
}

/// The worker that holds the job up, if one does.
pub fn verdict(running: &[Seen], limits: &Limits) -> Option<Hang> {
    if let Some(hang) = disagreement(running, DISAGREEMENT.min(limits.step / 2)) {
        return Some(hang);
    }
    let hang = |seen: &Seen, text: String| Some(Hang { rank: seen.rank, text, is_bug: false });
    if let Some(mute) = running.iter().find(|seen| seen.silent.is_some_and(|silent| silent > limits.silence)) {
        let text = format!(
            "gave no sign of life for {} s (--silence-timeout){}",
            mute.silent.unwrap_or_default().as_secs(),
            last_seen(mute)
        );
        return hang(mute, text + &waiting_for(mute, running));
    }
    if let Some(absent) = running.iter().find(|seen| seen.silent.is_none() && seen.age > limits.start) {
        let seconds = absent.age.as_secs();
        return hang(absent, format!("never answered in {seconds} s since it was started (--start-timeout)"));
    }
    // While one rank evaluates or saves and gets on with it, the others rightly wait for it.
    let work_goes_on = running.iter().any(|seen| seen.is_long_work() && seen.idle() <= seen.limit(limits));
    let late = |seen: &&Seen| seen.silent.is_some() && seen.idle() > seen.limit(limits);
    let may_judge = |seen: &&Seen| seen.is_long_work() || !work_goes_on;
    // The one that keeps the others waiting: not in a collective itself, furthest behind, idle longest.
    let culprit = running
        .iter()
        .filter(late)
        .filter(may_judge)
        .min_by_key(|seen| (seen.waits_in().is_some(), seen.place(), std::cmp::Reverse(seen.idle())))?;
    // Whoever waits has to be waited for by someone who is not late yet.
    if culprit.waits_in().is_some() && running.iter().any(|seen| seen.waits_in().is_none()) {
        return None;
    }
    let mut text = format!("has been in {} for {} s{}", describe(culprit), culprit.idle().as_secs(), flag_of(culprit));
    text += &activity(culprit);
    if culprit.waits_in().is_some() && running.len() > 1 {
        text += "; every rank waits for the others, so the network between them may be broken";
    }
    hang(culprit, text + &waiting_for(culprit, running))
}

/// Ranks that wait in the same number of collective, but not in the same one. The fewer are wrong.
fn disagreement(running: &[Seen], patience: Duration) -> Option<Hang> {
    let waits: Vec<(&Seen, u64, Operation)> =
        running.iter().filter_map(|seen| seen.waits_in().map(|(number, what)| (seen, number, what))).collect();
    if waits.len() < running.len() || waits.iter().any(|(seen, ..)| seen.idle() < patience) {
        return None;
    }
    let (rank, text) =
        odd_one_out(&waits.iter().map(|&(seen, number, what)| (seen.rank, number, what)).collect::<Vec<_>>())?;
    Some(Hang { rank, text, is_bug: true })
}

/// Of ranks with their collectives (number and kind): the one that is in another collective of the same number than most,
/// and what to say. `None` if they agree, or if some are only further on.
pub fn odd_one_out(waits: &[(usize, u64, Operation)]) -> Option<(usize, String)> {
    let &(_, number, _) = waits.first()?;
    if waits.iter().any(|&(_, other, _)| other != number) {
        return None;
    }
    let count = |what: Operation| waits.iter().filter(|&&(.., other)| other == what).count();
    // The last of equals: rank 0 leads.
    let &(rank, _, odd) = waits.iter().rev().min_by_key(|&&(.., what)| count(what))?;
    let &(_, _, usual) = waits.iter().find(|&&(.., what)| what != odd)?;
    let others: Vec<usize> = waits.iter().filter(|&&(.., what)| what != odd).map(|&(rank, ..)| rank).collect();
    let text = format!(
        "is in another collective than the others: its number {number} is {}, that of {} is {}",
        odd.name(),
        ranks(&others),
        usual.name()
    );
    Some((rank, text))
}

fn describe(seen: &Seen) -> String {
    seen.beat.as_ref().map_or_else(|| Phase::Start.name().to_owned(), |(beat, _)| cause::doing(beat))
}

fn last_seen(seen: &Seen) -> String {
    seen.beat.as_ref().map_or_else(String::new, |(beat, _)| format!("; last seen in {}", cause::doing(beat)))
}

/// The deadline that was missed.
fn flag_of(seen: &Seen) -> &'static str {
    match seen.phase() {
        Phase::Start | Phase::Index | Phase::Unknown => " (--start-timeout)",
        Phase::Evaluation | Phase::Summary => " (--eval-timeout)",
        Phase::Checkpoint => " (--save-timeout)",
        _ => " (--step-timeout)",
    }
}

fn activity(seen: &Seen) -> String {
    let activity = seen.beat.as_ref().and_then(|(beat, ago)| Some((beat.activity.as_ref()?, ago)));
    activity.map_or_else(String::new, |(activity, ago)| {
        format!(", {} for {} s", activity.what, (activity.seconds + ago.as_secs_f64()) as u64)
    })
}

fn waiting_for(culprit: &Seen, running: &[Seen]) -> String {
    let mut waiting: Vec<(usize, u64, Operation)> = running
        .iter()
        .filter(|seen| seen.rank != culprit.rank)
        .filter_map(|seen| seen.waits_in().map(|(number, what)| (seen.rank, number, what)))
        .collect();
    waiting.sort_unstable_by_key(|&(rank, ..)| rank);
    let Some(&(_, number, what)) = waiting.first() else { return String::new() };
    let same: Vec<usize> = waiting.iter().filter(|&&(_, other, _)| other == number).map(|&(rank, ..)| rank).collect();
    let verb = if same.len() == 1 { "waits" } else { "wait" };
    format!("; {} {verb} in {} (collective {number})", ranks(&same), what.name())
}

#[cfg(test)]
pub mod tests;
