//! Training samples made by the augmentations of `data.pipeline.train`.

use std::time::Instant;

use fnet_common::random::{Generator, Purpose};
use fnet_common::{Error, Result};
use fnet_config::Pipeline;
use fnet_config::augment::Augmentation as Listed;

use super::sample::{Sample, Wanted, contained, read};
use super::stages::{StageTimes, Stopwatch};
use crate::augment::{Draws, Frame, Values, need_masks, run};
use crate::batch::{ImageMeta, Target};
use crate::coco::Record;
use crate::dataset::Dataset;
use crate::decode::DecodedImage;
use crate::transform::{Augmentation, Geometry, with_pixels};

/// After this many images in a row without an object in their crop, the loader fails.
const MAX_WITHOUT_OBJECTS: usize = 100;

/// Makes one sample.
pub(super) struct Augmented<'a> {
    pub dataset: &'a Dataset,
    pub pipeline: &'a Pipeline,
    /// The aspect group of each image.
    pub flags: &'a [u8],
    pub wanted: Wanted,
    pub times: &'a mut StageTimes,
}

/// A frame and the image that it was made of.
struct Made {
    frame: Frame,
    index: usize,
    warning: Option<String>,
}

impl Augmented<'_> {
    /// Image `index`, or the one that takes its place, as it is in `epoch`.
    /// Data errors that name the image, also another one that was drawn.
    pub fn load(mut self, index: usize, seed: u64, epoch: u64) -> Result<Sample> {
        let random = &mut Generator::derived(seed, Purpose::Augmentation, &[epoch, index as u64]);
        let Made { frame, index, warning } = self.make(index, &self.pipeline.train, random)?;
        let record = self.dataset.record(index);
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
        let meta = ImageMeta {
            image_id: record.image.id,
            file_name: record.image.file_name.into(),
            original_size: original,
            image_size: size,
            padded_size: padded,
            scale_factor,
            flipped,
        };
        let geometry = Geometry { padded, scale_factor, ..unchanged(size) };
        let decoded = DecodedImage { rgb, height: size.0, width: size.1, warning };
        Ok(Sample { decoded, floats, geometry, meta, target })
    }

    /// Image `index` after the augmentations `list`. If it must not be used, another of its aspect group.
    fn make(&mut self, index: usize, list: &[Listed], random: &mut Generator) -> Result<Made> {
        let before_paste = list.iter().position(|one| matches!(one, Listed::CopyPaste(_))).unwrap_or(list.len());
        let mut candidate = index;
        for _ in 0..MAX_WITHOUT_OBJECTS {
            let (mut frame, warning) = self.read(candidate)?;
            let (start, earlier) = (Instant::now(), self.times.total());
            let mut other = |random: &mut Generator| {
                let source = random.below(self.dataset.len());
                Ok(self.make(source, &list[..before_paste], random)?.frame)
            };
            let used = run(list, &mut frame, Draws { random, other: &mut other })?;
            // The time of the other image is counted where it was spent.
            self.times.resize += start.elapsed().saturating_sub(self.times.total() - earlier);
            if used {
                return Ok(Made { frame, index: candidate, warning });
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
    fn read(&mut self, index: usize) -> Result<(Frame, Option<String>)> {
        let record = self.dataset.record(index);
        let with_masks = self.wanted == Wanted::BoxesAndMasks || need_masks(&self.pipeline.train);
        contained(&record.path(), || {
            let decoded = read(&record, self.times)?;
            let mut watch = Stopwatch::start();
            let size = (decoded.height, decoded.width);
            let target = objects(&record, size, with_masks)?;
            watch.lap(&mut self.times.masks);
            Ok((Frame::new(decoded.rgb, size, target), decoded.warning))
        })
    }
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
