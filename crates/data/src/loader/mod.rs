//! Batches made ahead of time by threads of this process.

mod prefetch;
mod sample;
mod stages;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use sample::{load_image, single_image};
pub use stages::StageTimes;

use prefetch::Prefetch;
use sample::{Sample, Wanted, assemble};

use fnet_common::{Error, ErrorKind, Result};
use fnet_config::{self as config, OnError, Pipeline};

use super::batch::Batch;
use super::coco::Dataset;
use super::transform::Augmentation;

/// Batches that are ready or in work ahead of the consumer, for each thread.
const AHEAD: usize = 2;
/// After so many unreadable images in a row, leaving them out is no remedy.
const MAX_SKIPPED_IN_A_ROW: usize = 16;

/// Where in the training a loader starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrainOptions {
    /// Seed of the augmentations.
    pub seed: u64,
    /// Epoch, from 0.
    pub epoch: u64,
    /// First batch of the epoch to hand out, from 0: the steps that were already done.
    pub first_batch: usize,
    /// Leaves the masks of the targets empty, to measure what they cost.
    pub without_masks: bool,
}

/// What an evaluation loader hands out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TestOptions {
    /// Whether targets are read too; else they are empty.
    pub with_targets: bool,
}

/// An image that could not be read under `data.on_error = "skip"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Its file.
    pub file: String,
    /// Its `id` in the annotation file.
    pub image_id: i64,
    /// What is wrong with it.
    pub reason: String,
}

impl std::fmt::Display for Skipped {
    /// One line: the file, its image id and the reason.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let reason = self.reason.replace('\n', " ");
        write!(f, "{} (image {}): {reason}", self.file, self.image_id)
    }
}

/// Batches in the order of their indices, the same for any number of threads.
///
/// Items are [`Batch`]es; after an error there is none. Dropping the loader stops its threads.
pub struct Loader {
    items: Prefetch<Made>,
    remaining: usize,
    skipped: Vec<Skipped>,
    warnings: Vec<String>,
    times: StageTimes,
}

/// One batch, and what there is to say about its images.
#[derive(Default)]
struct Made {
    /// `None` if every image was left out.
    batch: Option<Batch>,
    skipped: Vec<Skipped>,
    warnings: Vec<String>,
    times: StageTimes,
}

/// What the threads share.
struct Work {
    dataset: Arc<Dataset>,
    pipeline: Pipeline,
    on_error: OnError,
    flags: Vec<u8>,
    batches: Vec<Vec<usize>>,
    /// Seed and epoch in training; `None` at evaluation.
    training: Option<(u64, u64)>,
    wanted: Wanted,
}

impl Loader {
    /// Augmented batches of `data.samples_per_gpu` images each, for the images `indices` of one epoch (see
    /// [`train_indices`](super::train_indices)) from `options.first_batch` on.
    ///
    /// With `data.on_error = "skip"`, an unreadable image is replaced by the next readable one of the same aspect
    /// group, so that all ranks make equally many steps.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn train(
        dataset: Arc<Dataset>,
        config: &config::Data,
        indices: &[usize],
        options: &TrainOptions,
    ) -> Result<Self> {
        let batches = indices.chunks(config.samples_per_gpu.max(1)).skip(options.first_batch);
        let batches = batches.map(<[usize]>::to_vec).collect();
        let wanted = if options.without_masks { Wanted::Boxes } else { Wanted::BoxesAndMasks };
        Self::start(dataset, config, batches, Some((options.seed, options.epoch)), wanted)
    }

    /// Single images, each with its own padding, for evaluation. With `data.on_error = "skip"`, an unreadable one is
    /// left out.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn test(
        dataset: Arc<Dataset>,
        config: &config::Data,
        indices: &[usize],
        options: &TestOptions,
    ) -> Result<Self> {
        let batches = indices.iter().map(|&index| vec![index]).collect();
        let wanted = if options.with_targets { Wanted::BoxesAndMasks } else { Wanted::Nothing };
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

    /// Batches that are still to come, those that may be left out among them.
    pub fn remaining(&self) -> usize {
        self.remaining
    }

    /// The images that were left out or replaced since the last call, in the order of the batches handed out.
    pub fn take_skipped(&mut self) -> Vec<Skipped> {
        std::mem::take(&mut self.skipped)
    }

    /// The damaged images that were used all the same since the last call, a sentence with the file's name each.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// What the threads spent on the batches handed out so far.
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

impl Work {
    fn describe(&self, batch: usize) -> String {
        let names = self.batches[batch].iter().map(|&index| self.dataset.image_path(index).display().to_string());
        names.collect::<Vec<_>>().join(", ")
    }

    fn make(&self, batch: usize, canceled: &AtomicBool) -> Result<Made> {
        let mut samples = Vec::with_capacity(self.batches[batch].len());
        let mut made = Made::default();
        for &index in &self.batches[batch] {
            if canceled.load(Ordering::Relaxed) {
                return Ok(Made::default());
            }
            if let Some(sample) = self.sample(index, &mut made)? {
                let named = |warning| format!("image {}: {warning}", sample.file_name());
                made.warnings.extend(sample.warning().map(named));
                samples.push(sample);
            }
        }
        if !samples.is_empty() {
            made.batch = Some(assemble(samples, &self.pipeline, &mut made.times));
        }
        Ok(made)
    }

    /// Image `index`, or what stands in for it; `None` if it is left out.
    fn sample(&self, index: usize, made: &mut Made) -> Result<Option<Sample>> {
        let mut candidates = self.stand_ins(index);
        let mut in_a_row = 0;
        let mut candidate = index;
        loop {
            let error = match self.load(candidate, &mut made.times) {
                Ok(sample) => return Ok(Some(sample)),
                Err(error) if self.on_error == OnError::Skip && error.kind() == ErrorKind::Data => error,
                Err(error) => return Err(error),
            };
            made.skipped.push(Skipped {
                file: self.dataset.image_path(candidate).display().to_string(),
                image_id: self.dataset.image(candidate).id,
                reason: error.to_string(),
            });
            in_a_row += 1;
            if self.training.is_none() {
                return Ok(None);
            }
            let next = candidates.next();
            candidate = match next {
                Some(next) if in_a_row < MAX_SKIPPED_IN_A_ROW => next,
                _ => {
                    return Err(Error::data(format!(
                        "{in_a_row} images in a row cannot be read, the last because of: {error}; check that the \
                         folder of images is there and whole"
                    )));
                }
            };
        }
    }

    /// The other images of the same aspect group in the order in which they stand in for `index`: a function of the
    /// data set alone, so that every run and every rank agrees.
    fn stand_ins(&self, index: usize) -> impl Iterator<Item = usize> {
        let count = self.dataset.len();
        (1..count).map(move |step| (index + step) % count).filter(move |&other| self.flags[other] == self.flags[index])
    }

    fn load(&self, index: usize, times: &mut StageTimes) -> Result<Sample> {
        let augmentation = match self.training {
            Some((seed, epoch)) => Augmentation::draw(&self.pipeline, seed, epoch, index),
            None => Augmentation::test(&self.pipeline),
        };
        Sample::load(self.dataset.record(index), augmentation, self.pipeline.size_divisor, self.wanted, times)
    }
}

#[cfg(test)]
mod tests;
