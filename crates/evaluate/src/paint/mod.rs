//! Draws boxes, masks, names and scores on images.

mod canvas;
mod color;
mod label;
pub mod objects;
mod save;
mod shape;
#[cfg(test)]
mod tests;
mod text;

use image::buffer::ConvertBuffer;
use image::imageops;
use image::{RgbImage, RgbaImage};

pub use canvas::Object;
pub use save::{jpeg, painted_path, save, unused};

use canvas::{BACKGROUND, Canvas};
use text::Fonts;

use fnet_common::Result;

/// Minimum and maximum long side of a drawn image in pixels, in full size and small. Small images are enlarged so that text
/// fits, large ones are reduced.
const LONG_SIDE: (f32, f32) = (720.0, 2400.0);
const SMALL_LONG_SIDE: (f32, f32) = (320.0, 480.0);
/// Draws objects on images. Owns the fonts.
pub struct Painter {
    fonts: Fonts,
    /// Minimum and maximum long side in pixels.
    long_side: (f32, f32),
}

impl Painter {
    /// A painter with the built-in fonts.
    /// Errors: the built-in fonts are damaged.
    pub fn new() -> Result<Self> {
        Ok(Self { fonts: Fonts::load()?, long_side: LONG_SIDE })
    }

    /// A painter of images of at most 480x480 pixels.
    /// Errors: the built-in fonts are damaged.
    pub fn small() -> Result<Self> {
        Ok(Self { long_side: SMALL_LONG_SIDE, ..Self::new()? })
    }

    /// Draws objects on an image.
    /// Errors: the image has no pixels.
    pub fn paint(&self, image: &RgbImage, objects: &[Object]) -> Result<RgbImage> {
        Ok(self.painted(Canvas::new(image, self.long_side)?, objects).image.convert())
    }

    /// Draws the same image once for each list of objects, side by side, with titles.
    /// Errors: same as [`Painter::paint`].
    pub fn panels(&self, image: &RgbImage, panels: &[(&[Object], &str)]) -> Result<RgbImage> {
        let empty = Canvas::new(image, self.long_side)?;
        let mut whole = RgbaImage::new(0, 0);
        for (place, (objects, title)) in panels.iter().enumerate() {
            let panel = self.painted(empty.clone(), objects);
            let (width, height) = panel.image.dimensions();
            let size = panel.text * 1.15;
            let (above, below) = self.fonts.extent(size);
            let strip = ((above + below) * 1.5).ceil() as u32;
            let (step, count) = (width + (panel.line * 4.0).ceil() as u32, panels.len() as u32);
            if place == 0 {
                whole = RgbaImage::from_pixel(step * (count - 1) + width, strip + height, BACKGROUND);
            }
            let left = step * place as u32;
            imageops::replace(&mut whole, &panel.image, left.into(), strip.into());
            let line = self.fonts.fitted(title, size, width as f32 - size);
            let baseline = (strip as f32 + above - below) / 2.0;
            self.fonts.draw(&mut whole, &line, (left as f32 + size / 2.0, baseline), [240; 3]);
        }
        Ok(whole.convert())
    }

    fn painted(&self, mut canvas: Canvas, objects: &[Object]) -> Canvas {
        let mut order: Vec<&Object> = objects.iter().filter(|o| o.bbox.iter().all(|value| value.is_finite())).collect();
        // Large objects first, so that small ones stay visible on top.
        let area = |&Object { bbox: [x1, y1, x2, y2], .. }: &Object| (x2 - x1) * (y2 - y1);
        order.sort_by(|a, b| area(b).total_cmp(&area(a)));
        order.iter().for_each(|object| shape::paint(&mut canvas, object));
        label::paint(&mut canvas, &self.fonts, &order);
        canvas
    }
}
