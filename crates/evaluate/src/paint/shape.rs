//! Boxes and masks.

use tiny_skia::{FillRule, LineCap, LineJoin, Paint, Path, PathBuilder, Stroke, StrokeDash, Transform};

use super::color::ClassColor;
use super::contour::outlines;
use super::{Canvas, Object};

/// Opacity of a filled mask.
const FILLING: f32 = 0.38;
/// Opacity of the dark line around each colored line, which keeps it visible on any background.
const SHADOW: f32 = 0.45;

pub(super) fn paint(canvas: &mut Canvas, object: &Object) {
    let color = object.color();
    if let Some(path) = object.mask.as_ref().and_then(|mask| mask_path(&outlines(mask), canvas.scale)) {
        if !object.crowd {
            canvas.pixmap.fill_path(&path, &ink(color, FILLING), FillRule::EvenOdd, Transform::identity(), None);
        }
        outline(canvas, &path, color, canvas.line, None);
    }
    if let Some(path) = box_path(object.bbox, canvas) {
        let width = if object.mask.is_some() { canvas.line * 0.6 } else { canvas.line };
        let dashes = object.crowd.then(|| StrokeDash::new(vec![width * 6.0, width * 4.0], 0.0)).flatten();
        outline(canvas, &path, color, width, dashes);
    }
}

pub(super) fn ink(color: ClassColor, opacity: f32) -> Paint<'static> {
    let mut paint = Paint { anti_alias: true, ..Default::default() };
    paint.set_color_rgba8(color.red, color.green, color.blue, (opacity * 255.0) as u8);
    paint
}

fn outline(canvas: &mut Canvas, path: &Path, color: ClassColor, width: f32, dash: Option<StrokeDash>) {
    let stroke = |width| Stroke {
        width,
        line_cap: LineCap::Butt,
        line_join: LineJoin::Round,
        dash: dash.clone(),
        ..Default::default()
    };
    let black = ClassColor { red: 0, green: 0, blue: 0 };
    let none = Transform::identity();
    canvas.pixmap.stroke_path(path, &ink(black, SHADOW), &stroke(width + 1.4), none, None);
    canvas.pixmap.stroke_path(path, &ink(color, 1.0), &stroke(width), none, None);
}

fn mask_path(loops: &[super::contour::Loop], scale: f32) -> Option<Path> {
    let mut builder = PathBuilder::new();
    for points in loops {
        let mut last = None;
        for &(x, y) in points {
            let (x, y) = (x * scale, y * scale);
            match last {
                None => builder.move_to(x, y),
                // Skip points that are very close to each other.
                Some((px, py)) if f32::hypot(x - px, y - py) < 0.4 => continue,
                Some(_) => builder.line_to(x, y),
            }
            last = Some((x, y));
        }
        builder.close();
    }
    // A mask of a few pixels may become a line, which cannot be filled.
    builder.finish().filter(|path| path.bounds().width() > 0.0 && path.bounds().height() > 0.0)
}

/// The path of a box, inside the image even if the box touches its border, and visible even if the box is empty. `None`
/// if it is not finite.
fn box_path([x1, y1, x2, y2]: [f32; 4], canvas: &Canvas) -> Option<Path> {
    let inset = canvas.line / 2.0;
    let place = |low: f32, high: f32, size: u32| {
        let most = (size as f32 - inset).max(inset);
        ((low * canvas.scale).clamp(inset, most), (high * canvas.scale).clamp(inset, most))
    };
    if ![x1, y1, x2, y2].iter().all(|value| value.is_finite()) {
        return None;
    }
    let (left, right) = place(x1, x2, canvas.pixmap.width());
    let (top, bottom) = place(y1, y2, canvas.pixmap.height());
    let (right, bottom) = (right.max(left + canvas.line), bottom.max(top + canvas.line));
    let mut builder = PathBuilder::new();
    builder.move_to(left, top);
    builder.line_to(right, top);
    builder.line_to(right, bottom);
    builder.line_to(left, bottom);
    builder.close();
    builder.finish()
}
