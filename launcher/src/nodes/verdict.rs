//! How an attempt ended for the whole job, from how it ended on each node: pure functions.

use fnet_protocol::exit;

use super::message::{End, How};
use crate::cause::Cause;

/// What became of a node in an attempt.
#[derive(Debug, Clone, PartialEq)]
pub enum Fate {
    /// Its workers have ended.
    Ended(End),
    /// It is gone, or could not go on.
    Lost {
        /// The exit code that this means.
        code: i32,
        /// Why.
        reason: String,
    },
}

/// A node at the end of an attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct Final {
    /// For people, as `node 1 (host, 10.0.0.2)`.
    pub name: String,
    /// Rank of its first worker.
    pub first_rank: usize,
    /// Position in the order in which nodes failed, if it did.
    pub failed_as: Option<usize>,
    /// Whether it is no longer there, whatever became of its workers.
    pub is_gone: bool,
    /// What became of it.
    pub fate: Fate,
}

impl Final {
    /// Less is more likely the first cause: a failure of its own, before one that follows from a lost rank; then by time.
    fn standing(&self) -> (bool, usize) {
        let is_echo = matches!(&self.fate, Fate::Ended(End { how: How::Failed { is_echo: true, .. }, .. }));
        (is_echo, self.failed_as.unwrap_or(usize::MAX))
    }

    fn cause(&self) -> Option<Cause> {
        match &self.fate {
            Fate::Lost { code, reason } => {
                Some(plain(self.first_rank, *code, format!("its {} is lost: {reason}", self.name)))
            }
            Fate::Ended(End { how: How::Failed { cause, .. }, .. }) => {
                Some(Cause { reason: format!("{}, on {}", cause.reason, self.name), ..(**cause).clone() })
            }
            Fate::Ended(_) => None,
        }
    }

    fn end(&self) -> Option<&End> {
        match &self.fate {
            Fate::Ended(end) => Some(end),
            Fate::Lost { .. } => None,
        }
    }
}

fn plain(rank: usize, exit_code: i32, reason: String) -> Cause {
    Cause {
        rank,
        exit_code,
        reason,
        reported: false,
        doing: None,
        beat: None,
        backtrace: None,
        stderr: Vec::new(),
        others: Vec::new(),
    }
}

/// Puts the nodes' ends together.
pub fn merge(nodes: &[Final]) -> End {
    let ends = || nodes.iter().filter_map(Final::end);
    let mut failed: Vec<&Final> = nodes.iter().filter(|node| node.cause().is_some()).collect();
    failed.sort_by_key(|node| node.standing());
    let stopped = ends().find_map(|end| match end.how {
        How::Stopped { reason, .. } => Some(reason),
        _ => None,
    });
    let how = match (failed.first(), stopped) {
        // A node that only missed ranks which had stopped.
        (Some(first), Some(reason)) if first.standing().0 => How::Stopped { reason, saved: false },
        (Some(first), _) => failure(first, &failed[1..]),
        (None, Some(reason)) => {
            let saved = ends().all(|end| matches!(end.how, How::Done | How::Stopped { saved: true, .. }));
            How::Stopped { reason, saved }
        }
        (None, None) => How::Done,
    };
    let gone: Vec<String> = nodes.iter().filter(|node| node.is_gone).map(|node| node.name.clone()).collect();
    End {
        how,
        was_ready: ends().any(|end| end.was_ready),
        stop_requested: ends().any(|end| end.stop_requested),
        saved_step: ends().filter_map(|end| end.saved_step).max(),
        seconds: ends().map(|end| end.seconds).fold(0.0, f64::max),
        gone: (!gone.is_empty()).then(|| gone.join(" and ")),
    }
}

fn failure(first: &Final, rest: &[&Final]) -> How {
    let unknown = || plain(first.first_rank, exit::WORKER_LOST, "unknown".to_owned());
    let mut cause = first.cause().unwrap_or_else(unknown);
    for other in rest.iter().filter_map(|node| node.cause()) {
        cause.others.push((other.rank, other.reason));
        cause.others.extend(other.others);
    }
    How::Failed { cause: Box::new(cause), is_echo: first.standing().0 }
}

#[cfg(test)]
mod tests {
    use fnet_protocol::message::StopReason;

    use super::*;

    fn cause(rank: usize, reason: &str) -> Cause {
        plain(rank, exit::WORKER_LOST, reason.to_owned())
    }

    fn ended(how: How) -> Fate {
        Fate::Ended(End { how, was_ready: true, stop_requested: false, saved_step: None, seconds: 5.0, gone: None })
    }

    fn node(number: usize, failed_as: Option<usize>, fate: Fate) -> Final {
        let is_gone = matches!(fate, Fate::Lost { .. });
        Final { name: format!("node {number}"), first_rank: number * 2, failed_as, is_gone, fate }
    }

    #[test]
    fn a_lost_connection_on_one_node_is_not_the_cause_if_another_knows_better() {
        let echo = How::Failed { cause: Box::new(cause(0, "connection closed by peer")), is_echo: true };
        let own = How::Failed { cause: Box::new(cause(3, "killed by SIGKILL")), is_echo: false };
        let end = merge(&[node(0, Some(0), ended(echo)), node(1, Some(1), ended(own))]);
        let How::Failed { cause, is_echo: false } = end.how else { panic!("{end:?}") };
        assert_eq!((cause.rank, cause.reason.as_str()), (3, "killed by SIGKILL, on node 1"));
        assert_eq!(cause.others, [(0, "connection closed by peer, on node 0".to_owned())]);
        assert_eq!(end.gone, None);
    }

    #[test]
    fn of_two_true_causes_the_first_one_counts() {
        let own = |rank| ended(How::Failed { cause: Box::new(cause(rank, "killed")), is_echo: false });
        let end = merge(&[node(0, Some(1), own(0)), node(1, Some(0), own(2))]);
        assert!(matches!(end.how, How::Failed { cause, .. } if cause.rank == 2));
    }

    #[test]
    fn a_lost_node_is_the_cause_and_rules_a_restart_out() {
        let echo = How::Failed { cause: Box::new(cause(0, "timed out")), is_echo: true };
        let lost = Fate::Lost { code: exit::WORKER_LOST, reason: "no sign of life for 60 s".into() };
        let end = merge(&[node(0, Some(0), ended(echo)), node(1, Some(1), lost)]);
        let How::Failed { cause, .. } = end.how else { panic!("{end:?}") };
        assert_eq!((cause.rank, cause.exit_code), (2, exit::WORKER_LOST));
        assert!(cause.reason.contains("node 1 is lost: no sign of life"), "{}", cause.reason);
        assert_eq!(end.gone.as_deref(), Some("node 1"));
    }

    #[test]
    fn stopping_is_one_act_of_all_nodes() {
        let stopped = |saved| ended(How::Stopped { reason: StopReason::Interrupted, saved });
        let how = |nodes: &[Final]| merge(nodes).how;
        let all = how(&[node(0, None, stopped(true)), node(1, None, stopped(true))]);
        assert_eq!(all, How::Stopped { reason: StopReason::Interrupted, saved: true });
        let some = how(&[node(0, None, stopped(true)), node(1, None, stopped(false))]);
        assert_eq!(some, How::Stopped { reason: StopReason::Interrupted, saved: false });
        let echo = ended(How::Failed { cause: Box::new(cause(0, "connection closed")), is_echo: true });
        let missed = how(&[node(0, Some(0), echo), node(1, None, stopped(true))]);
        assert_eq!(missed, How::Stopped { reason: StopReason::Interrupted, saved: false });
    }

    #[test]
    fn done_is_done_everywhere() {
        let end = merge(&[node(0, None, ended(How::Done)), node(1, None, ended(How::Done))]);
        assert_eq!((end.how, end.was_ready, end.seconds), (How::Done, true, 5.0));
    }
}
