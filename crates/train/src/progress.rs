//! Arithmetic of epochs, steps and updates: the position of a job and its next step.

use fnet_checkpoint::native::TrainProgress;
use fnet_common::{Error, Result};

/// The shape of a training job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainSchedule {
    /// Epochs in all.
    pub epochs: usize,
    /// Steps of each rank in one epoch.
    pub steps_per_epoch: usize,
    /// Gradient accumulation steps of one update.
    pub accumulate: usize,
    /// The epoch whose first part was trained with other ranks, if the job resumed within it.
    pub changed: Option<ChangedEpoch>,
}

/// An epoch whose first part was trained with another number of ranks or another batch size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangedEpoch {
    /// Its number, from 0.
    pub epoch: usize,
    /// Steps of the first part.
    pub before: usize,
    pub steps: usize,
}

/// The index of a step within a job; all numbers count from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepIndex {
    /// The epoch.
    pub epoch: usize,
    /// The step within the epoch.
    pub step_in_epoch: usize,
    /// The step within the job.
    pub step: usize,
    /// Gradient accumulation steps of the update that this step belongs to.
    pub micro_steps: usize,
    /// Whether this step ends with an update; other steps only accumulate gradients.
    pub updates: bool,
}

impl TrainSchedule {
    /// The schedule of a new job.
    pub fn new(epochs: usize, steps_per_epoch: usize, accumulate: usize) -> Self {
        Self { epochs, steps_per_epoch, accumulate, changed: None }
    }

    /// Steps of the whole job, if it is at `progress`.
    pub fn total_steps(&self, progress: TrainProgress) -> usize {
        let Some(more_epochs) = self.epochs.checked_sub(progress.epoch + 1) else { return progress.step };
        let rest = self.steps_of(progress.epoch) - progress.step_in_epoch;
        progress.step + rest + more_epochs * self.steps_per_epoch
    }

    /// Steps of one epoch, from 0.
    pub fn steps_of(&self, epoch: usize) -> usize {
        self.changed.filter(|changed| changed.epoch == epoch).map_or(self.steps_per_epoch, |changed| changed.steps)
    }

    /// Steps of an epoch that were done with other ranks.
    pub fn steps_before(&self, epoch: usize) -> usize {
        self.changed.filter(|changed| changed.epoch == epoch).map_or(0, |changed| changed.before)
    }

    /// The step after `progress`. Updates end after every `accumulate` steps of an epoch, and with the epoch, whose
    /// last update may average fewer.
    pub fn next(&self, progress: TrainProgress) -> StepIndex {
        let (steps, before) = (self.steps_of(progress.epoch), self.steps_before(progress.epoch));
        let done = progress.step_in_epoch + 1;
        let group_start = progress.step_in_epoch - (progress.step_in_epoch - before) % self.accumulate;
        StepIndex {
            epoch: progress.epoch,
            step_in_epoch: progress.step_in_epoch,
            step: progress.step,
            micro_steps: self.accumulate.min(steps - group_start),
            updates: (done - before).is_multiple_of(self.accumulate) || done == steps,
        }
    }

    /// The position of a checkpoint at the end of an epoch, written by `then` ranks and resumed by `now`. If they differ,
    /// steps are counted in whole epochs of the new length, as MMDetection does.
    pub fn at_end_of_epoch(&self, stored: TrainProgress, then: usize, now: usize) -> TrainProgress {
        let step = if then == now { stored.step } else { stored.epoch * self.steps_per_epoch };
        TrainProgress { epoch: stored.epoch, step_in_epoch: 0, step }
    }

    /// The position of a checkpoint within an epoch: `before` steps were done with other ranks or batch sizes, and `rest`
    /// steps are left.
    pub fn within_epoch(&mut self, stored: TrainProgress, before: usize, rest: usize) -> TrainProgress {
        let TrainProgress { step, epoch, step_in_epoch } = stored;
        if before > 0 {
            self.changed = Some(ChangedEpoch { epoch, before, steps: step_in_epoch + rest });
        }
        if rest == 0 {
            // Only padding was left.
            return TrainProgress { epoch: epoch + 1, step_in_epoch: 0, step };
        }
        TrainProgress { epoch, step_in_epoch, step }
    }

    /// The position for the `epoch` and `iter` of an MMDetection checkpoint, and a note about it.
    ///
    /// As in MMDetection, training continues at the start of the epoch after the finished ones. If the file's epochs had
    /// another length (other workers, or images per worker), iterations are counted in this job's epochs. MMDetection
    /// multiplies them by the ratio of the workers, which is the same except for the padding of its epochs.
    /// Errors: a data error if the number of epochs is impossible.
    pub fn adopt(&self, epoch: u64, iter: u64) -> Result<(TrainProgress, Option<String>)> {
        let length = self.steps_per_epoch;
        let finished =
            u32::try_from(epoch).map_err(|_| Error::data(format!("its meta says {epoch} finished epochs")))?;
        let progress = TrainProgress { epoch: finished as usize, step_in_epoch: 0, step: finished as usize * length };
        let note = if iter == progress.step as u64 {
            None
        } else if epoch > 0 && iter.is_multiple_of(epoch) {
            let (iterations, step) = (iter / epoch, progress.step);
            Some(format!(
                "its epochs had {iterations} iterations and this job's have {length}, so iter {iter} becomes {step}"
            ))
        } else {
            Some(format!(
                "it was written within epoch {} (iter {iter}), which is trained again from its start",
                epoch + 1
            ))
        };
        Ok((progress, note))
    }

    /// The position after the step at `index`.
    pub fn after(&self, index: StepIndex) -> TrainProgress {
        let step = index.step + 1;
        if index.step_in_epoch + 1 == self.steps_of(index.epoch) {
            TrainProgress { epoch: index.epoch + 1, step_in_epoch: 0, step }
        } else {
            TrainProgress { epoch: index.epoch, step_in_epoch: index.step_in_epoch + 1, step }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_belongs_to_one_update_and_the_last_group_of_an_epoch_may_be_smaller() {
        let schedule = TrainSchedule::new(2, 5, 2);
        let mut progress = TrainProgress::default();
        let mut seen = Vec::new();
        while progress.epoch < schedule.epochs {
            let index = schedule.next(progress);
            seen.push((index.epoch, index.step_in_epoch, index.micro_steps, index.updates));
            progress = schedule.after(index);
        }
        let epoch = [(0, 2, false), (1, 2, true), (2, 2, false), (3, 2, true), (4, 1, true)];
        let expected: Vec<_> = (0..2).flat_map(|e| epoch.map(|(i, m, u)| (e, i, m, u))).collect();
        assert_eq!(seen, expected);
        assert_eq!(
            progress,
            TrainProgress { epoch: 2, step_in_epoch: 0, step: schedule.total_steps(TrainProgress::default()) }
        );
    }

    #[test]
    fn an_epoch_that_other_ranks_began_ends_when_its_images_are_seen() {
        // 4 ranks had 10 steps per epoch; after 23 steps, 2 ranks continue with 20 steps per epoch.
        let mut schedule = TrainSchedule::new(4, 20, 3);
        let stored = TrainProgress { step: 23, epoch: 2, step_in_epoch: 3 };
        let start = schedule.within_epoch(stored, 3, 14);
        assert_eq!(start, TrainProgress { epoch: 2, step_in_epoch: 3, step: 23 });
        assert_eq!(schedule.total_steps(start), 20 + 17 + 20);
        let (mut progress, mut updates) = (start, Vec::new());
        while progress.epoch == 2 {
            let index = schedule.next(progress);
            if index.updates {
                updates.push((index.step_in_epoch, index.micro_steps));
            }
            progress = schedule.after(index);
        }
        assert_eq!(updates, [(5, 3), (8, 3), (11, 3), (14, 3), (16, 2)], "updates are counted from the change");
        assert_eq!(progress, TrainProgress { epoch: 3, step_in_epoch: 0, step: 37 });
        assert!(schedule.next(TrainProgress { step_in_epoch: 2, ..progress }).updates);
        assert_eq!(schedule.steps_of(3), 20);
    }

    #[test]
    fn an_epoch_of_which_only_padding_is_left_is_over() {
        let mut schedule = TrainSchedule::new(4, 20, 1);
        let progress = schedule.within_epoch(TrainProgress { step: 29, epoch: 2, step_in_epoch: 9 }, 9, 0);
        assert_eq!(progress, TrainProgress { epoch: 3, step_in_epoch: 0, step: 29 });
        assert_eq!(schedule.total_steps(progress), 29 + 20);
    }

    #[test]
    fn resuming_within_an_epoch_with_the_same_ranks_changes_nothing() {
        let mut schedule = TrainSchedule::new(4, 20, 1);
        let progress = schedule.within_epoch(TrainProgress { step: 23, epoch: 1, step_in_epoch: 3 }, 0, 17);
        assert_eq!((progress.step_in_epoch, schedule.changed, schedule.total_steps(progress)), (3, None, 23 + 17 + 40));
    }

    #[test]
    fn an_mmdetection_checkpoint_continues_with_the_next_epoch() {
        let schedule = TrainSchedule::new(12, 30, 1);
        let at = |epoch, step| TrainProgress { epoch, step_in_epoch: 0, step };
        assert_eq!(schedule.adopt(6, 180).unwrap(), (at(6, 180), None));
        assert_eq!(schedule.adopt(0, 0).unwrap(), (at(0, 0), None));
        let (progress, note) = schedule.adopt(6, 90).unwrap();
        assert_eq!(progress, at(6, 180));
        assert!(note.unwrap().contains("had 15 iterations and this job's have 30, so iter 90 becomes 180"));
        for (epoch, iter) in [(6, 187), (0, 7)] {
            let (progress, note) = schedule.adopt(epoch, iter).unwrap();
            assert_eq!(progress, at(epoch as usize, epoch as usize * 30));
            assert!(note.unwrap().contains(&format!("within epoch {}", epoch + 1)));
        }
        assert!(schedule.adopt(u64::MAX, 1).is_err());
    }

    #[test]
    fn without_accumulation_every_step_updates() {
        let schedule = TrainSchedule::new(1, 3, 1);
        for step_in_epoch in 0..3 {
            let index = schedule.next(TrainProgress { epoch: 0, step_in_epoch, step: step_in_epoch });
            assert!(index.updates && index.micro_steps == 1);
        }
    }
}
