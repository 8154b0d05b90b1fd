//! From a command line to a trainer that stands where it should go on.

use std::path::Path;
use std::sync::Arc;

use fnet_protocol::cli::Train as Arguments;
use fnet_protocol::client::Client;
use fnet_protocol::env;
use fnet_protocol::message::Phase;
use fnet_protocol::work_dir::work_dir;

use super::checkpoint::CheckpointFolder;
use super::learner::Learner;
use super::place::{Plan, Position};
use super::reporter::Reporter;
use super::resume::{Source, Start};
use super::saver::Saver;
use super::trainer::{Ending, Trainer};
use super::validation::{Validation, read_metrics};
use crate::config::{self, Config, Resolved};
use crate::data::{Dataset, Severity, Split, check_before_job, train_batches_per_epoch};
use crate::distributed::{Deadlines, World};
use crate::error::{Error, Result};
use crate::fault::Drill;
use crate::weights::Need;

/// Runs `train` on this rank.
///
/// # Errors
/// What the user can mend (config, data, checkpoint, machine), a lost peer, or a bug.
pub fn train(arguments: &Arguments, control: &Client) -> Result<Ending> {
    let mut resolved = resolve(arguments)?;
    let drill = arm(arguments, control);
    let world = World::connect(Deadlines::from_environment())?;
    drill.set_barrier(world.detached_barrier());
    let config = &mut resolved.config;
    let batch = config.effective_batch(world.world_size());
    if arguments.auto_scale_lr {
        config.optimizer.lr = config.optimizer.auto_scale_lr(batch);
        log::info!("optimizer.lr is {} for {batch} pictures per update", config.optimizer.lr);
    } else if batch != config.optimizer.base_batch_size {
        log::warn!(
            "optimizer.lr = {} was chosen for {} pictures per update, and this job has {batch}; --auto-scale-lr makes it {}",
            config.optimizer.lr,
            config.optimizer.base_batch_size,
            config.optimizer.auto_scale_lr(batch)
        );
    }
    torch_ext::context::set_deterministic(config.train.deterministic)?;
    let config = &resolved.config;
    let work_dir = work_dir(&arguments.config, arguments.work_dir.as_deref());
    let source = Source::find(arguments.resume.as_ref(), &work_dir, &world, control)?;

    control.phase(Phase::Index);
    let training_set = Arc::new(Dataset::open(&config.data, Split::Train)?);
    training_set.check_class_count(config.model.num_classes)?;
    let plan = plan(config, &training_set, &world)?;
    let validation = if arguments.no_validate { None } else { Some(Validation::open(config, &work_dir)?) };
    let warnings = if world.is_first() {
        let sets: Vec<&Dataset> =
            std::iter::once(&*training_set).chain(validation.iter().map(Validation::dataset)).collect();
        data_warnings(config, &sets)?
    } else {
        Vec::new()
    };

    control.phase(Phase::Start);
    let mut learner = Learner::new(config, &world)?;
    let start = match &source {
        Some(source) => source.restore(&mut learner, &plan, &config.optimizer, &world)?,
        None => Start::default(),
    };
    let position = start.position;
    let reporter = Reporter::new(&resolved, &work_dir, &world, control, plan, position)?;
    warnings.iter().for_each(|warning| log::warn!("{warning}"));
    if source.is_none() {
        let need = Need::unless_partial(arguments.allow_partial, Need::Most);
        log::info!("{}", learner.load_initial_weights(&config.model, arguments.load_from.as_deref(), need)?);
    }
    start.told.iter().for_each(|text| log::info!("{text}"));
    start.warnings.iter().for_each(|text| log::warn!("{text}"));
    let mut saver = match world.rank() {
        0 => Some(Saver::new(CheckpointFolder::create(&work_dir)?, &config.checkpoint, start.best)),
        _ => None,
    };
    let mut evaluation_due = start.precedes_evaluation && validation.is_some();
    if let (true, Some(source)) = (evaluation_due, &source) {
        evaluation_due = !evaluated(&work_dir, &source.path, position, &world, saver.as_mut())?;
    }
    let mut trainer = Trainer {
        saver,
        evaluation_due,
        learning_rate: config.optimizer.lr,
        config,
        world: &world,
        control,
        learner,
        training_set,
        validation,
        reporter,
        plan,
        position,
    };
    if start.is_foreign {
        // From here on the job goes on from its own folder, whatever happens.
        trainer.write_checkpoint()?;
    }
    let ending = trainer.run()?;
    drop(trainer);
    world.leave()?;
    Ok(ending)
}

/// Prepares the faults of a fire drill, if there is one.
fn arm(arguments: &Arguments, control: &Client) -> Arc<Drill> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let rank = usize::try_from(number(env::RANK)).unwrap_or(usize::MAX);
    Drill::arm(&arguments.fault, rank, number(env::RESTART_COUNT), control)
}

/// What is odd about the data, one line for each kind.
///
/// # Errors
/// A data error if something is wrong.
fn data_warnings(config: &Config, sets: &[&Dataset]) -> Result<Vec<String>> {
    let mut warnings: Vec<String> =
        sets.iter().flat_map(|dataset| dataset.findings().lines(Severity::Warning)).collect();
    warnings.extend(check_before_job(config, sets, &config.evaluation.metrics)?);
    Ok(warnings)
}

/// The config with what the command line changes.
fn resolve(arguments: &Arguments) -> Result<Resolved> {
    let mut resolved = config::load(&arguments.config, &arguments.set)?;
    let config = &mut resolved.config;
    if let Some(seed) = arguments.seed {
        config.train.seed = seed;
    }
    config.train.deterministic |= arguments.deterministic;
    config.validate_for_training()?;
    Ok(resolved)
}

/// Whether the evaluation at `position` was finished before the job ended. Its metrics then count for the best
/// checkpoint, which the checkpoint itself could not know of.
fn evaluated(
    work_dir: &Path,
    checkpoint: &Path,
    position: Position,
    world: &World,
    saver: Option<&mut Saver>,
) -> Result<bool> {
    let metrics = if world.is_first() { read_metrics(work_dir, position.epoch, checkpoint) } else { None };
    if let (Some(metrics), Some(saver)) = (&metrics, saver) {
        saver.keep_best(metrics, position)?;
    }
    world.any(metrics.is_some())
}

fn plan(config: &Config, training_set: &Dataset, world: &World) -> Result<Plan> {
    let flags = training_set.aspect_flags();
    let steps_per_epoch = train_batches_per_epoch(&flags, world.world_size(), config.data.samples_per_gpu);
    if steps_per_epoch == 0 {
        return Err(Error::data(format!(
            "{} has no picture to train on: pictures need an object of a wanted class and 32 pixels on each side",
            training_set.annotation_file().display()
        )));
    }
    Ok(Plan { epochs: config.train.epochs, steps_per_epoch, accumulate: config.train.accumulate })
}
