//! Why a job failed: the first rank that failed, and how. Pure functions.

use fnet_protocol::exit;
use fnet_protocol::message::{Failure, FailureKind, Operation, WorkerStatus};
use serde::{Deserialize, Serialize};

use super::status;
use crate::text;

/// How a process exited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessExit {
    /// With an exit code.
    Code(i32),
    /// Killed by a signal; 0 if unknown.
    Signal(i32),
}

/// What is known about a worker at the end of an attempt.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Evidence {
    /// Rank in the job.
    pub rank: usize,
    /// Position in the order in which ranks failed (reported an error, hung or exited badly); `None` if it did not.
    pub failed_as: Option<usize>,
    /// How the process exited.
    pub exit: Option<ProcessExit>,
    /// The failure that it reported.
    pub failure: Option<Failure>,
    /// The supervisor's diagnosis.
    pub diagnosis: Option<Diagnosis>,
    /// Whether the launcher killed it.
    pub killed_by_launcher: bool,
    /// Its last known status.
    pub status: Option<WorkerStatus>,
    /// The stack of its working thread, if it hung and could report it.
    pub stack: Option<String>,
    /// The last lines of its stderr.
    pub tail: Vec<String>,
}

/// What the supervisor found out about a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Diagnosis {
    /// It stopped making progress; the text says where and for how long.
    Hang(String),
    /// It takes part in another collective than the other ranks.
    CollectiveMismatch(String),
    /// The kernel killed processes of its control group because memory ran out.
    OutOfMemory(String),
}

/// Why the job failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cause {
    /// The first failing rank.
    pub rank: usize,
    /// Exit code of the job.
    pub exit_code: i32,
    /// What happened.
    pub reason: String,
    /// Whether the rank itself reported the reason.
    #[serde(default)]
    pub reported: bool,
    /// The last known status of the rank.
    pub status: Option<WorkerStatus>,
    /// Stack of a panic, or of a working thread that hung.
    pub backtrace: Option<String>,
    /// The last lines of its stderr.
    pub stderr: Vec<String>,
    /// Ranks that failed after it, with their reasons.
    pub others: Vec<(usize, String)>,
}

impl Cause {
    /// A cause that concerns a whole node, with the rank of its first worker.
    pub fn of_node(rank: usize, exit_code: i32, reason: String) -> Self {
        let (stderr, others) = (Vec::new(), Vec::new());
        Self { rank, exit_code, reason, reported: false, status: None, backtrace: None, stderr, others }
    }
}

/// Whether a rank failed only because it lost another one.
pub fn is_echo(one: &Evidence) -> bool {
    one.diagnosis.is_none() && one.failure.as_ref().is_some_and(|failure| failure.kind == FailureKind::PeerLost)
}

/// The first cause. A rank that only lost another one is the cause if no other rank failed, and all ranks were in the same
/// collective.
pub fn first(evidence: &[Evidence]) -> Option<Cause> {
    let mut evidence = evidence.to_vec();
    if evidence.iter().all(|one| one.failed_as.is_none() || is_echo(one)) {
        blame_disagreement(&mut evidence);
        blame_straggler(&mut evidence);
    }
    let mut failed: Vec<&Evidence> = evidence.iter().filter(|one| one.failed_as.is_some()).collect();
    failed.sort_by_key(|one| (is_echo(one), one.failed_as));
    let (first, others) = failed.split_first()?;
    Some(Cause {
        rank: first.rank,
        exit_code: exit_code(first),
        reason: reason(first),
        reported: first.diagnosis.is_none()
            && first.failure.as_ref().is_some_and(|failure| !failure.message.trim().is_empty()),
        status: first.status.clone(),
        backtrace: first.failure.as_ref().and_then(|failure| failure.backtrace.clone()).or_else(|| first.stack.clone()),
        stderr: first.tail.clone(),
        others: others.iter().map(|one| (one.rank, reason(one))).collect(),
    })
}

/// If all ranks lost each other in different collectives, the odd one out is the cause.
fn blame_disagreement(evidence: &mut [Evidence]) {
    let waits: Vec<_> = evidence
        .iter()
        .filter_map(|one| one.status.as_ref().map(|status| (one.rank, status.collective, status.operation)))
        .filter(|&(.., what)| what != Operation::None)
        .collect();
    if waits.len() < evidence.len() {
        return;
    }
    let Some((rank, text)) = status::odd_one_out(&waits) else { return };
    if let Some(one) = evidence.iter_mut().find(|one| one.rank == rank) {
        one.diagnosis = Some(Diagnosis::CollectiveMismatch(text));
        one.failed_as.get_or_insert(0);
    }
}

/// If a rank lost ranks that had finished their work, it is in one collective too many.
fn blame_straggler(evidence: &mut [Evidence]) {
    let done = |one: &Evidence| one.exit == Some(ProcessExit::Code(exit::SUCCESS));
    let finished: Vec<usize> = evidence.iter().filter(|one| done(one)).map(|one| one.rank).collect();
    let failed = evidence.iter().filter(|one| one.failed_as.is_some()).count();
    if finished.is_empty() || failed != 1 || finished.len() + failed < evidence.len() {
        return;
    }
    let Some(one) = evidence.iter_mut().find(|one| one.failed_as.is_some()) else { return };
    let Some(status) = one.status.as_ref().filter(|status| status.operation != Operation::None) else { return };
    one.diagnosis = Some(Diagnosis::CollectiveMismatch(format!(
        "is in another collective than the others: its number {} is {}, and {} have finished their work",
        status.collective,
        status.operation.name(),
        text::ranks(&finished)
    )));
}

/// The exit code of the job for one worker's failure.
fn exit_code(one: &Evidence) -> i32 {
    match (&one.diagnosis, &one.failure, one.exit) {
        (Some(Diagnosis::Hang(_)), ..) => exit::HANG,
        (Some(Diagnosis::CollectiveMismatch(_)), ..) => exit::BUG,
        (_, Some(failure), _) => failure.kind.exit_code(),
        (_, None, Some(ProcessExit::Code(code))) => code_of_job(code),
        _ => exit::WORKER_LOST,
    }
}

/// A worker's exit code becomes the job's if fnet defines it.
fn code_of_job(code: i32) -> i32 {
    match code {
        exit::BUG | exit::USAGE | exit::DATA | exit::HANG | exit::ENVIRONMENT => code,
        // Rust's exit code of a panicking process.
        101 => exit::BUG,
        _ => exit::WORKER_LOST,
    }
}

/// How a rank failed.
fn reason(one: &Evidence) -> String {
    if let Some(Diagnosis::Hang(text) | Diagnosis::CollectiveMismatch(text)) = &one.diagnosis {
        return text.clone();
    }
    if let Some(failure) = one.failure.as_ref().filter(|failure| !failure.message.trim().is_empty()) {
        return failure.message.clone();
    }
    match one.exit {
        Some(ProcessExit::Signal(number)) => {
            let (name, meaning) = text::signal(number);
            match &one.diagnosis {
                Some(Diagnosis::OutOfMemory(text)) => format!("killed by {name}: {text}"),
                _ => format!("killed by {name}: {meaning}"),
            }
        }
        Some(ProcessExit::Code(code)) => format!("exited with code {code} ({})", exit::meaning(code)),
        None => format!("failed without a reason ({})", exit::meaning(exit_code(one))),
    }
}

#[cfg(test)]
mod tests {
    use fnet_protocol::message::Phase;

    use super::*;

    fn worker(rank: usize, failed_as: usize, exit: ProcessExit) -> Evidence {
        Evidence { rank, failed_as: Some(failed_as), exit: Some(exit), ..Evidence::default() }
    }

    fn reported(kind: FailureKind, message: &str) -> Option<Failure> {
        Some(Failure { kind, message: message.into(), backtrace: None, at: None })
    }

    #[test]
    fn the_victim_of_a_lost_peer_is_not_the_cause_even_if_it_fell_first() {
        let victim = Evidence {
            failure: reported(FailureKind::PeerLost, "connection closed"),
            ..worker(0, 0, ProcessExit::Code(4))
        };
        let status = WorkerStatus { phase: Phase::Backward, epoch: 2, step: 17, ..WorkerStatus::default() };
        let killed = Evidence { status: Some(status), ..worker(1, 1, ProcessExit::Signal(9)) };
        let cause = first(&[victim.clone(), killed]).unwrap();
        assert_eq!((cause.rank, cause.exit_code), (1, exit::WORKER_LOST));
        assert!(cause.reason.starts_with("killed by SIGKILL"), "{}", cause.reason);
        assert_eq!(status::describe(&cause.status.unwrap()), "backward, epoch 2, step 17");
        assert_eq!(cause.others, [(0, "connection closed".to_owned())]);
        assert_eq!(first(&[victim]).unwrap().rank, 0, "it is the only one");
    }

    #[test]
    fn a_workers_own_code_becomes_the_jobs() {
        for (code, expected) in [(1, 1), (2, 2), (3, 3), (6, 6), (101, 1), (17, 4), (127, 4)] {
            assert_eq!(first(&[worker(0, 0, ProcessExit::Code(code))]).unwrap().exit_code, expected, "{code}");
        }
    }

    #[test]
    fn a_report_outranks_the_code_and_a_hang_outranks_both() {
        let mut one = Evidence {
            failure: reported(FailureKind::Data, "a.json: no such file"),
            ..worker(0, 0, ProcessExit::Signal(6))
        };
        assert_eq!(first(std::slice::from_ref(&one)).unwrap().exit_code, exit::DATA);
        one.diagnosis = Some(Diagnosis::Hang("silent for 60 s".into()));
        let cause = first(&[one]).unwrap();
        assert_eq!((cause.exit_code, cause.reason.as_str()), (exit::HANG, "silent for 60 s"));
    }

    #[test]
    fn a_rank_whose_kernel_failed_is_the_cause() {
        for kind in [FailureKind::Device, FailureKind::Environment] {
            let code = kind.exit_code();
            let failed = Evidence { failure: reported(kind, "CUDA error"), ..worker(1, 0, ProcessExit::Code(code)) };
            let lost = Evidence {
                failure: reported(FailureKind::PeerLost, "connection closed"),
                ..worker(0, 1, ProcessExit::Code(4))
            };
            let cause = first(&[lost, failed]).unwrap();
            assert_eq!((cause.rank, cause.exit_code), (1, code));
        }
    }

    #[test]
    fn ranks_that_lost_each_other_over_different_collectives_name_the_odd_one() {
        let one = |rank, operation| {
            let status = WorkerStatus { operation, collective: 7, ..WorkerStatus::default() };
            let failure = reported(FailureKind::PeerLost, "connection closed");
            Evidence { failure, status: Some(status), ..worker(rank, rank, ProcessExit::Code(4)) }
        };
        let ranks = [one(0, Operation::AllReduce), one(1, Operation::AllReduce), one(2, Operation::Barrier)];
        let cause = first(&ranks).unwrap();
        assert_eq!((cause.rank, cause.exit_code), (2, exit::BUG));
        assert!(cause.reason.contains("barrier") && cause.reason.contains("ranks 0-1"), "{}", cause.reason);
        let same = [one(0, Operation::AllReduce), one(1, Operation::AllReduce)];
        assert_eq!(first(&same).unwrap().exit_code, exit::WORKER_LOST);

        let done = |rank| Evidence { failed_as: None, ..worker(rank, 0, ProcessExit::Code(0)) };
        let cause = first(&[one(0, Operation::Barrier), done(1), done(2)]).unwrap();
        assert_eq!((cause.rank, cause.exit_code), (0, exit::BUG));
        assert!(cause.reason.ends_with("is barrier, and ranks 1-2 have finished their work"), "{}", cause.reason);
    }
}
