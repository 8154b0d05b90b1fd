//! Prepares batches ahead of time on threads of this process.

mod augmented;
mod prefetch;
mod sample;
mod stages;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use sample::{load_image, single_image};
pub use stages::StageTimes;

use augmented::Augmented;
use prefetch::Prefetch;
use sample::{Sample, Wanted, assemble};

use fnet_common::{Error, ErrorKind, Result};
use fnet_config::{self as config, OnError, Pipeline};

use super::batch::Batch;
use super::dataset::Dataset;
use super::transform::Augmentation;

/// Batches that are ready or in progress ahead of the consumer, per thread.
const AHEAD: usize = 2;
/// After this many unreadable images in a row, the loader fails.
const MAX_SKIPPED_IN_A_ROW: usize = 16;

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

/// An image that could not be read under `data.on_error = "skip"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Its file.
    pub file: String,
    /// Its `id` in the annotation file.
    pub image_id: i64,
    /// Why it could not be read.
    pub reason: String,
}

impl std::fmt::Display for Skipped {
    /// One line: the file, its image id and the reason.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let reason = self.reason.replace('\n', " ");
        write!(f, "{} (image {}): {reason}", self.file, self.image_id)
    }
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

/// One batch with the messages about its images.
#[derive(Default)]
struct Made {
    /// `None` if every image was skipped.
    batch: Option<Batch>,
    skipped: Vec<Skipped>,
    warnings: Vec<String>,
    times: StageTimes,
}

/// The shared state of the threads.
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

    /// Image `index` or its replacement. `None` if it is skipped.
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
            let next = candidates.find(|&next| !self.dataset.is_same_image(next, candidate));
            candidate = match next {
                Some(next) if in_a_row < MAX_SKIPPED_IN_A_ROW => next,
                _ => {
                    return Err(Error::data(format!(
                        "{in_a_row} images in a row cannot be read, the last because of: {error}; check that the \
                         image folder is complete"
                    )));
                }
            };
        }
    }

    /// The replacements of `index`: the other samples of the same aspect group. The order depends only on the data set,
    /// so that it is the same on every run and rank.
    fn stand_ins(&self, index: usize) -> impl Iterator<Item = usize> {
        let count = self.dataset.len();
        (1..count).map(move |step| (index + step) % count).filter(move |&other| self.flags[other] == self.flags[index])
    }

    fn load(&self, index: usize, times: &mut StageTimes) -> Result<Sample> {
        let augmentation = match self.training {
            Some((seed, epoch)) if !self.pipeline.train.is_empty() => {
                let Self { dataset, pipeline, flags, wanted, .. } = self;
                return Augmented { dataset, pipeline, flags, wanted: *wanted, times }.load(index, seed, epoch);
            }
            Some((seed, epoch)) => Augmentation::draw(&self.pipeline, seed, epoch, index),
            None => Augmentation::test(&self.pipeline),
        };
        let record = self.dataset.record(index);
        let mut sample = Sample::load(record, augmentation, self.pipeline.size_divisor, self.wanted, times)?;
        sample.identify(self.dataset.image_id(index), self.dataset.image_name(index));
        Ok(sample)
    }
}

#[cfg(test)]
mod tests;
