//! Boxes and masks.

use std::collections::HashMap;

use hotcoco::{Rle, mask};
use tiny_skia::{Path, PathBuilder, Point, Rect};

use super::canvas::{Canvas, Object};

/// Opacity of a filled mask.
const FILLING: f32 = 0.38;
/// Opacity of the dark line around each colored line, which keeps it visible on any background.
const SHADOW: f32 = 0.45;

pub(super) fn paint(canvas: &mut Canvas, object: &Object) {
    let color = object.color();
    let outline = |canvas: &mut Canvas, path: &Path, width: f32, dashed: bool| {
        canvas.stroke(path, [0; 3], SHADOW, width + 1.4, dashed);
        canvas.stroke(path, color, 1.0, width, dashed);
    };
    if let Some(path) = object.mask.as_ref().and_then(|mask| mask_path(mask, canvas.scale)) {
        if !object.crowd {
            canvas.fill(&path, color, FILLING);
        }
        outline(canvas, &path, canvas.line, false);
    }
    if let Some(area) = visible_box(object.bbox, canvas) {
        let width = if object.mask.is_some() { canvas.line * 0.6 } else { canvas.line };
        outline(canvas, &PathBuilder::from_rect(area), width, object.crowd);
    }
}

/// The outlines of a mask and its holes, as smooth closed lines. `None` for an empty mask.
fn mask_path(rle: &Rle, scale: f32) -> Option<Path> {
    let mut builder = PathBuilder::new();
    for points in outlines(rle) {
        for (index, &Point { x, y }) in points.iter().enumerate() {
            if index == 0 { builder.move_to(x * scale, y * scale) } else { builder.line_to(x * scale, y * scale) }
        }
        builder.close();
    }
    builder.finish()
}

/// Follows the edges between inside and outside, and smooths the line through their middles.
fn outlines(rle: &Rle) -> Vec<Vec<Point>> {
    let (columns, height) = (mask::decode(rle), i64::from(rle.h));
    let inside = |x: i64, y: i64| {
        (0..height).contains(&y) && columns.get((x * height + y) as usize).is_some_and(|&pixel| pixel != 0)
    };
    let [left, top, width, rows] = mask::to_bbox(rle).map(|value| value as i64);
    let mut following: HashMap<(i64, i64), Vec<(i64, i64)>> = HashMap::new();
    let mut starts = Vec::new();
    for (x, y) in (left..left + width).flat_map(|x| (top..top + rows).map(move |y| (x, y))) {
        let corners = [(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1)];
        for (side, beside) in [(x, y - 1), (x + 1, y), (x, y + 1), (x - 1, y)].into_iter().enumerate() {
            if inside(x, y) && !inside(beside.0, beside.1) {
                starts.push(corners[side]);
                following.entry(corners[side]).or_default().push(corners[(side + 1) % 4]);
            }
        }
    }
    let mut loops = Vec::new();
    for mut at in starts {
        let mut points = Vec::new();
        // As many edges end as begin at each corner, so that every line closes.
        while let Some(next) = following.get_mut(&at).and_then(Vec::pop) {
            points.push(Point::from_xy((at.0 + next.0) as f32 / 2.0, (at.1 + next.1) as f32 / 2.0));
            at = next;
        }
        if !points.is_empty() {
            loops.push(smoothed(&smoothed(&points)));
        }
    }
    loops
}

/// Moves each point of a closed line toward its neighbors.
fn smoothed(points: &[Point]) -> Vec<Point> {
    let around = points.iter().cycle();
    let (before, after) = (around.clone().skip(points.len() - 1), around.skip(1));
    let sums = points.iter().zip(before.zip(after)).map(|(&point, (&before, &after))| before + point + point + after);
    sums.map(|Point { x, y }| Point::from_xy(x / 4.0, y / 4.0)).collect()
}

/// A box in the drawn image: inside even if it touches the border, and visible even if it is empty.
fn visible_box([x1, y1, x2, y2]: [f32; 4], canvas: &Canvas) -> Option<Rect> {
    let line = canvas.line;
    let (width, height) = canvas.image.dimensions();
    let place = |value: f32, size: u32| (value * canvas.scale).clamp(line / 2.0, size as f32 - line / 2.0);
    let (left, top) = (place(x1, width), place(y1, height));
    Rect::from_ltrb(left, top, place(x2, width).max(left + line), place(y2, height).max(top + line))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_disc_and_its_hole_have_outlines_with_their_area() {
        let inside = |pixel: u32| {
            let distance = ((pixel / 80) as f32 - 39.5).hypot((pixel % 80) as f32 - 39.5);
            u8::from((15.0..30.0).contains(&distance))
        };
        let loops = outlines(&mask::encode(&(0..80 * 80).map(inside).collect::<Vec<_>>(), 80, 80).unwrap());
        assert_eq!(loops.len(), 2);
        // The shoelace formula; the hole turns the other way.
        let area: f32 = loops
            .iter()
            .flat_map(|points| points.iter().zip(points.iter().cycle().skip(1)))
            .map(|(a, b)| (a.x * b.y - b.x * a.y) / 2.0)
            .sum();
        assert!((area / (std::f32::consts::PI * 675.0) - 1.0).abs() < 0.02, "{area}");
    }

    proptest! {
        #[test]
        fn outlines_of_any_mask_stay_in_its_box(bitmap in prop::collection::vec(0_u8..2, 12 * 9)) {
            let rle = mask::encode(&bitmap, 12, 9).unwrap();
            let [left, top, width, height] = mask::to_bbox(&rle).map(|value| value as f32);
            let loops = outlines(&rle);
            prop_assert_eq!(loops.is_empty(), bitmap.iter().all(|&pixel| pixel == 0));
            for Point { x, y } in loops.into_iter().flatten() {
                prop_assert!((left..=left + width).contains(&x) && (top..=top + height).contains(&y));
            }
        }
    }
}
