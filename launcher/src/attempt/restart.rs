//! Whether a failed job restarts: a budget of restarts, without I/O.

use std::time::Duration;

use fnet_protocol::cli::LaunchOptions;
use fnet_protocol::exit;
use serde::{Deserialize, Serialize};

use super::cause::Cause;
use super::result::AttemptResult;
use crate::text;

/// The longest pause before a restart.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// The restarts of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartBudget {
    /// Maximum number of restarts without a healthy run in between.
    max: u32,
    /// An attempt that ran this long resets the budget.
    reset_after: Duration,
    /// Restarts since the budget was reset.
    used: u32,
    /// All restarts.
    total: u32,
    /// Completed steps in the newest checkpoint of all attempts.
    saved_step: Option<u64>,
    /// Whether any worker of any attempt had finished its start-up.
    was_ready: bool,
}

/// Whether to restart, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Restart after a pause.
    Restart {
        pause: Duration,
        /// Why it may help; `None` if the restart is not counted.
        reason: Option<String>,
    },
    /// Exit with a code.
    GiveUp { reason: String, code: i32 },
}

/// The exit code if a node is lost without which the job cannot go on: one that whatever started it `starts_again` says so.
pub fn code_of_loss(starts_again: bool, code: i32) -> i32 {
    if starts_again && code == exit::WORKER_LOST { exit::STOPPED } else { code }
}

impl RestartBudget {
    /// The full budget.
    pub fn new(options: &LaunchOptions) -> Self {
        let reset_after = Duration::from_secs_f64(options.refill_after);
        Self { max: options.max_restarts, reset_after, used: 0, total: 0, saved_step: None, was_ready: false }
    }

    /// Number of restarts so far.
    pub fn total(&self) -> u32 {
        self.total
    }

    /// `restart 1 of 3`.
    pub fn position(&self) -> String {
        format!("restart {} of {}", self.used, self.max)
    }

    /// Whether an attempt has reported a checkpoint.
    pub fn has_checkpoint(&self) -> bool {
        self.saved_step.is_some()
    }

    /// Notes what an attempt has reached. Returns whether it got further than those before.
    pub fn note(&mut self, result: &AttemptResult) -> bool {
        let made_progress = result.saved_step > self.saved_step;
        self.was_ready |= result.was_ready;
        self.saved_step = self.saved_step.max(result.saved_step);
        made_progress
    }

    /// Decides after a failed attempt, and counts the restart. Lost nodes without which the job goes on cost no restart, unless
    /// the attempt got no further than those before.
    pub fn decide(&mut self, is_train: bool, starts_again: bool, result: &AttemptResult, cause: &Cause) -> Decision {
        let give_up = |reason: &str| Decision::GiveUp { reason: reason.to_owned(), code: cause.exit_code };
        if !result.lost_nodes.is_empty() && !result.goes_on {
            let are = if result.lost_nodes.len() == 1 { "is" } else { "are" };
            let reason = format!("{} {are} lost; start the job again on all nodes", text::list(&result.lost_nodes));
            return Decision::GiveUp { reason, code: code_of_loss(starts_again, cause.exit_code) };
        }
        let made_progress = self.note(result);
        if result.goes_on && made_progress {
            self.total += 1;
            return Decision::Restart { pause: Duration::ZERO, reason: None };
        }
        if !is_train {
            return give_up("only train can resume from a checkpoint");
        }
        if result.stop_requested {
            return give_up("a stop was requested");
        }
        match cause.exit_code {
            _ if result.goes_on => {}
            exit::USAGE => return give_up("the command line or the config is wrong, and would fail again"),
            exit::DATA => return give_up("the data or a checkpoint is wrong, and would fail again"),
            exit::ENVIRONMENT => return give_up("the machine cannot run the job, and a restart does not change that"),
            _ => {}
        }
        if self.max == 0 {
            return give_up("--max-restarts is 0");
        }
        if !self.was_ready && !result.goes_on {
            return give_up("no worker had finished its start-up, so a restart would most likely fail in the same way");
        }
        let is_reset = self.used > 0 && result.ran >= self.reset_after;
        let used = if is_reset { 0 } else { self.used };
        if used >= self.max {
            return give_up(&format!("all {} restarts (--max-restarts) are used up", self.max));
        }
        // A job that makes progress fails by accident, so waiting does not help; the same is likely for the first failure.
        let pause = match used {
            _ if made_progress => Duration::ZERO,
            0 => Duration::ZERO,
            used => Duration::from_secs(1).saturating_mul(1 << (used - 1).min(16)).min(MAX_PAUSE),
        };
        let mut reason = match cause.exit_code {
            exit::HANG => "a worker that hung may make progress next time",
            exit::BUG => "the bug may not occur again",
            _ => "a worker was lost, possibly by accident",
        }
        .to_owned();
        if is_reset {
            let minutes = result.ran.as_secs() / 60;
            reason += &format!("; the job ran well for {minutes} minutes, so the restart budget is reset");
        }
        (self.used, self.total) = (used + 1, self.total + 1);
        Decision::Restart { pause, reason: Some(reason) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESET: Duration = Duration::from_secs(1800);

    fn budget(used: u32, max: u32) -> RestartBudget {
        RestartBudget { max, reset_after: RESET, used, total: used, saved_step: None, was_ready: false }
    }

    fn cause(exit_code: i32) -> Cause {
        Cause::of_node(0, exit_code, "killed".into())
    }

    fn killed() -> AttemptResult {
        AttemptResult { was_ready: true, ran: Duration::from_secs(60), ..AttemptResult::default() }
    }

    fn pause(mut budget: RestartBudget, result: &AttemptResult) -> u64 {
        match budget.decide(true, false, result, &cause(exit::WORKER_LOST)) {
            Decision::Restart { pause, reason: Some(reason) } if !reason.is_empty() => pause.as_secs(),
            other => panic!("{result:?}: {other:?}"),
        }
    }

    fn refused(mut budget: RestartBudget, is_train: bool, result: &AttemptResult, code: i32) -> String {
        match budget.decide(is_train, false, result, &cause(code)) {
            Decision::GiveUp { reason, code: given } if given == code => reason,
            other => panic!("{result:?}: {other:?}"),
        }
    }

    #[test]
    fn a_lost_worker_restarts_the_job_with_growing_pauses() {
        assert_eq!([0, 1, 2, 3].map(|used| pause(budget(used, 4), &killed())), [0, 1, 2, 4]);
        assert_eq!(pause(budget(40, 99), &killed()), MAX_PAUSE.as_secs());
        assert_eq!(pause(budget(40, 99), &AttemptResult { saved_step: Some(1), ..killed() }), 0);
    }

    #[test]
    fn failures_that_would_recur_are_not_restarted() {
        for (code, text) in [(exit::USAGE, "again"), (exit::DATA, "again"), (exit::ENVIRONMENT, "does not change")] {
            assert!(refused(budget(0, 3), true, &killed(), code).contains(text), "{code}");
        }
        let not_ready = AttemptResult { was_ready: false, ..killed() };
        assert!(refused(budget(0, 3), true, &not_ready, exit::BUG).contains("start-up"));
        let worked_before = RestartBudget { was_ready: true, ..budget(1, 3) };
        assert_eq!(pause(worked_before, &not_ready), 1);
        assert!(refused(budget(0, 3), false, &killed(), exit::BUG).contains("train"));
        let stopped = AttemptResult { stop_requested: true, ..killed() };
        assert!(refused(budget(0, 3), true, &stopped, exit::BUG).contains("stop"));
    }

    #[test]
    fn lost_nodes_cost_no_restart_if_the_attempt_made_progress() {
        let mut budget = budget(0, 1);
        let lost = |step| AttemptResult { saved_step: step, goes_on: true, was_ready: false, ..killed() };
        let mut decide = |step| budget.decide(true, false, &lost(step), &cause(exit::WORKER_LOST));
        for step in 1..9 {
            assert_eq!(decide(Some(step)), Decision::Restart { pause: Duration::ZERO, reason: None });
        }
        assert!(matches!(decide(Some(8)), Decision::Restart { reason: Some(_), .. }));
        assert!(matches!(decide(None), Decision::GiveUp { .. }));
        assert!(matches!(decide(Some(9)), Decision::Restart { reason: None, .. }));
    }

    #[test]
    fn a_lost_node_without_which_the_job_cannot_go_on_ends_it_for_whatever_starts_it_again() {
        let lost = |count| AttemptResult { lost_nodes: vec!["node 1 (b)".into(); count], ..killed() };
        for (starts_again, count, code, expected) in [
            (false, 1, exit::WORKER_LOST, exit::WORKER_LOST),
            (true, 1, exit::WORKER_LOST, exit::STOPPED),
            (true, 2, exit::ENVIRONMENT, exit::ENVIRONMENT),
        ] {
            let decision = budget(0, 3).decide(true, starts_again, &lost(count), &cause(code));
            let Decision::GiveUp { reason, code } = decision else { panic!("{decision:?}") };
            let are = if count == 1 { "node 1 (b) is lost;" } else { "node 1 (b) and node 1 (b) are lost;" };
            assert!(code == expected && reason.starts_with(are), "{reason}");
        }
    }

    #[test]
    fn the_budget_is_used_up_and_reset_after_a_healthy_run() {
        assert!(refused(budget(3, 3), true, &killed(), exit::BUG).contains("used up"));
        assert!(refused(budget(0, 0), true, &killed(), exit::BUG).contains("--max-restarts is 0"));
        let mut used = budget(3, 3);
        let decision = used.decide(true, false, &AttemptResult { ran: RESET, ..killed() }, &cause(exit::BUG));
        let Decision::Restart { pause: Duration::ZERO, reason: Some(reason) } = decision else {
            panic!("{decision:?}")
        };
        assert!(reason.contains("ran well for 30 minutes"), "{reason}");
        assert_eq!((used.position().as_str(), used.total()), ("restart 1 of 3", 4));
    }
}
