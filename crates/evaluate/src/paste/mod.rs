//! Pastes mask probabilities into the image, directly as run lengths.
//!
//! The mask head predicts a small square of probabilities for each box. MMDetection samples it at the center of every
//! pixel of the window `[floor(x1) - 1, ceil(x2) + 1]` (bilinear, zeros outside, corners not aligned) and keeps the
//! pixels with a value of at least the threshold. This module uses the same arithmetic, in the same order and
//! precision, but writes COCO's column-major run lengths directly. It creates no bitmap of the image, and does not
//! sample parts of the window in which all four neighboring probabilities agree.

#[cfg(test)]
mod tests;

use hotcoco::Rle;
use rayon::prelude::*;

use fnet_common::{Error, Result};

/// Mask probabilities of the detections of one image: `count` squares of `side` x `side`, row-major.
#[derive(Debug, Clone, Copy)]
pub struct Probabilities<'a> {
    /// `count * side * side` values.
    pub values: &'a [f32],
    /// Side of each square in cells (28 by default).
    pub side: usize,
}

impl<'a> Probabilities<'a> {
    fn square(&self, index: usize) -> &'a [f32] {
        let size = self.side * self.side;
        &self.values[index * size..(index + 1) * size]
    }
}

/// Pastes every mask of one image into an image of `(height, width)` pixels, in parallel on the current thread pool.
///
/// `boxes` are `[x1, y1, x2, y2]` in that image's pixels. A pixel belongs to the mask when its sampled probability
/// is at least `threshold`.
/// Errors: the number of probabilities does not match the boxes, or the image has more than 2^32 - 1 pixels, the limit of run
/// lengths.
pub fn paste_all(
    probabilities: Probabilities<'_>,
    boxes: &[[f32; 4]],
    (height, width): (usize, usize),
    threshold: f32,
) -> Result<Vec<Rle>> {
    let expected = boxes.len() * probabilities.side * probabilities.side;
    if probabilities.values.len() != expected {
        return Err(Error::bug(format!(
            "{} mask probabilities for {} boxes of {side} x {side}: expected {expected}",
            probabilities.values.len(),
            boxes.len(),
            side = probabilities.side,
        )));
    }
    if u32::try_from(height as u64 * width as u64).is_err() {
        return Err(Error::data(format!(
            "an image of {width} x {height} pixels is too large for COCO's run lengths (2^32 - 1 pixels): \
             make it smaller"
        )));
    }
    let paste_one = |(index, bounds): (usize, &[f32; 4])| {
        paste(probabilities.square(index), probabilities.side, *bounds, (height, width), threshold)
    };
    Ok(boxes.par_iter().enumerate().map(paste_one).collect())
}

/// Pastes one mask. The sizes have been checked.
fn paste(square: &[f32], side: usize, bounds: [f32; 4], (height, width): (usize, usize), threshold: f32) -> Rle {
    let [x1, y1, x2, y2] = bounds;
    let columns = Axis::new(x1, x2, width, side);
    let rows = Axis::new(y1, y2, height, side);
    let cells = Cells::new(square, side, threshold);
    let mut runs = Runs::default();
    runs.push(false, columns.start * height);
    let below = height - rows.start - rows.samples.len();
    for column in &columns.samples {
        runs.push(false, rows.start);
        for group in &rows.groups {
            let rows = &rows.samples[group.start..group.end];
            match cells.decided(column.cell, group.cell) {
                Some(inside) => runs.push(inside, rows.len()),
                None => {
                    let corners = cells.corners(column.cell, group.cell);
                    for row in rows {
                        runs.push(sample(corners, column, row) >= threshold, 1);
                    }
                }
            }
        }
        runs.push(false, below);
    }
    runs.push(false, (width - columns.start - columns.samples.len()) * height);
    Rle { h: height as u32, w: width as u32, counts: runs.finish() }
}

/// The bilinear value, in MMDetection's order of operations. `corners` are north-west, north-east, south-west,
/// south-east.
#[inline]
fn sample(corners: [f32; 4], column: &Sample, row: &Sample) -> f32 {
    let (west, east) = (column.far, column.near);
    let (north, south) = (row.far, row.near);
    corners[0] * (south * east)
        + corners[1] * (south * west)
        + corners[2] * (north * east)
        + corners[3] * (north * west)
}

/// Position of a pixel's center on one axis of the square of probabilities.
#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Index of the pair of neighboring cells in the square with its border of zeros: 0 is outside the first cell.
    /// `None` if both are outside.
    cell: Option<usize>,
    /// Distance from the first of the two cells: the weight of the second.
    far: f32,
    /// One less `far`: the weight of the first.
    near: f32,
}

/// Consecutive samples between the same two cells.
#[derive(Debug)]
struct Group {
    cell: Option<usize>,
    start: usize,
    end: usize,
}

/// The pixels of the window along one axis.
#[derive(Debug)]
struct Axis {
    /// First pixel of the window.
    start: usize,
    samples: Vec<Sample>,
    groups: Vec<Group>,
}

impl Axis {
    /// The window of a box from `low` to `high` on an axis of `size` pixels.
    fn new(low: f32, high: f32, size: usize, side: usize) -> Self {
        // Casting a float to an integer saturates, and NaN becomes 0, so a box far outside has an empty window.
        let start = ((low.floor() - 1.0).max(0.0) as usize).min(size);
        let end = ((high.ceil() + 1.0).max(0.0) as usize).clamp(start, size);
        let samples: Vec<Sample> = (start..end).map(|pixel| Sample::at(pixel, low, high, side)).collect();
        let mut groups: Vec<Group> = Vec::new();
        for (index, sample) in samples.iter().enumerate() {
            match groups.last_mut() {
                Some(group) if group.cell == sample.cell => group.end = index + 1,
                _ => groups.push(Group { cell: sample.cell, start: index, end: index + 1 }),
            }
        }
        Self { start, samples, groups }
    }
}

impl Sample {
    fn at(pixel: usize, low: f32, high: f32, side: usize) -> Self {
        let mut grid = (pixel as f32 + 0.5 - low) / (high - low) * 2.0 - 1.0;
        if grid.is_infinite() {
            // MMDetection's rule for an empty box.
            grid = 0.0;
        }
        let position = (grid + 1.0) * (side as f32 / 2.0) - 0.5;
        let first = position.floor();
        let far = position - first;
        let inside = first >= -1.0 && first < side as f32;
        Self { cell: inside.then_some((first + 1.0) as usize), far, near: 1.0 - far }
    }
}

/// The square with a border of zeros, and for each group of four neighbors whether they agree.
struct Cells {
    /// Cells on one side, border included.
    stride: usize,
    values: Vec<f32>,
    /// One per group of four neighbors, `(stride - 1)` squared.
    decided: Vec<Option<bool>>,
    /// Whether a sample outside the square is inside the mask.
    outside: bool,
}

impl Cells {
    fn new(square: &[f32], side: usize, threshold: f32) -> Self {
        let stride = side + 2;
        let mut values = vec![0.0; stride * stride];
        for (row, source) in square.chunks_exact(side).enumerate() {
            let at = (row + 1) * stride + 1;
            values[at..at + side].copy_from_slice(source);
        }
        // Up to rounding, a bilinear value is between its four inputs. A margin far above the rounding error keeps the
        // shortcut exact. NaN fails both comparisons and is sampled.
        let largest = square.iter().fold(1.0_f32, |largest, value| largest.max(value.abs()));
        let margin = 1e-5 * largest.max(threshold.abs());
        let mut cells = Self { stride, values, decided: Vec::new(), outside: 0.0 >= threshold };
        let groups = stride - 1;
        cells.decided = (0..groups * groups)
            .map(|index| {
                let corners = cells.corners(Some(index % groups), Some(index / groups));
                if corners.iter().all(|&value| value >= threshold + margin) {
                    Some(true)
                } else if corners.iter().all(|&value| value < threshold - margin) {
                    Some(false)
                } else {
                    None
                }
            })
            .collect();
        cells
    }

    /// Whether all samples between these cells are inside or outside. `None` if they must be computed.
    #[inline]
    fn decided(&self, column: Option<usize>, row: Option<usize>) -> Option<bool> {
        match (column, row) {
            (Some(column), Some(row)) => self.decided[row * (self.stride - 1) + column],
            _ => Some(self.outside),
        }
    }

    #[inline]
    fn corners(&self, column: Option<usize>, row: Option<usize>) -> [f32; 4] {
        let (Some(column), Some(row)) = (column, row) else { return [0.0; 4] };
        let north = row * self.stride + column;
        let south = north + self.stride;
        [self.values[north], self.values[north + 1], self.values[south], self.values[south + 1]]
    }
}

/// A builder of run lengths: alternately outside and inside, outside first.
#[derive(Debug, Default)]
struct Runs {
    counts: Vec<u32>,
    inside: bool,
    length: usize,
}

impl Runs {
    #[inline]
    fn push(&mut self, inside: bool, length: usize) {
        if inside != self.inside && length > 0 {
            self.counts.push(self.length as u32);
            self.inside = inside;
            self.length = 0;
        }
        self.length += length;
    }

    fn finish(mut self) -> Vec<u32> {
        self.counts.push(self.length as u32);
        self.counts
    }
}
