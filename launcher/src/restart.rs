//! Whether a failed job is started again: a pure function.

use std::time::Duration;

use fnet_protocol::exit;

/// The longest pause before a restart.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// What the decision depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Only `train` can go on from a checkpoint.
    pub is_train: bool,
    /// Exit code of the first cause.
    pub code: i32,
    /// Whether any worker had begun its work.
    pub was_ready: bool,
    /// Whether the user or the system has asked to stop.
    pub stop_requested: bool,
    /// Restarts so far.
    pub used: u32,
    /// Restarts allowed.
    pub allowed: u32,
    /// Whether it has come further than the attempts before it.
    pub got_on: bool,
    /// How long the job ran before it failed.
    pub ran: Duration,
    /// A job that ran this long without a failure has its restarts back.
    pub refill: Duration,
}

/// What to do, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Start again after a pause; `used` counts this restart.
    Restart {
        /// Time to wait first.
        pause: Duration,
        /// Restarts used, with this one.
        used: u32,
        /// Why it may help.
        reason: String,
    },
    /// End with the cause's code.
    GiveUp(String),
}

/// Decides.
pub fn decide(facts: &Facts) -> Decision {
    let give_up = |reason: &str| Decision::GiveUp(reason.to_owned());
    if !facts.is_train {
        return give_up("only train can go on from a checkpoint");
    }
    if facts.stop_requested {
        return give_up("a stop was requested");
    }
    match facts.code {
        exit::USAGE => return give_up("the command line or the config is wrong, and would be again"),
        exit::DATA => return give_up("the data or a checkpoint is wrong, and would be again"),
        exit::ENVIRONMENT => return give_up("the machine is not able, and a restart does not change that"),
        _ => {}
    }
    if facts.allowed == 0 {
        return give_up("--max-restarts is 0");
    }
    if !facts.was_ready {
        return give_up("no worker had begun its work, so a restart would most likely fail the same way");
    }
    let refilled = facts.used > 0 && facts.ran >= facts.refill;
    let used = if refilled { 0 } else { facts.used };
    if used >= facts.allowed {
        return Decision::GiveUp(format!("all {} restarts (--max-restarts) are used up", facts.allowed));
    }
    // What gets on fails by accident, and nothing is gained by waiting; so most likely does the first time.
    let pause = match used {
        _ if facts.got_on => Duration::ZERO,
        0 => Duration::ZERO,
        used => Duration::from_secs(1).saturating_mul(1 << (used - 1).min(16)).min(MAX_PAUSE),
    };
    let mut reason = match facts.code {
        exit::HANG => "a worker that hung may get on next time",
        exit::BUG => "the bug may not show again",
        _ => "a worker was lost, which may have been an accident",
    }
    .to_owned();
    if refilled {
        reason +=
            &format!("; the job ran well for {} minutes, so all restarts are there again", facts.ran.as_secs() / 60);
    }
    Decision::Restart { pause, used: used + 1, reason }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const REFILL: Duration = Duration::from_secs(1800);

    pub(crate) fn killed() -> Facts {
        Facts {
            is_train: true,
            code: exit::WORKER_LOST,
            was_ready: true,
            stop_requested: false,
            used: 0,
            allowed: 3,
            got_on: false,
            ran: Duration::from_secs(60),
            refill: REFILL,
        }
    }

    /// Pause and restarts used.
    fn restart(facts: Facts) -> (u64, u32) {
        match decide(&facts) {
            Decision::Restart { pause, used, reason } if !reason.is_empty() => (pause.as_secs(), used),
            other => panic!("{facts:?}: {other:?}"),
        }
    }

    fn reason(facts: Facts) -> String {
        match decide(&facts) {
            Decision::GiveUp(reason) => reason,
            other => panic!("{facts:?}: {other:?}"),
        }
    }

    #[test]
    fn a_lost_worker_is_worth_a_restart_with_growing_pauses() {
        let pauses: Vec<_> = (0..4).map(|used| restart(Facts { used, allowed: 4, ..killed() })).collect();
        assert_eq!(pauses, [(0, 1), (1, 2), (2, 3), (4, 4)]);
        assert_eq!(restart(Facts { used: 40, allowed: 99, ..killed() }), (MAX_PAUSE.as_secs(), 41));
        assert_eq!(restart(Facts { used: 40, allowed: 99, got_on: true, ..killed() }), (0, 41));
    }

    #[test]
    fn what_would_fail_again_is_not_restarted() {
        for code in [exit::USAGE, exit::DATA, exit::ENVIRONMENT] {
            assert!(reason(Facts { code, ..killed() }).contains("again") || code == exit::ENVIRONMENT);
        }
        assert!(reason(Facts { was_ready: false, ..killed() }).contains("begun"));
        assert!(reason(Facts { is_train: false, ..killed() }).contains("train"));
        assert!(reason(Facts { stop_requested: true, ..killed() }).contains("stop"));
    }

    #[test]
    fn the_budget_ends_and_refills_after_a_healthy_time() {
        assert!(reason(Facts { used: 3, ..killed() }).contains("used up"));
        assert!(reason(Facts { allowed: 0, ..killed() }).contains("--max-restarts is 0"));
        let healthy = Facts { used: 3, ran: REFILL, ..killed() };
        assert_eq!(restart(healthy), (0, 1));
        let Decision::Restart { reason, .. } = decide(&healthy) else { panic!("no restart") };
        assert!(reason.contains("ran well for 30 minutes"), "{reason}");
    }
}
