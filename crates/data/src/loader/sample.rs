//! Loads the images and objects of one step, from files to tensors.

use std::panic::{AssertUnwindSafe, catch_unwind};

use fnet_common::{Error, Result};
use fnet_config::Pipeline;
use fnet_protocol::{activity, contain};

use super::stages::{StageTimes, Stopwatch};
use crate::batch::{Batch, ImageMeta, Target};
use crate::coco::{Dataset, Record};
use crate::decode::DecodedImage;
use crate::images::Pixels;
use crate::resize::Bilinear;
use crate::transform::{Augmentation, Geometry};

/// A loaded image with its geometry.
pub(super) struct Sample {
    decoded: DecodedImage,
    geometry: Geometry,
    meta: ImageMeta,
    target: Target,
}

/// Decodes image `index` of `dataset`.
///
/// # Errors
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
    /// The file name in the annotation file.
    pub fn file_name(&self) -> &str {
        &self.meta.file_name
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
        let path = record.path();
        let load = || {
            let mut watch = Stopwatch::start();
            let _work = activity::begin(format!("reading {}", path.display()));
            let named = |error: Error| error.context(record.place());
            let bytes = DecodedImage::bytes(&path).map_err(named)?;
            watch.lap(&mut times.read);
            let decoded = DecodedImage::from_bytes(&path, &bytes).map_err(named)?;
            watch.lap(&mut times.decode);
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
            Ok(Self { decoded, geometry, meta, target })
        };
        catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|panic| {
            Err(Error::bug(format!("loading {} panicked: {}", path.display(), contain::text(&*panic))))
        })
    }
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
    let sample = Sample { decoded, geometry, meta, target: Target::default() };
    assemble(vec![sample], pipeline, &mut StageTimes::default())
}

/// Combines `samples` to one batch: resized, flipped if requested, in frames of the size of the largest one.
pub(super) fn assemble(samples: Vec<Sample>, pipeline: &Pipeline, times: &mut StageTimes) -> Batch {
    let height = samples.iter().map(|sample| sample.geometry.padded.0).max().unwrap_or(0);
    let width = samples.iter().map(|sample| sample.geometry.padded.1).max().unwrap_or(0);
    let sizes = samples.iter().map(|sample| sample.geometry.resized).collect();
    let mut watch = Stopwatch::start();
    let mut pixels = Pixels::black((height, width), sizes, pipeline);
    watch.lap(&mut times.assemble);
    for (sample, frame) in samples.iter().zip(pixels.frames_mut()) {
        write_image(sample, 3 * width, frame, times);
    }
    let (metas, targets) = samples.into_iter().map(|sample| (sample.meta, sample.target)).unzip();
    Batch { images: pixels.into(), metas, targets }
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
