//! The dynamic loss scale of float16 training (Micikevicius et al., "Mixed Precision Training", 2018).

use serde::{Deserialize, Serialize};

/// Factor that keeps small float16 gradients above zero: it halves after an overflow and doubles after a run of
/// steps without one, as PyTorch's `GradScaler` does. Every rank sees the same gradients, so every rank holds the
/// same scale.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    scale: f64,
    steps_since_change: usize,
}

impl LossScale {
    const INITIAL: f64 = 65_536.0;
    const GROWTH_INTERVAL: usize = 2000;

    /// The scale at the start of a job.
    pub fn new() -> Self {
        Self { scale: Self::INITIAL, steps_since_change: 0 }
    }

    /// The present factor.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Takes note of a step whose gradients were all finite, or were not.
    pub fn update(&mut self, finite: bool) {
        if !finite {
            self.scale = (self.scale / 2.0).max(1.0);
            self.steps_since_change = 0;
            return;
        }
        self.steps_since_change += 1;
        if self.steps_since_change == Self::GROWTH_INTERVAL {
            self.scale *= 2.0;
            self.steps_since_change = 0;
        }
    }
}

impl Default for LossScale {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overflow_halves_and_a_quiet_run_doubles() {
        let mut scale = LossScale::new();
        scale.update(false);
        assert_eq!(scale.scale(), 32_768.0);
        for _ in 0..LossScale::GROWTH_INTERVAL {
            assert_eq!(scale.scale(), 32_768.0);
            scale.update(true);
        }
        assert_eq!(scale.scale(), 65_536.0);
    }

    #[test]
    fn an_overflow_restarts_the_count_and_the_scale_stays_above_one() {
        let mut scale = LossScale::new();
        for _ in 0..LossScale::GROWTH_INTERVAL - 1 {
            scale.update(true);
        }
        for _ in 0..40 {
            scale.update(false);
        }
        assert_eq!(scale.scale(), 1.0);
        scale.update(true);
        assert_eq!(scale.scale(), 1.0);
    }
}
