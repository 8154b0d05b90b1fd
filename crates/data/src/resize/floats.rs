//! Bilinear resizing of float32 values, as OpenCV's `INTER_LINEAR` does it: the same positions as for bytes, exact weights.

use std::ops::Range;

use super::{Border, positions};

/// These rows and columns of `values` (3 for each pixel, row-major) resized from `source` to `target`, both (height, width).
pub(crate) fn resize_floats(
    values: &[f32],
    source: (usize, usize),
    target: (usize, usize),
    rows: Range<usize>,
    columns: Range<usize>,
) -> Vec<f32> {
    let pixel = |y: usize, x: usize| {
        let at = (y * source.1 + x) * 3;
        [values[at], values[at + 1], values[at + 2]]
    };
    let mut out = Vec::with_capacity(rows.len() * columns.len() * 3);
    if source == target {
        for y in rows {
            out.extend_from_slice(&values[(y * source.1 + columns.start) * 3..(y * source.1 + columns.end) * 3]);
        }
    } else if source == (target.0 * 2, target.1 * 2) {
        for (y, x) in rows.flat_map(|y| columns.clone().map(move |x| (y * 2, x * 2))) {
            let four = [pixel(y, x), pixel(y, x + 1), pixel(y + 1, x), pixel(y + 1, x + 1)];
            out.extend((0..3).map(|c| (four[0][c] + four[1][c] + four[2][c] + four[3][c]) * 0.25));
        }
    } else {
        let across: Vec<_> = positions(source.1, target.1, Border::DropFraction).collect();
        let down: Vec<_> = positions(source.0, target.0, Border::KeepFraction).collect();
        for &([upper, lower], below) in &down[rows] {
            for &([left, right], beside) in &across[columns.clone()] {
                let row = |y: usize| {
                    let (a, b) = (pixel(y, left), pixel(y, right));
                    std::array::from_fn(|c| a[c] * (1.0 - beside) + b[c] * beside)
                };
                let (a, b): ([f32; 3], [f32; 3]) = (row(upper), row(lower));
                out.extend((0..3).map(|c| a[c] * (1.0 - below) + b[c] * below));
            }
        }
    }
    out
}
