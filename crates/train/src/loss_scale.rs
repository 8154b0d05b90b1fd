//! The dynamic loss scale of float16 training (Micikevicius et al., "Mixed Precision Training", 2018).

use fnet_checkpoint::native::LossScaleState;
use fnet_common::{Error, Result};

/// Factor of the loss that keeps small float16 gradients above zero. The rule is that of PyTorch's `GradScaler`: it
/// halves after an update whose gradients overflowed, which is left out, and doubles after 2000 updates without one.
/// Every rank sees the same reduced gradients, so every rank holds the same scale.
#[derive(Debug, Clone, PartialEq)]
pub struct LossScale(LossScaleState);

impl LossScale {
    const GROWTH: f64 = 2.0;
    const BACKOFF: f64 = 0.5;
    const GROWTH_INTERVAL: usize = 2000;

    /// The scale at the start of a job.
    pub fn new(initial: f64) -> Self {
        Self(LossScaleState { scale: initial, steps_since_change: 0, skipped: 0 })
    }

    /// The scale that a checkpoint holds.
    pub fn from_state(state: LossScaleState) -> Self {
        Self(state)
    }

    /// What a checkpoint holds of it.
    pub fn state(&self) -> &LossScaleState {
        &self.0
    }

    /// The present factor.
    pub fn scale(&self) -> f64 {
        self.0.scale
    }

    /// Updates left out since the start of the job.
    pub fn skipped(&self) -> u64 {
        self.0.skipped
    }

    /// Takes note of an update whose gradients were all finite, or were not.
    ///
    /// # Errors
    /// A usage error if gradients overflow even unscaled: no scale helps then.
    pub fn update(&mut self, finite: bool) -> Result<()> {
        self.0.steps_since_change += 1;
        if !finite {
            self.0.skipped += 1;
            self.0.steps_since_change = 0;
            self.0.scale *= Self::BACKOFF;
            if self.0.scale < LossScaleState::MINIMUM {
                return Err(Error::usage(format!(
                    "gradients overflow float16 at a loss scale of {} too, after {} updates that were left out: the \
                     training diverges, or its gradients are beyond float16. Lower optimizer.lr, or set train.amp to \
                     \"bf16\", whose range is float32's",
                    self.0.scale / Self::BACKOFF,
                    self.0.skipped
                )));
            }
        } else if self.0.steps_since_change == Self::GROWTH_INTERVAL {
            self.0.steps_since_change = 0;
            // The gradients are divided in float32.
            self.0.scale =
                Some(self.0.scale * Self::GROWTH).filter(|&s| s <= f64::from(f32::MAX)).unwrap_or(self.0.scale);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overflow_halves_and_two_thousand_quiet_updates_double() {
        let mut scale = LossScale::new(65_536.0);
        scale.update(false).unwrap();
        assert_eq!((scale.scale(), scale.skipped()), (32_768.0, 1));
        for _ in 0..2000 {
            assert_eq!(scale.scale(), 32_768.0);
            scale.update(true).unwrap();
        }
        assert_eq!((scale.scale(), scale.skipped()), (65_536.0, 1));
    }

    #[test]
    fn an_overflow_restarts_the_count_of_quiet_updates() {
        let mut scale = LossScale::new(8.0);
        (0..1999).for_each(|_| scale.update(true).unwrap());
        scale.update(false).unwrap();
        (0..1999).for_each(|_| scale.update(true).unwrap());
        assert_eq!(scale.scale(), 4.0);
        scale.update(true).unwrap();
        assert_eq!(scale.scale(), 8.0);
    }

    #[test]
    fn a_scale_that_would_fall_below_one_is_an_error_with_the_remedy() {
        let mut scale = LossScale::new(4.0);
        scale.update(false).unwrap();
        scale.update(false).unwrap();
        let error = scale.update(false).unwrap_err();
        assert_eq!(error.kind(), fnet_common::ErrorKind::Usage);
        let text = error.to_string();
        let parts = ["loss scale of 1 too", "after 3 updates", "optimizer.lr", "train.amp to \"bf16\""];
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    }

    #[test]
    fn a_scale_grows_no_further_than_float32() {
        let mut scale = LossScale::new(2.0_f64.powi(127));
        (0..4000).for_each(|_| scale.update(true).unwrap());
        assert_eq!(scale.scale(), 2.0_f64.powi(127));
    }
}
