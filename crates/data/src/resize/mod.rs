//! Bilinear resizing of RGB images, bitwise equal to OpenCV's `INTER_LINEAR` on 8-bit pixels.
//!
//! OpenCV computes in fixed point: weights have 11 bits, the horizontal pass keeps all of them, the vertical pass drops
//! 4 + 16 + 2 bits. Halving both sides exactly averages 2x2 pixels instead. There is no antialiasing.

mod columns;
mod floats;
mod simd;

use std::ops::Range;

use columns::{Columns, Tap};
pub(crate) use floats::resize_floats;

/// One in 11-bit fixed point.
const ONE: f32 = 2048.0;
/// Rows per band.
const BAND: usize = 8;

/// Whether the fraction is dropped if the neighbor is outside: horizontally yes, vertically no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Border {
    DropFraction,
    KeepFraction,
}

/// A plan for resizing images of one size to another. Sizes are (height, width).
#[derive(Debug)]
pub struct Bilinear {
    source: (usize, usize),
    /// Size of the result.
    target: (usize, usize),
    /// First row and column of the source, where the method does not know them.
    origin: (usize, usize),
    flip: bool,
    method: Method,
}

#[derive(Debug)]
enum Method {
    Copy,
    Halve,
    Interpolate { columns: Columns, rows: Vec<Tap> },
}

impl Bilinear {
    /// A plan from `source` to `target`, both (height, width) and above 0.
    pub fn new(source: (usize, usize), target: (usize, usize)) -> Self {
        Self::mirrored(source, target, false)
    }

    /// A plan that also flips the result horizontally if `flip`.
    pub fn mirrored(source: (usize, usize), target: (usize, usize), flip: bool) -> Self {
        Self::part(source, target, 0..target.0, 0..target.1, flip)
    }

    /// A plan for these rows and columns of the image that is resized to `target`; the rest is not computed.
    pub fn part(
        source: (usize, usize),
        target: (usize, usize),
        rows: Range<usize>,
        columns: Range<usize>,
        flip: bool,
    ) -> Self {
        let (origin, method) = if source == target {
            ((rows.start, columns.start), Method::Copy)
        } else if source == (target.0 * 2, target.1 * 2) {
            ((rows.start * 2, columns.start * 2), Method::Halve)
        } else {
            let mut taken = taps(source.1, target.1, Border::DropFraction)[columns.clone()].to_vec();
            if flip {
                taken.reverse();
            }
            let rows = taps(source.0, target.0, Border::KeepFraction)[rows.clone()].to_vec();
            ((0, 0), Method::Interpolate { columns: Columns::new(taken, source.1), rows })
        };
        Self { source, target: (rows.len(), columns.len()), origin, flip, method }
    }

    /// Resizes `rgb` (3 bytes per pixel, row-major). Calls `take` with bands of finished rows from top to bottom, and
    /// the index of the first row.
    ///
    /// # Panics
    /// If `rgb` is not of the source size.
    pub fn for_each_band(&self, rgb: &[u8], mut take: impl FnMut(usize, &[u8])) {
        let (source_stride, stride) = (self.source.1 * 3, self.target.1 * 3);
        assert_eq!(rgb.len(), self.source.0 * source_stride, "the image has the size that the plan was made for");
        let (top, left) = self.origin;
        let row = |y: usize| &rgb[(top + y) * source_stride + left * 3..(top + y + 1) * source_stride];
        if matches!(self.method, Method::Copy) && !self.flip && self.target == self.source {
            for (i, band) in rgb.chunks(stride * BAND).enumerate() {
                take(i * BAND, band);
            }
            return;
        }
        let mut band = vec![0u8; stride * BAND.min(self.target.0)];
        let mut horizontal = match &self.method {
            Method::Interpolate { columns, .. } => Some(HorizontalRows::new(columns)),
            _ => None,
        };
        for start in (0..self.target.0).step_by(BAND) {
            let count = BAND.min(self.target.0 - start);
            for (y, out) in (start..start + count).zip(band.chunks_exact_mut(stride)) {
                match (&self.method, &mut horizontal) {
                    (Method::Interpolate { rows, .. }, Some(horizontal)) => horizontal.blend(&rows[y], row, out),
                    (Method::Halve, _) => halve(row(y * 2), row(y * 2 + 1), out),
                    _ => out.copy_from_slice(&row(y)[..stride]),
                }
                if self.flip && horizontal.is_none() {
                    mirror(out);
                }
            }
            take(start, &band[..count * stride]);
        }
    }

    /// Resizes `rgb` into a new image.
    ///
    /// # Panics
    /// Same as [`Self::for_each_band`].
    pub fn apply(&self, rgb: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.target.0 * self.target.1 * 3);
        self.for_each_band(rgb, |_, band| out.extend_from_slice(band));
        out
    }
}

/// The two current horizontally resized rows.
struct HorizontalRows<'c> {
    columns: &'c Columns,
    rows: [Vec<i16>; 2],
    /// The source row of each.
    sources: [usize; 2],
}

impl<'c> HorizontalRows<'c> {
    fn new(columns: &'c Columns) -> Self {
        let row = || vec![0; columns.values()];
        Self { columns, rows: [row(), row()], sources: [usize::MAX; 2] }
    }

    /// Computes one row of the result from the two source rows of `tap`.
    fn blend<'r>(&mut self, tap: &Tap, row: impl Fn(usize) -> &'r [u8], out: &mut [u8]) {
        if self.sources[0] != tap.first {
            if self.sources[1] == tap.first {
                self.rows.swap(0, 1);
                self.sources.swap(0, 1);
            } else {
                self.columns.resize(row(tap.first), &mut self.rows[0]);
                self.sources[0] = tap.first;
            }
        }
        if tap.second != tap.first && self.sources[1] != tap.second {
            self.columns.resize(row(tap.second), &mut self.rows[1]);
            self.sources[1] = tap.second;
        }
        let [first, second] = &self.rows;
        simd::blend(first, if tap.second == tap.first { first } else { second }, tap.weights, out);
    }
}

fn halve(upper: &[u8], lower: &[u8], out: &mut [u8]) {
    for ((out, a), b) in out.chunks_exact_mut(3).zip(upper.chunks_exact(6)).zip(lower.chunks_exact(6)) {
        for c in 0..3 {
            let sum = u16::from(a[c]) + u16::from(a[c + 3]) + u16::from(b[c]) + u16::from(b[c + 3]);
            out[c] = ((sum + 2) >> 2) as u8;
        }
    }
}

/// Reverses a row of RGB pixels.
fn mirror(row: &mut [u8]) {
    let (pixels, _) = row.as_chunks_mut::<3>();
    pixels.reverse();
}

/// For each destination position the source position before it, the one after it, and the distance from the first.
fn positions(source: usize, target: usize, border: Border) -> impl Iterator<Item = ([usize; 2], f32)> {
    // OpenCV takes the reciprocal of the inverse, which is not always the quotient.
    let scale = 1.0 / (target as f64 / source as f64);
    let last = source.saturating_sub(1) as i64;
    (0..target).map(move |d| {
        let position = ((d as f64 + 0.5) * scale - 0.5) as f32;
        let floor = position.floor();
        let (mut start, mut fraction) = (floor as i64, position - floor);
        if border == Border::DropFraction && (start < 0 || start >= last) {
            (start, fraction) = (start.clamp(0, last), 0.0);
        }
        ([start, start + 1].map(|at| at.clamp(0, last) as usize), fraction)
    })
}

fn taps(source: usize, target: usize, border: Border) -> Vec<Tap> {
    let weight = |w: f32| (w * ONE).round_ties_even() as i16;
    positions(source, target, border)
        .map(|([first, second], fraction)| Tap { first, second, weights: [weight(1.0 - fraction), weight(fraction)] })
        .collect()
}

/// The source position of each destination position in nearest-neighbor resizing, like OpenCV's `INTER_NEAREST`:
/// floored, not rounded.
pub(super) fn nearest(source: usize, target: usize) -> Vec<usize> {
    let scale = 1.0 / (target as f64 / source as f64);
    (0..target).map(|d| ((d as f64 * scale).floor() as usize).min(source.saturating_sub(1))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn halving_averages_four_pixels() {
        let rgb = [0, 10, 20, 1, 11, 21, 2, 12, 22, 4, 14, 24];
        assert_eq!(Bilinear::new((2, 2), (1, 1)).apply(&rgb), [2, 12, 22]);
    }

    /// An image of `height` by `width` pixels that was also resized with OpenCV. Every value is a function of its
    /// position.
    fn noise(height: usize, width: usize) -> Vec<u8> {
        let value = |i: usize| (((i as u64 * 2_654_435_761) & 0xffff_ffff) >> 24) as u8 ^ (i / 97) as u8;
        (0..height * width * 3).map(value).collect()
    }

    #[test]
    fn resized_images_match_opencv() {
        let list: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/fixtures/opencv_resize.json")).unwrap();
        let cases = &list["height, width, new height, new width, CRC-32"];
        let cases: Vec<[u64; 5]> = serde_json::from_value(cases.clone()).unwrap();
        let mut different = Vec::new();
        for case in &cases {
            let [h, w, new_h, new_w] = std::array::from_fn(|i| case[i] as usize);
            let resized = Bilinear::new((h, w), (new_h, new_w)).apply(&noise(h, w));
            if u64::from(crc32fast::hash(&resized)) != case[4] {
                different.push(case);
            }
        }
        assert!(different.is_empty() && cases.len() > 100, "{} of {}: {different:?}", different.len(), cases.len());
    }

    proptest! {
        #[test]
        fn a_mirrored_plan_reverses_the_rows(
            h in 1usize..30, w in 1usize..60, new_h in 1usize..60, new_w in 1usize..120, same: bool, half: bool
        ) {
            let target = if same { (h, w) } else { (new_h, new_w) };
            let source = if half { (target.0 * 2, target.1 * 2) } else { (h, w) };
            let rgb = noise(source.0, source.1);
            let mut plain = Bilinear::new(source, target).apply(&rgb);
            plain.chunks_exact_mut(target.1 * 3).for_each(mirror);
            prop_assert_eq!(Bilinear::mirrored(source, target, true).apply(&rgb), plain);
        }

        #[test]
        fn a_part_equals_the_part_of_the_whole(
            h in 1usize..30, w in 1usize..40, new_h in 1usize..60, new_w in 1usize..80, how in 0..3, flip: bool, corner: [u16; 4]
        ) {
            let source = match how { 0 => (new_h, new_w), 1 => (new_h * 2, new_w * 2), _ => (h, w) };
            let range = |a: u16, b: u16, side: usize| {
                let (a, b) = (usize::from(a) % side, usize::from(b) % side);
                a.min(b)..a.max(b) + 1
            };
            let (rows, columns) = (range(corner[0], corner[1], new_h), range(corner[2], corner[3], new_w));
            let rgb = noise(source.0, source.1);
            let whole = Bilinear::new(source, (new_h, new_w)).apply(&rgb);
            let mut expected = Vec::new();
            for y in rows.clone() {
                let mut row = whole[(y * new_w + columns.start) * 3..(y * new_w + columns.end) * 3].to_vec();
                if flip {
                    mirror(&mut row);
                }
                expected.extend(row);
            }
            prop_assert_eq!(Bilinear::part(source, (new_h, new_w), rows, columns, flip).apply(&rgb), expected);
        }

        #[test]
        fn floats_are_resized_as_bytes_up_to_rounding(
            h in 1usize..20, w in 1usize..20, new_h in 1usize..30, new_w in 1usize..30, half: bool, top in 0usize..29, left in 0usize..29
        ) {
            let source = if half { (new_h * 2, new_w * 2) } else { (h, w) };
            let (rows, columns) = (top.min(new_h - 1)..new_h, left.min(new_w - 1)..new_w);
            let rgb = noise(source.0, source.1);
            let values: Vec<f32> = rgb.iter().map(|&value| f32::from(value)).collect();
            let bytes = Bilinear::part(source, (new_h, new_w), rows.clone(), columns.clone(), false).apply(&rgb);
            let floats = resize_floats(&values, source, (new_h, new_w), rows, columns);
            prop_assert_eq!(bytes.len(), floats.len());
            prop_assert!(bytes.iter().zip(floats).all(|(&byte, float)| (f32::from(byte) - float).abs() <= 1.0));
        }

        #[test]
        fn a_uniform_image_stays_uniform(h in 1usize..40, w in 1usize..40, new_h in 1usize..80, new_w in 1usize..80, v in any::<u8>()) {
            let resized = Bilinear::new((h, w), (new_h, new_w)).apply(&vec![v; h * w * 3]);
            prop_assert!(resized.iter().all(|&r| r == v), "{:?}", resized);
        }

        #[test]
        fn nearest_positions_ascend_inside_the_source(source in 1usize..500, target in 1usize..500) {
            let list = nearest(source, target);
            prop_assert!(list.windows(2).all(|pair| pair[0] <= pair[1]));
            prop_assert!(list.iter().all(|&s| s < source));
            prop_assert_eq!(list[0], 0);
        }
    }
}
