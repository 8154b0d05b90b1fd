//! Builds the trainer of a command line, restores it and runs it.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fnet_checkpoint::Need;
use fnet_checkpoint::native::{TrainProgress, set_aside_later};
use fnet_common::{Error, Result, logger};
use fnet_config::{Config, Resolved};
use fnet_data::{Dataset, Severity, Split, check_before_job, check_classes, check_same_data, train_batches_per_epoch};
use fnet_distributed::{Communicator, likely_rank};
use fnet_model::backbones;
use fnet_protocol::cli::{Resume, Train as Arguments};
use fnet_protocol::client::Client;
use fnet_protocol::message::Phase;
use fnet_protocol::work_dir::{self, Lock};
use fnet_protocol::{env, outlet};

use super::bad_batch::BadBatches;
use super::elastic::{self, ElasticUpdate};
use super::learning_rate::LearningRate;
use super::progress::TrainSchedule;
use super::reporter::Reporter;
use super::resume::{ResumeSource, StartPoint};
use super::saver::{self, Saver};
use super::train_state::TrainState;
use super::trainer::{Ending, Trainer};
use super::validation::{Validation, read_metrics, stored_metrics};
use super::{disk, summary};
use crate::fault::FaultInjector;
use crate::run_log::{RunLog, tracker};

/// Runs `train` on this rank: loads the config, joins the other ranks, opens the data, builds the state of training, restores
/// it, and trains.
/// Errors: what the user can fix (config, data, checkpoint, machine), a lost peer, or a bug.
pub fn train(arguments: &Arguments, control: &Client) -> Result<Ending> {
    let mut resolved = resolve(arguments)?;
    let (communicator, elastic) = join(&mut resolved.config, arguments, control)?;
    let job = Job { arguments, resolved: &resolved, communicator: &communicator, control, elastic };
    let work = job.open_work_folder()?;
    let data = job.open_data(&work)?;

    control.phase(Phase::Start);
    let mut train_state = TrainState::new(&resolved.config, &communicator)?;
    train_state.bad_batches = BadBatches::kept_in(work.path.join("nan"));
    let mut trainer = job.restore(&work, data, train_state)?;
    let ending = match catch_unwind(AssertUnwindSafe(|| trainer.run())) {
        Ok(Ok(ending)) => ending,
        Ok(Err(error)) => {
            trainer.write_emergency_checkpoint(&work.checkpoint_folders, &error);
            abandon(trainer);
            return Err(error);
        }
        // A panic leaves the weights as they are, or marks that their update was in progress.
        Err(panic) => {
            trainer.write_emergency_checkpoint(&work.checkpoint_folders, &Error::from_panic(panic.as_ref()));
            abandon(trainer);
            resume_unwind(panic);
        }
    };
    let tracker = trainer.reporter.log.as_mut().and_then(RunLog::take_tracker);
    let (best, epochs) = (trainer.best.take(), trainer.progress.epoch);
    let evaluations = std::mem::take(&mut trainer.evaluations);
    // From here on, the last checkpoint is on the disk.
    drop(trainer);
    if matches!(ending, Ending::Finished) && communicator.is_first() {
        outlet::stdout(format!("{}\n", summary::end(&work.path, epochs, best.as_ref(), &evaluations)));
    }
    communicator.leave()?;
    if let Some(mut tracker) = tracker {
        let timeout = if ending == Ending::Finished { tracker::END_TIMEOUT } else { tracker::STOP_TIMEOUT };
        tracker.finish(timeout, &|| control.made_progress());
    }
    Ok(ending)
}

/// Joins the other ranks and applies the settings that depend on their number.
fn join(config: &mut Config, arguments: &Arguments, control: &Client) -> Result<(Communicator, Option<ElasticUpdate>)> {
    let injector = arm(arguments, control);
    // CUDA and NCCL read this setting when they start.
    torch_ext::context::set_deterministic(config.train.deterministic)?;
    let communicator = Communicator::from_environment()?;
    injector.set_barrier(communicator.detached_barrier());
    control.on_peer_lost(communicator.detached_abort());
    let workers = communicator.world_size();
    let elastic = elastic::full_world_size().map(|full| {
        let lr = config.optimizer.lr;
        let update = elastic::keep_batch(config, workers, full);
        if arguments.auto_scale_lr {
            config.optimizer.lr = lr;
        }
        update
    });
    let elastic = elastic.transpose()?;
    if let Some(warning) = scale_learning_rate(config, arguments, workers) {
        log::warn!("{warning}");
    }
    let elastic = elastic.map(|update| ElasticUpdate { learning_rate: config.optimizer.lr, ..update });
    Ok((communicator, elastic))
}

/// The inputs of a training job.
struct Job<'a> {
    arguments: &'a Arguments,
    resolved: &'a Resolved,
    communicator: &'a Communicator,
    control: &'a Client,
    elastic: Option<ElasticUpdate>,
}

/// Where a job writes, and the checkpoint that it resumes from.
struct WorkFolder {
    path: PathBuf,
    /// `path`, then the folders of `checkpoint.fallback`.
    checkpoint_folders: Vec<PathBuf>,
    source: Option<ResumeSource>,
    _lock: Option<File>,
}

/// The data sets of a job, and its schedule.
struct JobData {
    training_set: Arc<Dataset>,
    validation: Option<Validation>,
    schedule: TrainSchedule,
    /// Warnings about the data sets.
    warnings: Vec<String>,
}

impl<'a> Job<'a> {
    fn open_work_folder(&self) -> Result<WorkFolder> {
        let path = self.arguments.folder();
        let lock = lock_work_dir(&path, self.communicator, self.control)?;
        let checkpoint_folders = saver::folders(&path, &self.resolved.config.checkpoint);
        let source =
            ResumeSource::find(self.arguments.resumes(), &checkpoint_folders, self.communicator, self.control)?;
        if source.is_none() {
            refuse_leftover_checkpoints(&checkpoint_folders)?;
        }
        Ok(WorkFolder { path, checkpoint_folders, source, _lock: lock })
    }

    fn open_data(&self, work: &WorkFolder) -> Result<JobData> {
        let config = &self.resolved.config;
        self.control.phase(Phase::Index);
        let training_set = Arc::new(Dataset::open(&config.data, Split::Train)?);
        let schedule = schedule(config, &training_set, self.communicator.world_size())?;
        let validation = if self.arguments.no_validate { None } else { Some(Validation::open(config, &work.path)?) };
        let sets: Vec<&Dataset> =
            std::iter::once(&*training_set).chain(validation.iter().map(Validation::dataset)).collect();
        check_classes(config, &sets)?;
        check_same_data(&sets, self.communicator.world_size(), |own| self.communicator.all_gather_bytes(own))?;
        // The first start has already checked the data.
        let warnings = match self.communicator.is_first() && !is_restart() {
            true => data_warnings(config, &sets)?,
            false => Vec::new(),
        };
        Ok(JobData { training_set, validation, schedule, warnings })
    }

    /// The trainer at the point where the job starts or resumes. Finishes what the previous job left undone.
    fn restore(&self, work: &WorkFolder, data: JobData, mut train_state: TrainState<'a>) -> Result<Trainer<'a>> {
        let Self { resolved, communicator, control, .. } = *self;
        let config = &resolved.config;
        let JobData { training_set, validation, mut schedule, mut warnings } = data;
        let start = match &work.source {
            Some(source) => source.restore(&mut train_state, &mut schedule, config, &training_set, communicator)?,
            None => StartPoint::default(),
        };
        if communicator.is_first() {
            warnings.extend(self.warnings(work, &train_state, &schedule, &start)?);
        }
        let progress = start.progress;
        let mut reporter =
            Reporter::new(resolved, &work.path, communicator, control, schedule, progress, start.window)?;
        if let Some(log) = &reporter.log {
            let text = summary::StartSummary {
                resolved,
                communicator,
                parameters: &train_state.parameters,
                training_set: &training_set,
                validation: validation.as_ref(),
                schedule: &schedule,
                progress,
                source: work.source.as_ref().map(|source| source.path.as_path()),
                work_dir: &work.path,
                log: log.text_path(),
            }
            .text();
            // A restart is the same job.
            let target = if is_restart() { logger::FILE_ONLY } else { module_path!() };
            log::info!(target: target, "{text}");
        }
        if let (Some(update), Some(log)) = (&self.elastic, &mut reporter.log) {
            log.elastic(update);
        }
        warnings.iter().for_each(|warning| log::warn!("{warning}"));
        if work.source.is_none() {
            let need = Need::unless_partial(self.arguments.allow_partial, Need::Most);
            let load_from = self.arguments.load_from.as_deref();
            let classes: Vec<String> = training_set.categories().iter().map(|class| class.name.clone()).collect();
            log::info!("{}", train_state.load_initial_weights(config, load_from, need, &classes)?);
        }
        start.notes.iter().for_each(|text| log::info!("{text}"));
        start.warnings.iter().for_each(|text| log::warn!("{text}"));
        let saver = match communicator.is_first() {
            true => Some(Saver::create(&work.checkpoint_folders, &config.checkpoint, control)?),
            false => None,
        };
        let evaluations = match &work.source {
            Some(_) => {
                (1..=progress.epoch).filter_map(|epoch| Some((epoch, stored_metrics(&work.path, epoch)?))).collect()
            }
            None => Vec::new(),
        };
        let mut trainer = Trainer {
            saver,
            evaluation_due: start.precedes_evaluation && validation.is_some(),
            evaluations,
            learning_rate: LearningRate {
                schedule: &config.schedule,
                base: config.optimizer.lr,
                epochs: schedule.epochs,
                steps: schedule.total_steps(progress),
            },
            config,
            communicator,
            control,
            train_state,
            training_set,
            validation,
            reporter,
            schedule,
            segments: start.segments,
            progress,
            updated: progress,
            saved: work.source.is_some().then_some(progress),
            best: start.best,
            early_stop: start.early_stop,
        };
        if let (true, Some(source)) = (trainer.evaluation_due, &work.source) {
            trainer.evaluation_due = !trainer.was_evaluated(&work.path, &source.path)?;
        }
        if start.epoch_is_over {
            trainer.end_epoch()?;
        }
        if start.is_third_party {
            // From here on, restarts resume from this job's own folder.
            trainer.write_checkpoint(false)?;
        }
        Ok(trainer)
    }

    /// Rank 0's warnings before training starts. Renames checkpoints that are later than that of `--resume FILE`.
    fn warnings(
        &self,
        work: &WorkFolder,
        train_state: &TrainState<'_>,
        schedule: &TrainSchedule,
        start: &StartPoint,
    ) -> Result<Vec<String>> {
        let (config, communicator) = (&self.resolved.config, self.communicator);
        let mut warnings = Vec::new();
        warnings.extend(disk_warning(config, train_state, &work.path, schedule, start, communicator)?);
        let names: Vec<&str> = train_state.parameters.trainable().map(|(name, _)| name).collect();
        warnings.extend(unused_keys(config, &names));
        if work.source.is_none() && self.arguments.load_from.is_none() && freezes_random_weights(config) {
            warnings.push(format!(
                "model.frozen_stages is {}, which keeps random weights: give pretrained ones with \
                 model.backbone.pretrained or --load-from, or set it to -1",
                config.model.frozen_stages
            ));
        }
        if let Some(Resume::From(_)) = self.arguments.resumes() {
            for path in set_aside_later(&work.checkpoint_folders, start.progress)? {
                warnings.push(format!(
                    "{} is later than the checkpoint that the job resumes from: renamed to *.superseded",
                    path.display()
                ));
            }
        }
        if config.train.deterministic && communicator.device().is_cuda() {
            warnings.push(
                "train.deterministic: RoIAlign's backward pass on a GPU adds in no fixed order, so the last bits of \
                 gradients may differ between runs"
                    .to_owned(),
            );
        }
        Ok(warnings)
    }
}

/// Drops a trainer after an error. Device resources are leaked until the process exits: freeing them may wait for
/// collectives that never finish.
fn abandon(trainer: Trainer<'_>) {
    std::mem::forget(trainer.train_state);
}

/// Locks the work folder on rank 0 until the result is dropped, unless the launcher has locked it. All ranks call this
// together.
///
/// Errors: a usage error if another job is using the folder.
fn lock_work_dir(work_dir: &Path, communicator: &Communicator, control: &Client) -> Result<Option<File>> {
    let claim = || {
        // The first write to the folder reports what is wrong with it.
        let _ = std::fs::create_dir_all(work_dir);
        match work_dir::lock(work_dir) {
            Lock::Held(file) => Ok(Some(file)),
            Lock::Busy => Err(Error::usage(work_dir::busy(work_dir))),
            Lock::Impossible(error) => {
                log::warn!("{}", work_dir::unlocked(work_dir, &error));
                Ok(None)
            }
        }
    };
    if control.is_connected() {
        return Ok(None);
    }
    let claimed = if communicator.is_first() { claim() } else { Ok(None) };
    match communicator.any(claimed.is_err())? {
        true => claimed.and_then(|_| Err(Error::usage(work_dir::busy(work_dir)))),
        false => claimed,
    }
}

/// A warning for each key of `optimizer.paramwise.custom_keys` that is in no parameter's name.
fn unused_keys(config: &Config, names: &[&str]) -> Vec<String> {
    let keys = config.optimizer.paramwise.custom_keys.keys();
    let unused = keys.filter(|key| !names.iter().any(|name| name.contains(key.as_str())));
    let example = names.first().copied().unwrap_or_default();
    unused
        .map(|key| {
            format!(
                "optimizer.paramwise.custom_keys has the key {key:?}, which is in no parameter's name and has no effect; \
                 a name is for example {example}"
            )
        })
        .collect()
}

fn freezes_random_weights(config: &Config) -> bool {
    config.model.frozen_stages >= 0 && config.model.backbone.pretrained.is_empty()
}

/// Whether the launcher restarted this job.
fn is_restart() -> bool {
    std::env::var(env::RESTART_COUNT).is_ok_and(|count| count != "0")
}

/// Arms the faults of `--fault`.
fn arm(arguments: &Arguments, control: &Client) -> Arc<FaultInjector> {
    let variable = |name: &str| std::env::var(name).ok();
    let attempt = variable(env::RESTART_COUNT).and_then(|text| text.parse().ok()).unwrap_or(0);
    FaultInjector::arm(&arguments.fault, likely_rank(variable), attempt, control)
}

/// Refuses to start a new job while a fallback folder holds checkpoints of a previous one, which a restart would resume
/// from. The launcher has already checked the work folder, which comes first.
fn refuse_leftover_checkpoints(folders: &[PathBuf]) -> Result<()> {
    for folder in folders.iter().skip(1) {
        let found = fnet_protocol::work_dir::checkpoints(folder).unwrap_or_default();
        if let Some(newest) = found.last() {
            return Err(Error::usage(format!(
                "{} (checkpoint.fallback) holds checkpoints of a previous job in this work folder, such as {}: resume from \
                 them with --resume, choose another --work-dir, or move them away",
                folder.display(),
                newest.path.display()
            )));
        }
    }
    Ok(())
}

/// A warning if the disk has no room for all checkpoints of the job.
/// Errors: an environment error if a new job could not write a single one. A job that resumes or has a fallback folder
/// starts anyway: it saves as soon as there is room.
fn disk_warning(
    config: &Config,
    train_state: &TrainState<'_>,
    work_dir: &Path,
    schedule: &TrainSchedule,
    start: &StartPoint,
    communicator: &Communicator,
) -> Result<Option<String>> {
    let checkpoint = disk::checkpoint_bytes(config, &train_state.parameters, communicator.world_size());
    let estimate = disk::estimate(work_dir, checkpoint, &config.checkpoint, schedule, start.progress)?;
    let has_fallback = !config.checkpoint.fallback.is_empty();
    match disk::judge(&estimate, work_dir) {
        Err(error) if is_restart() || has_fallback || start.progress != TrainProgress::default() => {
            Ok(Some(error.to_string()))
        }
        judged => judged,
    }
}

/// Warnings about the data, one line for each kind.
/// Errors: a data error if the data cannot be trained on.
pub(super) fn data_warnings(config: &Config, sets: &[&Dataset]) -> Result<Vec<String>> {
    let mut warnings: Vec<String> =
        sets.iter().flat_map(|dataset| dataset.diagnostics().lines(Severity::Warning)).collect();
    warnings.extend(check_before_job(config, sets, &config.evaluation.metrics)?);
    Ok(warnings)
}

/// The config with the changes of the command line, except the learning rate.
/// Errors: a usage error if it cannot be trained with.
pub(super) fn resolve(arguments: &Arguments) -> Result<Resolved> {
    let mut resolved = fnet_data::load_config(&arguments.config, &arguments.set)?;
    let config = &mut resolved.config;
    if let Some(seed) = arguments.seed {
        config.train.seed = seed;
    }
    config.train.deterministic |= arguments.deterministic;
    config.train.match_classes |= arguments.match_classes;
    config.validate_for_training()?;
    backbones::find(&config.model.backbone.kind)?;
    Ok(resolved)
}

/// Scales the learning rate to the number of images per update if `--auto-scale-lr` is given. Otherwise returns a warning if
/// the rate was chosen for another number.
pub(super) fn scale_learning_rate(config: &mut Config, arguments: &Arguments, world_size: usize) -> Option<String> {
    let batch = config.effective_batch(world_size);
    let optimizer = &mut config.optimizer;
    let scaled = optimizer.auto_scale_lr(batch);
    if arguments.auto_scale_lr {
        optimizer.lr = scaled;
        log::info!("optimizer.lr is {scaled} for {batch} images per update");
        return None;
    }
    (batch != optimizer.base_batch_size).then(|| {
        format!(
            "optimizer.lr = {} was chosen for {} images per update, and this job has {batch}; --auto-scale-lr sets it to \
             {scaled}",
            optimizer.lr, optimizer.base_batch_size
        )
    })
}

impl Trainer<'_> {
    /// Whether the checkpoint that the job resumes from was evaluated before the previous job ended. If so, its metrics
    /// count for the best checkpoint; the checkpoint itself was written before the evaluation.
    fn was_evaluated(&mut self, work_dir: &Path, checkpoint: &Path) -> Result<bool> {
        let epoch = self.progress.epoch;
        let metrics = if self.communicator.is_first() { read_metrics(work_dir, epoch, checkpoint) } else { None };
        let learning_rate = self.last_learning_rate().plain();
        if let (Some(metrics), Some(log)) = (&metrics, &mut self.reporter.log) {
            // TensorBoard discards it when the job starts.
            log.show_evaluation(self.progress.step as u64, learning_rate, metrics);
        }
        self.share(metrics.as_ref().map(|metrics| self.judge(metrics)).unwrap_or_default())?;
        self.communicator.any(metrics.is_some())
    }
}

/// The length of the job on `world_size` ranks.
/// Errors: a data error if no image is left to train on.
pub(super) fn schedule(config: &Config, training_set: &Dataset, world_size: usize) -> Result<TrainSchedule> {
    let flags = training_set.aspect_flags();
    let steps_per_epoch = train_batches_per_epoch(&flags, world_size, config.data.samples_per_gpu);
    if steps_per_epoch == 0 {
        return Err(Error::data(format!(
            "{} has no image to train on: an image needs an object of a class in use and at least 32 pixels on each side",
            training_set.annotation_files()
        )));
    }
    Ok(TrainSchedule::new(config.train.epochs, steps_per_epoch, config.train.accumulate))
}
