//! Prepares batches ahead of time on threads of this process.

mod prefetch;
mod sample;
mod stages;

use std::sync::Arc;

pub use sample::{Skipped, load_image, single_image};
pub use stages::StageTimes;

use prefetch::Prefetch;
use sample::{Made, Wanted, Work};

use fnet_common::Result;
use fnet_config as config;

use super::batch::Batch;
use super::dataset::Dataset;

/// Batches that are ready or in progress ahead of the consumer, per thread.
const AHEAD: usize = 2;

/// Options of a training loader.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrainOptions {
    /// Seed of the augmentations.
    pub seed: u64,
    /// Epoch, from 0.
    pub epoch: u64,
    /// First batch of the epoch to return, from 0: the number of completed steps.
    pub first_batch: usize,
    /// Leaves the masks of the targets empty, to measure their cost.
    pub without_masks: bool,
}

/// Options of an evaluation loader.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TestOptions {
    /// Whether targets are read; otherwise they are empty.
    pub with_targets: bool,
}

/// Returns batches in the order of their indices, which are the same for any number of threads.
///
/// Items are [`Batch`]es. After an error the iterator ends. Dropping the loader stops its threads.
pub struct Loader {
    items: Prefetch<Made>,
    remaining: usize,
    skipped: Vec<Skipped>,
    warnings: Vec<String>,
    times: StageTimes,
}

impl Loader {
    /// Augmented batches of `data.samples_per_gpu` images, for the images `indices` of one epoch (see
    /// [`train_indices`](super::train_indices)), starting at `options.first_batch`.
    ///
    /// With `data.on_error = "skip"`, an unreadable image is replaced by the next readable one of the same aspect
    /// group, so that all ranks make the same number of steps.
    pub fn train(
        dataset: Arc<Dataset>,
        config: &config::Data,
        indices: &[usize],
        options: &TrainOptions,
    ) -> Result<Self> {
        let batches = indices.chunks(config.samples_per_gpu.max(1)).skip(options.first_batch);
        let batches = batches.map(<[usize]>::to_vec).collect();
        let wanted = Wanted::objects(!options.without_masks && !config.boxes_only);
        Self::start(dataset, config, batches, Some((options.seed, options.epoch)), wanted)
    }

    /// Single images, each with its own padding, for evaluation. With `data.on_error = "skip"`, unreadable images are
    /// skipped.
    pub fn test(
        dataset: Arc<Dataset>,
        config: &config::Data,
        indices: &[usize],
        options: &TestOptions,
    ) -> Result<Self> {
        let batches = indices.iter().map(|&index| vec![index]).collect();
        let wanted = if options.with_targets { Wanted::objects(!config.boxes_only) } else { Wanted::Nothing };
        Self::start(dataset, config, batches, None, wanted)
    }

    fn start(
        dataset: Arc<Dataset>,
        config: &config::Data,
        batches: Vec<Vec<usize>>,
        training: Option<(u64, u64)>,
        wanted: Wanted,
    ) -> Result<Self> {
        let remaining = batches.len();
        let work = Arc::new(Work {
            flags: dataset.aspect_flags(),
            dataset,
            pipeline: config.pipeline.clone(),
            on_error: config.on_error,
            batches,
            training,
            wanted,
        });
        let described = Arc::clone(&work);
        let items = Prefetch::new(
            remaining,
            config.workers_per_gpu,
            AHEAD,
            Box::new(move |batch, canceled| work.make(batch, canceled)),
            Box::new(move |batch| described.describe(batch)),
        )?;
        Ok(Self { items, remaining, skipped: Vec::new(), warnings: Vec::new(), times: StageTimes::default() })
    }

    /// The number of remaining batches, including those that may be skipped.
    pub fn remaining(&self) -> usize {
        self.remaining
    }

    /// The images that were skipped or replaced since the last call, in the order of the returned batches.
    pub fn take_skipped(&mut self) -> Vec<Skipped> {
        std::mem::take(&mut self.skipped)
    }

    /// Warnings about damaged images that were used since the last call, each with the file name.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// The time that the threads spent on the batches returned so far.
    pub fn times(&self) -> StageTimes {
        self.times
    }
}

impl Iterator for Loader {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        loop {
            let item = self.items.next()?;
            self.remaining -= 1;
            match item {
                Ok(made) => {
                    self.skipped.extend(made.skipped);
                    self.warnings.extend(made.warnings);
                    self.times += made.times;
                    if let Some(batch) = made.batch {
                        return Some(Ok(batch));
                    }
                }
                Err(error) => {
                    self.remaining = 0;
                    return Some(Err(error));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
