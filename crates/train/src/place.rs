//! Where a job stands, and what the next step is: plain arithmetic of epochs, steps and updates.

use fnet_checkpoint::native::Progress;
use fnet_common::{Error, Result};

/// The shape of a training job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Epochs in all.
    pub epochs: usize,
    /// Steps of each rank in one epoch.
    pub steps_per_epoch: usize,
    /// Micro-steps averaged into one update.
    pub accumulate: usize,
    /// The epoch that was begun by other ranks than these, if the job is resumed within it.
    pub changed: Option<ChangedEpoch>,
}

/// An epoch of which other ranks, or ranks with other batches, have trained the first part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangedEpoch {
    /// Its number, from 0.
    pub epoch: usize,
    /// Steps of the first part.
    pub before: usize,
    /// Steps in all.
    pub steps: usize,
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

impl Position {
    /// The same as checkpoints hold it.
    pub fn progress(self) -> Progress {
        Progress { epoch: self.epoch, step_in_epoch: self.iteration, step: self.step as u64 }
    }
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
    /// A job that begins with these ranks.
    pub fn new(epochs: usize, steps_per_epoch: usize, accumulate: usize) -> Self {
        Self { epochs, steps_per_epoch, accumulate, changed: None }
    }

    /// Steps of the whole job, for one that stands at `position`.
    pub fn total_steps(&self, position: Position) -> usize {
        let Some(more_epochs) = self.epochs.checked_sub(position.epoch + 1) else { return position.step };
        let rest = self.steps_of(position.epoch) - position.iteration;
        position.step + rest + more_epochs * self.steps_per_epoch
    }

    /// Steps of one epoch, from 0.
    pub fn steps_of(&self, epoch: usize) -> usize {
        self.changed.filter(|changed| changed.epoch == epoch).map_or(self.steps_per_epoch, |changed| changed.steps)
    }

    /// Steps of an epoch that other ranks than these have done.
    pub fn steps_before(&self, epoch: usize) -> usize {
        self.changed.filter(|changed| changed.epoch == epoch).map_or(0, |changed| changed.before)
    }

    /// The step after `position`. Updates end after every `accumulate` steps of an epoch, and with the epoch, whose
    /// last update may average fewer.
    pub fn next(&self, position: Position) -> StepPlace {
        let (steps, before) = (self.steps_of(position.epoch), self.steps_before(position.epoch));
        let done = position.iteration + 1;
        let group_start = position.iteration - (position.iteration - before) % self.accumulate;
        StepPlace {
            epoch: position.epoch,
            iteration: position.iteration,
            step: position.step,
            micro_steps: self.accumulate.min(steps - group_start),
            updates: (done - before).is_multiple_of(self.accumulate) || done == steps,
        }
    }

    /// The position that a checkpoint stands for at the end of an epoch, if it was written by `then` ranks and is resumed
    /// by `now`: after a change whole epochs of the present length, as the reference counts.
    pub fn at_end_of_epoch(&self, progress: Progress, then: usize, now: usize) -> Position {
        let step = if then == now { progress.step as usize } else { progress.epoch * self.steps_per_epoch };
        Position { epoch: progress.epoch, iteration: 0, step }
    }

    /// The position of a checkpoint within an epoch, whose first part these ranks, or others, have trained: `before`
    /// steps in other ways than the present one, `rest` are still to come.
    pub fn within_epoch(&mut self, progress: Progress, before: usize, rest: usize) -> Position {
        let Progress { step, epoch, step_in_epoch: iteration } = progress;
        let step = step as usize;
        if before > 0 {
            self.changed = Some(ChangedEpoch { epoch, before, steps: iteration + rest });
        }
        if rest == 0 {
            // Only what would have filled up the epoch was left.
            return Position { epoch: epoch + 1, iteration: 0, step };
        }
        Position { epoch, iteration, step }
    }

    /// The position that the `epoch` and `iter` of an MMDetection checkpoint stand for, and what to say of it.
    ///
    /// As in the reference, training goes on with the epoch after the finished ones, whole. Where the file's epochs
    /// were of another length (other workers, or images per worker), the iterations are counted in this job's epochs;
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
        if place.iteration + 1 == self.steps_of(place.epoch) {
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
        let plan = Plan::new(2, 5, 2);
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
        assert_eq!(position, Position { epoch: 2, iteration: 0, step: plan.total_steps(Position::default()) });
    }

    #[test]
    fn an_epoch_that_other_ranks_began_ends_when_its_images_are_seen() {
        // 4 ranks had 10 steps an epoch; after 23 steps 2 ranks go on, whose epochs have 20.
        let mut plan = Plan::new(4, 20, 3);
        let progress = Progress { step: 23, epoch: 2, step_in_epoch: 3 };
        let start = plan.within_epoch(progress, 3, 14);
        assert_eq!(start, Position { epoch: 2, iteration: 3, step: 23 });
        assert_eq!(plan.total_steps(start), 20 + 17 + 20);
        let (mut position, mut updates) = (start, Vec::new());
        while position.epoch == 2 {
            let place = plan.next(position);
            if place.updates {
                updates.push((place.iteration, place.micro_steps));
            }
            position = plan.after(place);
        }
        assert_eq!(updates, [(5, 3), (8, 3), (11, 3), (14, 3), (16, 2)], "updates are counted from the change");
        assert_eq!(position, Position { epoch: 3, iteration: 0, step: 37 });
        assert!(plan.next(Position { iteration: 2, ..position }).updates);
        assert_eq!(plan.steps_of(3), 20);
    }

    #[test]
    fn an_epoch_of_which_only_what_fills_it_up_was_left_is_over() {
        let mut plan = Plan::new(4, 20, 1);
        let position = plan.within_epoch(Progress { step: 29, epoch: 2, step_in_epoch: 9 }, 9, 0);
        assert_eq!(position, Position { epoch: 3, iteration: 0, step: 29 });
        assert_eq!(plan.total_steps(position), 29 + 20);
    }

    #[test]
    fn within_an_epoch_of_the_same_ranks_nothing_changes() {
        let mut plan = Plan::new(4, 20, 1);
        let position = plan.within_epoch(Progress { step: 23, epoch: 1, step_in_epoch: 3 }, 0, 17);
        assert_eq!((position.iteration, plan.changed, plan.total_steps(position)), (3, None, 23 + 17 + 40));
    }

    #[test]
    fn an_mmdetection_checkpoint_goes_on_with_the_next_epoch() {
        let plan = Plan::new(12, 30, 1);
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
        let plan = Plan::new(1, 3, 1);
        for iteration in 0..3 {
            let place = plan.next(Position { epoch: 0, iteration, step: iteration });
            assert!(place.updates && place.micro_steps == 1);
        }
    }
}
