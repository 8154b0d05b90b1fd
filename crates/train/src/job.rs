//! From a command line to a trainer that stands where it should go on.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fnet_checkpoint::Need;
use fnet_checkpoint::native::{Best, TrainProgress, set_aside_later};
use fnet_common::{Error, Result};
use fnet_config::{Config, Resolved};
use fnet_data::{Dataset, Severity, Split, check_before_job, check_classes, train_batches_per_epoch};
use fnet_distributed::{Communicator, likely_rank};
use fnet_model::backbones;
use fnet_protocol::cli::{Resume, Train as Arguments};
use fnet_protocol::client::Client;
use fnet_protocol::env;
use fnet_protocol::message::Phase;
use fnet_protocol::work_dir::{self, LATEST, Lock};

use super::bad_batch::BadBatches;
use super::disk;
use super::progress::TrainSchedule;
use super::reporter::Reporter;
use super::resume::{ResumeSource, StartPoint};
use super::saver::{self, Saver};
use super::train_state::TrainState;
use super::trainer::{Ending, Trainer};
use super::validation::{Validation, read_metrics};
use crate::fault::FaultInjector;

/// Runs `train` on this rank: loads the config, joins the other ranks, opens the data, builds the state of training, restores
/// it, and trains.
///
/// # Errors
/// What the user can mend (config, data, checkpoint, machine), a lost peer, or a bug.
pub fn train(arguments: &Arguments, control: &Client) -> Result<Ending> {
    let mut resolved = resolve(arguments)?;
    let communicator = join(&mut resolved.config, arguments, control)?;
    let job = Job { arguments, resolved: &resolved, communicator: &communicator, control };
    let work = job.open_work_folder()?;
    let data = job.open_data(&work)?;

    control.phase(Phase::Start);
    let mut train_state = TrainState::new(&resolved.config, &communicator)?;
    train_state.bad_batches = BadBatches::kept_in(work.path.join("nan"));
    let epochs = data.schedule.epochs;
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
    let best = trainer.best.take();
    // The last checkpoint is on the disk from here on.
    drop(trainer);
    if matches!(ending, Ending::Finished) && communicator.is_first() {
        control.note(result(&work.path, epochs, best.as_ref()));
    }
    communicator.leave()?;
    Ok(ending)
}

/// Joins the other ranks, and sets what depends on their number.
fn join(config: &mut Config, arguments: &Arguments, control: &Client) -> Result<Communicator> {
    let injector = arm(arguments, control);
    // Before CUDA and NCCL start: both look at it then.
    torch_ext::context::set_deterministic(config.train.deterministic)?;
    let communicator = Communicator::from_environment()?;
    injector.set_barrier(communicator.detached_barrier());
    control.on_peer_lost(communicator.detached_abort());
    if let Some(warning) = scale_learning_rate(config, arguments, communicator.world_size()) {
        log::warn!("{warning}");
    }
    Ok(communicator)
}

/// What the parts of a training job are built from.
struct Job<'a> {
    arguments: &'a Arguments,
    resolved: &'a Resolved,
    communicator: &'a Communicator,
    control: &'a Client,
}

/// Where a job writes, and the checkpoint that it continues from.
struct WorkFolder {
    path: PathBuf,
    /// `path`, and those of `checkpoint.fallback`.
    checkpoint_folders: Vec<PathBuf>,
    source: Option<ResumeSource>,
    _lock: Option<File>,
}

/// The data sets of a job, and what follows from them.
struct JobData {
    training_set: Arc<Dataset>,
    validation: Option<Validation>,
    schedule: TrainSchedule,
    /// What is odd about the sets.
    warnings: Vec<String>,
}

impl<'a> Job<'a> {
    fn open_work_folder(&self) -> Result<WorkFolder> {
        let path = self.arguments.folder();
        let lock = lock_work_dir(&path, self.communicator, self.control)?;
        let checkpoint_folders = saver::folders(&path, &self.resolved.config.checkpoint);
        let resume = self.arguments.resume.as_ref();
        let source = ResumeSource::find(resume, &checkpoint_folders, self.communicator, self.control)?;
        if source.is_none() {
            refuse_strangers(&checkpoint_folders)?;
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
        // A restart finds what the first start has checked.
        let warnings = match self.communicator.is_first() && !is_restart() {
            true => data_warnings(config, &sets)?,
            false => Vec::new(),
        };
        Ok(JobData { training_set, validation, schedule, warnings })
    }

    /// The trainer where the job begins or continues, with what a former job left to do done.
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
        let reporter = Reporter::new(resolved, &work.path, communicator, control, schedule, progress, start.window)?;
        warnings.iter().for_each(|warning| log::warn!("{warning}"));
        if work.source.is_none() {
            let need = Need::unless_partial(self.arguments.allow_partial, Need::Most);
            let load_from = self.arguments.load_from.as_deref();
            log::info!("{}", train_state.load_initial_weights(&config.model, load_from, need)?);
        }
        start.told.iter().for_each(|text| log::info!("{text}"));
        start.warnings.iter().for_each(|text| log::warn!("{text}"));
        let saver = match communicator.is_first() {
            true => Some(Saver::create(&work.checkpoint_folders, &config.checkpoint, control)?),
            false => None,
        };
        let mut trainer = Trainer {
            saver,
            evaluation_due: start.precedes_evaluation && validation.is_some(),
            learning_rate: config.optimizer.lr,
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
        };
        if let (true, Some(source)) = (trainer.evaluation_due, &work.source) {
            trainer.evaluation_due = !trainer.was_evaluated(&work.path, &source.path)?;
        }
        if start.epoch_is_over {
            trainer.end_epoch()?;
        }
        if start.is_third_party {
            // From here on the job continues from its own folder, whatever happens.
            trainer.write_checkpoint(false)?;
        }
        Ok(trainer)
    }

    /// What rank 0 warns of before training begins. Sets later checkpoints than that of `--resume FILE` aside.
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
        if let Some(Resume::From(_)) = &self.arguments.resume {
            for path in set_aside_later(&work.checkpoint_folders, start.progress)? {
                warnings.push(format!(
                    "{} is later than what the job goes on from: renamed to *.superseded",
                    path.display()
                ));
            }
        }
        if config.train.deterministic && communicator.device().is_cuda() {
            warnings.push(
                "train.deterministic: RoIAlign's backward pass on a GPU adds in an order of its own, so that the last bits \
                 of gradients may differ between runs"
                    .to_owned(),
            );
        }
        Ok(warnings)
    }
}

/// Ends a trainer whose job has broken off. What belongs to the device is left to the end of the process: giving it back
/// may wait for collectives that never end.
fn abandon(trainer: Trainer<'_>) {
    std::mem::forget(trainer.train_state);
}

/// What a finished training came to and where it is, in one line: with `--quiet` it is the only one.
fn result(work_dir: &Path, epochs: usize, best: Option<&Best>) -> String {
    let latest = work_dir.join(LATEST);
    let metrics = read_metrics(work_dir, epochs, &latest).unwrap_or_default();
    let value = |(name, value): (&String, &f64)| format!("{name} {value:.4}");
    let mut parts: Vec<String> = metrics.iter().filter(|(name, _)| name.ends_with("_mAP")).map(value).collect();
    parts.extend(best.map(|best| format!("best {} {:.4} after epoch {}", best.metric, best.value, best.epoch)));
    let numbers = if parts.is_empty() { String::new() } else { format!(": {}", parts.join(", ")) };
    let plural = if epochs == 1 { "" } else { "s" };
    format!("trained {epochs} epoch{plural}{numbers}; {}", latest.display())
}

/// Locks the work folder on rank 0 until the result is dropped, unless a launcher has; on all ranks together.
///
/// # Errors
/// A usage error if another job trains into it.
fn lock_work_dir(work_dir: &Path, communicator: &Communicator, control: &Client) -> Result<Option<File>> {
    let claim = || {
        // What is wrong with the folder is told by who writes to it.
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

/// Whether the launcher has started this job before.
fn is_restart() -> bool {
    std::env::var(env::RESTART_COUNT).is_ok_and(|count| count != "0")
}

/// Prepares the faults of a fire drill, if there is one.
fn arm(arguments: &Arguments, control: &Client) -> Arc<FaultInjector> {
    let variable = |name: &str| std::env::var(name).ok();
    let attempt = variable(env::RESTART_COUNT).and_then(|text| text.parse().ok()).unwrap_or(0);
    FaultInjector::arm(&arguments.fault, likely_rank(variable), attempt, control)
}

/// Refuses to start anew while a fallback holds checkpoints of a former job, which a restart would go on from. The launcher
/// has looked into the work folder, the first of them.
///
/// # Errors
/// A usage error with the remedy.
fn refuse_strangers(folders: &[PathBuf]) -> Result<()> {
    for folder in folders.iter().skip(1) {
        let found = fnet_protocol::work_dir::checkpoints(folder).unwrap_or_default();
        if let Some(newest) = found.last() {
            return Err(Error::usage(format!(
                "{} (checkpoint.fallback) holds checkpoints of a former job in this work folder, {} among them: go on from \
                 them with --resume, give another --work-dir, or move them away",
                folder.display(),
                newest.path.display()
            )));
        }
    }
    Ok(())
}

/// What to say if the disk has no room for all checkpoints of the job.
///
/// # Errors
/// An environment error if a new job could not write a single one. One that goes on, or has a fallback, is not held up: it
/// saves as soon as there is room.
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

/// What is odd about the data, one line for each kind.
///
/// # Errors
/// A data error if something is wrong.
pub(super) fn data_warnings(config: &Config, sets: &[&Dataset]) -> Result<Vec<String>> {
    let mut warnings: Vec<String> =
        sets.iter().flat_map(|dataset| dataset.diagnostics().lines(Severity::Warning)).collect();
    warnings.extend(check_before_job(config, sets, &config.evaluation.metrics)?);
    Ok(warnings)
}

/// The config with what the command line changes, but for the learning rate.
///
/// # Errors
/// A usage error if it cannot be trained with.
pub(super) fn resolve(arguments: &Arguments) -> Result<Resolved> {
    let mut resolved = fnet_data::load_config(&arguments.config, &arguments.set)?;
    let config = &mut resolved.config;
    if let Some(seed) = arguments.seed {
        config.train.seed = seed;
    }
    config.train.deterministic |= arguments.deterministic;
    config.validate_for_training()?;
    backbones::find(&config.model.backbone.kind)?;
    Ok(resolved)
}

/// Scales the learning rate to the images of an update on so many ranks, if it is asked for; else says what it was chosen
/// for, if that was another number.
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
            "optimizer.lr = {} was chosen for {} images per update, and this job has {batch}; --auto-scale-lr makes it {scaled}",
            optimizer.lr, optimizer.base_batch_size
        )
    })
}

impl Trainer<'_> {
    /// Whether the evaluation at the present position, of the checkpoint that the job goes on from, was finished before the
    /// job ended. Its metrics then count for the best checkpoint, which the checkpoint itself could not know of.
    fn was_evaluated(&mut self, work_dir: &Path, checkpoint: &Path) -> Result<bool> {
        let epoch = self.progress.epoch;
        let metrics = if self.communicator.is_first() { read_metrics(work_dir, epoch, checkpoint) } else { None };
        let policy = &self.config.checkpoint.save_best;
        let best = metrics.as_ref().and_then(|metrics| saver::better(policy, metrics, epoch, self.best.as_ref()));
        self.keep_if_best(best)?;
        self.communicator.any(metrics.is_some())
    }
}

/// The length of the job on so many ranks.
///
/// # Errors
/// A data error if no image is left to train on.
pub(super) fn schedule(config: &Config, training_set: &Dataset, world_size: usize) -> Result<TrainSchedule> {
    let flags = training_set.aspect_flags();
    let steps_per_epoch = train_batches_per_epoch(&flags, world_size, config.data.samples_per_gpu);
    if steps_per_epoch == 0 {
        return Err(Error::data(format!(
            "{} has no image to train on: images need an object of a wanted class and 32 pixels on each side",
            training_set.annotation_file().display()
        )));
    }
    Ok(TrainSchedule::new(config.train.epochs, steps_per_epoch, config.train.accumulate))
}
