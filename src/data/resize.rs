//! Bilinear resizing of RGB pictures, equal to OpenCV's `INTER_LINEAR` on 8-bit pixels bit for bit.
//!
//! OpenCV computes in fixed point: weights have 11 bits, the horizontal pass keeps all of them, the vertical pass
//! drops 4 + 16 + 2 bits. Halving both sides exactly is an average of 2x2 pixels instead. Nothing is antialiased.

/// One in 11-bit fixed point.
const ONE: f32 = 2048.0;

/// Two neighbouring source positions and their weights for one destination position.
#[derive(Debug, Clone, Copy)]
struct Tap {
    first: usize,
    second: usize,
    weights: [i32; 2],
}

/// Whether the fraction is dropped where the neighbour would lie outside: horizontally yes, vertically no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Border {
    DropFraction,
    KeepFraction,
}

/// A plan for resizing pictures of one size to another; both are (height, width).
#[derive(Debug)]
pub struct Bilinear {
    source: (usize, usize),
    target: (usize, usize),
    /// First and second byte offset in a source row, and weights, per destination column.
    columns: Vec<Tap>,
    rows: Vec<Tap>,
    method: Method,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Copy,
    Halve,
    Interpolate,
}

impl Bilinear {
    /// A plan from `source` to `target`, both (height, width) and above 0.
    pub fn new(source: (usize, usize), target: (usize, usize)) -> Self {
        let method = if source == target {
            Method::Copy
        } else if source == (target.0 * 2, target.1 * 2) {
            Method::Halve
        } else {
            Method::Interpolate
        };
        let columns = taps(source.1, target.1, Border::DropFraction);
        let columns = columns.into_iter().map(|tap| Tap { first: tap.first * 3, second: tap.second * 3, ..tap });
        Self {
            source,
            target,
            columns: columns.collect(),
            rows: taps(source.0, target.0, Border::KeepFraction),
            method,
        }
    }

    /// Resizes `rgb` (3 bytes per pixel, row-major) and hands each finished row to `take`, from the top.
    ///
    /// # Panics
    /// If `rgb` is not of the source size.
    pub fn for_each_row(&self, rgb: &[u8], mut take: impl FnMut(usize, &[u8])) {
        let stride = self.source.1 * 3;
        assert_eq!(rgb.len(), self.source.0 * stride, "the picture has the size that the plan was made for");
        match self.method {
            Method::Copy => rgb.chunks_exact(stride.max(1)).enumerate().for_each(|(y, row)| take(y, row)),
            Method::Halve => {
                let mut out = vec![0; self.target.1 * 3];
                for (y, rows) in rgb.chunks_exact(stride * 2).enumerate() {
                    halve(&rows[..stride], &rows[stride..], &mut out);
                    take(y, &out);
                }
            }
            Method::Interpolate => self.interpolate(rgb, take),
        }
    }

    /// Resizes `rgb` into a new picture.
    ///
    /// # Panics
    /// As [`Self::for_each_row`].
    pub fn apply(&self, rgb: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.target.0 * self.target.1 * 3);
        self.for_each_row(rgb, |_, row| out.extend_from_slice(row));
        out
    }

    fn interpolate(&self, rgb: &[u8], mut take: impl FnMut(usize, &[u8])) {
        let (source_stride, stride) = (self.source.1 * 3, self.target.1 * 3);
        let row = |y: usize| &rgb[y * source_stride..(y + 1) * source_stride];
        // The two horizontally resized rows in use, with the source row that each was made from.
        let mut cached = [vec![0i32; stride], vec![0i32; stride]];
        let mut holds = [usize::MAX; 2];
        let mut out = vec![0u8; stride];
        for (y, tap) in self.rows.iter().enumerate() {
            if holds[0] != tap.first {
                if holds[1] == tap.first {
                    cached.swap(0, 1);
                    holds.swap(0, 1);
                } else {
                    self.horizontal(row(tap.first), &mut cached[0]);
                    holds[0] = tap.first;
                }
            }
            if tap.second != tap.first && holds[1] != tap.second {
                self.horizontal(row(tap.second), &mut cached[1]);
                holds[1] = tap.second;
            }
            let second = if tap.second == tap.first { &cached[0] } else { &cached[1] };
            vertical(&cached[0], second, tap.weights, &mut out);
            take(y, &out);
        }
    }

    fn horizontal(&self, row: &[u8], out: &mut [i32]) {
        for (pixel, tap) in out.chunks_exact_mut(3).zip(&self.columns) {
            let (a, b) = (&row[tap.first..tap.first + 3], &row[tap.second..tap.second + 3]);
            for c in 0..3 {
                pixel[c] = (i32::from(a[c]) * tap.weights[0] + i32::from(b[c]) * tap.weights[1]) >> 4;
            }
        }
    }
}

fn vertical(first: &[i32], second: &[i32], [w0, w1]: [i32; 2], out: &mut [u8]) {
    for ((out, &a), &b) in out.iter_mut().zip(first).zip(second) {
        *out = ((((w0 * a) >> 16) + ((w1 * b) >> 16) + 2) >> 2) as u8;
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

fn taps(source: usize, target: usize, border: Border) -> Vec<Tap> {
    // OpenCV takes the reciprocal of the inverse, which is not always the quotient.
    let scale = 1.0 / (target as f64 / source as f64);
    let last = source.saturating_sub(1) as i64;
    (0..target)
        .map(|d| {
            let position = ((d as f64 + 0.5) * scale - 0.5) as f32;
            let floor = position.floor();
            let (mut start, mut fraction) = (floor as i64, position - floor);
            if border == Border::DropFraction && (start < 0 || start >= last) {
                (start, fraction) = (start.clamp(0, last), 0.0);
            }
            let weight = |w: f32| (w * ONE).round_ties_even() as i32;
            Tap {
                first: start.clamp(0, last) as usize,
                second: (start + 1).clamp(0, last) as usize,
                weights: [weight(1.0 - fraction), weight(fraction)],
            }
        })
        .collect()
}

/// For each destination position the source position that nearest-neighbour resizing takes, as OpenCV's
/// `INTER_NEAREST` has it: floored, not rounded.
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

    proptest! {
        #[test]
        fn a_resized_picture_stays_within_the_range_of_its_pixels(
            h in 1usize..12, w in 1usize..12, new_h in 1usize..24, new_w in 1usize..24, low in 0u8..200, seed in any::<u64>()
        ) {
            let mut random = crate::random::Generator::from_seed(seed);
            let rgb: Vec<u8> = (0..h * w * 3).map(|_| low + random.below(56) as u8).collect();
            let resized = Bilinear::new((h, w), (new_h, new_w)).apply(&rgb);
            prop_assert_eq!(resized.len(), new_h * new_w * 3);
            let (min, max) = (*rgb.iter().min().unwrap(), *rgb.iter().max().unwrap());
            prop_assert!(resized.iter().all(|&v| v + 1 >= min && v <= max + 1));
        }

        #[test]
        fn a_plain_picture_stays_plain(h in 1usize..40, w in 1usize..40, new_h in 1usize..80, new_w in 1usize..80, v in any::<u8>()) {
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
