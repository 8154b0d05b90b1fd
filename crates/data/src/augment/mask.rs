//! Changes of instance masks, exact to the pixel: resized by nearest neighbor, flipped, cropped, covered.

use std::sync::Arc;

use super::raster::{Size, Window};
use crate::batch::InstanceMask;
use crate::masks::first_destinations;
use crate::resize::nearest;

/// Resizes masks of one frame to another, as OpenCV's `INTER_NEAREST`. Sizes are (height, width).
pub(super) struct Nearest {
    target: Size,
    /// The source of each row and column of the result.
    rows: Vec<usize>,
    columns: Vec<usize>,
    /// The first row and column of the result that come from each one of the source or a later one.
    row_start: Vec<usize>,
    column_start: Vec<usize>,
}

impl Nearest {
    pub fn new(source: Size, target: Size) -> Self {
        Self {
            target,
            rows: nearest(source.0, target.0),
            columns: nearest(source.1, target.1),
            row_start: first_destinations(source.0, target.0),
            column_start: first_destinations(source.1, target.1),
        }
    }

    pub fn mask(&self, mask: &InstanceMask) -> InstanceMask {
        let y = self.row_start[mask.y]..self.row_start[mask.y + mask.height];
        let x = self.column_start[mask.x]..self.column_start[mask.x + mask.width];
        let width = x.len();
        let mut pixels: Vec<u8> = Vec::with_capacity(y.len() * width);
        for row in y.clone() {
            if row > y.start && self.rows[row] == self.rows[row - 1] {
                pixels.extend_from_within(pixels.len() - width..);
            } else {
                let line = &mask.pixels[(self.rows[row] - mask.y) * mask.width..][..mask.width];
                pixels.extend(self.columns[x.clone()].iter().map(|&column| line[column - mask.x]));
            }
        }
        InstanceMask { frame: self.target, x: x.start, y: y.start, width, height: y.len(), pixels: pixels.into() }
    }
}

/// The mask flipped within its frame.
pub(super) fn flipped(mut mask: InstanceMask, horizontal: bool, vertical: bool) -> InstanceMask {
    if horizontal {
        mask.x = mask.frame.1 - mask.x - mask.width;
    }
    if vertical {
        mask.y = mask.frame.0 - mask.y - mask.height;
    }
    let mut pixels = mask.pixels.to_vec();
    if vertical {
        // A flip of both axes reverses the pixels.
        pixels.reverse();
    }
    if horizontal != vertical {
        pixels.chunks_exact_mut(mask.width.max(1)).for_each(<[u8]>::reverse);
    }
    InstanceMask { pixels: pixels.into(), ..mask }
}

/// The part of the mask in `window`, in the window's coordinates.
pub(super) fn cropped(mask: &InstanceMask, window: Window) -> InstanceMask {
    let clip = |start: usize, length: usize, low: usize, size: usize| {
        let (first, end) = (start.max(low), (start + length).min(low + size));
        first..end.max(first)
    };
    let y = clip(mask.y, mask.height, window.y, window.height);
    let x = clip(mask.x, mask.width, window.x, window.width);
    let frame = (window.height, window.width);
    if y.is_empty() || x.is_empty() {
        return InstanceMask { frame, x: 0, y: 0, width: 0, height: 0, pixels: Arc::from([]) };
    }
    let row = |y: usize| {
        let start = (y - mask.y) * mask.width + x.start - mask.x;
        &mask.pixels[start..start + x.len()]
    };
    let pixels = y.clone().flat_map(row).copied().collect();
    InstanceMask { frame, x: x.start - window.x, y: y.start - window.y, width: x.len(), height: y.len(), pixels }
}

/// The mask without the pixels that are set in `bitmap`, which has the size of its frame.
pub(super) fn uncovered(mask: InstanceMask, bitmap: &[u8]) -> InstanceMask {
    let mut pixels = mask.pixels.to_vec();
    for (row, pixels) in pixels.chunks_exact_mut(mask.width.max(1)).enumerate() {
        let start = (mask.y + row) * mask.frame.1 + mask.x;
        pixels.iter_mut().zip(&bitmap[start..start + mask.width]).for_each(|(pixel, covered)| *pixel &= 1 - covered);
    }
    InstanceMask { pixels: pixels.into(), ..mask }
}

/// The smallest box around the pixels, `[x1, y1, x2, y2]`; right and bottom are one past the last pixel. `None` without a
/// pixel.
pub(super) fn bounds(mask: &InstanceMask) -> Option<[f32; 4]> {
    let rows = || mask.pixels.chunks_exact(mask.width.max(1));
    let top = rows().position(|row| row.contains(&1))?;
    let bottom = rows().rposition(|row| row.contains(&1))? + 1;
    let left = rows().filter_map(|row| row.iter().position(|&pixel| pixel == 1)).min()?;
    let right = rows().filter_map(|row| row.iter().rposition(|&pixel| pixel == 1)).max()? + 1;
    Some([mask.x + left, mask.y + top, mask.x + right, mask.y + bottom].map(|side| side as f32))
}
