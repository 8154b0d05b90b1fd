//! `resize`: MMDetection's `Resize`.
//!
//! The scale is one of the list, or between two of them, or the only one times a ratio, rounded down. With the aspect ratio
//! kept, the image fits into the scale (`mmcv.rescale_size`); without, the scale is its size, `[width, height]`. Pixels are
//! interpolated linearly, masks take the nearest pixel. Boxes are multiplied by the ratio of both sizes in float32 and
//! clipped to the image. A `random_crop` that follows makes large-scale jitter of a `ratio_range`; what it removes is not
//! computed.

use fnet_common::Result;
use fnet_config::augment::Resize;

use super::frame::{Augment, Draws, Frame, between};
use super::mask;
use crate::transform::{drawn_scale, rescaled_size};

impl Augment for Resize {
    /// The scale.
    type Choice = [usize; 2];

    fn draw(&self, _: &Frame, draws: &mut Draws<'_>) -> Result<[usize; 2]> {
        let scale = drawn_scale(&self.scales, self.scale_mode, draws.random).unwrap_or([1, 1]);
        // A single ratio needs no random number, so that plain resizing draws the same ones as without a list.
        let ratio = if self.ratio_range[0] < self.ratio_range[1] {
            between(draws.random, self.ratio_range)
        } else {
            self.ratio_range[0]
        };
        Ok(if ratio == 1.0 { scale } else { Self::times(scale, ratio) })
    }

    fn apply(&self, scale: [usize; 2], frame: &mut Frame) -> bool {
        let old = frame.raster.size();
        let new = if self.keep_ratio { rescaled_size(old, scale) } else { (scale[1], scale[0]) };
        frame.raster.resize(new);
        let factor = |new: usize, old: usize| (new as f64 / old as f64) as f32;
        let (sx, sy) = (factor(new.1, old.1), factor(new.0, old.0));
        let (width, height) = (new.1 as f32, new.0 as f32);
        for bounds in &mut frame.target.boxes {
            let [x1, y1, x2, y2] = *bounds;
            let (x, y) = (|x: f32| (x * sx).clamp(0.0, width), |y: f32| (y * sy).clamp(0.0, height));
            *bounds = [x(x1), y(y1), x(x2), y(y2)];
        }
        if !frame.target.masks.is_empty() {
            let nearest = mask::Nearest::new(old, new);
            frame.target.masks.iter_mut().flatten().for_each(|mask| *mask = nearest.mask(mask));
        }
        frame.scale_factor.iter_mut().zip([sx, sy, sx, sy]).for_each(|(all, factor)| *all *= factor);
        true
    }
}
