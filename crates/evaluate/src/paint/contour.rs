//! The outline of a mask as smooth closed lines.

use std::collections::HashMap;

use hotcoco::Rle;

/// A closed line, in pixels of the image that the mask belongs to.
pub type Loop = Vec<(f32, f32)>;

/// Empty pixels around the window, so that every line closes and the blur has neighbors.
const MARGIN: usize = 2;

/// Outlines of a mask, including holes: marching squares on the slightly blurred mask, or without blur if it would
/// erase the mask. Empty for an empty mask.
pub fn outlines(mask: &Rle) -> Vec<Loop> {
    let Some(window) = Window::new(mask) else { return Vec::new() };
    let smooth = window.blurred().loops();
    if smooth.is_empty() { window.loops() } else { smooth }
}

/// The window of an image that contains a mask, with values from 0 (outside) to 16 (inside), row-major.
struct Window {
    /// Position of the window in the image; may be negative because of the margin.
    left: f32,
    top: f32,
    width: usize,
    height: usize,
    values: Vec<u8>,
}

impl Window {
    fn new(mask: &Rle) -> Option<Self> {
        let [left, top, width, height] = hotcoco::mask::to_bbox(mask).map(|value| value as usize);
        if width == 0 || height == 0 {
            return None;
        }
        let mut window = Self {
            left: left as f32 - MARGIN as f32,
            top: top as f32 - MARGIN as f32,
            width: width + 2 * MARGIN,
            height: height + 2 * MARGIN,
            values: vec![0; (width + 2 * MARGIN) * (height + 2 * MARGIN)],
        };
        let image_height = mask.h as usize;
        let mut position = 0;
        for (index, &run) in mask.counts.iter().enumerate() {
            let run = run as usize;
            if index % 2 == 1 {
                for pixel in position..position + run {
                    let (x, y) = (pixel / image_height, pixel % image_height);
                    window.values[(y + MARGIN - top) * window.width + x + MARGIN - left] = 16;
                }
            }
            position += run;
        }
        Some(window)
    }

    /// Binomial blur over 3x3 pixels.
    fn blurred(&self) -> Self {
        let mut values = vec![0; self.values.len()];
        for y in 1..self.height - 1 {
            for x in 1..self.width - 1 {
                let row = |y: usize| {
                    let at = y * self.width + x;
                    u16::from(self.values[at - 1]) + 2 * u16::from(self.values[at]) + u16::from(self.values[at + 1])
                };
                values[y * self.width + x] = ((row(y - 1) + 2 * row(y) + row(y + 1)) / 16) as u8;
            }
        }
        Self { values, ..*self }
    }

    /// Closed lines between pixels below half and pixels of at least half.
    fn loops(&self) -> Vec<Loop> {
        let mut next = HashMap::new();
        let mut starts = Vec::new();
        for y in 0..self.height - 1 {
            for x in 0..self.width - 1 {
                for (from, to) in self.segments(x, y) {
                    next.insert(from, to);
                    starts.push(from);
                }
            }
        }
        let mut loops = Vec::new();
        for start in starts {
            let mut points = Vec::new();
            let mut edge = start;
            while let Some(following) = next.remove(&edge) {
                points.push(self.crossing(edge));
                edge = following;
            }
            if points.len() > 2 {
                loops.push(points);
            }
        }
        loops
    }

    fn value(&self, x: usize, y: usize) -> u8 {
        self.values[y * self.width + x]
    }

    /// Directed segments of the line through the square between four pixels, with the inside on their left. Each goes
    /// from one edge of the square to another.
    fn segments(&self, x: usize, y: usize) -> impl Iterator<Item = (Edge, Edge)> + use<> {
        let inside = |x, y| self.value(x, y) >= 8;
        let case = usize::from(inside(x, y))
            | usize::from(inside(x + 1, y)) << 1
            | usize::from(inside(x + 1, y + 1)) << 2
            | usize::from(inside(x, y + 1)) << 3;
        let top = Edge { x, y, vertical: false };
        let bottom = Edge { x, y: y + 1, vertical: false };
        let left = Edge { x, y, vertical: true };
        let right = Edge { x: x + 1, y, vertical: true };
        let (first, second) = match case {
            1 => (Some((left, top)), None),
            2 => (Some((top, right)), None),
            3 => (Some((left, right)), None),
            4 => (Some((right, bottom)), None),
            5 => (Some((left, top)), Some((right, bottom))),
            6 => (Some((top, bottom)), None),
            7 => (Some((left, bottom)), None),
            8 => (Some((bottom, left)), None),
            9 => (Some((bottom, top)), None),
            10 => (Some((top, right)), Some((bottom, left))),
            11 => (Some((bottom, right)), None),
            12 => (Some((right, left)), None),
            13 => (Some((right, top)), None),
            14 => (Some((top, left)), None),
            _ => (None, None),
        };
        first.into_iter().chain(second)
    }

    /// The point where the line crosses an edge, interpolated linearly between the centers of its two pixels.
    fn crossing(&self, edge: Edge) -> (f32, f32) {
        let (x, y) = (edge.x, edge.y);
        let from = f32::from(self.value(x, y));
        let to = f32::from(if edge.vertical { self.value(x, y + 1) } else { self.value(x + 1, y) });
        let share = ((8.0 - from) / (to - from)).clamp(0.0, 1.0);
        let (right, down) = if edge.vertical { (0.0, share) } else { (share, 0.0) };
        (self.left + x as f32 + 0.5 + right, self.top + y as f32 + 0.5 + down)
    }
}

/// The edge from a pixel's center to the center of the next pixel, to the right or down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Edge {
    x: usize,
    y: usize,
    vertical: bool,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Area by the shoelace formula, minus holes.
    fn area(loops: &[Loop]) -> f32 {
        let of_loop = |points: &Loop| -> f32 {
            let following = points.iter().cycle().skip(1);
            points.iter().zip(following).map(|(a, b)| b.0 * a.1 - a.0 * b.1).sum::<f32>() / 2.0
        };
        loops.iter().map(of_loop).sum()
    }

    fn disc(radius: f32, hole: f32) -> Rle {
        let inside = |pixel: usize| {
            let distance = ((pixel / 80) as f32 - 39.5).hypot((pixel % 80) as f32 - 39.5);
            u8::from(distance < radius && distance >= hole)
        };
        let bitmap: Vec<u8> = (0..80 * 80).map(inside).collect();
        hotcoco::mask::encode(&bitmap, 80, 80).unwrap()
    }

    #[test]
    fn a_disc_has_one_outline_with_its_area() {
        let loops = outlines(&disc(30.0, 0.0));
        assert_eq!(loops.len(), 1);
        assert!((area(&loops) / (std::f32::consts::PI * 900.0) - 1.0).abs() < 0.02, "{}", area(&loops));
    }

    #[test]
    fn a_hole_has_its_own_outline() {
        let loops = outlines(&disc(30.0, 15.0));
        assert_eq!(loops.len(), 2);
        assert!((area(&loops) / (std::f32::consts::PI * 675.0) - 1.0).abs() < 0.02, "{}", area(&loops));
    }

    #[test]
    fn a_single_pixel_still_has_an_outline() {
        let mask = Rle { h: 5, w: 5, counts: vec![12, 1, 12] };
        let loops = outlines(&mask);
        assert_eq!(loops.len(), 1);
        assert!(loops[0].iter().all(|&(x, y)| (2.0..=3.0).contains(&x) && (2.0..=3.0).contains(&y)), "{loops:?}");
    }

    #[test]
    fn an_empty_mask_has_none() {
        assert!(outlines(&Rle { h: 5, w: 5, counts: vec![25] }).is_empty());
    }

    proptest! {
        #[test]
        fn outlines_of_any_mask_stay_within_its_box(bitmap in prop::collection::vec(0_u8..2, 12 * 9)) {
            let mask = hotcoco::mask::encode(&bitmap, 12, 9).unwrap();
            let [left, top, width, height] = hotcoco::mask::to_bbox(&mask).map(|value| value as f32);
            let loops = outlines(&mask);
            prop_assert_eq!(loops.is_empty(), bitmap.iter().all(|&pixel| pixel == 0));
            for (x, y) in loops.into_iter().flatten() {
                prop_assert!((left..=left + width).contains(&x) && (top..=top + height).contains(&y));
            }
        }
    }
}
