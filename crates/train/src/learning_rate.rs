//! The learning rate as a function of epoch and step: MMCV's policies and warm-ups.

use std::f64::consts::PI;

use fnet_config::{Policy, Schedule, Warmup};

/// The learning rates of a job.
///
/// The rules are those of MMCV 1.x. With `p` finished epochs of `n`, or steps if `schedule.by_epoch` is false, the regular
/// rate of a group of parameters whose initial rate is `base` is
///
/// - `StepLrUpdaterHook`: `max(base * gamma^k, min_lr)`, where `k` counts the entries of `steps` that are at most `p`;
/// - `CosineAnnealingLrUpdaterHook`: `end + (base - end) * (1 + cos(pi * p / n)) / 2`, where `end` is `min_lr` or
///   `base * min_lr_ratio`;
/// - `PolyLrUpdaterHook`: `min_lr + (base - min_lr) * (1 - p / n)^power`;
/// - `FixedLrUpdaterHook`: `base`.
///
/// During the warm-up it is multiplied by a factor that depends on the step `i` of `w` and the ratio `r`:
/// `1 - (1 - i / w) * (1 - r)` (linear), `r^(1 - i / w)` (exp) or `r` (constant). The warm-up may span several epochs and
/// uses each epoch's regular rate. With `warmup_by_epoch`, `w` is `warmup_iters` times the steps of an epoch.
#[derive(Debug, Clone, Copy)]
pub struct LearningRate<'a> {
    /// The config's schedule.
    pub schedule: &'a Schedule,
    /// Initial learning rate.
    pub base: f64,
    /// Epochs of the whole job.
    pub epochs: usize,
    /// Steps of the whole job.
    pub steps: usize,
}

/// The learning rate of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    base: f64,
    factor: f64,
    offset: f64,
    lowest: f64,
    warmup: f64,
}

impl From<f64> for Rate {
    fn from(base: f64) -> Self {
        Self { base, factor: 1.0, offset: 0.0, lowest: 0.0, warmup: 1.0 }
    }
}

impl Rate {
    /// The rate of parameters whose initial learning rate is multiplied by `lr_mult`.
    pub fn of(&self, lr_mult: f64) -> f64 {
        (self.base * lr_mult * self.factor + self.offset).max(self.lowest) * self.warmup
    }

    /// The rate of parameters without a multiplier.
    pub fn plain(&self) -> f64 {
        self.of(1.0)
    }
}

impl LearningRate<'_> {
    /// The rate of the update with global index `step` (from 0) in `epoch` (from 0).
    pub fn at(&self, epoch: usize, step: usize) -> Rate {
        let schedule = self.schedule;
        let (progress, all) = if schedule.by_epoch { (epoch, self.epochs) } else { (step, self.steps) };
        // A job that was resumed with fewer epochs may be beyond its end.
        let fraction = (progress as f64 / all.max(1) as f64).min(1.0);
        let mut rate = Rate { warmup: self.warmup(step), ..Rate::from(self.base) };
        match schedule.policy {
            Policy::Step => {
                let passed = schedule.steps.iter().filter(|&&at| at <= progress).count();
                (rate.factor, rate.lowest) = (schedule.gamma.powi(passed as i32), schedule.min_lr);
            }
            Policy::Cosine => {
                let left = 0.5 * (1.0 + (PI * fraction).cos());
                rate.factor = left + schedule.min_lr_ratio * (1.0 - left);
                rate.offset = schedule.min_lr * (1.0 - left);
            }
            Policy::Poly => {
                let left = (1.0 - fraction).powf(schedule.power);
                (rate.factor, rate.offset) = (left, schedule.min_lr * (1.0 - left));
            }
            Policy::Constant => {}
        }
        rate
    }

    /// Steps of the warm-up.
    pub fn warmup_steps(&self) -> usize {
        let unit = if self.schedule.warmup_by_epoch { self.steps / self.epochs.max(1) } else { 1 };
        self.schedule.warmup_iters.saturating_mul(unit)
    }

    /// The factor of the warm-up.
    fn warmup(&self, step: usize) -> f64 {
        let steps = self.warmup_steps();
        if step >= steps {
            return 1.0;
        }
        let (left, ratio) = (1.0 - step as f64 / steps as f64, self.schedule.warmup_ratio);
        match self.schedule.warmup {
            Warmup::Linear => 1.0 - left * (1.0 - ratio),
            Warmup::Exp => ratio.powf(left),
            Warmup::Constant => ratio,
        }
    }

    /// The rate of the last update before a position: `epoch` finished epochs, `step_in_epoch` finished steps of the next
    /// epoch, `step` finished steps in total.
    pub fn last(&self, epoch: usize, step_in_epoch: usize, step: usize) -> Rate {
        let epoch = if step_in_epoch > 0 { epoch } else { epoch.saturating_sub(1) };
        self.at(epoch, step.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rate of a job of 12 epochs with 7330 steps each.
    fn rate(schedule: &Schedule, base: f64, epoch: usize, step: usize) -> f64 {
        LearningRate { schedule, base, epochs: 12, steps: 12 * 7330 }.at(epoch, step).plain()
    }

    fn close(actual: f64, expected: f64) {
        assert!((actual - expected).abs() <= 1e-9 * expected.abs(), "{actual} {expected}");
    }

    fn after_warmup(policy: Policy) -> Schedule {
        Schedule { policy, warmup_iters: 0, ..Schedule::default() }
    }

    #[test]
    fn the_1x_schedule_warms_up_and_steps_twice() {
        let schedule = Schedule::default();
        close(rate(&schedule, 2e-4, 0, 0), 2.0e-7);
        close(rate(&schedule, 2e-4, 0, 1), 5.996e-7);
        close(rate(&schedule, 2e-4, 0, 499), 1.996004e-4);
        close(rate(&schedule, 2e-4, 0, 500), 2e-4);
        close(rate(&schedule, 2e-4, 7, 60_000), 2e-4);
        close(rate(&schedule, 2e-4, 8, 70_000), 2e-5);
        close(rate(&schedule, 2e-4, 11, 80_000), 2e-6);
    }

    /// The rule of the first version, with which checkpoints of running jobs were trained.
    #[test]
    fn the_default_policy_keeps_its_bits() {
        let schedule = Schedule { warmup_iters: 37, steps: vec![2, 3], ..Schedule::default() };
        for step in 0..200 {
            let epoch = step / 40;
            let passed = schedule.steps.iter().filter(|&&at| at <= epoch).count();
            let regular = 3e-4 * schedule.gamma.powi(passed as i32);
            let missing = (1.0 - step as f64 / schedule.warmup_iters as f64) * (1.0 - schedule.warmup_ratio);
            let expected = if step >= schedule.warmup_iters { regular } else { regular * (1.0 - missing) };
            assert_eq!(rate(&schedule, 3e-4, epoch, step).to_bits(), expected.to_bits(), "step {step}");
        }
    }

    #[test]
    fn the_last_rate_belongs_to_the_epoch_of_the_last_step() {
        let schedule = Schedule { warmup_iters: 0, steps: vec![2], ..Schedule::default() };
        let rates = LearningRate { schedule: &schedule, base: 1.0, epochs: 4, steps: 40 };
        let last = |epoch, step_in_epoch, step| rates.last(epoch, step_in_epoch, step).plain();
        assert_eq!((last(2, 0, 20), last(2, 1, 21), last(3, 0, 30)), (1.0, 0.1, 0.1));
        assert_eq!(last(0, 0, 0), 1.0);
    }

    /// (1 - 3/12)^0.9 = 0.7718977... The tests of `convert-config` compare all other policies and warm-ups with MMCV's rules.
    #[test]
    fn the_polynomial_falls_by_epochs_and_a_rate_stays_at_its_end() {
        let schedule = Schedule { power: 0.9, min_lr: 0.2, ..after_warmup(Policy::Poly) };
        close(rate(&schedule, 1.0, 3, 0), 0.2 + 0.8 * (0.9 * 0.75_f64.ln()).exp());
        for policy in [Policy::Poly, Policy::Cosine] {
            let schedule = Schedule { min_lr: 0.2, ..after_warmup(policy) };
            [12, 20].into_iter().for_each(|epoch| close(rate(&schedule, 1.0, epoch, 0), 0.2));
        }
    }

    /// In MMCV each group of parameters anneals from its own initial rate to the same end.
    #[test]
    fn a_group_with_a_multiplier_anneals_from_its_own_rate() {
        let schedule = Schedule { min_lr: 0.1, ..after_warmup(Policy::Cosine) };
        let middle = LearningRate { schedule: &schedule, base: 1.0, epochs: 2, steps: 2 }.at(1, 1);
        close(middle.of(0.5), 0.1 + (0.5 - 0.1) * 0.5);
        close(Rate::from(0.3).of(0.5), 0.15);
    }
}
