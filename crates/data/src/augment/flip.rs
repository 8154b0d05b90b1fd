//! `flip`: MMDetection's `RandomFlip`.
//!
//! One random number chooses one of the directions, or none. `x1' = width - x2` and `x2' = width - x1` for boxes that change
//! left and right, and likewise for top and bottom; `diagonal` does both.

use fnet_common::Result;
use fnet_config::augment::{Direction, Flip};

use super::frame::{Augment, Draws, Frame};
use super::mask;

impl Augment for Flip {
    type Choice = Option<Direction>;

    fn draw(&self, _: &Frame, draws: &mut Draws<'_>) -> Result<Self::Choice> {
        let number = draws.random.uniform();
        let mut sum = 0.0;
        let ends = self.probabilities.iter().map(|probability| {
            sum += probability;
            sum
        });
        Ok(ends.zip(&self.directions).find(|(end, _)| number < *end).map(|(_, direction)| *direction))
    }

    fn apply(&self, direction: Self::Choice, frame: &mut Frame) -> bool {
        let Some(direction) = direction else { return true };
        let (horizontal, vertical) = direction.axes();
        frame.raster.flip(horizontal, vertical);
        let (height, width) = frame.raster.size();
        let (height, width) = (height as f32, width as f32);
        for bounds in &mut frame.target.boxes {
            let [x1, y1, x2, y2] = *bounds;
            let (x1, x2) = if horizontal { (width - x2, width - x1) } else { (x1, x2) };
            let (y1, y2) = if vertical { (height - y2, height - y1) } else { (y1, y2) };
            *bounds = [x1, y1, x2, y2];
        }
        let masks = std::mem::take(&mut frame.target.masks).into_iter();
        frame.target.masks = masks.map(|mask| mask.map(|mask| mask::flipped(mask, horizontal, vertical))).collect();
        frame.flipped ^= horizontal;
        true
    }
}
