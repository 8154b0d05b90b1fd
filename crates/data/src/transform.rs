//! Geometric preprocessing of images, boxes and masks: resize, flip, pad.

use fnet_common::Result;
use fnet_common::random::{Generator, Purpose};
use fnet_config::{Pipeline, ScaleMode};

use super::batch::{ImageMeta, InstanceMask, Target};
use super::coco::{Objects, Record, Segmentation};
use super::masks::MaskPlan;

/// The augmentation of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Augmentation {
    /// Maximum size of the resized image, `[long side, short side]` in pixels.
    pub scale: [usize; 2],
    /// Whether it is flipped horizontally.
    pub flip: bool,
}

impl Augmentation {
    /// Draws the augmentation of `sample` in `epoch`. It depends only on these and the seed.
    pub fn draw(pipeline: &Pipeline, seed: u64, epoch: u64, sample: usize) -> Self {
        let mut random = Generator::derived(seed, Purpose::Augmentation, &[epoch, sample as u64]);
        let scale = drawn_scale(&pipeline.scales, pipeline.scale_mode, &mut random).unwrap_or(pipeline.test_scale);
        Self { scale, flip: random.uniform() < pipeline.flip_probability }
    }

    /// The preprocessing at evaluation: one scale, no flip.
    pub fn test(pipeline: &Pipeline) -> Self {
        Self { scale: pipeline.test_scale, flip: false }
    }
}

/// One of `scales`, or with [`ScaleMode::Range`] a scale between the first two. A single scale needs no random number; `None`
/// without scales.
pub(super) fn drawn_scale(scales: &[[usize; 2]], mode: ScaleMode, random: &mut Generator) -> Option<[usize; 2]> {
    let between = |random: &mut Generator, a: usize, b: usize| {
        let (low, high) = (a.min(b), a.max(b));
        low + random.below(high - low + 1)
    };
    match (scales, mode) {
        (&[] | &[_], _) => scales.first().copied(),
        // The long and the short side are drawn separately, as in MMDetection.
        ([first, second, ..], ScaleMode::Range) => {
            let long = |scale: &[usize; 2]| scale[0].max(scale[1]);
            let short = |scale: &[usize; 2]| scale[0].min(scale[1]);
            let long = between(random, long(first), long(second));
            Some([long, between(random, short(first), short(second))])
        }
        (scales, ScaleMode::Value) => Some(scales[random.below(scales.len())]),
    }
}

/// The size, (height, width), of an image of `size` resized to fit `scale` with its aspect ratio kept
/// (`mmcv.rescale_size`). At least 1 pixel, where MMDetection would compute 0 and fail.
pub fn rescaled_size(size: (usize, usize), scale: [usize; 2]) -> (usize, usize) {
    let (long, short) = (scale[0].max(scale[1]) as f64, scale[0].min(scale[1]) as f64);
    let (height, width) = (size.0 as f64, size.1 as f64);
    let factor = (long / height.max(width)).min(short / height.min(width));
    let side = |length: f64| ((length * factor + 0.5) as usize).max(1);
    (side(height), side(width))
}

/// Sizes, (height, width), and scale factors of one image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Geometry {
    /// Size of the decoded image.
    pub original: (usize, usize),
    /// Size after resizing.
    pub resized: (usize, usize),
    /// Size after padding to the divisor.
    pub padded: (usize, usize),
    /// Ratio of resized to original size, `[w, h, w, h]` in float32.
    pub scale_factor: [f32; 4],
    /// The augmentation of the image.
    pub augmentation: Augmentation,
}

impl Geometry {
    /// The geometry of an image of `original` (height, width) pixels.
    pub fn new(original: (usize, usize), augmentation: Augmentation, divisor: usize) -> Self {
        let resized = rescaled_size(original, augmentation.scale);
        let factor = |new: usize, old: usize| (new as f64 / old as f64) as f32;
        let (w, h) = (factor(resized.1, original.1), factor(resized.0, original.0));
        let pad = |side: usize| side.next_multiple_of(divisor.max(1));
        Self { original, resized, padded: (pad(resized.0), pad(resized.1)), scale_factor: [w, h, w, h], augmentation }
    }

    /// The geometry as the model gets it.
    pub fn meta(&self, image_id: i64, file_name: String) -> ImageMeta {
        ImageMeta {
            image_id,
            file_name,
            original_size: self.original,
            image_size: self.resized,
            padded_size: self.padded,
            scale_factor: self.scale_factor,
            flipped: self.augmentation.flip,
        }
    }

    /// Maps a box of the original image: scaled, clipped to the resized image, flipped.
    pub fn map_box(&self, [x1, y1, x2, y2]: [f32; 4]) -> [f32; 4] {
        let (height, width) = (self.resized.0 as f32, self.resized.1 as f32);
        let [sx, sy, ..] = self.scale_factor;
        let (x1, x2) = ((x1 * sx).clamp(0.0, width), (x2 * sx).clamp(0.0, width));
        let (y1, y2) = ((y1 * sy).clamp(0.0, height), (y2 * sy).clamp(0.0, height));
        if self.augmentation.flip { [width - x2, y1, width - x1, y2] } else { [x1, y1, x2, y2] }
    }

    /// Maps the objects of an image, without their masks.
    pub(super) fn map_boxes(&self, objects: &Objects<'_>) -> Target {
        Target {
            boxes: objects.boxes.iter().map(|&object| self.map_box(object)).collect(),
            labels: objects.labels.iter().map(|&label| i64::from(label)).collect(),
            masks: Vec::new(),
        }
    }

    /// Maps the objects of `record`.
    ///
    /// Masks are drawn at the listed image size, then resized, as in MMDetection. Objects with an empty mask are left
    /// out; MMDetection trains on them. Objects without a mask have only a box.
    /// Data errors that name the annotation.
    pub fn map_objects(&self, record: &Record<'_>) -> Result<Target> {
        Ok(with_pixels(self.map_boxes(&record.objects), self.map_masks(record)?))
    }

    /// The mask of each object of `record`, `Some(None)` if it has none; `None` if it is empty.
    pub(super) fn map_masks(&self, record: &Record<'_>) -> Result<Vec<Option<Option<InstanceMask>>>> {
        let Record { image, objects, .. } = record;
        let listed = (image.height, image.width);
        let resized = rescaled_size(listed, self.augmentation.scale);
        if objects.boxes.is_empty() {
            return Ok(Vec::new());
        }
        let wrong = |message: String| record.annotation_error(format!("image {}: {message}", image.id));
        if resized.0 > self.padded.0 || resized.1 > self.padded.1 {
            return Err(wrong(format!(
                "it is listed as {}x{}, but the image {:?} has {}x{} pixels (after its EXIF rotation), and its masks \
                 do not fit; correct width and height",
                image.width, image.height, image.file_name, self.original.1, self.original.0
            )));
        }
        let plan = MaskPlan::new(listed, resized, self.augmentation.flip, self.padded);
        let mask = |(segmentation, id): (&Option<Segmentation>, &i64)| {
            let Some(segmentation) = segmentation else { return Ok(Some(None)) };
            let rle = segmentation.to_rle(listed).map_err(|message| {
                wrong(format!("annotation {id}: segmentation: {message}; fix or remove the annotation"))
            })?;
            Ok((hotcoco::mask::area(&rle) > 0).then(|| Some(plan.mask(&rle))))
        };
        record.segmentations()?.iter().zip(objects.ids).map(mask).collect()
    }
}

/// The objects whose mask is not empty: an object with an empty mask but a box would be a contradictory target.
pub(super) fn with_pixels(objects: Target, masks: Vec<Option<Option<InstanceMask>>>) -> Target {
    let mut target = Target::default();
    for ((mask, bounds), label) in masks.into_iter().zip(objects.boxes).zip(objects.labels) {
        let Some(mask) = mask else { continue };
        target.masks.push(mask);
        target.boxes.push(bounds);
        target.labels.push(label);
    }
    target
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_augmentation_depends_only_on_epoch_and_sample() {
        let pipeline = Pipeline { scales: vec![[1333, 640], [1333, 800]], ..Pipeline::default() };
        let draw = |epoch, sample| Augmentation::draw(&pipeline, 3, epoch, sample);
        assert_eq!(draw(1, 2), draw(1, 2));
        let all: Vec<_> = (0..200).map(|sample| draw(0, sample)).collect();
        let flipped = all.iter().filter(|a| a.flip).count();
        let large = all.iter().filter(|a| a.scale[1] == 800).count();
        assert!((70..130).contains(&flipped), "{flipped}");
        assert!((70..130).contains(&large), "{large}");
        assert_ne!(all, (0..200).map(|sample| draw(1, sample)).collect::<Vec<_>>());
    }

    #[test]
    fn objects_with_an_empty_mask_are_not_trained_on() {
        let small = fnet_test_support::SmallSet::new(&[(64, 48)]);
        let object = |id: u32, x: u32, mask: serde_json::Value| {
            serde_json::json!({"id": id, "image_id": 100, "category_id": 7, "bbox": [x, 5, 20, 10], "area": 200,
                               "iscrowd": 0, "segmentation": mask})
        };
        let sound = |x: u32| serde_json::json!([[x, 5, x + 20, 5, x + 20, 15, x, 15]]);
        let masks = [
            serde_json::json!([[9, 9, 9, 9, 9, 9]]),
            sound(4),
            serde_json::json!([[80, 5, 90, 5, 90, 15]]),
            serde_json::json!({"size": [48, 64], "counts": [3072]}),
            sound(30),
        ];
        let objects: Vec<_> = (0..).zip(masks).map(|(i, mask)| object(i + 1, i * 10, mask)).collect();
        small.write(&serde_json::json!({
            "images": [{"id": 100, "file_name": "0.png", "width": 64, "height": 48}],
            "annotations": objects, "categories": [{"id": 7, "name": "box"}]
        }));
        let dataset = crate::Dataset::open(&small.config, crate::Split::Train).unwrap();
        let geometry = Geometry::new((48, 64), Augmentation { scale: [64, 48], flip: false }, 32);
        let target = geometry.map_objects(&dataset.record(0)).unwrap();
        let starts: Vec<f32> = target.boxes.iter().map(|bounds| bounds[0]).collect();
        assert_eq!((starts, target.labels.len(), target.masks.len()), (vec![10.0, 40.0], 2, 2));
        assert!(target.masks.iter().flatten().all(|mask| mask.pixels.contains(&1)));
    }

    #[test]
    fn a_range_of_scales_draws_both_sides_within_the_range() {
        let pipeline =
            Pipeline { scales: vec![[1333, 640], [1000, 800]], scale_mode: ScaleMode::Range, ..Pipeline::default() };
        let sizes: Vec<_> = (0..100).map(|sample| Augmentation::draw(&pipeline, 0, 0, sample).scale).collect();
        assert!(sizes.iter().all(|s| (1000..=1333).contains(&s[0]) && (640..=800).contains(&s[1])));
        assert!(sizes.iter().any(|s| s[0] != sizes[0][0]) && sizes.iter().any(|s| s[1] != sizes[0][1]));
    }

    proptest! {
        #[test]
        fn a_flipped_box_is_inside_and_keeps_its_size(
            h in 1usize..2000, w in 1usize..2000, x in -50f32..2000.0, y in -50f32..2000.0, bw in 1f32..900.0, bh in 1f32..900.0
        ) {
            let geometry = |flip| Geometry::new((h, w), Augmentation { scale: [1333, 800], flip }, 32);
            let object = [x, y, x + bw, y + bh];
            let (plain, mirrored) = (geometry(false).map_box(object), geometry(true).map_box(object));
            let (height, width) = (geometry(true).resized.0 as f32, geometry(true).resized.1 as f32);
            for b in [plain, mirrored] {
                prop_assert!(0.0 <= b[0] && b[0] <= b[2] && b[2] <= width && 0.0 <= b[1] && b[1] <= b[3] && b[3] <= height);
            }
            prop_assert!(((plain[2] - plain[0]) - (mirrored[2] - mirrored[0])).abs() < 1e-3);
        }
    }
}
