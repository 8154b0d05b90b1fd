//! `random_crop`: MMDetection's `RandomCrop`.
//!
//! The size is drawn first, then the upper left corner, each height before width. Boxes are moved and clipped to the crop;
//! those with a positive width and height stay, even if no pixel of their mask does. With `recompute_bbox` the boxes become
//! those of the cropped masks, and objects without a pixel are left out, as by `FilterAnnotations` in MMDetection's configs.
//!
//! A crop without objects is not used unless `allow_negative_crop`. As in MMDetection, another image of the same aspect group
//! takes its place; its choices come from the same generator, so the sample still depends only on seed, epoch and image.

use fnet_common::Result;
use fnet_common::random::Generator;
use fnet_config::augment::{CropType, RandomCrop};

use super::frame::{Augment, Draws, Frame};
use super::mask;
use super::raster::{Size, Window};

/// The size of the crop of an image of `size`.
fn crop_size(crop: &RandomCrop, (height, width): Size, random: &mut Generator) -> Size {
    let [first, second] = crop.crop_size;
    let part = |side: usize, part: f64| ((side as f64 * part + 0.5) as usize).clamp(1, side);
    match crop.crop_type {
        CropType::Absolute => (height.min(first as usize), width.min(second as usize)),
        CropType::AbsoluteRange => {
            let mut side = |side: usize| {
                let (low, high) = (side.min(first as usize), side.min(second as usize));
                low + random.below(high - low + 1)
            };
            (side(height), side(width))
        }
        CropType::Relative => (part(height, first), part(width, second)),
        CropType::RelativeRange => {
            // The bounds are float32 in MMDetection.
            let mut drawn = |low: f64| f64::from(low as f32) + random.uniform() * f64::from(1.0 - low as f32);
            let (first, second) = (drawn(first), drawn(second));
            (part(height, first), part(width, second))
        }
    }
}

impl Augment for RandomCrop {
    type Choice = Window;

    fn draw(&self, frame: &Frame, draws: &mut Draws<'_>) -> Result<Window> {
        let size = frame.raster.size();
        let (height, width) = crop_size(self, size, draws.random);
        let y = draws.random.below(size.0 - height + 1);
        let x = draws.random.below(size.1 - width + 1);
        Ok(Window { y, x, height, width })
    }

    fn apply(&self, window: Window, frame: &mut Frame) -> bool {
        frame.raster.crop(window);
        let (left, top) = (window.x as f32, window.y as f32);
        let (width, height) = (window.width as f32, window.height as f32);
        for bounds in &mut frame.target.boxes {
            let [x1, y1, x2, y2] = *bounds;
            *bounds = [x1 - left, y1 - top, x2 - left, y2 - top];
            if self.bbox_clip_border {
                let limits = [width, height, width, height];
                bounds.iter_mut().zip(limits).for_each(|(side, limit)| *side = side.clamp(0.0, limit));
            }
        }
        let valid = |bounds: &[f32; 4]| bounds[2] > bounds[0] && bounds[3] > bounds[1];
        let kept: Vec<usize> = (0..).zip(&frame.target.boxes).filter(|(_, b)| valid(b)).map(|(i, _)| i).collect();
        if kept.is_empty() && !self.allow_negative_crop {
            return false;
        }
        frame.keep(&kept);
        let target = &mut frame.target;
        target.masks.iter_mut().flatten().for_each(|mask| *mask = mask::cropped(mask, window));
        if self.recompute_bbox {
            // An object without a mask keeps its box.
            let bounds = target.masks.iter().zip(&target.boxes);
            let bounds: Vec<_> = bounds.map(|(mask, cut)| mask.as_ref().map_or(Some(*cut), mask::bounds)).collect();
            target.boxes = bounds.iter().map(|bounds| bounds.unwrap_or_default()).collect();
            let seen: Vec<usize> = (0..).zip(&bounds).filter_map(|(i, bounds)| bounds.map(|_| i)).collect();
            frame.keep(&seen);
        }
        true
    }
}
