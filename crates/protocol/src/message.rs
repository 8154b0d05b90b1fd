//! Messages on the control channel: one JSON object per line, UTF-8, in both directions.
//!
//! A reader ignores fields it does not know, and takes a `type` it does not know as `unknown`; so both programs may be
//! of different versions. [`VERSION`] changes only when an old reader would misunderstand.

use std::fmt;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::exit;

/// Version of the messages, sent in [`FromWorker::Hello`].
pub const VERSION: u32 = 1;

/// What a worker tells the launcher.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromWorker {
    /// The first message.
    Hello {
        /// [`VERSION`] of the worker.
        version: u32,
        /// Its rank in the job.
        rank: usize,
        /// Its process id.
        pid: u32,
    },
    /// Sent every second by a thread of its own, so it shows both a stopped process and a thread that makes no headway.
    Heartbeat(Heartbeat),
    /// Numbers for people; any but the newest may be lost.
    Progress(Progress),
    /// Why this worker is about to end.
    Failed(Failure),
    /// The answer to [`ToWorker::Stack`].
    Stack {
        /// The stack of the working thread, innermost frame first, one line for each.
        text: String,
    },
    /// A line or a table for people; printed as it stands.
    Note {
        /// The text; may hold several lines.
        text: String,
    },
    /// A checkpoint of this job is on the disk.
    Saved {
        /// Its file.
        path: PathBuf,
        /// Steps of the job that it holds.
        step: u64,
    },
    /// This worker has failed or lost others, and holds the state after its last completed step. It waits for
    /// [`ToWorker::Rescue`], or its end.
    Holds {
        /// Steps of the job that the state holds.
        step: u64,
    },
    /// The work is finished; the process ends with code 0.
    Done,
    /// A message of a newer version.
    #[serde(other)]
    Unknown,
}

/// What a worker is doing, and for how long.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// What it is doing.
    pub phase: Phase,
    /// Epoch, from 1; 0 before the first.
    #[serde(default)]
    pub epoch: u64,
    /// Step (training) or picture (evaluation), from 1; 0 before the first.
    #[serde(default)]
    pub step: u64,
    /// Seconds since the working thread last reported headway.
    pub idle_seconds: f64,
    /// Collectives that this rank has begun.
    #[serde(default)]
    pub collective: u64,
    /// The collective in which it waits for the other ranks, if it does.
    #[serde(default)]
    pub operation: Operation,
    /// The file or other work that a thread of it has been busy with longest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activity: Option<Activity>,
}

/// Work that a thread of a worker is busy with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Activity {
    /// As `reading train/1.jpg`.
    pub what: String,
    /// For how long.
    pub seconds: f64,
}

/// What the ranks do together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Nothing now.
    #[default]
    None,
    /// Meeting at the start.
    Meeting,
    /// The mean of the gradients.
    Gradients,
    /// A sum or maximum of other numbers.
    AllReduce,
    /// One rank's values for all.
    Broadcast,
    /// All ranks' values for all.
    AllGather,
    /// Waiting for each other.
    Barrier,
    /// The sum of synchronised BatchNorm's statistics, or of their gradients.
    Statistics,
    /// An operation of a newer version.
    #[serde(other)]
    Unknown,
}

impl Operation {
    const ALL: [Operation; 9] = [
        Operation::None,
        Operation::Meeting,
        Operation::Gradients,
        Operation::AllReduce,
        Operation::Broadcast,
        Operation::AllGather,
        Operation::Barrier,
        Operation::Statistics,
        Operation::Unknown,
    ];

    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Operation::None => "no collective",
            Operation::Meeting => "the meeting at the start",
            Operation::Gradients => "all-reduce of the gradients",
            Operation::AllReduce => "all-reduce",
            Operation::Broadcast => "broadcast",
            Operation::AllGather => "all-gather",
            Operation::Barrier => "barrier",
            Operation::Statistics => "all-reduce of BatchNorm's statistics",
            Operation::Unknown => "an unknown collective",
        }
    }

    /// A number below 256, for atomics.
    pub(crate) fn index(self) -> u8 {
        self as u8
    }

    pub(crate) fn from_index(index: u8) -> Self {
        Self::ALL.get(usize::from(index)).copied().unwrap_or(Operation::Unknown)
    }
}

/// How far the job is, for the progress bar.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Epoch, from 1.
    #[serde(default)]
    pub epoch: u64,
    /// Epochs in all.
    #[serde(default)]
    pub epochs: u64,
    /// Steps done in this phase: training steps of the whole job, or pictures of the evaluation.
    #[serde(default)]
    pub step: u64,
    /// Steps of this phase in all.
    #[serde(default)]
    pub total_steps: u64,
    /// Total loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Pictures per second of the whole job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images_per_second: Option<f64>,
    /// Peak memory of this worker's device (or of its process on the CPU), in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Seconds to the end of the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<f64>,
    /// Seconds of the last step that this rank waited for the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited_seconds: Option<f64>,
}

/// What a worker can be doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Loading libraries, config, model; meeting the other ranks.
    #[default]
    Start,
    /// Reading annotations.
    Index,
    /// Waiting for the next batch.
    Data,
    /// Forward pass.
    Forward,
    /// Backward pass.
    Backward,
    /// Waiting for the other ranks.
    AllReduce,
    /// Updating the weights.
    Optimizer,
    /// Writing or reading a checkpoint.
    Checkpoint,
    /// Evaluating pictures.
    Evaluation,
    /// Computing metrics and writing results.
    Summary,
    /// A phase of a newer version.
    #[serde(other)]
    Unknown,
}

impl Phase {
    /// The phase with this name on the wire (`data`, `all_reduce`).
    pub fn from_wire(name: &str) -> Option<Self> {
        Self::KNOWN.into_iter().find(|phase| phase.wire() == name)
    }

    /// Its name on the wire.
    pub fn wire(self) -> &'static str {
        match self {
            Phase::Start => "start",
            Phase::Index => "index",
            Phase::Data => "data",
            Phase::Forward => "forward",
            Phase::Backward => "backward",
            Phase::AllReduce => "all_reduce",
            Phase::Optimizer => "optimizer",
            Phase::Checkpoint => "checkpoint",
            Phase::Evaluation => "evaluation",
            Phase::Summary => "summary",
            Phase::Unknown => "unknown",
        }
    }

    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Start => "start-up",
            Phase::Index => "reading the annotations",
            Phase::Data => "waiting for data",
            Phase::Forward => "forward",
            Phase::Backward => "backward",
            Phase::AllReduce => "all-reduce",
            Phase::Optimizer => "optimizer",
            Phase::Checkpoint => "checkpoint",
            Phase::Evaluation => "evaluation",
            Phase::Summary => "summary",
            Phase::Unknown => "an unknown phase",
        }
    }

    /// Whether a worker in this phase has met the others and begun its work.
    pub fn is_ready(self) -> bool {
        !matches!(self, Phase::Start | Phase::Index | Phase::Unknown)
    }

    /// All that have a name, in the order of a job.
    pub const KNOWN: [Phase; 10] = [
        Phase::Start,
        Phase::Index,
        Phase::Data,
        Phase::Forward,
        Phase::Backward,
        Phase::AllReduce,
        Phase::Optimizer,
        Phase::Checkpoint,
        Phase::Evaluation,
        Phase::Summary,
    ];

    /// A number below 256, for atomics.
    pub(crate) fn index(self) -> u8 {
        self as u8
    }

    pub(crate) fn from_index(index: u8) -> Self {
        Self::KNOWN.get(usize::from(index)).copied().unwrap_or(Phase::Unknown)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a worker ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// Whose fault it is.
    pub kind: FailureKind,
    /// What happened, where, and the remedy.
    pub message: String,
    /// Stack of the panic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backtrace: Option<String>,
    /// What the worker was doing; it may save its state before it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Heartbeat>,
}

/// Whose fault a failure is; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// A panic or an internal error.
    Bug,
    /// The command line or the config.
    Usage,
    /// The data or a checkpoint.
    Data,
    /// Another rank was lost or did not answer; the cause is elsewhere.
    PeerLost,
    /// This rank ran out of memory.
    OutOfMemory,
    /// A kernel on this rank's GPU failed.
    Device,
    /// The machine: GPU, driver, port, disk.
    Environment,
    /// A kind of a newer version.
    #[serde(other)]
    Unknown,
}

impl FailureKind {
    /// The exit code that a process ends with for this reason.
    pub fn exit_code(self) -> i32 {
        match self {
            FailureKind::Bug => exit::BUG,
            FailureKind::Usage => exit::USAGE,
            FailureKind::Data => exit::DATA,
            FailureKind::PeerLost | FailureKind::OutOfMemory | FailureKind::Device | FailureKind::Unknown => {
                exit::WORKER_LOST
            }
            FailureKind::Environment => exit::ENVIRONMENT,
        }
    }
}

/// What the launcher tells a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToWorker {
    /// Save at the end of this step and end with the code of the reason.
    Stop {
        /// Why.
        reason: StopReason,
    },
    /// A rank is gone: abort collectives, do not wait for it.
    PeerLost {
        /// The rank.
        rank: usize,
    },
    /// Answer with the stack of the working thread: it is about to be ended for it hangs.
    Stack,
    /// The answer to [`FromWorker::Holds`]: write that state, and end.
    Rescue,
    /// A message of a newer version.
    #[serde(other)]
    Unknown,
}

/// Why a job is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// Ctrl-C.
    Interrupted,
    /// SIGTERM, SIGUSR1 or a time limit.
    #[serde(other)]
    Terminated,
}

impl StopReason {
    /// The exit code of a job that was stopped for this reason after saving.
    pub fn exit_code(self) -> i32 {
        match self {
            StopReason::Interrupted => exit::INTERRUPTED,
            StopReason::Terminated => exit::STOPPED,
        }
    }
}

/// One message as a line with its line feed.
///
/// # Errors
/// If the message cannot be written as JSON.
pub fn to_line<T: Serialize>(message: &T) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// The message on one line.
///
/// # Errors
/// If the line is not a JSON object with a `type` and that type's fields.
pub fn from_line<T: DeserializeOwned>(line: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_and_types_are_tolerated() {
        let hello: FromWorker = from_line(br#"{"type":"hello","version":9,"rank":1,"pid":2,"host":"a"}"#).unwrap();
        assert_eq!(hello, FromWorker::Hello { version: 9, rank: 1, pid: 2 });
        assert_eq!(from_line::<FromWorker>(br#"{"type":"telepathy","x":1}"#).unwrap(), FromWorker::Unknown);
        let beat: FromWorker = from_line(br#"{"type":"heartbeat","phase":"dreaming","idle_seconds":1}"#).unwrap();
        assert!(matches!(beat, FromWorker::Heartbeat(Heartbeat { phase: Phase::Unknown, .. })));
    }

    #[test]
    fn a_loss_that_is_not_a_number_does_not_break_the_line() {
        let progress = Progress { loss: Some(f64::NAN), ..Progress::default() };
        let line = to_line(&FromWorker::Progress(progress)).unwrap();
        let FromWorker::Progress(read) = from_line(&line).unwrap() else { panic!("another message") };
        assert_eq!(read.loss, None);
    }

    #[test]
    fn messages_stay_on_one_line() {
        let line = to_line(&FromWorker::Note { text: "a\nb".into() }).unwrap();
        assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
    }

    #[test]
    fn phases_and_operations_survive_the_way_through_an_atomic() {
        for phase in Phase::KNOWN {
            assert_eq!(Phase::from_index(phase.index()), phase);
            assert_eq!(Phase::from_wire(phase.wire()), Some(phase));
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.wire());
        }
        assert_eq!(Phase::from_index(Phase::Unknown.index()), Phase::Unknown);
        assert_eq!(Phase::from_wire(Phase::Unknown.wire()), None);
        assert_eq!(Phase::from_index(200), Phase::Unknown);
        for operation in Operation::ALL {
            assert_eq!(Operation::from_index(operation.index()), operation);
        }
        assert_eq!(Operation::from_index(200), Operation::Unknown);
    }
}
