//! One step's pictures and objects, from files to tensors.

use std::panic::{AssertUnwindSafe, catch_unwind};

use fnet_protocol::{activity, contain};
use tch::{Device, Kind, Tensor};

use super::stages::{StageTimes, Stopwatch};
use crate::config::Pipeline;
use crate::data::batch::{Batch, ImageMeta, Target};
use crate::data::coco::Dataset;
use crate::data::decode::Picture;
use crate::data::normalise::Normalisation;
use crate::data::resize::Bilinear;
use crate::data::transform::{Augmentation, Geometry};
use crate::error::{Error, Result};

/// One picture that is read and knows what becomes of it.
pub(super) struct Sample {
    picture: Picture,
    geometry: Geometry,
    meta: ImageMeta,
    target: Target,
}

/// Decodes picture `index` of `dataset`.
///
/// # Errors
/// Data errors that name the file, its image id and the remedy.
pub fn load_picture(dataset: &Dataset, index: usize) -> Result<Picture> {
    Picture::read(&dataset.picture_path(index)).map_err(|error| error.context(place_of(dataset, index)))
}

fn place_of(dataset: &Dataset, index: usize) -> String {
    format!("{} (image {})", dataset.split().name(), dataset.image(index).id)
}

/// What is read of the objects of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Nothing,
    Boxes,
    BoxesAndMasks,
}

impl Sample {
    /// The file name as the annotation file gives it.
    pub fn file_name(&self) -> &str {
        &self.meta.file_name
    }

    /// What is damaged in the picture although it was decoded.
    pub fn warning(&self) -> Option<&str> {
        self.picture.warning.as_deref()
    }

    /// Reads picture `index` and what is `wanted` of its objects.
    pub fn load(
        dataset: &Dataset,
        index: usize,
        augmentation: Augmentation,
        divisor: usize,
        wanted: Wanted,
        times: &mut StageTimes,
    ) -> Result<Self> {
        let load = || {
            let mut watch = Stopwatch::start();
            let path = dataset.picture_path(index);
            let _work = activity::begin(format!("reading {}", path.display()));
            let named = |error: Error| error.context(place_of(dataset, index));
            let bytes = Picture::bytes(&path).map_err(named)?;
            watch.lap(&mut times.read);
            let picture = Picture::from_bytes(&path, &bytes).map_err(named)?;
            watch.lap(&mut times.decode);
            let geometry = Geometry::new((picture.height, picture.width), augmentation, divisor);
            let target = match wanted {
                Wanted::Nothing => Target::default(),
                Wanted::Boxes => geometry.map_boxes(dataset, index),
                Wanted::BoxesAndMasks => geometry.map_objects(dataset, index)?,
            };
            watch.lap(&mut times.masks);
            let image = dataset.image(index);
            let meta = ImageMeta {
                image_id: image.id,
                file_name: image.file_name.into(),
                original_size: geometry.original,
                image_size: geometry.resized,
                padded_size: geometry.padded,
                scale_factor: geometry.scale_factor,
                flipped: augmentation.flip,
            };
            Ok(Self { picture, geometry, meta, target })
        };
        catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|panic| {
            let path = dataset.picture_path(index);
            Err(Error::bug(format!("loading {} panicked: {}", path.display(), contain::text(&*panic))))
        })
    }
}

/// A picture outside of any data set as a batch of one without objects, prepared as at evaluation.
///
/// # Errors
/// If libtorch fails (memory).
pub fn single_picture(picture: Picture, image_id: i64, file_name: &str, pipeline: &Pipeline) -> Result<Batch> {
    let augmentation = Augmentation::test(pipeline);
    let geometry = Geometry::new((picture.height, picture.width), augmentation, pipeline.size_divisor);
    let meta = ImageMeta {
        image_id,
        file_name: file_name.into(),
        original_size: geometry.original,
        image_size: geometry.resized,
        padded_size: geometry.padded,
        scale_factor: geometry.scale_factor,
        flipped: augmentation.flip,
    };
    let sample = Sample { picture, geometry, meta, target: Target::default() };
    assemble(vec![sample], &Normalisation::new(pipeline), &mut StageTimes::default())
}

/// Puts `samples` into one batch: resized rows are normalised straight into the tensor's memory, mirrored where asked,
/// the rest is zero.
pub(super) fn assemble(samples: Vec<Sample>, normalisation: &Normalisation, times: &mut StageTimes) -> Result<Batch> {
    let height = samples.iter().map(|sample| sample.geometry.padded.0).max().unwrap_or(0);
    let width = samples.iter().map(|sample| sample.geometry.padded.1).max().unwrap_or(0);
    let shape = [samples.len() as i64, height as i64, width as i64, 3];
    let images = Tensor::f_empty(shape, (Kind::Float, Device::Cpu))?;
    let row_length = width * 3;
    if row_length > 0 {
        let length = samples.len() * height * row_length;
        prefer_huge_pages(&images, length * size_of::<f32>());
        // SAFETY: `images` is a fresh contiguous float32 tensor of `length` elements on the CPU, alive and seen by
        // nobody else while the slice is. Every f32 bit pattern is valid, and the slice is written before it is read.
        let values = unsafe { std::slice::from_raw_parts_mut(images.data_ptr().cast::<f32>(), length) };
        for (sample, values) in samples.iter().zip(values.chunks_exact_mut(height * row_length)) {
            write_picture(sample, normalisation, row_length, values, times);
        }
    }
    let (metas, targets) = samples.into_iter().map(|sample| (sample.meta, sample.target)).unzip();
    Ok(Batch { images: images.f_permute([0, 3, 1, 2])?, metas, targets })
}

/// Asks for large pages for the `bytes` of a fresh tensor: its memory is often new to the process, and thousands of
/// small pages would be cleared and mapped one by one. The system may refuse; nothing changes then.
fn prefer_huge_pages(tensor: &Tensor, bytes: usize) {
    const PAGE: usize = 2 << 20;
    let start = tensor.data_ptr() as usize;
    let (first, end) = (start.next_multiple_of(PAGE), (start + bytes) / PAGE * PAGE);
    if first < end {
        // SAFETY: the range lies within the tensor's own memory, and this advice leaves its content alone.
        unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_HUGEPAGE) };
    }
}

fn write_picture(
    sample: &Sample,
    normalisation: &Normalisation,
    row_length: usize,
    values: &mut [f32],
    times: &mut StageTimes,
) {
    let Geometry { original, resized, augmentation, .. } = sample.geometry;
    let used = resized.1 * 3;
    let mut watch = Stopwatch::start();
    let plan = Bilinear::mirrored(original, resized, augmentation.flip);
    plan.for_each_band(&sample.picture.rgb, |first, band| {
        watch.lap(&mut times.resize);
        let out = values[first * row_length..].chunks_exact_mut(row_length);
        for (row, out) in band.chunks_exact(used).zip(out) {
            normalisation.row(row, &mut out[..used]);
            out[used..].fill(0.0);
        }
        watch.lap(&mut times.normalise);
    });
    watch.lap(&mut times.resize);
    values[resized.0 * row_length..].fill(0.0);
    watch.lap(&mut times.normalise);
}
