//! Where a job stands, and what the next step is: plain arithmetic of epochs, steps and updates.

use super::checkpoint::Progress;
use crate::error::{Error, Result};

/// The shape of a training job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Epochs in all.
    pub epochs: usize,
    /// Steps of each rank in one epoch.
    pub steps_per_epoch: usize,
    /// Micro-steps averaged into one update.
    pub accumulate: usize,
}

/// How much of a job is done. Written to checkpoints; always at an update.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    /// Finished epochs.
    pub epoch: usize,
    /// Finished steps of the epoch after those.
    pub iteration: usize,
    /// Finished steps of the job.
    pub step: usize,
}

/// Where in the job a step stands, all counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepPlace {
    /// The epoch.
    pub epoch: usize,
    /// The step within the epoch.
    pub iteration: usize,
    /// The step within the job.
    pub step: usize,
    /// Micro-steps averaged into the update that this step belongs to.
    pub micro_steps: usize,
    /// Whether this step ends with an update; the others only add their gradients.
    pub updates: bool,
}

impl Plan {
    /// Steps of the whole job.
    pub fn total_steps(&self) -> usize {
        self.epochs * self.steps_per_epoch
    }

    /// The step after `position`. Updates end after every `accumulate` steps of an epoch, and with the epoch, whose
    /// last update may average fewer.
    pub fn next(&self, position: Position) -> StepPlace {
        let done = position.iteration + 1;
        let group_start = position.iteration - position.iteration % self.accumulate;
        StepPlace {
            epoch: position.epoch,
            iteration: position.iteration,
            step: position.step,
            micro_steps: self.accumulate.min(self.steps_per_epoch - group_start),
            updates: done.is_multiple_of(self.accumulate) || done == self.steps_per_epoch,
        }
    }

    /// The position that a checkpoint stands for, if it was written by `then` ranks and is resumed by `now`.
    ///
    /// # Errors
    /// A usage error in the middle of an epoch if the number of ranks has changed, for the rest of the epoch cannot be
    /// told from what was seen.
    pub fn resume(&self, progress: Progress, then: usize, now: usize) -> Result<Position> {
        if progress.step_in_epoch == 0 {
            // As the reference counts after a change: whole epochs of the present length.
            let step = if then == now { progress.step as usize } else { progress.epoch * self.steps_per_epoch };
            return Ok(Position { epoch: progress.epoch, iteration: 0, step });
        }
        if then != now {
            return Err(Error::usage(format!(
                "the checkpoint was written by {then} workers in the middle of epoch {}, and this job has {now}; resume \
                 with {then} workers, or with --resume=epoch_{}.ckpt",
                progress.epoch + 1,
                progress.epoch
            )));
        }
        let iteration = progress.step_in_epoch;
        Ok(Position { epoch: progress.epoch, iteration, step: progress.step as usize })
    }

    /// The position that the `epoch` and `iter` of an MMDetection checkpoint stand for, and what to say of it.
    ///
    /// As in the reference, training goes on with the epoch after the finished ones, whole. Where the file's epochs
    /// were of another length (other workers, or pictures per worker), the iterations are counted in this job's epochs;
    /// the reference multiplies them by the ratio of the workers, which is the same but for what fills up its epochs.
    ///
    /// # Errors
    /// A data error if no training has so many epochs.
    pub fn adopt(&self, epoch: u64, iter: u64) -> Result<(Position, Option<String>)> {
        let length = self.steps_per_epoch;
        let finished = u32::try_from(epoch).map_err(|_| Error::data(format!("it tells of {epoch} finished epochs")))?;
        let position = Position { epoch: finished as usize, iteration: 0, step: finished as usize * length };
        let told = if iter == position.step as u64 {
            None
        } else if epoch > 0 && iter.is_multiple_of(epoch) {
            let (theirs, step) = (iter / epoch, position.step);
            Some(format!(
                "its epochs had {theirs} iterations and this job's have {length}, so iter {iter} is {step} here"
            ))
        } else {
            Some(format!("it was written within epoch {} (iter {iter}), which is trained from its start", epoch + 1))
        };
        Ok((position, told))
    }

    /// The position after the step at `place`.
    pub fn after(&self, place: StepPlace) -> Position {
        let step = place.step + 1;
        if place.iteration + 1 == self.steps_per_epoch {
            Position { epoch: place.epoch + 1, iteration: 0, step }
        } else {
            Position { epoch: place.epoch, iteration: place.iteration + 1, step }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_belongs_to_one_update_and_groups_are_averaged_by_their_size() {
        let plan = Plan { epochs: 2, steps_per_epoch: 5, accumulate: 2 };
        let mut position = Position::default();
        let mut seen = Vec::new();
        while position.epoch < plan.epochs {
            let place = plan.next(position);
            seen.push((place.epoch, place.iteration, place.micro_steps, place.updates));
            position = plan.after(place);
        }
        let epoch = [(0, 2, false), (1, 2, true), (2, 2, false), (3, 2, true), (4, 1, true)];
        let expected: Vec<_> = (0..2).flat_map(|e| epoch.map(|(i, m, u)| (e, i, m, u))).collect();
        assert_eq!(seen, expected);
        assert_eq!(position, Position { epoch: 2, iteration: 0, step: plan.total_steps() });
    }

    #[test]
    fn an_mmdetection_checkpoint_goes_on_with_the_next_epoch() {
        let plan = Plan { epochs: 12, steps_per_epoch: 30, accumulate: 1 };
        let at = |epoch, step| Position { epoch, iteration: 0, step };
        assert_eq!(plan.adopt(6, 180).unwrap(), (at(6, 180), None));
        assert_eq!(plan.adopt(0, 0).unwrap(), (at(0, 0), None));
        let (position, told) = plan.adopt(6, 90).unwrap();
        assert_eq!(position, at(6, 180));
        assert!(told.unwrap().contains("had 15 iterations and this job's have 30, so iter 90 is 180"));
        for (epoch, iter) in [(6, 187), (0, 7)] {
            let (position, told) = plan.adopt(epoch, iter).unwrap();
            assert_eq!(position, at(epoch as usize, epoch as usize * 30));
            assert!(told.unwrap().contains(&format!("within epoch {}", epoch + 1)));
        }
        assert!(plan.adopt(u64::MAX, 1).is_err());
    }

    #[test]
    fn without_accumulation_every_step_updates() {
        let plan = Plan { epochs: 1, steps_per_epoch: 3, accumulate: 1 };
        for iteration in 0..3 {
            let place = plan.next(Position { epoch: 0, iteration, step: iteration });
            assert!(place.updates && place.micro_steps == 1);
        }
    }
}
