//! Loads the images and objects of one step, from files to tensors.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use fnet_common::{Error, Result};
use fnet_config::Pipeline;
use fnet_protocol::{activity, contain};

use super::stages::{StageTimes, Stopwatch};
use crate::batch::{Batch, ImageMeta, Target};
use crate::coco::Record;
use crate::dataset::Dataset;
use crate::decode::DecodedImage;
use crate::images::Pixels;
use crate::resize::Bilinear;
use crate::transform::{Augmentation, Geometry};

/// A loaded image with its geometry.
pub(super) struct Sample {
    pub decoded: DecodedImage,
    /// The pixels as floats, in place of those of `decoded`, already of the size of the result.
    pub floats: Option<Vec<f32>>,
    pub geometry: Geometry,
    pub meta: ImageMeta,
    pub target: Target,
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

impl Sample {
    /// See [`ImageMeta::file_name`].
    pub fn file_name(&self) -> &str {
        &self.meta.file_name
    }

    /// Sets the number and the name that identify the image in its set.
    pub fn identify(&mut self, image_id: i64, name: String) {
        (self.meta.image_id, self.meta.file_name) = (image_id, name);
    }

    /// A warning about damage in the decoded image.
    pub fn warning(&self) -> Option<&str> {
        self.decoded.warning.as_deref()
    }

    /// Reads the image of `record` and the `wanted` data of its objects.
    pub fn load(
        record: Record<'_>,
        augmentation: Augmentation,
        divisor: usize,
        wanted: Wanted,
        times: &mut StageTimes,
    ) -> Result<Self> {
        let load = || {
            let decoded = read(&record, times)?;
            let mut watch = Stopwatch::start();
            let geometry = Geometry::new((decoded.height, decoded.width), augmentation, divisor);
            let target = match wanted {
                Wanted::Nothing => Target::default(),
                Wanted::Boxes => geometry.map_boxes(&record.objects),
                Wanted::BoxesAndMasks => geometry.map_objects(&record)?,
            };
            watch.lap(&mut times.masks);
            let meta = ImageMeta {
                image_id: record.image.id,
                file_name: record.image.file_name.into(),
                original_size: geometry.original,
                image_size: geometry.resized,
                padded_size: geometry.padded,
                scale_factor: geometry.scale_factor,
                flipped: augmentation.flip,
            };
            Ok(Self { decoded, floats: None, geometry, meta, target })
        };
        contained(&record.path(), load)
    }
}

/// Reads and decodes the image of `record`.
pub(super) fn read(record: &Record<'_>, times: &mut StageTimes) -> Result<DecodedImage> {
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
pub(super) fn contained<T>(path: &Path, load: impl FnOnce() -> Result<T>) -> Result<T> {
    let _work = activity::begin(format!("reading {}", path.display()));
    catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|panic| {
        Err(Error::bug(format!("loading {} panicked: {}", path.display(), contain::text(&*panic))))
    })
}

/// A batch of one image without a data set and objects, preprocessed as at evaluation.
pub fn single_image(decoded: DecodedImage, image_id: i64, file_name: &str, pipeline: &Pipeline) -> Batch {
    let augmentation = Augmentation::test(pipeline);
    let geometry = Geometry::new((decoded.height, decoded.width), augmentation, pipeline.size_divisor);
    let meta = ImageMeta {
        image_id,
        file_name: file_name.into(),
        original_size: geometry.original,
        image_size: geometry.resized,
        padded_size: geometry.padded,
        scale_factor: geometry.scale_factor,
        flipped: augmentation.flip,
    };
    let sample = Sample { decoded, floats: None, geometry, meta, target: Target::default() };
    assemble(vec![sample], pipeline, &mut StageTimes::default())
}

/// Combines `samples` to one batch: resized, flipped if requested, in frames of the size of the largest one.
pub(super) fn assemble(samples: Vec<Sample>, pipeline: &Pipeline, times: &mut StageTimes) -> Batch {
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
