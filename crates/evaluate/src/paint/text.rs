//! Draws text with the built-in fonts (Hack, and Ubuntu Light for characters that Hack lacks).

use ab_glyph::{Font, FontRef, Glyph, PxScale, ScaleFont, point};
use epaint_default_fonts::{HACK_REGULAR, UBUNTU_LIGHT};
use image::{Pixel, Rgba, RgbaImage};

use fnet_common::{Error, Result};

use super::color::Rgb;

/// The fonts, in order of priority.
pub(super) struct Fonts([FontRef<'static>; 2]);

/// A line of text with the positions of its glyphs, relative to the left end of its baseline.
#[derive(Default)]
pub(super) struct Line {
    glyphs: Vec<(usize, Glyph)>,
    /// Width in pixels.
    pub(super) width: f32,
}

impl Fonts {
    pub(super) fn load() -> Result<Self> {
        let read = |bytes: &'static [u8]| {
            FontRef::try_from_slice(bytes).map_err(|error| Error::bug(format!("the built-in font: {error}")))
        };
        Ok(Self([read(HACK_REGULAR)?, read(UBUNTU_LIGHT)?]))
    }

    /// Whether a character can be drawn.
    pub(super) fn has(&self, character: char) -> bool {
        self.font_of(character).is_some()
    }

    fn font_of(&self, character: char) -> Option<usize> {
        self.0.iter().position(|font| font.glyph_id(character).0 != 0)
    }

    /// Height of a line above and below the baseline in pixels.
    pub(super) fn extent(&self, size: f32) -> (f32, f32) {
        let font = self.0[0].as_scaled(size);
        (font.ascent(), -font.descent())
    }

    fn line(&self, text: &str, size: f32) -> Line {
        let mut line = Line::default();
        for character in text.chars() {
            let index = self.font_of(character).unwrap_or(0);
            let font = self.0[index].as_scaled(size);
            let id = font.glyph_id(character);
            line.glyphs.push((index, id.with_scale_and_position(PxScale::from(size), point(line.width, 0.0))));
            line.width += font.h_advance(id);
        }
        line
    }

    /// Lays out a text with a line height of `size` pixels, truncated with an ellipsis to at most `width` pixels.
    pub(super) fn fitted(&self, text: &str, size: f32, width: f32) -> Line {
        let mut line = self.line(text, size);
        let mut kept = text.to_owned();
        while line.width > width.max(0.0) {
            line = kept.pop().map(|_| self.line(&format!("{kept}…"), size)).unwrap_or_default();
        }
        line
    }

    /// Draws a line. `(x, y)` is the left end of its baseline.
    pub(super) fn draw(&self, image: &mut RgbaImage, line: &Line, (x, y): (f32, f32), [red, green, blue]: Rgb) {
        for (index, glyph) in &line.glyphs {
            let mut glyph = glyph.clone();
            glyph.position += point(x, y);
            let Some(outline) = self.0[*index].outline_glyph(glyph) else { continue };
            let (left, top) = (outline.px_bounds().min.x as i32, outline.px_bounds().min.y as i32);
            outline.draw(|dx, dy, coverage| {
                // Negative positions become large ones, which are outside too.
                let (x, y) = (left.wrapping_add_unsigned(dx) as u32, top.wrapping_add_unsigned(dy) as u32);
                if let Some(pixel) = image.get_pixel_mut_checked(x, y) {
                    pixel.blend(&Rgba([red, green, blue, (coverage * 255.0).round() as u8]));
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_truncated_to_the_width_and_clipped_by_the_image() {
        let fonts = Fonts::load().unwrap();
        let whole = fonts.line("a very long name of a class", 16.0).width;
        let cut = fonts.fitted("a very long name of a class", 16.0, whole / 2.0).width;
        assert!(cut > whole / 3.0 && cut <= whole / 2.0, "{cut} of {whole}");
        assert_eq!(fonts.fitted("abc", 16.0, 1.0).width, 0.0);
        assert_eq!(fonts.fitted("abc", 16.0, -9.0).width, 0.0);
        let mut image = RgbaImage::from_pixel(10, 10, Rgba([255; 4]));
        fonts.draw(&mut image, &fonts.line("MMMM", 20.0), (-8.0, 12.0), [0; 3]);
        assert!(image.pixels().any(|pixel| pixel[0] < 50));
    }
}
