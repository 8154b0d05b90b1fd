//! Why a job failed: which rank was first, and what ended it. Pure functions.

use fnet_protocol::exit;
use fnet_protocol::message::{Failure, FailureKind, Heartbeat, Operation};
use serde::{Deserialize, Serialize};

use crate::{hang, text};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With an exit code.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

/// What is known of a worker when the job is over.
#[derive(Debug, Clone, PartialEq)]
pub struct Evidence {
    /// Rank in the job.
    pub rank: usize,
    /// Position in the order in which ranks failed (reported an error, hung or ended badly); `None` if it did not.
    pub failed_as: Option<usize>,
    /// How the process ended.
    pub ending: Option<Ending>,
    /// What it reported itself.
    pub failure: Option<Failure>,
    /// What the supervisor found: it hung, or its memory limit was hit.
    pub finding: Option<Finding>,
    /// Whether the launcher ended it.
    pub ended_by_us: bool,
    /// What it was last seen doing.
    pub beat: Option<Heartbeat>,
    /// The stack of its working thread, if it hung and could be asked.
    pub stack: Option<String>,
    /// The last lines of its stderr.
    pub tail: Vec<String>,
}

/// What the supervisor found out by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// It stopped making headway; the text says where and for how long.
    Hang(String),
    /// It takes part in another collective than the other ranks.
    Disagrees(String),
    /// The kernel killed processes of this memory group.
    OutOfMemory(String),
}

/// Why the job failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cause {
    /// The first failing rank.
    pub rank: usize,
    /// The exit code of the job.
    pub exit_code: i32,
    /// One line.
    pub reason: String,
    /// Whether those are the words of the rank itself.
    #[serde(default)]
    pub reported: bool,
    /// What the rank was last seen doing.
    pub doing: Option<String>,
    /// The same for programs.
    #[serde(default)]
    pub beat: Option<Heartbeat>,
    /// Stack of a panic, or of a thread that hung.
    pub backtrace: Option<String>,
    /// The last lines of its stderr.
    pub stderr: Vec<String>,
    /// Ranks that failed after it, with their reasons.
    pub others: Vec<(usize, String)>,
}

/// Whether a rank only says that it lost another one.
pub fn is_echo(one: &Evidence) -> bool {
    one.finding.is_none() && one.failure.as_ref().is_some_and(|failure| failure.kind == FailureKind::PeerLost)
}

/// Names the first cause. A rank that only says it lost another one is believed when nobody else failed, and the ranks
/// do not disagree about what they do together.
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
        reported: first.finding.is_none()
            && first.failure.as_ref().is_some_and(|failure| !failure.message.trim().is_empty()),
        doing: first.beat.as_ref().map(doing),
        beat: first.beat.clone(),
        backtrace: first.failure.as_ref().and_then(|failure| failure.backtrace.clone()).or_else(|| first.stack.clone()),
        stderr: first.tail.clone(),
        others: others.iter().map(|one| (one.rank, reason(one))).collect(),
    })
}

/// If all ranks lost each other while they were in different collectives, the odd one out is the cause.
fn blame_disagreement(evidence: &mut [Evidence]) {
    let waits: Vec<_> = evidence
        .iter()
        .filter_map(|one| one.beat.as_ref().map(|beat| (one.rank, beat.collective, beat.operation)))
        .filter(|&(.., what)| what != Operation::None)
        .collect();
    if waits.len() < evidence.len() {
        return;
    }
    let Some((rank, text)) = hang::odd_one_out(&waits) else { return };
    if let Some(one) = evidence.iter_mut().find(|one| one.rank == rank) {
        one.finding = Some(Finding::Disagrees(text));
        one.failed_as.get_or_insert(0);
    }
}

/// If a rank lost ranks that had finished their work, it takes part in a collective too many.
fn blame_straggler(evidence: &mut [Evidence]) {
    let done = |one: &Evidence| one.ending == Some(Ending::Code(exit::SUCCESS));
    let finished: Vec<usize> = evidence.iter().filter(|one| done(one)).map(|one| one.rank).collect();
    let failed = evidence.iter().filter(|one| one.failed_as.is_some()).count();
    if finished.is_empty() || failed != 1 || finished.len() + failed < evidence.len() {
        return;
    }
    let Some(one) = evidence.iter_mut().find(|one| one.failed_as.is_some()) else { return };
    let Some(beat) = one.beat.as_ref().filter(|beat| beat.operation != Operation::None) else { return };
    one.finding = Some(Finding::Disagrees(format!(
        "is in another collective than the others: its number {} is {}, and {} have finished their work",
        beat.collective,
        beat.operation.name(),
        text::ranks(&finished)
    )));
}

/// The exit code that one worker's failure means for the job.
fn exit_code(one: &Evidence) -> i32 {
    match (&one.finding, &one.failure, one.ending) {
        (Some(Finding::Hang(_)), ..) => exit::HANG,
        (Some(Finding::Disagrees(_)), ..) => exit::BUG,
        (_, Some(failure), _) => failure.kind.exit_code(),
        (_, None, Some(Ending::Code(code))) => code_of_job(code),
        _ => exit::WORKER_LOST,
    }
}

/// A worker's own code passes if it is one of ours.
fn code_of_job(code: i32) -> i32 {
    match code {
        exit::BUG | exit::USAGE | exit::DATA | exit::HANG | exit::ENVIRONMENT => code,
        // What Rust ends a panicking process with.
        101 => exit::BUG,
        _ => exit::WORKER_LOST,
    }
}

/// One line that says how a rank failed.
fn reason(one: &Evidence) -> String {
    if let Some(Finding::Hang(text) | Finding::Disagrees(text)) = &one.finding {
        return text.clone();
    }
    if let Some(failure) = one.failure.as_ref().filter(|failure| !failure.message.trim().is_empty()) {
        return failure.message.clone();
    }
    match one.ending {
        Some(Ending::Signal(number)) => {
            let (name, meaning) = text::signal(number);
            match &one.finding {
                Some(Finding::OutOfMemory(text)) => format!("killed by {name}: {text}"),
                _ => format!("killed by {name}: {meaning}"),
            }
        }
        Some(Ending::Code(code)) => format!("ended with code {code} ({})", meaning(code)),
        None => format!("failed without saying why ({})", meaning(exit_code(one))),
    }
}

/// What an exit code means.
pub fn meaning(code: i32) -> &'static str {
    match code {
        exit::SUCCESS => "done",
        exit::BUG | 101 => "a fault of fnet itself",
        exit::USAGE => "the command line or the config is wrong",
        exit::DATA => "the data or a checkpoint is wrong or missing",
        exit::WORKER_LOST => "another rank was lost, memory ran out, or a kernel failed",
        exit::HANG => "a worker hung",
        exit::ENVIRONMENT => "the machine is not able",
        126 => "the worker cannot be executed",
        127 => "the worker or a library of it was not found",
        exit::STOPPED | exit::INTERRUPTED => "stopped on request",
        _ => "not a code of fnet",
    }
}

/// `backward, epoch 2, step 17`.
pub fn doing(beat: &Heartbeat) -> String {
    let mut text = beat.phase.name().to_owned();
    if beat.epoch > 0 {
        text += &format!(", epoch {}", beat.epoch);
    }
    if beat.step > 0 {
        text += &format!(", step {}", beat.step);
    }
    if beat.operation != Operation::None {
        text += &format!(", waiting for the other ranks in {} (collective {})", beat.operation.name(), beat.collective);
    }
    text
}

#[cfg(test)]
mod tests {
    use fnet_protocol::message::Phase;

    use super::*;

    fn worker(rank: usize, failed_as: usize, ending: Ending) -> Evidence {
        Evidence {
            rank,
            failed_as: Some(failed_as),
            ending: Some(ending),
            failure: None,
            finding: None,
            ended_by_us: false,
            beat: None,
            stack: None,
            tail: Vec::new(),
        }
    }

    fn reported(kind: FailureKind, message: &str) -> Option<Failure> {
        Some(Failure { kind, message: message.into(), backtrace: None, at: None })
    }

    #[test]
    fn the_victim_of_a_lost_peer_is_not_the_cause_even_if_it_fell_first() {
        let victim =
            Evidence { failure: reported(FailureKind::PeerLost, "connection closed"), ..worker(0, 0, Ending::Code(4)) };
        let beat = Heartbeat { phase: Phase::Backward, epoch: 2, step: 17, ..Heartbeat::default() };
        let killed = Evidence { beat: Some(beat), ..worker(1, 1, Ending::Signal(9)) };
        let cause = first(&[victim.clone(), killed]).unwrap();
        assert_eq!((cause.rank, cause.exit_code), (1, exit::WORKER_LOST));
        assert!(cause.reason.starts_with("killed by SIGKILL"), "{}", cause.reason);
        assert_eq!(cause.doing.as_deref(), Some("backward, epoch 2, step 17"));
        assert_eq!(cause.others, [(0, "connection closed".to_owned())]);
        assert_eq!(first(&[victim]).unwrap().rank, 0, "alone, it is all there is");
    }

    #[test]
    fn a_workers_own_code_becomes_the_jobs() {
        for (code, expected) in [(1, 1), (2, 2), (3, 3), (6, 6), (101, 1), (17, 4), (127, 4)] {
            assert_eq!(first(&[worker(0, 0, Ending::Code(code))]).unwrap().exit_code, expected, "{code}");
        }
    }

    #[test]
    fn a_report_outranks_the_code_and_a_hang_outranks_both() {
        let mut one = Evidence {
            failure: reported(FailureKind::Data, "a.json: no such file"),
            ..worker(0, 0, Ending::Signal(6))
        };
        assert_eq!(first(std::slice::from_ref(&one)).unwrap().exit_code, exit::DATA);
        one.finding = Some(Finding::Hang("silent for 60 s".into()));
        let cause = first(&[one]).unwrap();
        assert_eq!((cause.exit_code, cause.reason.as_str()), (exit::HANG, "silent for 60 s"));
    }

    #[test]
    fn a_failed_kernel_is_worth_a_restart_and_a_damaged_gpu_is_not() {
        use crate::restart::{Decision, decide, tests::killed};

        for (kind, restarts) in [(FailureKind::Device, true), (FailureKind::Environment, false)] {
            let failed =
                Evidence { failure: reported(kind, "CUDA error"), ..worker(1, 0, Ending::Code(kind.exit_code())) };
            let lost = Evidence {
                failure: reported(FailureKind::PeerLost, "connection closed"),
                ..worker(0, 1, Ending::Code(4))
            };
            let cause = first(&[lost, failed]).unwrap();
            let decision = decide(&crate::restart::Facts { code: cause.exit_code, ..killed() });
            assert_eq!((cause.rank, matches!(decision, Decision::Restart { .. })), (1, restarts), "{decision:?}");
        }
    }

    #[test]
    fn the_kernels_memory_killer_is_named() {
        let finding = Some(Finding::OutOfMemory("the memory limit was reached".into()));
        let cause = first(&[Evidence { finding, ..worker(0, 0, Ending::Signal(9)) }]).unwrap();
        assert_eq!(cause.reason, "killed by SIGKILL: the memory limit was reached");
        assert_eq!(cause.exit_code, exit::WORKER_LOST);
    }

    #[test]
    fn nobody_failed_is_no_cause() {
        assert_eq!(first(&[Evidence { failed_as: None, ..worker(0, 0, Ending::Code(0)) }]), None);
    }

    #[test]
    fn ranks_that_lost_each_other_over_different_collectives_name_the_odd_one() {
        let one = |rank, operation| {
            let beat = Heartbeat { operation, collective: 7, ..Heartbeat::default() };
            let failure = reported(FailureKind::PeerLost, "connection closed");
            Evidence { failure, beat: Some(beat), ..worker(rank, rank, Ending::Code(4)) }
        };
        let ranks = [one(0, Operation::AllReduce), one(1, Operation::AllReduce), one(2, Operation::Barrier)];
        let cause = first(&ranks).unwrap();
        assert_eq!((cause.rank, cause.exit_code), (2, exit::BUG));
        assert!(cause.reason.contains("barrier") && cause.reason.contains("ranks 0-1"), "{}", cause.reason);
        let same = [one(0, Operation::AllReduce), one(1, Operation::AllReduce)];
        assert_eq!(first(&same).unwrap().exit_code, exit::WORKER_LOST);

        let done = |rank| Evidence { failed_as: None, ..worker(rank, 0, Ending::Code(0)) };
        let cause = first(&[one(0, Operation::Barrier), done(1), done(2)]).unwrap();
        assert_eq!((cause.rank, cause.exit_code), (0, exit::BUG));
        assert!(cause.reason.ends_with("is barrier, and ranks 1-2 have finished their work"), "{}", cause.reason);
    }
}
