//! The loop over epochs and steps, with evaluation, checkpoints, the log and requests to stop.

use std::sync::Arc;
use std::time::Instant;

use fnet_protocol::client::Client;
use fnet_protocol::message::{Phase, StopReason};
use fnet_protocol::stop;

use super::checkpoint::{CheckpointMeta, Progress};
use super::learner::Learner;
use super::place::{Plan, Position, StepPlace};
use super::reporter::Reporter;
use super::saver::Saver;
use super::validation::{Measured, Validated, Validation};
use crate::config::{Config, OnError};
use crate::data::{Batch, Dataset, Loader, TrainOptions, train_indices};
use crate::distributed::World;
use crate::error::{Error, Result};

/// Key of a checkpoint's scalars: whether the model is to be evaluated before training goes on.
const EVALUATION_DUE: &str = "evaluation_due";

/// How a training job ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All epochs are done.
    Finished,
    /// Stopped on request, after saving.
    Stopped(StopReason),
}

/// One rank's training job.
pub struct Trainer<'a> {
    pub(super) config: &'a Config,
    pub(super) world: &'a World,
    pub(super) control: &'a Client,
    pub(super) learner: Learner<'a>,
    pub(super) training_set: Arc<Dataset>,
    pub(super) validation: Option<Validation>,
    /// Rank 0's.
    pub(super) saver: Option<Saver>,
    pub(super) reporter: Reporter,
    pub(super) plan: Plan,
    pub(super) learning_rate: f64,
    pub(super) position: Position,
    /// The position is the end of an epoch whose evaluation is still to be done.
    pub(super) evaluation_due: bool,
}

impl Trainer<'_> {
    /// Trains from the present position to the end, or until a request to stop.
    ///
    /// # Errors
    /// The first error of this rank: data, memory, a lost peer, or a disk that takes no checkpoint.
    pub fn run(&mut self) -> Result<Ending> {
        loop {
            if self.evaluation_due {
                if let Some(reason) = self.evaluate()? {
                    return Ok(Ending::Stopped(reason));
                }
                self.evaluation_due = false;
            }
            if self.position.epoch >= self.plan.epochs {
                return Ok(Ending::Finished);
            }
            let stopped = self.train_epoch()?;
            self.save(stopped)?;
            if let Some(reason) = stopped {
                return Ok(Ending::Stopped(reason));
            }
        }
    }

    /// The rest of the present epoch, or its part until a request to stop.
    fn train_epoch(&mut self) -> Result<Option<StopReason>> {
        let epoch = self.position.epoch;
        let mut loader = self.open_epoch()?;
        while self.position.epoch == epoch {
            let place = self.plan.next(self.position);
            self.control.at(Phase::Data, epoch as u64 + 1, place.step as u64 + 1);
            let started = Instant::now();
            let batch = next_batch(&mut loader, place)?;
            let data_seconds = started.elapsed().as_secs_f64();
            let learning_rate = self.learning_rate_at(place);
            let outcome =
                self.learner.step(&batch, place, learning_rate, stop::requested(), self.world, self.control)?;
            self.position = self.plan.after(place);
            self.reporter.skipped(&loader.take_skipped());
            loader.take_warnings().iter().for_each(|warning| log::warn!("{warning}"));
            self.reporter.step(place, &outcome, learning_rate, data_seconds, started.elapsed().as_secs_f64());
            if place.updates && outcome.report.stop.is_some() {
                self.evaluation_due = self.position.iteration == 0 && self.evaluates_after(self.position.epoch);
                return Ok(outcome.report.stop);
            }
        }
        if self.config.data.on_error == OnError::Skip {
            self.reporter.gather_left_out(self.world, self.position.epoch)?;
        }
        self.evaluation_due = self.evaluates_after(self.position.epoch);
        Ok(None)
    }

    /// Batches of this rank from the present position on.
    fn open_epoch(&self) -> Result<Loader> {
        let epoch = self.position.epoch as u64;
        let (seed, samples) = (self.config.train.seed, self.config.data.samples_per_gpu);
        let flags = self.training_set.aspect_flags();
        let indices = train_indices(&flags, epoch, seed, self.world.rank(), self.world.world_size(), samples);
        let options = TrainOptions { seed, epoch, first_batch: self.position.iteration, without_masks: false };
        Loader::train(Arc::clone(&self.training_set), &self.config.data, &indices, &options)
    }

    fn learning_rate_at(&self, place: StepPlace) -> f64 {
        self.config.schedule.learning_rate(self.learning_rate, place.epoch, place.step)
    }

    /// The learning rate of the last update of the finished epoch at the present position. A resumed job has not seen
    /// that update itself.
    fn last_learning_rate(&self) -> f64 {
        let Position { epoch, iteration, step } = self.position;
        self.config.schedule.last_learning_rate(self.learning_rate, epoch, iteration, step)
    }

    /// Whether the model is evaluated once `epochs` are done.
    fn evaluates_after(&self, epochs: usize) -> bool {
        let interval = self.config.evaluation.interval;
        self.validation.is_some() && interval > 0 && (epochs.is_multiple_of(interval) || epochs == self.plan.epochs)
    }

    /// Writes a checkpoint if one is due here, or if the job stops here.
    fn save(&mut self, stopped: Option<StopReason>) -> Result<()> {
        let at_end_of_epoch = self.position.iteration == 0;
        let epochs = self.position.epoch;
        let interval = self.config.checkpoint.interval;
        let due = at_end_of_epoch && (epochs.is_multiple_of(interval) || epochs == self.plan.epochs);
        if self.evaluation_due {
            // The running statistics that are evaluated are those of rank 0, as in the reference.
            let buffers: Vec<_> = self.learner.parameters.buffers().map(|(_, buffer)| buffer.shallow_clone()).collect();
            self.world.broadcast_all(&buffers, 0)?;
        }
        if !due && stopped.is_none() && !self.best_may_follow() {
            return Ok(());
        }
        self.write_checkpoint()
    }

    /// Writes a checkpoint of the present position, all ranks together.
    ///
    /// # Errors
    /// A lost peer, memory, or a disk that takes no checkpoint.
    pub(super) fn write_checkpoint(&self) -> Result<()> {
        self.control.phase(Phase::Checkpoint);
        let checkpoint = self.learner.capture(self.world, self.meta()?)?;
        if let (Some(checkpoint), Some(saver)) = (checkpoint, &self.saver) {
            let path = saver.save(&checkpoint, self.position)?;
            log::info!("Saved {}", path.display());
        }
        // No rank goes on, or ends, before the checkpoint is durable.
        self.world.barrier()
    }

    /// Whether the evaluation after this may name a best checkpoint, which must then be there.
    fn best_may_follow(&self) -> bool {
        self.evaluation_due && !self.config.checkpoint.save_best.is_empty()
    }

    fn meta(&self) -> Result<CheckpointMeta> {
        Ok(CheckpointMeta {
            config: self.config.to_toml()?,
            classes: self.training_set.categories().iter().map(|category| category.name.clone()).collect(),
            progress: Progress {
                step: self.position.step as u64,
                epoch: self.position.epoch,
                step_in_epoch: self.position.iteration,
            },
            world_size: self.world.world_size(),
            seed: self.config.train.seed,
            best: self.saver.as_ref().and_then(Saver::best).cloned(),
            state: [(EVALUATION_DUE.to_owned(), self.evaluation_due.into())].into_iter().collect(),
        })
    }

    /// Evaluates the weights (their moving average, if there is one), logs the metrics, keeps the best checkpoint.
    fn evaluate(&mut self) -> Result<Option<StopReason>> {
        let Some(validation) = &self.validation else { return Ok(None) };
        let epoch = self.position.epoch;
        if let Some(ema) = &mut self.learner.ema {
            ema.swap(&self.learner.trained)?;
        }
        let result = validation.run(&self.learner, self.world, self.control, epoch);
        if let Some(ema) = &mut self.learner.ema {
            ema.swap(&self.learner.trained)?;
        }
        match result? {
            Validated::Stopped(reason) => Ok(Some(reason)),
            Validated::Measured(None) => Ok(None),
            Validated::Measured(Some(measured)) => {
                let Measured { metrics, left_out } = *measured;
                log::info!("Evaluation after epoch {epoch}:\n{}", metrics.table());
                let named = metrics.named();
                self.reporter.evaluated(self.position, self.last_learning_rate(), &named, validation.picture_count());
                self.reporter.left_out("val", epoch, &left_out);
                if let Some(saver) = &mut self.saver {
                    saver.keep_best(&named, self.position)?;
                }
                Ok(None)
            }
        }
    }
}

/// Whether a checkpoint was written before an evaluation.
pub fn precedes_evaluation(meta: &CheckpointMeta) -> bool {
    meta.state.get(EVALUATION_DUE).and_then(serde_json::Value::as_bool) == Some(true)
}

fn next_batch(loader: &mut Loader, place: StepPlace) -> Result<Batch> {
    loader.next().unwrap_or_else(|| {
        Err(Error::bug(format!("the loader ended before step {} of epoch {}", place.iteration + 1, place.epoch + 1)))
    })
}
