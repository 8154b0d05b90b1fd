//! The last known status of workers, and what it says about the collectives that they are in.

use std::time::Duration;

use fnet_protocol::message::{Activity, Operation, Progress, WorkerStatus};
use serde::{Deserialize, Serialize};

use crate::text::ranks;

/// What the launcher of a job does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobStage {
    /// It waits for other nodes, or pauses before a restart.
    #[default]
    Waiting,
    /// Its workers run.
    Running,
    /// A stop was requested.
    Stopping,
    /// A worker has failed; the others save and exit.
    Failing,
    /// The job has ended.
    Ended,
    /// A stage from a newer version.
    #[serde(other)]
    Unknown,
}

/// What a worker uses, as far as it is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Resident memory of its process.
    pub memory_bytes: Option<u64>,
    /// Peak memory: on its GPU, or of its process on the CPU.
    pub peak_memory_bytes: Option<u64>,
    /// Seconds of a step in which it waits for the others, smoothed.
    pub wait_seconds: Option<f64>,
    /// The other seconds of a step, smoothed.
    #[serde(default)]
    pub own_seconds: Option<f64>,
    /// The part of these in which it waits for data.
    #[serde(default)]
    pub data_seconds: Option<f64>,
}

/// The last known status of a worker that has not exited. Launchers send it to each other.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RankStatus {
    /// Rank in the job.
    pub rank: usize,
    /// Time since its start.
    pub age: Duration,
    /// Time since its last message; `None` before the first.
    pub silent: Option<Duration>,
    /// What it last reported, with the time since then added.
    pub status: Option<WorkerStatus>,
    /// What it uses.
    #[serde(default)]
    pub usage: Usage,
}

impl Usage {
    /// A step took these seconds.
    pub fn note_step(&mut self, progress: &Progress) {
        let smooth = |old: &mut Option<f64>, new: Option<f64>| {
            *old = new.map(|new| old.map_or(new, |old| 0.8 * old + 0.2 * new)).or(*old);
        };
        let Progress { waited_seconds: waited, step_seconds: step, data_seconds: data, .. } = *progress;
        smooth(&mut self.wait_seconds, waited);
        smooth(&mut self.own_seconds, step.zip(waited).map(|(step, waited)| (step - waited).max(0.0)));
        smooth(&mut self.data_seconds, data);
    }
}

impl RankStatus {
    /// The same after some time without a message.
    pub fn after(&self, time: Duration) -> Self {
        Self {
            rank: self.rank,
            age: self.age + time,
            silent: self.silent.map(|silent| silent + time),
            status: self.status.as_ref().map(|status| after(status, time)),
            usage: self.usage,
        }
    }
}

/// The status after some time without progress.
pub fn after(status: &WorkerStatus, time: Duration) -> WorkerStatus {
    let seconds = time.as_secs_f64();
    let activity = status.activity.as_ref();
    WorkerStatus {
        idle_seconds: status.idle_seconds + seconds,
        activity: activity
            .map(|Activity { what, seconds: before }| Activity { what: what.clone(), seconds: before + seconds }),
        ..status.clone()
    }
}

/// `backward, epoch 2, step 17`.
pub fn describe(status: &WorkerStatus) -> String {
    let mut text = status.phase.name().to_owned();
    if status.epoch > 0 {
        text += &format!(", epoch {}", status.epoch);
    }
    if status.step > 0 {
        text += &format!(", step {}", status.step);
    }
    if status.operation != Operation::None {
        let (name, number) = (status.operation.name(), status.collective);
        text += &format!(", waiting for the other ranks in {name} (collective {number})");
    }
    text
}

/// Of ranks with the number and kind of their collectives: the rank that is in another kind of collective than most, and
/// the text to report. `None` if they agree, or if some ranks are further ahead.
pub fn odd_one_out(waits: &[(usize, u64, Operation)]) -> Option<(usize, String)> {
    let &(_, number, _) = waits.first()?;
    if waits.iter().any(|&(_, other, _)| other != number) {
        return None;
    }
    let count = |what: Operation| waits.iter().filter(|&&(.., other)| other == what).count();
    // On a tie the last one, because rank 0 leads.
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

#[cfg(test)]
mod tests {
    use fnet_protocol::message::{from_line, to_line};

    use super::*;

    #[test]
    fn a_status_ages_on_its_way() {
        let second = Duration::from_secs(1);
        let status: WorkerStatus = from_line(br#"{"phase":"data","epoch":1,"step":7,"idle_seconds":3.0}"#).unwrap();
        let sent = RankStatus {
            rank: 3,
            age: second * 9,
            silent: Some(second),
            status: Some(status),
            ..RankStatus::default()
        };
        let received: RankStatus = from_line(&to_line(&sent).unwrap()).unwrap();
        let later = received.after(second);
        assert_eq!((later.rank, later.age, later.silent), (3, second * 10, Some(second * 2)));
        assert_eq!(later.status.unwrap().idle_seconds, 4.0);
    }
}
