//! The dry run of `train`: the steps of [`train`](super::train) that need neither other ranks nor a GPU.

use std::path::Path;

use tch::Device;

use fnet_checkpoint::MmdetCheckpoint;
use fnet_checkpoint::native::{CheckpointMeta, TrainProgress};
use fnet_common::{Context, Result};
use fnet_config::{Config, GradCompression};
use fnet_data::{CocoDataset, Dataset, Split};
use fnet_model::{MaskRcnn, Parameters};
use fnet_protocol::cli::Train as Arguments;
use fnet_protocol::client::Client;
use fnet_protocol::estimate::{DatasetFacts, Estimate, TrainingFacts};
use fnet_protocol::work_dir::is_pytorch_file;

use super::changed_ranks::go_on;
use super::progress::TrainSchedule;
use super::validation::Validation;
use super::{disk, job, memory, resume, saver};

/// What `train` would do with these arguments on `world_size` ranks. Nothing is written.
/// Errors: the errors that training would report about the config, the data, or the checkpoint to resume from.
pub fn forecast(arguments: &Arguments, world_size: usize) -> Result<Estimate> {
    let mut resolved = job::resolve(arguments)?;
    let mut warnings: Vec<String> =
        job::scale_learning_rate(&mut resolved.config, arguments, world_size).into_iter().collect();
    let config = &resolved.config;
    let work_dir = arguments.folder();
    let training_set = Dataset::open(&config.data, Split::Train)?;
    let mut schedule = job::schedule(config, &training_set, world_size)?;
    let validation = if arguments.no_validate { None } else { Some(Validation::open(config, &work_dir)?) };
    let sets: Vec<&Dataset> =
        std::iter::once(&training_set).chain(validation.iter().map(Validation::dataset)).collect();
    warnings.extend(job::data_warnings(config, &sets)?);
    let folders = saver::folders(&work_dir, &config.checkpoint);
    let flags = training_set.aspect_flags();
    let progress = match resume::source(arguments.resumes(), &folders, &Client::disconnected())? {
        None => TrainProgress::default(),
        Some(path) => {
            let (progress, more) = progress(&path, config, &flags, world_size, &mut schedule)
                .with_context(|| format!("resuming from {}", path.display()))?;
            warnings.extend(more);
            progress
        }
    };

    let mut parameters = Parameters::new();
    MaskRcnn::new(&config.model, &mut parameters, Device::Cpu, config.train.seed).context("building the model")?;
    let checkpoint = disk::checkpoint_bytes(config, &parameters, world_size);
    Ok(Estimate {
        config: resolved.name.clone(),
        world_size,
        datasets: sets.iter().flat_map(|set| facts(set)).collect(),
        training: Some(TrainingFacts {
            epochs: schedule.epochs,
            iterations_per_epoch: schedule.steps_per_epoch,
            iterations: schedule.total_steps(progress),
            samples_per_gpu: config.data.samples_per_gpu,
            effective_batch: config.effective_batch(world_size),
            learning_rate: config.optimizer.lr,
            epochs_done: progress.epoch,
            accumulate: config.train.accumulate,
            gradients: memory::gradients(&parameters),
            as_bfloat16: config.train.grad_compression == GradCompression::Bf16,
            evaluated: validation
                .as_ref()
                .filter(|_| config.evaluation.interval > 0)
                .map_or(0, |validation| validation.dataset().len()),
        }),
        parameters: parameters.count() as u64,
        memory: memory::of_training(config, &parameters)?,
        disk: Some(disk::estimate(&work_dir, checkpoint, &config.checkpoint, &schedule, progress)?),
        work_dir,
        warnings,
    })
}

/// The summary of each annotation file of a set.
pub fn facts(set: &Dataset) -> Vec<DatasetFacts> {
    let of_part = |(part, samples): (&CocoDataset, usize)| DatasetFacts {
        split: set.split().name().to_owned(),
        annotation_file: part.annotation_file().to_path_buf(),
        images: part.len(),
        images_per_epoch: samples,
        classes: part.categories().len(),
    };
    set.parts().map(of_part).collect()
}

/// Where the job would resume, and its warnings.
fn progress(
    path: &Path,
    config: &Config,
    flags: &[u8],
    world_size: usize,
    schedule: &mut TrainSchedule,
) -> Result<(TrainProgress, Vec<String>)> {
    if is_pytorch_file(path) {
        let checkpoint = MmdetCheckpoint::open(path)?;
        resume::same_masks(checkpoint.state.keys().any(|name| resume::is_of_mask_head(name)), config)?;
        let meta = checkpoint.meta;
        let (epoch, iter) = resume::finished(meta.epoch, meta.iter)?;
        return Ok((schedule.adopt(epoch, iter)?.0, Vec::new()));
    }
    let meta = CheckpointMeta::read(path)?;
    // A config of another version is compared when training starts.
    if let Ok(before) = meta.config(path) {
        resume::same_masks(before.model.mask, config)?;
    }
    let continued = go_on(&meta, config, flags, world_size, schedule, path)?;
    Ok((continued.progress, continued.warnings))
}
