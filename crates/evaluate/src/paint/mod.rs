//! Draws boxes, masks, names and scores on images.

mod color;
mod label;
pub mod objects;
mod save;
mod shape;
#[cfg(test)]
mod tests;
mod text;

use hotcoco::Rle;
use image::buffer::ConvertBuffer;
use image::imageops::{self, FilterType};
use image::{RgbImage, Rgba, RgbaImage};
use tiny_skia::{FillRule, LineJoin, Paint, Path, PixmapMut, Stroke, StrokeDash, Transform};

pub use save::{jpeg, painted_path, save, unused};

use color::Rgb;
use text::Fonts;

use fnet_common::{Error, Result};

/// One object to draw, in pixels of the image.
#[derive(Debug, Clone)]
pub struct Object {
    /// Class, from 0, which determines the color.
    pub label: usize,
    /// Name of the class.
    pub name: String,
    /// Confidence, for a detection.
    pub score: Option<f32>,
    /// `[x1, y1, x2, y2]`. Objects whose box is not finite are not drawn.
    pub bbox: [f32; 4],
    /// Its mask, in the frame of the whole image.
    pub mask: Option<Rle>,
    /// Whether it is a crowd region, which is drawn gray and not filled.
    pub crowd: bool,
}

/// Minimum and maximum long side of a drawn image in pixels, in full size and small. Small images are enlarged so that text
/// fits, large ones are reduced.
const LONG_SIDE: (f32, f32) = (720.0, 2400.0);
const SMALL_LONG_SIDE: (f32, f32) = (320.0, 480.0);
/// Minimum width and height of a drawn image. Narrow images are padded.
const SHORT_SIDE: u32 = 160;
const BACKGROUND: Rgba<u8> = Rgba([28, 30, 33, 255]);

/// Draws objects on images. Owns the fonts.
pub struct Painter {
    fonts: Fonts,
    /// Minimum and maximum long side in pixels.
    long_side: (f32, f32),
}

/// An image being drawn, and its scale relative to the original.
#[derive(Clone)]
struct Canvas {
    image: RgbaImage,
    scale: f32,
    /// Line width; grows with the image, like the text size.
    line: f32,
    text: f32,
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

impl Object {
    fn color(&self) -> Rgb {
        if self.crowd { color::CROWD } else { color::of_class(self.label) }
    }
}

impl Canvas {
    fn new(image: &RgbImage, long_side: (f32, f32)) -> Result<Self> {
        let (width, height) = image.dimensions();
        if width == 0 || height == 0 {
            return Err(Error::data("cannot draw on an image without pixels"));
        }
        let long = width.max(height) as f32;
        let scale = long.clamp(long_side.0, long_side.1) / long;
        let [width, height] = [width, height].map(|side| ((side as f32 * scale).round() as u32).max(1));
        let resized: RgbaImage = imageops::resize(image, width, height, FilterType::CatmullRom).convert();
        let mut image = RgbaImage::from_pixel(width.max(SHORT_SIDE), height.max(SHORT_SIDE), BACKGROUND);
        imageops::replace(&mut image, &resized, 0, 0);
        let size = ((width * height) as f32).sqrt();
        Ok(Self { image, scale, line: (size * 0.0028).clamp(1.6, 5.0), text: (size * 0.021).clamp(13.0, 36.0) })
    }

    /// Lends the pixels, which are all opaque, to tiny-skia.
    fn draw(&mut self, [red, green, blue]: Rgb, opacity: f32, draw: impl FnOnce(&mut PixmapMut, &Paint)) {
        let mut paint = Paint::default();
        paint.set_color_rgba8(red, green, blue, (opacity * 255.0) as u8);
        let (width, height) = self.image.dimensions();
        if let Some(mut pixmap) = PixmapMut::from_bytes(&mut self.image, width, height) {
            draw(&mut pixmap, &paint);
        }
    }

    fn fill(&mut self, path: &Path, color: Rgb, opacity: f32) {
        self.draw(color, opacity, |pixmap, paint| {
            pixmap.fill_path(path, paint, FillRule::EvenOdd, Transform::identity(), None);
        });
    }

    fn stroke(&mut self, path: &Path, color: Rgb, opacity: f32, width: f32, dashed: bool) {
        let dash = dashed.then(|| StrokeDash::new(vec![width * 6.0, width * 4.0], 0.0)).flatten();
        let stroke = Stroke { width, line_join: LineJoin::Round, dash, ..Stroke::default() };
        self.draw(color, opacity, |pixmap, paint| {
            pixmap.stroke_path(path, paint, &stroke, Transform::identity(), None)
        });
    }
}
