//! Draws text with the built-in fonts (Hack, and Ubuntu Light for characters that Hack lacks).

use ab_glyph::{Font, FontRef, Glyph, PxScale, ScaleFont, point};
use epaint_default_fonts::{HACK_REGULAR, UBUNTU_LIGHT};
use tiny_skia::{Pixmap, PremultipliedColorU8};

use fnet_common::{Error, Result};

use super::color::ClassColor;

/// The fonts, in order of priority.
pub struct Fonts {
    fonts: [FontRef<'static>; 2],
}

/// A line of text with the positions of its glyphs, relative to the left end of its baseline.
pub struct Line {
    glyphs: Vec<(usize, Glyph)>,
    /// Width in pixels.
    pub width: f32,
}

impl Fonts {
    /// Reads the fonts.
    ///
    /// # Errors
    ///
    /// The built-in fonts are damaged.
    pub fn load() -> Result<Self> {
        let read = |bytes: &'static [u8]| {
            FontRef::try_from_slice(bytes).map_err(|error| Error::bug(format!("the built-in font: {error}")))
        };
        Ok(Self { fonts: [read(HACK_REGULAR)?, read(UBUNTU_LIGHT)?] })
    }

    /// Whether a character can be drawn.
    pub fn has(&self, character: char) -> bool {
        self.font_of(character).is_some()
    }

    fn font_of(&self, character: char) -> Option<usize> {
        self.fonts.iter().position(|font| font.glyph_id(character).0 != 0)
    }

    /// Height of a line above and below the baseline in pixels.
    pub fn extent(&self, size: f32) -> (f32, f32) {
        let font = self.fonts[0].as_scaled(PxScale::from(size));
        (font.ascent(), -font.descent())
    }

    /// Lays out a text with a line height of `size` pixels.
    pub fn line(&self, text: &str, size: f32) -> Line {
        let scale = PxScale::from(size);
        let (mut glyphs, mut width) = (Vec::new(), 0.0);
        let mut previous = None;
        for character in text.chars() {
            let index = self.font_of(character).unwrap_or(0);
            let font = self.fonts[index].as_scaled(scale);
            let id = font.glyph_id(character);
            if let Some((last, last_index)) = previous
                && last_index == index
            {
                width += font.kern(last, id);
            }
            glyphs.push((index, id.with_scale_and_position(scale, point(width, 0.0))));
            width += font.h_advance(id);
            previous = Some((id, index));
        }
        Line { glyphs, width }
    }

    /// Lays out a text, truncated with an ellipsis to at most `width` pixels.
    pub fn fitted(&self, text: &str, size: f32, width: f32) -> Line {
        let whole = self.line(text, size);
        if whole.width <= width {
            return whole;
        }
        let characters: Vec<char> = text.chars().collect();
        (0..characters.len())
            .rev()
            .map(|kept| self.line(&format!("{}…", characters[..kept].iter().collect::<String>()), size))
            .find(|line| line.width <= width)
            .unwrap_or(Line { glyphs: Vec::new(), width: 0.0 })
    }

    /// Draws a line. `(x, y)` is the left end of its baseline.
    pub fn draw(&self, pixmap: &mut Pixmap, line: &Line, (x, y): (f32, f32), color: ClassColor) {
        for (index, glyph) in &line.glyphs {
            let mut glyph = glyph.clone();
            glyph.position.x += x;
            glyph.position.y += y;
            let Some(outline) = self.fonts[*index].outline_glyph(glyph) else { continue };
            let (left, top) = (outline.px_bounds().min.x as i64, outline.px_bounds().min.y as i64);
            outline.draw(|dx, dy, coverage| blend(pixmap, left + i64::from(dx), top + i64::from(dy), color, coverage));
        }
    }
}

fn blend(pixmap: &mut Pixmap, x: i64, y: i64, color: ClassColor, coverage: f32) {
    let (width, height) = (i64::from(pixmap.width()), i64::from(pixmap.height()));
    if !(0..width).contains(&x) || !(0..height).contains(&y) {
        return;
    }
    let pixel = &mut pixmap.pixels_mut()[(y * width + x) as usize];
    let coverage = coverage.clamp(0.0, 1.0);
    let mix = |below: u8, above: u8| (f32::from(below) * (1.0 - coverage) + f32::from(above) * coverage).round() as u8;
    let (red, green, blue) =
        (mix(pixel.red(), color.red), mix(pixel.green(), color.green), mix(pixel.blue(), color.blue));
    if let Some(mixed) = PremultipliedColorU8::from_rgba(red, green, blue, 255) {
        *pixel = mixed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latin_greek_and_cyrillic_can_be_drawn_and_other_scripts_are_reported_missing() {
        let fonts = Fonts::load().unwrap();
        for text in ["traffic light", "café", "Ελλάδα", "машина 0.98", "…"] {
            assert!(text.chars().all(|character| fonts.has(character)), "{text}");
        }
        assert!(!fonts.has('汽') && !fonts.has('车'));
    }

    #[test]
    fn a_long_text_is_truncated_to_the_width() {
        let fonts = Fonts::load().unwrap();
        let whole = fonts.line("a very long name of a class", 16.0).width;
        let cut = fonts.fitted("a very long name of a class", 16.0, whole / 2.0).width;
        assert!(cut > whole / 3.0 && cut <= whole / 2.0, "{cut} of {whole}");
        assert_eq!(fonts.fitted("abc", 16.0, 1.0).width, 0.0);
    }

    #[test]
    fn drawing_outside_of_the_image_is_clipped() {
        let fonts = Fonts::load().unwrap();
        let mut pixmap = Pixmap::new(10, 10).unwrap();
        pixmap.fill(tiny_skia::Color::WHITE);
        let line = fonts.line("MMMM", 20.0);
        fonts.draw(&mut pixmap, &line, (-8.0, 12.0), ClassColor { red: 0, green: 0, blue: 0 });
        assert!(pixmap.pixels().iter().any(|pixel| pixel.red() < 50));
    }
}
