//! Labels (name and score) on chips in the color of the class. Chips do not overlap if there is enough space.

use tiny_skia::{FillRule, PathBuilder, Rect, Transform};

use super::shape::ink;
use super::text::{Fonts, Line};
use super::{Canvas, Object};

/// Maximum distance of a chip from its box, in lines.
const LINES_AWAY: usize = 3;

/// A placed chip: `[left, top, right, bottom]` in pixels of the drawn image.
type Area = [f32; 4];

pub(super) fn paint(canvas: &mut Canvas, fonts: &Fonts, objects: &[&Object]) {
    let size = (canvas.pixmap.width() as f32, canvas.pixmap.height() as f32);
    let (above, below) = fonts.extent(canvas.text);
    let padding = canvas.text * 0.25;
    let mut placed: Vec<Area> = Vec::with_capacity(objects.len());
    let mut chips: Vec<(Area, Line, &Object)> = Vec::with_capacity(objects.len());
    // Place labels in order of falling score.
    let mut order: Vec<&Object> = objects.iter().copied().filter(|o| o.bbox.iter().all(|v| v.is_finite())).collect();
    order.sort_by(|a, b| b.score.unwrap_or(1.0).total_cmp(&a.score.unwrap_or(1.0)));
    for object in order {
        let line = fonts.fitted(&caption(object, fonts), canvas.text, size.0 - 2.0 * padding);
        if line.width == 0.0 {
            continue;
        }
        let chip = (line.width + 2.0 * padding, above + below + padding * 0.6);
        let area = place(object.bbox.map(|value| value * canvas.scale), chip, size, &placed);
        placed.push(area);
        chips.push((area, line, object));
    }
    for (area, line, object) in chips.iter().rev() {
        let color = object.color();
        fill(canvas, *area, color);
        let baseline = (area[0] + padding, area[1] + padding * 0.3 + above);
        fonts.draw(&mut canvas.pixmap, line, baseline, color.text());
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

/// The first free position at the box's corners or sides, then a few lines above or below it, else the least covered
/// one.
fn place([x1, y1, x2, y2]: Area, (width, height): (f32, f32), size: (f32, f32), placed: &[Area]) -> Area {
    let near = [
        (x1, y1 - height),
        (x1, y1),
        (x2 - width, y1 - height),
        (x2 - width, y1),
        (x1, y2),
        (x1, y2 - height),
        (x2 - width, y2),
        (x2 - width, y2 - height),
        (x1, y1 + height),
        (x1, y1 + 2.0 * height),
        ((x1 + x2 - width) / 2.0, (y1 + y2 - height) / 2.0),
        (x2, y1),
        (x1 - width, y1),
        (x2, y2 - height),
        (x1 - width, y2 - height),
    ];
    let lines = (1..=LINES_AWAY).map(|line| line as f32 * height);
    let away = lines.flat_map(|line| {
        [(x1, y1 - height - line), (x1, y2 + line), (x2 - width, y1 - height - line), (x2 - width, y2 + line)]
    });
    let within = |(x, y): (f32, f32)| -> Area {
        let (x, y) = (x.clamp(0.0, (size.0 - width).max(0.0)), y.clamp(0.0, (size.1 - height).max(0.0)));
        [x, y, x + width, y + height]
    };
    let mut best = (f32::INFINITY, within(near[0]));
    for area in near.into_iter().chain(away).map(within) {
        let covered: f32 = placed.iter().map(|other| overlap(area, *other)).sum();
        if covered < best.0 {
            best = (covered, area);
        }
        if covered == 0.0 {
            break;
        }
    }
    best.1
}

fn overlap(a: Area, b: Area) -> f32 {
    let shared = |low: usize, high: usize| (a[high].min(b[high]) - a[low].max(b[low])).max(0.0);
    shared(0, 2) * shared(1, 3)
}

/// A rectangle with rounded corners.
fn fill(canvas: &mut Canvas, [left, top, right, bottom]: Area, color: super::ClassColor) {
    let radius = (bottom - top) * 0.18;
    let mut builder = PathBuilder::new();
    builder.move_to(left + radius, top);
    builder.line_to(right - radius, top);
    builder.quad_to(right, top, right, top + radius);
    builder.line_to(right, bottom - radius);
    builder.quad_to(right, bottom, right - radius, bottom);
    builder.line_to(left + radius, bottom);
    builder.quad_to(left, bottom, left, bottom - radius);
    builder.line_to(left, top + radius);
    builder.quad_to(left, top, left + radius, top);
    builder.close();
    if let Some(path) = builder.finish() {
        canvas.pixmap.fill_path(&path, &ink(color, 0.92), FillRule::Winding, Transform::identity(), None);
    } else if let Some(area) = Rect::from_ltrb(left, top, right, bottom) {
        canvas.pixmap.fill_rect(area, &ink(color, 0.92), Transform::identity(), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chips_of_equal_boxes_do_not_cover_each_other() {
        let mut placed = Vec::new();
        for _ in 0..12 {
            let area = place([100.0, 100.0, 400.0, 300.0], (80.0, 20.0), (640.0, 480.0), &placed);
            assert!(placed.iter().all(|other| overlap(area, *other) == 0.0));
            placed.push(area);
        }
    }

    #[test]
    fn characters_that_are_not_in_the_fonts_have_a_visible_fallback() {
        let fonts = Fonts::load().unwrap();
        let captioned = |name: &str| {
            let object =
                Object { label: 4, name: name.into(), score: Some(0.5), bbox: [0.0; 4], mask: None, crowd: false };
            caption(&object, &fonts)
        };
        assert_eq!(captioned("дорожный знак"), "дорожный знак 0.50");
        assert_eq!(captioned("汽车"), "class 4 0.50");
        assert_eq!(captioned("bus 巴士"), "bus □□ 0.50");
        assert_eq!(captioned("firefighter 👩\u{200d}🚒\u{fe0f}"), "firefighter □□ 0.50");
        assert_eq!(captioned(" "), "class 4 0.50");
        assert!(fonts.has('□'));
    }

    #[test]
    fn a_chip_stays_within_the_image() {
        for bbox in [[-50.0, -50.0, -10.0, -10.0], [630.0, 470.0, 640.0, 480.0], [0.0, 0.0, 640.0, 480.0]] {
            let [left, top, right, bottom] = place(bbox, (80.0, 20.0), (640.0, 480.0), &[]);
            assert!(left >= 0.0 && top >= 0.0 && right <= 640.0 && bottom <= 480.0);
        }
    }
}
