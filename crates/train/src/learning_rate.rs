//! The learning rate as a function of epoch and step: linear warm-up, then step decay.

use fnet_config::Schedule;

/// The learning rate of the update with global index `step` (from 0) in `epoch` (from 0).
///
/// The rule is MMCV's `StepLrUpdaterHook`: the regular rate is `base * gamma^k`, where `k` counts the entries of `steps`
/// that are at most `epoch`. During the warm-up it is multiplied by a factor that grows linearly from `warmup_ratio` to 1.
/// The warm-up may span several epochs and uses each epoch's regular rate.
pub fn learning_rate(schedule: &Schedule, base: f64, epoch: usize, step: usize) -> f64 {
    let passed = schedule.steps.iter().filter(|&&at| at <= epoch).count();
    let regular = base * schedule.gamma.powi(passed as i32);
    if step >= schedule.warmup_iters {
        return regular;
    }
    let missing = (1.0 - step as f64 / schedule.warmup_iters as f64) * (1.0 - schedule.warmup_ratio);
    regular * (1.0 - missing)
}

/// The learning rate of the last update before a position: `epoch` finished epochs, `step_in_epoch` finished steps of the
/// next epoch, `step` finished steps in total.
pub fn last_learning_rate(schedule: &Schedule, base: f64, epoch: usize, step_in_epoch: usize, step: usize) -> f64 {
    let epoch = if step_in_epoch > 0 { epoch } else { epoch.saturating_sub(1) };
    learning_rate(schedule, base, epoch, step.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_1x_schedule_warms_up_and_steps_twice() {
        let schedule = Schedule::default();
        let close = |actual: f64, expected: f64| assert!((actual / expected - 1.0).abs() < 1e-9, "{actual} {expected}");
        close(learning_rate(&schedule, 2e-4, 0, 0), 2.0e-7);
        close(learning_rate(&schedule, 2e-4, 0, 1), 5.996e-7);
        close(learning_rate(&schedule, 2e-4, 0, 499), 1.996004e-4);
        close(learning_rate(&schedule, 2e-4, 0, 500), 2e-4);
        close(learning_rate(&schedule, 2e-4, 7, 60_000), 2e-4);
        close(learning_rate(&schedule, 2e-4, 8, 70_000), 2e-5);
        close(learning_rate(&schedule, 2e-4, 11, 80_000), 2e-6);
    }

    #[test]
    fn the_last_rate_belongs_to_the_epoch_of_the_last_step() {
        let schedule = Schedule { warmup_iters: 0, steps: vec![2], ..Schedule::default() };
        let last = |epoch, step_in_epoch, step| last_learning_rate(&schedule, 1.0, epoch, step_in_epoch, step);
        assert_eq!((last(2, 0, 20), last(2, 1, 21), last(3, 0, 30)), (1.0, 0.1, 0.1));
        assert_eq!(last(0, 0, 0), 1.0);
    }

    #[test]
    fn without_warm_up_training_starts_at_the_full_rate() {
        let schedule = Schedule { warmup_iters: 0, ..Schedule::default() };
        assert_eq!(learning_rate(&schedule, 0.01, 0, 0), 0.01);
    }

    #[test]
    fn warm_up_may_span_a_decay_step() {
        let schedule = Schedule { warmup_iters: 10, warmup_ratio: 0.1, steps: vec![1], gamma: 0.1 };
        assert!((learning_rate(&schedule, 1.0, 1, 5) - 0.1 * 0.55).abs() < 1e-12);
    }
}
