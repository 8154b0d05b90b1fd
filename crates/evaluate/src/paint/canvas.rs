//! An image being drawn, and the objects that are drawn on it.

use hotcoco::Rle;
use image::buffer::ConvertBuffer;
use image::imageops::{self, FilterType};
use image::{RgbImage, Rgba, RgbaImage};
use tiny_skia::{FillRule, LineJoin, Paint, Path, PixmapMut, Stroke, StrokeDash, Transform};

use fnet_common::{Error, Result};

use super::color::{self, Rgb};

/// Minimum width and height of a drawn image. Narrow images are padded.
const SHORT_SIDE: u32 = 160;
pub(super) const BACKGROUND: Rgba<u8> = Rgba([28, 30, 33, 255]);

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

/// An image being drawn, and its scale relative to the original.
#[derive(Clone)]
pub(super) struct Canvas {
    pub image: RgbaImage,
    pub scale: f32,
    /// Line width; grows with the image, like the text size.
    pub line: f32,
    pub text: f32,
}

impl Object {
    pub(super) fn color(&self) -> Rgb {
        if self.crowd { color::CROWD } else { color::of_class(self.label) }
    }
}

impl Canvas {
    pub(super) fn new(image: &RgbImage, long_side: (f32, f32)) -> Result<Self> {
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

    pub(super) fn fill(&mut self, path: &Path, color: Rgb, opacity: f32) {
        self.draw(color, opacity, |pixmap, paint| {
            pixmap.fill_path(path, paint, FillRule::EvenOdd, Transform::identity(), None);
        });
    }

    pub(super) fn stroke(&mut self, path: &Path, color: Rgb, opacity: f32, width: f32, dashed: bool) {
        let dash = dashed.then(|| StrokeDash::new(vec![width * 6.0, width * 4.0], 0.0)).flatten();
        let stroke = Stroke { width, line_join: LineJoin::Round, dash, ..Stroke::default() };
        self.draw(color, opacity, |pixmap, paint| {
            pixmap.stroke_path(path, paint, &stroke, Transform::identity(), None)
        });
    }
}
