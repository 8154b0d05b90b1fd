//! Makes batches: reads, decodes and augments their images and objects.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use fnet_common::random::{Generator, Purpose};
use fnet_common::{Error, ErrorKind, Result};
use fnet_config::augment::Augmentation as Listed;
use fnet_config::{OnError, Pipeline};
use fnet_protocol::{activity, contain};

use super::stages::{StageTimes, Stopwatch};
use crate::augment::{Draws, Frame, Values, need_masks, run};
use crate::batch::{Batch, ImageMeta, Target};
use crate::coco::Record;
use crate::dataset::Dataset;
use crate::decode::DecodedImage;
use crate::images::Pixels;
use crate::resize::Bilinear;
use crate::transform::{Augmentation, Geometry, with_pixels};

/// After this many unreadable images in a row, the loader fails.
const MAX_SKIPPED_IN_A_ROW: usize = 16;
/// After this many images in a row without an object in their crop, the loader fails.
const MAX_WITHOUT_OBJECTS: usize = 100;

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

/// One batch with the messages about its images.
#[derive(Default)]
pub(super) struct Made {
    /// `None` if every image was skipped.
    pub batch: Option<Batch>,
    pub skipped: Vec<Skipped>,
    pub warnings: Vec<String>,
    pub times: StageTimes,
}

/// What the threads make batches of.
pub(super) struct Work {
    pub dataset: Arc<Dataset>,
    pub pipeline: Pipeline,
    pub on_error: OnError,
    pub flags: Vec<u8>,
    pub batches: Vec<Vec<usize>>,
    /// Seed and epoch in training; `None` at evaluation.
    pub training: Option<(u64, u64)>,
    pub wanted: Wanted,
}

/// A loaded image with its geometry.
struct Sample {
    decoded: DecodedImage,
    /// The pixels as floats, in place of those of `decoded`, already of the size of the result.
    floats: Option<Vec<f32>>,
    geometry: Geometry,
    meta: ImageMeta,
    target: Target,
}

/// A frame, and the image that it was made of.
struct Augmented {
    frame: Frame,
    index: usize,
    /// About damage in the file.
    warning: Option<String>,
}

/// Decodes image `index` of `dataset`.
/// Data errors that name the file, its image id and the remedy.
pub fn load_image(dataset: &Dataset, index: usize) -> Result<DecodedImage> {
    let record = dataset.record(index);
    DecodedImage::read(&record.path()).map_err(|error| error.context(record.place()))
}

/// Which data of an image's objects are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Nothing,
    Boxes,
    BoxesAndMasks,
}

impl Wanted {
    pub fn objects(with_masks: bool) -> Self {
        if with_masks { Self::BoxesAndMasks } else { Self::Boxes }
    }
}

impl Work {
    /// The files of batch `batch`.
    pub fn describe(&self, batch: usize) -> String {
        let names = self.batches[batch].iter().map(|&index| self.dataset.image_path(index).display().to_string());
        names.collect::<Vec<_>>().join(", ")
    }

    /// Makes batch `batch`.
    pub fn make(&self, batch: usize, canceled: &AtomicBool) -> Result<Made> {
        let mut samples = Vec::with_capacity(self.batches[batch].len());
        let mut made = Made::default();
        for &index in &self.batches[batch] {
            if canceled.load(Ordering::Relaxed) {
                return Ok(Made::default());
            }
            if let Some(sample) = self.sample(index, &mut made)? {
                let warning = sample.decoded.warning.as_ref();
                made.warnings.extend(warning.map(|warning| format!("image {}: {warning}", sample.meta.file_name)));
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
                return self.load_augmented(index, seed, epoch, times);
            }
            Some((seed, epoch)) => Augmentation::draw(&self.pipeline, seed, epoch, index),
            None => Augmentation::test(&self.pipeline),
        };
        let record = self.dataset.record(index);
        contained(&record.path(), || {
            let decoded = read(&record, times)?;
            let mut watch = Stopwatch::start();
            let size = (decoded.height, decoded.width);
            let geometry = Geometry::new(size, augmentation, self.pipeline.size_divisor);
            let target = match self.wanted {
                Wanted::Nothing => Target::default(),
                Wanted::Boxes => geometry.map_boxes(&record.objects),
                Wanted::BoxesAndMasks => geometry.map_objects(&record)?,
            };
            watch.lap(&mut times.masks);
            let meta = geometry.meta(self.dataset.image_id(index), self.dataset.image_name(index));
            Ok(Sample { decoded, floats: None, geometry, meta, target })
        })
    }

    /// Image `index`, or the one that takes its place, as the augmentations of `data.pipeline.train` make it in `epoch`.
    /// Data errors that name the image, also another one that was drawn.
    fn load_augmented(&self, index: usize, seed: u64, epoch: u64, times: &mut StageTimes) -> Result<Sample> {
        let random = &mut Generator::derived(seed, Purpose::Augmentation, &[epoch, index as u64]);
        let Augmented { frame, index, warning } = self.augmented(index, &self.pipeline.train, random, times)?;
        let Frame { raster, original, mut target, padding, scale_factor, flipped } = frame;
        let size = raster.size();
        let fixed = padding.unwrap_or(size);
        let pad = |side: usize| side.next_multiple_of(self.pipeline.size_divisor.max(1));
        let padded = (pad(fixed.0), pad(fixed.1));
        target.masks.iter_mut().flatten().for_each(|mask| mask.frame = padded);
        if self.wanted != Wanted::BoxesAndMasks {
            target.masks.clear();
        }
        let (rgb, floats) = match raster.into_values() {
            Values::Bytes(bytes) => (bytes, None),
            Values::Floats(floats) => (Vec::new(), Some(floats)),
        };
        let geometry = Geometry { padded, scale_factor, ..unchanged(size) };
        let meta = geometry.meta(self.dataset.image_id(index), self.dataset.image_name(index));
        let meta = ImageMeta { original_size: original, flipped, ..meta };
        let decoded = DecodedImage { rgb, height: size.0, width: size.1, warning };
        Ok(Sample { decoded, floats, geometry, meta, target })
    }

    /// Image `index` after the augmentations `list`. If it must not be used, another of its aspect group.
    fn augmented(
        &self,
        index: usize,
        list: &[Listed],
        random: &mut Generator,
        times: &mut StageTimes,
    ) -> Result<Augmented> {
        let before_paste = list.iter().position(|one| matches!(one, Listed::CopyPaste(_))).unwrap_or(list.len());
        let mut candidate = index;
        for _ in 0..MAX_WITHOUT_OBJECTS {
            let (mut frame, warning) = self.frame(candidate, times)?;
            let (start, earlier) = (Instant::now(), times.total());
            let mut other = |random: &mut Generator| {
                let source = random.below(self.dataset.len());
                Ok(self.augmented(source, &list[..before_paste], random, times)?.frame)
            };
            let used = run(list, &mut frame, Draws { random, other: &mut other })?;
            // The time of the other image is counted where it was spent.
            times.resize += start.elapsed().saturating_sub(times.total() - earlier);
            if used {
                return Ok(Augmented { frame, index: candidate, warning });
            }
            let group = || (0..self.flags.len()).filter(|&other| self.flags[other] == self.flags[index]);
            candidate = group().nth(random.below(group().count())).unwrap_or(index);
        }
        Err(Error::data(format!(
            "{MAX_WITHOUT_OBJECTS} training images in a row, drawn in place of {}, have no object in their random crop; \
             enlarge crop_size of the `random_crop` in data.pipeline.train, or set allow_negative_crop = true there",
            self.dataset.image_path(index).display()
        )))
    }

    /// Reads image `index` and its objects. Also returns a warning about damage in the file.
    fn frame(&self, index: usize, times: &mut StageTimes) -> Result<(Frame, Option<String>)> {
        let record = self.dataset.record(index);
        let with_masks = self.wanted == Wanted::BoxesAndMasks || need_masks(&self.pipeline.train);
        contained(&record.path(), || {
            let decoded = read(&record, times)?;
            let mut watch = Stopwatch::start();
            let size = (decoded.height, decoded.width);
            let target = objects(&record, size, with_masks)?;
            watch.lap(&mut times.masks);
            Ok((Frame::new(decoded.rgb, size, target), decoded.warning))
        })
    }
}

/// Reads and decodes the image of `record`.
fn read(record: &Record<'_>, times: &mut StageTimes) -> Result<DecodedImage> {
    let path = record.path();
    let mut watch = Stopwatch::start();
    let named = |error: Error| error.context(record.place());
    let bytes = DecodedImage::bytes(&path).map_err(named)?;
    watch.lap(&mut times.read);
    let decoded = DecodedImage::from_bytes(&path, &bytes).map_err(named)?;
    watch.lap(&mut times.decode);
    Ok(decoded)
}

/// Runs `load`, which reads the image at `path`. A panic becomes an error.
fn contained<T>(path: &Path, load: impl FnOnce() -> Result<T>) -> Result<T> {
    let _work = activity::begin(format!("reading {}", path.display()));
    catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|panic| {
        Err(Error::bug(format!("loading {} panicked: {}", path.display(), contain::text(&*panic))))
    })
}

/// The geometry of an image that keeps its size.
fn unchanged(size: (usize, usize)) -> Geometry {
    let scale = [size.0.max(size.1), size.0.min(size.1)];
    Geometry::new(size, Augmentation { scale, flip: false }, 1)
}

/// The objects of `record`, whose image has `size` (height, width), in its coordinates. Boxes are as they are listed.
fn objects(record: &Record<'_>, size: (usize, usize), with_masks: bool) -> Result<Target> {
    let Record { image, objects, .. } = record;
    if !objects.boxes.is_empty() && (image.height, image.width) != size {
        return Err(record.annotation_error(format!(
            "image {}: it is listed as {}x{}, but the image {:?} has {}x{} pixels (after its EXIF rotation), so \
             data.pipeline.train cannot cut its objects out; correct width and height",
            image.id, image.width, image.height, image.file_name, size.1, size.0
        )));
    }
    let target = Target {
        boxes: objects.boxes.to_vec(),
        labels: objects.labels.iter().map(|&label| i64::from(label)).collect(),
        masks: Vec::new(),
    };
    if with_masks { Ok(with_pixels(target, unchanged(size).map_masks(record)?)) } else { Ok(target) }
}

/// A batch of one image without a data set and objects, preprocessed as at evaluation.
pub fn single_image(decoded: DecodedImage, image_id: i64, file_name: &str, pipeline: &Pipeline) -> Batch {
    let augmentation = Augmentation::test(pipeline);
    let geometry = Geometry::new((decoded.height, decoded.width), augmentation, pipeline.size_divisor);
    let meta = geometry.meta(image_id, file_name.into());
    let sample = Sample { decoded, floats: None, geometry, meta, target: Target::default() };
    assemble(vec![sample], pipeline, &mut StageTimes::default())
}

/// Combines `samples` to one batch: resized, flipped if requested, in frames of the size of the largest one.
fn assemble(samples: Vec<Sample>, pipeline: &Pipeline, times: &mut StageTimes) -> Batch {
    let height = samples.iter().map(|sample| sample.geometry.padded.0).max().unwrap_or(0);
    let width = samples.iter().map(|sample| sample.geometry.padded.1).max().unwrap_or(0);
    let sizes = samples.iter().map(|sample| sample.geometry.resized).collect();
    let mut watch = Stopwatch::start();
    // All samples of a loader pass the same augmentations.
    let floats = samples.iter().any(|sample| sample.floats.is_some());
    let mut pixels = Pixels::black_of((height, width), sizes, pipeline, floats);
    watch.lap(&mut times.assemble);
    for (sample, frame) in samples.iter().zip(pixels.frames_mut()) {
        match &sample.floats {
            Some(floats) => {
                write_floats(floats, sample.geometry.resized.1, width, frame);
                watch.lap(&mut times.assemble);
            }
            None => write_image(sample, 3 * width, frame, times),
        }
    }
    let (metas, targets) = samples.into_iter().map(|sample| (sample.meta, sample.target)).unzip();
    Batch { images: pixels.into(), metas, targets }
}

/// Copies an image of `own` pixels in a row into a frame of rows of `width` pixels.
fn write_floats(floats: &[f32], own: usize, width: usize, frame: &mut [u8]) {
    let rows = floats.chunks_exact((own * 3).max(1)).zip(frame.chunks_exact_mut(width * 3 * size_of::<f32>()));
    for (row, out) in rows {
        let (out, _) = out.as_chunks_mut::<{ size_of::<f32>() }>();
        out.iter_mut().zip(row).for_each(|(out, value)| *out = value.to_ne_bytes());
    }
}

fn write_image(sample: &Sample, row_length: usize, frame: &mut [u8], times: &mut StageTimes) {
    let Geometry { original, resized, augmentation, .. } = sample.geometry;
    let used = resized.1 * 3;
    let mut watch = Stopwatch::start();
    let plan = Bilinear::mirrored(original, resized, augmentation.flip);
    plan.for_each_band(&sample.decoded.rgb, |first, band| {
        watch.lap(&mut times.resize);
        let out = frame[first * row_length..].chunks_exact_mut(row_length);
        for (row, out) in band.chunks_exact(used).zip(out) {
            out[..used].copy_from_slice(row);
        }
        watch.lap(&mut times.assemble);
    });
    watch.lap(&mut times.resize);
}
