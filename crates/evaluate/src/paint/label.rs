//! Labels (name and score) on chips in the color of the class. Chips do not overlap if there is enough space.

use tiny_skia::{PathBuilder, Rect};

use super::canvas::{Canvas, Object};
use super::text::Fonts;

/// Maximum distance of a chip from its box, in lines.
const LINES_AWAY: usize = 4;

pub(super) fn paint(canvas: &mut Canvas, fonts: &Fonts, objects: &[&Object]) {
    let (width, height) = canvas.image.dimensions();
    let size = (width as f32, height as f32);
    let (above, below) = fonts.extent(canvas.text);
    let padding = canvas.text * 0.25;
    let (mut placed, mut chips) = (Vec::new(), Vec::new());
    // Labels are placed in order of falling score.
    let mut order = objects.to_vec();
    order.sort_by(|a, b| b.score.unwrap_or(1.0).total_cmp(&a.score.unwrap_or(1.0)));
    for object in order {
        let line = fonts.fitted(&caption(object, fonts), canvas.text, size.0 - 2.0 * padding);
        let chip = (line.width + 2.0 * padding, above + below + padding * 0.6);
        if let Some(area) = place(object.bbox.map(|value| value * canvas.scale), chip, size, &placed) {
            placed.push(area);
            chips.push((area, line, object.color()));
        }
    }
    for (area, line, color) in chips.iter().rev() {
        // The stroke rounds the corners.
        let radius = area.height() * 0.18;
        if let Some(inner) = area.inset(radius, radius).map(PathBuilder::from_rect) {
            canvas.fill(&inner, *color, 1.0);
            canvas.stroke(&inner, *color, 1.0, 2.0 * radius, false);
        }
        fonts.draw(&mut canvas.image, line, (area.left() + padding, area.top() + padding * 0.3 + above), [0; 3]);
    }
}

/// Name and score. A character that is not in the fonts becomes a box. If no letter or digit of a name is in the fonts,
/// the class number is used instead.
fn caption(object: &Object, fonts: &Fonts) -> String {
    // Emoji joiners and variation selectors have no glyph.
    let shown = object.name.chars().filter(|character| !matches!(character, '\u{200d}' | '\u{fe00}'..='\u{fe0f}'));
    let mut text = if object.name.chars().any(|character| character.is_alphanumeric() && fonts.has(character)) {
        shown.map(|character| if fonts.has(character) { character } else { '□' }).collect()
    } else {
        format!("class {}", object.label)
    };
    if object.crowd {
        text += " (crowd)";
    }
    if let Some(score) = object.score {
        text += &format!(" {score:.2}");
    }
    text
}

/// The first free position at a corner of the box, inside or outside, then a few lines further; else the least covered.
fn place([x1, y1, x2, y2]: [f32; 4], (width, height): (f32, f32), size: (f32, f32), placed: &[Rect]) -> Option<Rect> {
    let places = (0..=LINES_AWAY).map(|lines| lines as f32 * height).flat_map(|away| {
        let rows = [y1 - height - away, y1 + away, y2 + away, y2 - height - away];
        [x1, x2 - width, x2, x1 - width].into_iter().flat_map(move |x| rows.map(|y| (x, y)))
    });
    let within = |(x, y): (f32, f32)| {
        Rect::from_xywh(
            x.clamp(0.0, (size.0 - width).max(0.0)),
            y.clamp(0.0, (size.1 - height).max(0.0)),
            width,
            height,
        )
    };
    // Of equals, the first.
    places.filter_map(within).min_by(|a, b| covered(a, placed).total_cmp(&covered(b, placed)))
}

/// The area shared with other chips.
fn covered(area: &Rect, placed: &[Rect]) -> f32 {
    placed.iter().filter_map(|other| area.intersect(other)).map(|shared| shared.width() * shared.height()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chips_stay_within_the_image_and_do_not_cover_each_other() {
        for (bbox, count) in
            [([100.0, 100.0, 400.0, 300.0], 12), ([-50.0, -50.0, -10.0, -10.0], 1), ([630.0, 470.0, 640.0, 480.0], 4)]
        {
            let mut placed: Vec<Rect> = Vec::new();
            for _ in 0..count {
                let area = place(bbox, (80.0, 20.0), (640.0, 480.0), &placed).unwrap();
                assert!(area.left() >= 0.0 && area.top() >= 0.0 && area.right() < 640.01 && area.bottom() < 480.01);
                assert_eq!(covered(&area, &placed), 0.0, "{bbox:?}: {area:?}");
                placed.push(area);
            }
        }
    }

    #[test]
    fn characters_that_are_not_in_the_fonts_have_a_visible_fallback() {
        let fonts = Fonts::load().unwrap();
        let captioned = |name: &str| {
            let name = name.to_owned();
            caption(&Object { label: 4, name, score: Some(0.5), bbox: [0.0; 4], mask: None, crowd: false }, &fonts)
        };
        for whole in ["traffic light", "café", "Ελλάδα", "дорожный знак", "bus…□"] {
            assert_eq!(captioned(whole), format!("{whole} 0.50"));
        }
        assert_eq!(captioned("汽车"), "class 4 0.50");
        assert_eq!(captioned("bus 巴士"), "bus □□ 0.50");
        assert_eq!(captioned("firefighter 👩\u{200d}🚒\u{fe0f}"), "firefighter □□ 0.50");
        assert_eq!(captioned(" "), "class 4 0.50");
    }
}
