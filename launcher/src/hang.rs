//! Whether a worker hangs: a pure function of what was last heard of each.

use std::time::Duration;

use fnet_protocol::message::{Heartbeat, Phase};

use crate::cause;

/// Longest times without headway.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Until a worker has begun its work.
    pub start: Duration,
    /// In one part of a training step.
    pub step: Duration,
    /// In evaluation and checkpoints.
    pub evaluation: Duration,
    /// Without any message.
    pub silence: Duration,
}

/// What was last heard of a worker that has not ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
    /// Rank in the job.
    pub rank: usize,
    /// Since it was started.
    pub age: Duration,
    /// Since its last message; `None` if there was none.
    pub silent: Option<Duration>,
    /// Its last heartbeat, and how long ago that came.
    pub beat: Option<(Heartbeat, Duration)>,
}

/// A worker that hangs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hang {
    /// Its rank.
    pub rank: usize,
    /// What it was doing and for how long; whom it keeps waiting.
    pub text: String,
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
        self.beat.map_or(Phase::Start, |(beat, _)| beat.phase)
    }

    fn place(&self) -> (u64, u64) {
        self.beat.map_or((0, 0), |(beat, _)| (beat.epoch, beat.step))
    }

    fn limit(&self, limits: &Limits) -> Duration {
        match self.phase() {
            Phase::Start | Phase::Index | Phase::Unknown => limits.start,
            Phase::Checkpoint | Phase::Evaluation | Phase::Summary => limits.evaluation,
            Phase::Data | Phase::Forward | Phase::Backward | Phase::AllReduce | Phase::Optimizer => limits.step,
        }
    }

    fn is_long_work(&self) -> bool {
        matches!(self.phase(), Phase::Checkpoint | Phase::Evaluation | Phase::Summary)
    }
}

/// The worker that holds the job up, if one does.
pub fn verdict(running: &[Seen], limits: &Limits) -> Option<Hang> {
    if let Some(mute) = running.iter().find(|seen| seen.silent.is_some_and(|silent| silent > limits.silence)) {
        let text = format!(
            "gave no sign of life for {} s: stopped, or its machine stalled",
            mute.silent.unwrap_or_default().as_secs()
        );
        return Some(Hang { rank: mute.rank, text: text + &last_seen(mute) });
    }
    if let Some(absent) = running.iter().find(|seen| seen.silent.is_none() && seen.age > limits.start) {
        let text = format!("never answered in {} s since it was started", absent.age.as_secs());
        return Some(Hang { rank: absent.rank, text });
    }
    // While one rank evaluates or saves and gets on with it, the others rightly wait for it.
    let work_goes_on = running.iter().any(|seen| seen.is_long_work() && seen.idle() <= seen.limit(limits));
    let late: Vec<&Seen> = running
        .iter()
        .filter(|seen| seen.silent.is_some() && seen.idle() > seen.limit(limits))
        .filter(|seen| seen.is_long_work() || !seen.phase().is_ready() || !work_goes_on)
        .collect();
    // The one that keeps the others waiting: not in a collective itself, furthest behind, idle longest.
    let culprit = late
        .into_iter()
        .min_by_key(|seen| (seen.phase() == Phase::AllReduce, seen.place(), std::cmp::Reverse(seen.idle())))?;
    let waiting: Vec<String> = running
        .iter()
        .filter(|seen| seen.rank != culprit.rank && seen.phase() == Phase::AllReduce)
        .map(|seen| seen.rank.to_string())
        .collect();
    let mut text = format!("has been in {} for {} s", describe(culprit), culprit.idle().as_secs());
    if !waiting.is_empty() {
        text += &format!("; waiting for it in all-reduce: rank {}", waiting.join(", "));
    }
    Some(Hang { rank: culprit.rank, text })
}

fn describe(seen: &Seen) -> String {
    seen.beat.map_or_else(|| Phase::Start.name().to_owned(), |(beat, _)| cause::doing(&beat))
}

fn last_seen(seen: &Seen) -> String {
    seen.beat.map_or_else(String::new, |(beat, _)| format!("; last seen in {}", cause::doing(&beat)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        start: Duration::from_secs(900),
        step: Duration::from_secs(100),
        evaluation: Duration::from_secs(300),
        silence: Duration::from_secs(60),
    };

    fn seen(rank: usize, phase: Phase, step: u64, idle_seconds: f64) -> Seen {
        let beat = Heartbeat { phase, epoch: 1, step, idle_seconds };
        let second = Duration::from_secs(1);
        Seen { rank, age: Duration::from_secs(5000), silent: Some(second), beat: Some((beat, second)) }
    }

    #[test]
    fn the_rank_that_does_not_arrive_is_named_not_those_that_wait_for_it() {
        let ranks = [
            seen(0, Phase::AllReduce, 512, 119.0),
            seen(1, Phase::AllReduce, 512, 119.0),
            seen(2, Phase::Data, 512, 118.0),
        ];
        let hang = verdict(&ranks, &LIMITS).unwrap();
        assert_eq!(hang.rank, 2);
        assert_eq!(
            hang.text,
            "has been in waiting for data, epoch 1, step 512 for 119 s; waiting for it in all-reduce: rank 0, 1"
        );
    }

    #[test]
    fn a_stopped_process_is_told_from_a_thread_that_sleeps() {
        let mut stopped = seen(1, Phase::Forward, 5, 0.0);
        stopped.silent = Some(Duration::from_secs(61));
        let hang = verdict(&[seen(0, Phase::AllReduce, 5, 60.0), stopped], &LIMITS).unwrap();
        assert_eq!(hang.rank, 1);
        assert!(hang.text.contains("no sign of life for 61 s") && hang.text.contains("forward"), "{}", hang.text);
    }

    #[test]
    fn a_worker_that_never_connects_has_the_time_of_a_start() {
        let absent = |age| Seen { rank: 3, age: Duration::from_secs(age), silent: None, beat: None };
        assert_eq!(verdict(&[absent(899)], &LIMITS), None);
        assert!(verdict(&[absent(901)], &LIMITS).unwrap().text.contains("never answered"));
    }

    #[test]
    fn while_one_rank_evaluates_the_others_may_wait() {
        let waiting = seen(1, Phase::AllReduce, 9, 250.0);
        assert_eq!(verdict(&[seen(0, Phase::Evaluation, 40, 2.0), waiting], &LIMITS), None);
        let stuck = verdict(&[seen(0, Phase::Evaluation, 40, 301.0), waiting], &LIMITS).unwrap();
        assert_eq!(stuck.rank, 0);
    }

    #[test]
    fn all_in_the_same_collective_names_the_one_furthest_behind() {
        let ranks = [seen(0, Phase::AllReduce, 8, 200.0), seen(1, Phase::AllReduce, 7, 190.0)];
        assert_eq!(verdict(&ranks, &LIMITS).unwrap().rank, 1);
    }

    #[test]
    fn a_slow_start_and_a_working_job_are_left_alone() {
        assert_eq!(verdict(&[seen(0, Phase::Start, 0, 600.0), seen(1, Phase::Index, 0, 600.0)], &LIMITS), None);
        assert_eq!(verdict(&[seen(0, Phase::Backward, 3, 30.0)], &LIMITS), None);
        assert_eq!(verdict(&[], &LIMITS), None);
    }
}
