//! The dynamic loss scale of float16 training (Micikevicius et al., "Mixed Precision Training", 2018).

use fnet_checkpoint::native::LossScaleState;
use fnet_common::{Error, Result};

/// Factor of the loss that keeps small float16 gradients above zero. As in PyTorch's `GradScaler`, it halves after an update
/// whose gradients overflowed, which is skipped, and doubles after 2000 updates without overflow. Every rank sees the same
/// reduced gradients, so every rank has the same scale.
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

    /// The scale of a checkpoint.
    pub fn from_state(state: LossScaleState) -> Self {
        Self(state)
    }

    /// The state that checkpoints store.
    pub fn state(&self) -> &LossScaleState {
        &self.0
    }

    /// The current factor.
    pub fn scale(&self) -> f64 {
        self.0.scale
    }

    /// Updates skipped since the start of the job.
    pub fn skipped(&self) -> u64 {
        self.0.skipped
    }

    /// Adjusts the scale after an update; `finite` says whether all its gradients were finite.
    /// Errors: a usage error if gradients overflow even unscaled.
    pub fn update(&mut self, finite: bool) -> Result<()> {
        self.0.steps_since_change += 1;
        if !finite {
            self.0.skipped += 1;
            self.0.steps_since_change = 0;
            self.0.scale *= Self::BACKOFF;
            if self.0.scale < LossScaleState::MINIMUM {
                return Err(Error::usage(format!(
                    "gradients overflow float16 even at a loss scale of {}, after {} skipped updates: training diverges, or \
                     its gradients are too large for float16. Lower optimizer.lr, or set train.amp to \"bf16\", which has \
                     the range of float32",
                    self.0.scale / Self::BACKOFF,
                    self.0.skipped
                )));
            }
        } else if self.0.steps_since_change == Self::GROWTH_INTERVAL {
            self.0.steps_since_change = 0;
            // Gradients are unscaled in float32.
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
    fn an_overflow_halves_the_scale_and_2000_updates_without_one_double_it() {
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
    fn an_overflow_restarts_the_count_of_updates() {
        let mut scale = LossScale::new(8.0);
        (0..1999).for_each(|_| scale.update(true).unwrap());
        scale.update(false).unwrap();
        (0..1999).for_each(|_| scale.update(true).unwrap());
        assert_eq!(scale.scale(), 4.0);
        scale.update(true).unwrap();
        assert_eq!(scale.scale(), 8.0);
    }

    #[test]
    fn a_scale_below_one_is_an_error_with_a_remedy() {
        let mut scale = LossScale::new(4.0);
        scale.update(false).unwrap();
        scale.update(false).unwrap();
        let error = scale.update(false).unwrap_err();
        assert_eq!(error.kind(), fnet_common::ErrorKind::Usage);
        let text = error.to_string();
        let parts = ["even at a loss scale of 1", "after 3 skipped updates", "optimizer.lr", "train.amp to \"bf16\""];
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    }

    #[test]
    fn a_scale_does_not_grow_beyond_float32() {
        let mut scale = LossScale::new(2.0_f64.powi(127));
        (0..4000).for_each(|_| scale.update(true).unwrap());
        assert_eq!(scale.scale(), 2.0_f64.powi(127));
    }
}
