//! Messages on the control channel: one JSON object per line, UTF-8, in both directions.
//!
//! Readers ignore unknown fields and read an unknown `type` as `unknown`, so the two programs may have different versions.
//! [`VERSION`] changes only when an old reader would misunderstand a message.

use std::fmt;
use std::path::PathBuf;

use clap::ValueEnum;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::exit;

/// Version of the messages, sent in [`FromWorker::Hello`].
pub const VERSION: u32 = 1;

/// A message from a worker to the launcher.
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
    /// Sent every second by a separate thread: it reveals a stopped process as well as a working thread without progress.
    Heartbeat(WorkerStatus),
    /// Numbers for the live line and the status; only the newest is guaranteed to arrive.
    Progress(Progress),
    /// Why this worker is about to exit.
    Failed(Failure),
    /// The reply to [`ToWorker::Stack`].
    Stack {
        /// The stack of the working thread, one line per frame, innermost first.
        text: String,
    },
    /// A line or a table for the user; printed verbatim.
    Note {
        /// The text; may have several lines.
        text: String,
    },
    /// Rank 0 of a training has started its logs.
    Started {
        /// The text log.
        log: PathBuf,
    },
    /// The model was evaluated during training.
    Evaluated(Evaluated),
    /// A checkpoint of this job is on disk.
    Saved {
        /// Its file.
        path: PathBuf,
        /// Completed steps of the job that it contains.
        step: u64,
    },
    /// This worker has failed or lost a peer, and can write the state after its last completed step. It waits for
    /// [`ToWorker::EmergencyCheckpoint`], or to be killed.
    StateReady {
        /// Completed steps of the job that the state contains.
        step: u64,
    },
    /// The work is finished; the process exits with code 0.
    Done,
    /// A message from a newer version.
    #[serde(other)]
    Unknown,
}

/// What a worker is doing, and for how long.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// What it is doing.
    pub phase: Phase,
    /// Epoch, from 1; 0 before the first.
    #[serde(default)]
    pub epoch: u64,
    /// Step (training) or image (evaluation), from 1; 0 before the first.
    #[serde(default)]
    pub step: u64,
    /// Seconds since the working thread last reported progress.
    pub idle_seconds: f64,
    /// Number of collectives that this rank has begun.
    #[serde(default)]
    pub collective: u64,
    /// The collective in which it waits for the other ranks.
    #[serde(default)]
    pub operation: Operation,
    /// The longest-running file access or other tracked work of its threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activity: Option<Activity>,
}

/// Work in progress on a thread of a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Activity {
    /// For example `reading train/1.jpg`.
    pub what: String,
    /// How long it has been running.
    pub seconds: f64,
}

/// A collective operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// No collective.
    #[default]
    None,
    /// The rendezvous of all ranks at start-up.
    Rendezvous,
    /// Averaging the gradients.
    GradientAllReduce,
    /// A sum or maximum of other numbers.
    AllReduce,
    /// One rank's values to all ranks.
    Broadcast,
    /// All ranks' values to all ranks.
    AllGather,
    /// A barrier.
    Barrier,
    /// The sum of the statistics of synchronized BatchNorm, or of their gradients.
    Statistics,
    /// An operation from a newer version.
    #[serde(other)]
    Unknown,
}

impl Operation {
    /// Human-readable name.
    pub fn name(self) -> &'static str {
        match self {
            Operation::None => "no collective",
            Operation::Rendezvous => "the rendezvous at start-up",
            Operation::GradientAllReduce => "all-reduce of the gradients",
            Operation::AllReduce => "all-reduce",
            Operation::Broadcast => "broadcast",
            Operation::AllGather => "all-gather",
            Operation::Barrier => "barrier",
            Operation::Statistics => "all-reduce of BatchNorm's statistics",
            Operation::Unknown => "an unknown collective",
        }
    }

    /// Its code in a [`StatusPage`](crate::status::StatusPage).
    pub(crate) fn index(self) -> u8 {
        self as u8
    }

    pub(crate) fn from_index(index: u8) -> Self {
        Self::value_variants().get(usize::from(index)).copied().unwrap_or(Operation::Unknown)
    }
}

/// The progress of the job, for the live line and the status.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The current phase.
    pub phase: Phase,
    /// Epoch, from 1.
    #[serde(default)]
    pub epoch: u64,
    /// Number of epochs.
    #[serde(default)]
    pub epochs: u64,
    /// Completed steps of this phase: training steps of the job, or images that this rank has evaluated.
    #[serde(default)]
    pub step: u64,
    /// Number of steps of this phase for the whole job.
    #[serde(default)]
    pub total_steps: u64,
    /// Total loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Every loss by its name in the logs, `null` if it is not finite; only rank 0 sends them.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub losses: Map<String, Value>,
    /// Learning rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Images per second of the whole job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images_per_second: Option<f64>,
    /// Peak memory in bytes: of the worker's GPU, or of its process on the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Estimated seconds to the end of the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<f64>,
    /// Seconds of the last step in which this rank waited for the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited_seconds: Option<f64>,
    /// Seconds of the last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_seconds: Option<f64>,
    /// Seconds of the last step in which this rank waited for data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_seconds: Option<f64>,
}

/// The result of an evaluation during training.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluated {
    /// Finished epochs.
    pub epoch: u64,
    /// Metrics by their names in the logs; `null` if they are undefined.
    pub metrics: Map<String, Value>,
}

/// The name of a value on the command line, which for a phase is that in messages.
pub fn name_of(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(|| "unknown".to_owned(), |value| value.get_name().to_owned())
}

/// A phase of a worker's work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Phase {
    /// Loading libraries, config and model; rendezvous with the other ranks.
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
    /// Running inference on images.
    Evaluation,
    /// Computing metrics and writing results.
    Summary,
    /// A phase from a newer version.
    #[serde(other)]
    #[value(skip)]
    Unknown,
}

impl Phase {
    /// Human-readable name.
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

    /// Whether it is a part of a training step.
    pub fn is_step(self) -> bool {
        matches!(self, Phase::Data | Phase::Forward | Phase::Backward | Phase::AllReduce | Phase::Optimizer)
    }

    /// Whether a worker in this phase has finished its start-up.
    pub fn is_ready(self) -> bool {
        !matches!(self, Phase::Start | Phase::Index | Phase::Unknown)
    }

    /// Its code in a [`StatusPage`](crate::status::StatusPage).
    pub(crate) fn index(self) -> u8 {
        self as u8
    }

    pub(crate) fn from_index(index: u8) -> Self {
        Self::value_variants().get(usize::from(index)).copied().unwrap_or(Phase::Unknown)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a worker exits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// The kind of failure.
    pub kind: FailureKind,
    /// What happened, where, and the remedy.
    pub message: String,
    /// Stack of the panic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backtrace: Option<String>,
    /// What the worker was doing when it failed; it may save its state afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Box<WorkerStatus>>,
}

impl Failure {
    /// A failure of `kind`; `message` says what was found, what was expected, and what to do.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), backtrace: None, at: None }
    }

    /// A mistake in the command line or the config.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Usage, message)
    }

    /// A bug in fnet.
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Bug, message)
    }

    /// Adds what was being done, before the message.
    #[must_use]
    pub fn context(mut self, what: impl std::fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The kind of a failure; determines the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// A panic or an internal error.
    Bug,
    /// A mistake in the command line or the config.
    Usage,
    /// A problem with the data or a checkpoint.
    Data,
    /// Another rank was lost or did not respond; the cause is elsewhere.
    PeerLost,
    /// This rank ran out of memory.
    OutOfMemory,
    /// A kernel on this rank's GPU failed.
    Device,
    /// A problem of the machine: GPU, driver, port, disk.
    Environment,
    /// A kind from a newer version.
    #[serde(other)]
    Unknown,
}

impl FailureKind {
    /// The exit code of a process that fails for this reason.
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

/// A message from the launcher to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToWorker {
    /// Save at the end of this step and exit with the code of the reason.
    Stop {
        /// Why.
        reason: StopReason,
    },
    /// Save at the next checkpoint or end of an epoch, and exit with the code of a stop: other nodes take part from then on.
    StopAtCheckpoint,
    /// A rank is lost: abort collectives instead of waiting for it.
    PeerLost {
        /// The rank.
        rank: usize,
    },
    /// Abort collectives although no rank is lost: the job must stop before this step can end.
    BreakOff,
    /// Send the stack of the working thread; the worker hangs and is about to be killed.
    Stack,
    /// The reply to [`FromWorker::StateReady`]: write that state as an emergency checkpoint, and exit.
    EmergencyCheckpoint,
    /// A message from a newer version.
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

/// A message as one line, with its line feed.
pub fn to_line<T: Serialize>(message: &T) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// The message on a line.
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
        let heartbeat: FromWorker = from_line(br#"{"type":"heartbeat","phase":"dreaming","idle_seconds":1}"#).unwrap();
        assert!(matches!(heartbeat, FromWorker::Heartbeat(WorkerStatus { phase: Phase::Unknown, .. })));
    }

    #[test]
    fn a_loss_that_is_not_a_number_does_not_break_the_line() {
        let progress = Progress { loss: Some(f64::NAN), ..Progress::default() };
        let line = to_line(&FromWorker::Progress(progress)).unwrap();
        let FromWorker::Progress(read) = from_line(&line).unwrap() else { panic!("another message") };
        assert_eq!(read.loss, None);
    }

    #[test]
    fn phases_and_operations_have_codes() {
        for &phase in Phase::value_variants() {
            assert_eq!(Phase::from_index(phase.index()), phase);
            assert_eq!(serde_json::to_value(phase).unwrap(), name_of(phase));
        }
        assert_eq!(Phase::from_index(Phase::Unknown.index()), Phase::Unknown);
        assert_eq!(Phase::from_index(200), Phase::Unknown);
        for &operation in Operation::value_variants() {
            assert_eq!(Operation::from_index(operation.index()), operation);
        }
        assert_eq!(Operation::from_index(200), Operation::Unknown);
    }
}
