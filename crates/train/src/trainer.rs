//! The loop over epochs and steps, with evaluation, checkpoints, logging and stop requests.

use std::sync::Arc;
use std::time::{Duration, Instant};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use fnet_checkpoint::native::{Best, CheckpointMeta, EarlyStopState, EpochSharding, State, TrainProgress};
use fnet_common::{Context, Error, Result};
use fnet_config::{Config, Interval, OnError};
use fnet_data::{Batch, Dataset, Loader, ShardSegment, TrainOptions, rest_of_epoch, train_indices};
use fnet_distributed::Communicator;
use fnet_protocol::client::Client;
use fnet_protocol::message::{Phase, StopReason};
use fnet_protocol::{generation, stop};

use super::after_evaluation::{self, FinishedEvaluation};
use super::early_stop;
use super::learning_rate::{LearningRate, Rate};
use super::progress::{StepIndex, TrainSchedule};
use super::reporter::Reporter;
use super::saver::{self, Saver};
use super::step_vote::StepVote;
use super::train_state::TrainState;
use super::validation::{Measured, Validated, Validation};
use crate::run_log::RunLog;

/// How long a finished job waits for a disk that accepts no writes, with its last checkpoint in memory.
const LAST_CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(300);
/// The same for a job that is asked to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How a training job ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All epochs are done.
    Finished,
    /// Stopped on request, after saving.
    Stopped(StopReason),
}

/// What an evaluation changes, on all ranks.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Found {
    /// The evaluation, if it is the best so far.
    best: Option<Best>,
    early_stop: Option<EarlyStopState>,
}

/// One rank's training job.
pub struct Trainer<'a> {
    pub(super) config: &'a Config,
    pub(super) communicator: &'a Communicator,
    pub(super) control: &'a Client,
    pub(super) train_state: TrainState<'a>,
    pub(super) training_set: Arc<Dataset>,
    pub(super) validation: Option<Validation>,
    /// `Some` on rank 0.
    pub(super) saver: Option<Saver>,
    pub(super) reporter: Reporter,
    pub(super) schedule: TrainSchedule,
    /// How other ranks trained the first part of the epoch [`TrainSchedule::changed`].
    pub(super) segments: Vec<ShardSegment>,
    pub(super) learning_rate: LearningRate<'a>,
    /// The current position.
    pub(super) progress: TrainProgress,
    /// The position after the last update, which the weights belong to.
    pub(super) updated: TrainProgress,
    /// The position whose checkpoint was written or is being written.
    pub(super) saved: Option<TrainProgress>,
    /// The best evaluation so far.
    pub(super) best: Option<Best>,
    /// How long evaluations have not become better.
    pub(super) early_stop: Option<EarlyStopState>,
    /// The metrics of the job's evaluations by epoch, those before it resumed included; on rank 0.
    pub(super) evaluations: Vec<(usize, IndexMap<String, f64>)>,
    /// The position is the end of an epoch that is not evaluated yet.
    pub(super) evaluation_due: bool,
}

impl Trainer<'_> {
    /// Trains from the current position to the end, or until a stop request. Everything is saved when it returns.
    /// Errors: the first error of this rank: data, memory, a lost peer, or a disk that does not accept the last checkpoint.
    pub fn run(&mut self) -> Result<Ending> {
        let ending = self.train()?;
        self.reporter.gather_times(self.communicator, self.progress.epoch)?;
        self.control.phase(Phase::Checkpoint);
        let (checkpoint, results) = match ending {
            Ending::Finished => (LAST_CHECKPOINT_TIMEOUT, after_evaluation::END_TIMEOUT),
            Ending::Stopped(_) => (STOP_TIMEOUT, after_evaluation::STOP_TIMEOUT),
        };
        if let Some(saver) = &self.saver {
            saver.finish(checkpoint, &|| self.control.made_progress())?;
        }
        if let Some(validation) = &mut self.validation {
            validation.finish(results, &|| self.control.made_progress());
        }
        // No rank exits before the checkpoint is durable.
        self.communicator.barrier()?;
        Ok(ending)
    }

    fn train(&mut self) -> Result<Ending> {
        loop {
            if self.evaluation_due {
                if let Some(reason) = self.evaluate()? {
                    if self.saved != Some(self.progress) {
                        self.write_checkpoint(true)?;
                    }
                    return Ok(Ending::Stopped(reason));
                }
                self.evaluation_due = false;
            }
            if self.progress.epoch >= self.schedule.epochs {
                return Ok(Ending::Finished);
            }
            if early_stop::is_over(&self.config.train.early_stop, self.early_stop.as_ref()) {
                self.end_early()?;
                return Ok(Ending::Finished);
            }
            let (stopped, due) = self.train_epoch()?;
            self.save(stopped, due)?;
            if let Some(reason) = stopped {
                return Ok(Ending::Stopped(reason));
            }
        }
    }

    /// Ends the job after an evaluation; the last checkpoint is that of its weights.
    fn end_early(&mut self) -> Result<()> {
        if let Some(EarlyStopState { best, since }) = &self.early_stop {
            log::info!(
                "Stopped after {} of {} epochs: {since} evaluations in a row did not exceed {} {:.4} of epoch {} \
                 (train.early_stop)",
                self.progress.epoch,
                self.schedule.epochs,
                best.metric,
                best.value,
                best.epoch
            );
        }
        if self.saved != Some(self.progress) {
            self.write_checkpoint(false)?;
        }
        Ok(())
    }

    /// Trains to the end of the current epoch or until a stop request. Returns that request, and whether a checkpoint is due
    /// by steps or minutes.
    fn train_epoch(&mut self) -> Result<(Option<StopReason>, bool)> {
        let epoch = self.progress.epoch;
        let mut loader = self.open_epoch()?;
        loop {
            let (stop, save) = self.train_step(&mut loader)?;
            if self.progress.epoch > epoch {
                self.reporter.gather_times(self.communicator, self.progress.epoch)?;
                if let (true, Some(log)) = (self.config.log.histograms, &mut self.reporter.log) {
                    log.show_weights(self.progress.epoch, self.train_state.parameters.trained());
                }
                if self.config.data.on_error == OnError::Skip {
                    self.reporter.gather_left_out(self.communicator, self.progress.epoch)?;
                }
                return Ok((stop, save));
            }
            if stop.is_some() {
                return Ok((stop, save));
            }
            if save {
                self.write_checkpoint(false)?;
            }
        }
    }

    /// One step. After an update, returns the stop request of all ranks and whether a checkpoint is due.
    fn train_step(&mut self, loader: &mut Loader) -> Result<(Option<StopReason>, bool)> {
        let index = self.schedule.next(self.progress);
        self.control.at(Phase::Data, index.epoch as u64 + 1, index.step as u64 + 1);
        let started = Instant::now();
        let batch = next_batch(loader, index)?;
        let data_seconds = started.elapsed().as_secs_f64();
        let learning_rate = self.learning_rate.at(index.epoch, index.step);
        let save = self.saver.as_ref().is_some_and(Saver::time_is_up);
        let due = index.updates && saver::due_by_steps(self.config.checkpoint.interval, self.updated, index);
        // One rank that was asked is enough: all stop after this step.
        let saves = save || due || self.schedule.after(index).step_in_epoch == 0;
        let regroup = (saves && stop::at_checkpoint()).then_some(StopReason::Terminated);
        let vote = StepVote { stop: stop::requested().or(regroup), save };
        let outcome =
            self.train_state.train_step(&batch, index, learning_rate, vote, self.communicator, self.control)?;
        self.progress = self.schedule.after(index);
        let mut asked = (None, false);
        if index.updates {
            asked = (outcome.report.stop, due || outcome.report.save);
            self.updated = self.progress;
            self.evaluation_due = self.progress.step_in_epoch == 0 && self.evaluates_after(self.progress.epoch);
        }
        self.reporter.skipped(&loader.take_skipped());
        loader.take_warnings().iter().for_each(|warning| log::warn!("{warning}"));
        self.reporter.step(index, &outcome, learning_rate.plain(), data_seconds, started.elapsed().as_secs_f64());
        Ok(asked)
    }

    /// Loads this rank's batches from the current position on.
    fn open_epoch(&self) -> Result<Loader> {
        let TrainProgress { epoch, step_in_epoch, .. } = self.progress;
        let (seed, samples) = (self.config.train.seed, self.config.data.samples_per_gpu);
        let (rank, world_size) = (self.communicator.rank(), self.communicator.world_size());
        let flags = self.training_set.aspect_flags();
        let segments = self.segments_of(epoch);
        let indices = match segments {
            [] => train_indices(&flags, epoch as u64, seed, rank, world_size, samples),
            segments => rest_of_epoch(&flags, epoch as u64, seed, segments, world_size, samples).swap_remove(rank),
        };
        let first_batch = step_in_epoch - self.schedule.steps_before(epoch);
        let options = TrainOptions { seed, epoch: epoch as u64, first_batch, without_masks: false };
        Loader::train(Arc::clone(&self.training_set), &self.config.data, &indices, &options)
    }

    /// How other ranks trained the first part of an epoch.
    fn segments_of(&self, epoch: usize) -> &[ShardSegment] {
        if self.schedule.steps_before(epoch) > 0 { &self.segments } else { &[] }
    }

    /// The learning rate of the last update of the finished epoch. A resumed job may not have done that update itself.
    pub(super) fn last_learning_rate(&self) -> Rate {
        let TrainProgress { epoch, step_in_epoch, step } = self.progress;
        self.learning_rate.last(epoch, step_in_epoch, step)
    }

    /// Whether the model is evaluated after `epochs` epochs.
    fn evaluates_after(&self, epochs: usize) -> bool {
        let interval = self.config.evaluation.interval;
        self.validation.is_some() && interval > 0 && (epochs.is_multiple_of(interval) || epochs == self.schedule.epochs)
    }

    /// Ends an epoch of which nothing is left when the job resumes.
    pub(super) fn end_epoch(&mut self) -> Result<()> {
        self.evaluation_due = self.evaluates_after(self.progress.epoch);
        self.save(None, false)
    }

    /// Writes a checkpoint if one is due or the job stops.
    fn save(&mut self, stopped: Option<StopReason>, due: bool) -> Result<()> {
        if self.evaluation_due {
            self.train_state.take_first_buffers()?;
        }
        let is_regular = due || self.is_regular_end();
        if is_regular || stopped.is_some() {
            self.write_checkpoint(!is_regular)?;
        }
        Ok(())
    }

    /// Writes a checkpoint of the current position in the background. All ranks call this together. The next checkpoint that
    /// is not `transient` replaces one that is.
    /// Errors: a lost peer, or lack of memory.
    pub(super) fn write_checkpoint(&mut self, transient: bool) -> Result<()> {
        self.control.phase(Phase::Checkpoint);
        let since = Instant::now();
        let checkpoint = self.train_state.capture(self.communicator, self.meta(transient)?)?;
        if let (Some(checkpoint), Some(saver)) = (checkpoint, &mut self.saver) {
            saver.save(&checkpoint, since)?;
        }
        self.saved = Some(self.progress);
        self.reporter.spent("checkpoint", since.elapsed());
        Ok(())
    }

    /// Whether a checkpoint of the current position is not transient, on whichever rank it is written.
    pub(super) fn is_regular(&self) -> bool {
        let by_steps = match self.config.checkpoint.interval {
            Interval::Steps(steps) => self.progress.step.is_multiple_of(steps),
            _ => false,
        };
        by_steps || self.is_regular_end()
    }

    /// Whether the current position is the end of an epoch that gets a checkpoint: by the interval, or because its
    /// evaluation may be the best.
    fn is_regular_end(&self) -> bool {
        let TrainProgress { epoch, step_in_epoch, .. } = self.progress;
        let policy = &self.config.checkpoint;
        let best_may_follow = self.evaluation_due && !policy.save_best.is_empty();
        step_in_epoch == 0 && (saver::due_by_epochs(policy.interval, epoch, self.schedule.epochs) || best_may_follow)
    }

    /// The metadata of a checkpoint of the current position.
    pub(super) fn meta(&self, transient: bool) -> Result<CheckpointMeta> {
        let config = self.config;
        Ok(CheckpointMeta {
            config: config.to_toml()?,
            classes: self.training_set.categories().iter().map(|category| category.name.clone()).collect(),
            progress: self.progress,
            world_size: self.communicator.world_size(),
            seed: config.train.seed,
            sharding: Some(EpochSharding {
                images: self.training_set.len(),
                samples_per_gpu: config.data.samples_per_gpu,
                accumulate: config.train.accumulate,
                segments: self.segments_of(self.progress.epoch).to_vec(),
            }),
            best: self.best.clone(),
            state: State {
                evaluation_due: self.evaluation_due,
                early_stop: self.early_stop.clone(),
                transient,
                generation: generation::own(),
                total_steps: Some(self.learning_rate.steps),
                validation_part: self.training_set.validation_part().map(str::to_owned),
                job_folder: std::env::current_dir().ok().and_then(|folder| folder.into_os_string().into_string().ok()),
                log_window: Some(serde_json::to_value(self.reporter.held_window()).map_err(bug)?),
                ..State::default()
            },
        })
    }

    /// Evaluates the weights (or their moving average), logs the metrics and keeps the best checkpoint.
    fn evaluate(&mut self) -> Result<Option<StopReason>> {
        let Some(validation) = &self.validation else { return Ok(None) };
        let (epoch, started) = (self.progress.epoch, Instant::now());
        self.train_state.swap_average()?;
        let result = validation.run(&self.train_state, self.communicator, self.control, epoch);
        self.train_state.swap_average()?;
        let measured = match result? {
            Validated::Stopped(reason) => return Ok(Some(reason)),
            Validated::Measured(measured) => measured,
        };
        let mut found = Found::default();
        if let Some(measured) = measured {
            let Measured { metrics, left_out, results } = *measured;
            log::info!("Evaluation after epoch {epoch}:\n{}", metrics.table());
            let named = metrics.named();
            self.reporter.evaluated(self.progress, self.last_learning_rate().plain(), &named, validation.image_count());
            if let Some(log) = &mut self.reporter.log {
                log.left_out("val", epoch, &left_out);
                log.curves(epoch, &metrics);
            }
            found = self.judge(&named);
            self.evaluations.push((epoch, named));
            let best = found.best.as_ref().map(|best| best.metric.clone());
            let board = self.reporter.log.as_ref().and_then(RunLog::second_board);
            if let Some(validation) = &mut self.validation {
                validation.keep(FinishedEvaluation { epoch, results, best, board });
            }
        }
        self.share(found)?;
        self.reporter.spent("evaluation", started.elapsed());
        self.reporter.gather_times(self.communicator, epoch)?;
        Ok(None)
    }

    /// What rank 0 finds about the metrics of the current position.
    pub(super) fn judge(&self, metrics: &IndexMap<String, f64>) -> Found {
        let (config, epoch) = (self.config, self.progress.epoch);
        let before = self.early_stop.as_ref();
        Found {
            best: saver::better(&config.checkpoint.save_best, metrics, epoch, self.best.as_ref()),
            early_stop: early_stop::after_evaluation(&config.train.early_stop, metrics, epoch, before),
        }
    }

    /// Keeps the checkpoint of this position if rank 0 found that it is the best so far. All ranks call this together, so
    /// it also ends the evaluation on all of them.
    pub(super) fn share(&mut self, found: Found) -> Result<()> {
        let text = serde_json::to_vec(&found).map_err(bug)?;
        let text = self.communicator.broadcast_bytes(&text, 0).context("sharing the best evaluation")?;
        let Found { best: found, early_stop } = serde_json::from_slice(&text).map_err(bug)?;
        self.early_stop = early_stop.or(self.early_stop.take());
        if let (Some(best), Some(saver)) = (&found, &self.saver) {
            log::info!("Best {} is {:.4} at {} epoch", best.metric, best.value, best.epoch);
            saver.keep_best(self.progress, &best.metric);
        }
        self.best = found.or(self.best.take());
        Ok(())
    }
}

fn bug(error: serde_json::Error) -> Error {
    Error::bug(error.to_string())
}

fn next_batch(loader: &mut Loader, index: StepIndex) -> Result<Batch> {
    loader.next().unwrap_or_else(|| {
        Err(Error::bug(format!(
            "the data loader ended before step {} of epoch {}",
            index.step_in_epoch + 1,
            index.epoch + 1
        )))
    })
}
