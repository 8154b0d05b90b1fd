//! Draws boxes, masks, names and scores on images.

mod color;
mod contour;
mod label;
mod save;
mod shape;
#[cfg(test)]
mod tests;
mod text;

use hotcoco::Rle;
use image::RgbImage;
use image::imageops::FilterType;
use tiny_skia::{Color, Pixmap, PremultipliedColorU8};

pub use color::ClassColor;
pub use save::{painted_path, save, unused};

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
    /// `[x1, y1, x2, y2]`.
    pub bbox: [f32; 4],
    /// Its mask, in the frame of the whole image.
    pub mask: Option<Rle>,
    /// Whether it is a crowd region, which is drawn gray and not filled.
    pub crowd: bool,
}

/// Minimum and maximum long side of a drawn image in pixels. Small images are enlarged so that text fits, large ones
/// are reduced.
const LONG_SIDE: (f32, f32) = (720.0, 2400.0);
/// Minimum width and height of a drawn image. Narrow images are padded.
const SHORT_SIDE: u32 = 160;
/// Draws objects on images. Owns the fonts.
pub struct Painter {
    fonts: Fonts,
}

/// An image being drawn, and its scale relative to the original.
struct Canvas {
    pixmap: Pixmap,
    scale: f32,
    /// Line width; grows with the image, like the text size.
    line: f32,
    text: f32,
}

impl Painter {
    /// A painter with the built-in fonts.
    ///
    /// # Errors
    ///
    /// The built-in fonts are damaged.
    pub fn new() -> Result<Self> {
        Ok(Self { fonts: Fonts::load()? })
    }

    /// Draws objects on an image.
    ///
    /// # Errors
    ///
    /// The image has no pixels, or there is not enough memory.
    pub fn paint(&self, image: &RgbImage, objects: &[Object]) -> Result<RgbImage> {
        Ok(to_image(&self.painted(image, objects)?.pixmap))
    }

    /// Draws objects on an image, with a title above it.
    ///
    /// # Errors
    ///
    /// Same as [`Painter::paint`].
    pub fn titled(&self, image: &RgbImage, objects: &[Object], title: &str) -> Result<RgbImage> {
        self.panels(image, &[(objects, title)])
    }

    /// Draws the same image twice, ground truth left and prediction right, each with a title.
    ///
    /// # Errors
    ///
    /// Same as [`Painter::paint`].
    pub fn compare(&self, image: &RgbImage, [truth, predicted]: [&[Object]; 2], titles: [&str; 2]) -> Result<RgbImage> {
        self.panels(image, &[(truth, titles[0]), (predicted, titles[1])])
    }

    /// Draws the same image side by side with different objects and titles.
    fn panels(&self, image: &RgbImage, wanted: &[(&[Object], &str)]) -> Result<RgbImage> {
        let panels = wanted.iter().map(|(objects, _)| self.painted(image, objects)).collect::<Result<Vec<_>>>()?;
        let Some(first) = panels.first() else { return Err(Error::bug("no image to draw")) };
        let (width, height) = (first.pixmap.width(), first.pixmap.height());
        let size = first.text * 1.15;
        let (above, below) = self.fonts.extent(size);
        let strip = ((above + below) * 1.5).ceil() as u32;
        let gap = (first.line * 4.0).ceil() as u32;
        let count = panels.len() as u32;
        let mut whole = new_pixmap(count * width + (count - 1) * gap, strip + height)?;
        whole.fill(Color::from_rgba8(28, 30, 33, 255));
        let baseline = strip as f32 - (strip as f32 - above - below) / 2.0 - below;
        let white = ClassColor { red: 240, green: 240, blue: 240 };
        for ((panel, (_, title)), place) in panels.iter().zip(wanted).zip(0..) {
            let x = place * (width + gap);
            copy_into(&mut whole, &panel.pixmap, (x, strip));
            let line = self.fonts.fitted(title, size, width as f32 - size);
            self.fonts.draw(&mut whole, &line, (x as f32 + size / 2.0, baseline), white);
        }
        Ok(to_image(&whole))
    }

    fn painted(&self, image: &RgbImage, objects: &[Object]) -> Result<Canvas> {
        let mut canvas = Canvas::new(image)?;
        // Large objects first, so that small ones stay visible on top.
        let mut order: Vec<&Object> = objects.iter().collect();
        order.sort_by(|a, b| area(b).total_cmp(&area(a)));
        for object in &order {
            shape::paint(&mut canvas, object);
        }
        label::paint(&mut canvas, &self.fonts, &order);
        Ok(canvas)
    }
}

fn area(object: &Object) -> f32 {
    let [x1, y1, x2, y2] = object.bbox;
    (x2 - x1) * (y2 - y1)
}

impl Object {
    fn color(&self) -> ClassColor {
        if self.crowd { ClassColor::neutral() } else { ClassColor::of_class(self.label) }
    }
}

impl Canvas {
    fn new(image: &RgbImage) -> Result<Self> {
        let (width, height) = image.dimensions();
        if width == 0 || height == 0 {
            return Err(Error::data("cannot draw on an image without pixels"));
        }
        let long = width.max(height) as f32;
        let scale = long.clamp(LONG_SIDE.0, LONG_SIDE.1) / long;
        let scaled = |side: u32| ((side as f32 * scale).round() as u32).max(1);
        let (width, height) = (scaled(width), scaled(height));
        let mut pixmap = new_pixmap(width.max(SHORT_SIDE), height.max(SHORT_SIDE))?;
        pixmap.fill(Color::from_rgba8(28, 30, 33, 255));
        if (width, height) == image.dimensions() {
            draw_image(&mut pixmap, image);
        } else {
            draw_image(&mut pixmap, &image::imageops::resize(image, width, height, FilterType::CatmullRom));
        }
        let size = ((width * height) as f32).sqrt();
        Ok(Self { pixmap, scale, line: (size * 0.0028).clamp(1.6, 5.0), text: (size * 0.021).clamp(13.0, 36.0) })
    }
}

fn new_pixmap(width: u32, height: u32) -> Result<Pixmap> {
    Pixmap::new(width, height)
        .ok_or_else(|| Error::data(format!("a drawn image of {width} x {height} pixels is too large")))
}

fn draw_image(pixmap: &mut Pixmap, image: &RgbImage) {
    let stride = pixmap.width() as usize;
    for (row, pixels) in image.rows().enumerate() {
        for (target, pixel) in pixmap.pixels_mut()[row * stride..].iter_mut().zip(pixels) {
            if let Some(opaque) = PremultipliedColorU8::from_rgba(pixel[0], pixel[1], pixel[2], 255) {
                *target = opaque;
            }
        }
    }
}

fn copy_into(whole: &mut Pixmap, part: &Pixmap, (x, y): (u32, u32)) {
    let (stride, width) = (whole.width() as usize, part.width() as usize);
    for (row, pixels) in part.pixels().chunks_exact(width).enumerate() {
        let at = (row + y as usize) * stride + x as usize;
        whole.pixels_mut()[at..at + width].copy_from_slice(pixels);
    }
}

fn to_image(pixmap: &Pixmap) -> RgbImage {
    RgbImage::from_fn(pixmap.width(), pixmap.height(), |x, y| {
        let pixel = pixmap.pixels()[(y * pixmap.width() + x) as usize];
        image::Rgb([pixel.red(), pixel.green(), pixel.blue()])
    })
}
