//! The horizontal pass: computes every value of a row from two neighboring pixels of the source row.

use super::simd::{self, LOAD, QUARTER, STEP, Step};

/// Two neighboring source positions and their weights for one destination position.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tap {
    pub first: usize,
    pub second: usize,
    pub weights: [i16; 2],
}

/// A plan for the rows of one image.
#[derive(Debug)]
pub(super) struct Columns {
    /// First and second pixel of each column.
    taps: Vec<Tap>,
    /// The steps of the vectorized pass, if the machine and the sizes allow it.
    steps: Option<Vec<Step>>,
    source_bytes: usize,
}

/// An index that the shuffle fills with zero.
const ZERO: u8 = 0x80;

impl Columns {
    /// A plan from the taps (pixel numbers) of every column, for source rows of `source_width` pixels.
    pub fn new(taps: Vec<Tap>, source_width: usize) -> Self {
        let source_bytes = source_width * 3;
        let steps = if simd::has_avx2() { steps(&taps, source_bytes) } else { None };
        Self { taps, steps, source_bytes }
    }

    /// Values of a resized row, including the zeros that complete the last step.
    pub fn values(&self) -> usize {
        (self.taps.len() * 3).next_multiple_of(STEP)
    }

    /// Resizes a row; values keep 7 of the 11 bits of the weights, so 15 bits in all.
    ///
    /// # Panics
    /// If `row` or `out` is not of the plan's length.
    pub fn resize(&self, row: &[u8], out: &mut [i16]) {
        assert!(row.len() == self.source_bytes && out.len() == self.values(), "rows of the plan's lengths");
        match &self.steps {
            Some(steps) => simd::columns(row, steps, out),
            None => self.one_by_one(row, out),
        }
    }

    fn one_by_one(&self, row: &[u8], out: &mut [i16]) {
        for (pixel, tap) in out.chunks_exact_mut(3).zip(&self.taps) {
            let (a, b) = (&row[tap.first * 3..tap.first * 3 + 3], &row[tap.second * 3..tap.second * 3 + 3]);
            let [first, second] = tap.weights.map(i32::from);
            for c in 0..3 {
                pixel[c] = ((i32::from(a[c]) * first + i32::from(b[c]) * second) >> 4) as i16;
            }
        }
    }
}

/// The steps of the vectorized pass. `None` if the neighbors of four values are further apart than one load, which
/// happens when an image is made much smaller, or if a row is shorter than a load.
fn steps(taps: &[Tap], source_bytes: usize) -> Option<Vec<Step>> {
    let last_start = source_bytes.checked_sub(LOAD)?;
    let values = taps.len() * 3;
    (0..values.div_ceil(STEP))
        .map(|number| {
            let mut step = Step { places: [[ZERO; 2 * LOAD]; 2], weights: [[[0; 2]; 2 * QUARTER]; 2], starts: [0; 4] };
            for quarter in 0..4 {
                let first = number * STEP + quarter * QUARTER;
                let range = first..(first + QUARTER).min(values);
                let neighbors = |value: usize| {
                    let tap = &taps[value / 3];
                    [tap.first * 3 + value % 3, tap.second * 3 + value % 3]
                };
                let Some(start) = range.clone().flat_map(neighbors).min() else { continue };
                let start = start.min(last_start);
                step.starts[quarter] = u32::try_from(start).ok()?;
                for (i, value) in range.enumerate() {
                    for (side, neighbor) in neighbors(value).into_iter().enumerate() {
                        let place = neighbor - start;
                        if place >= LOAD {
                            return None;
                        }
                        let (register, i) = (quarter % 2, quarter / 2 * QUARTER + i);
                        step.places[register][i * 4 + side * 2] = place as u8;
                        step.weights[register][i][side] = taps[value / 3].weights[side];
                    }
                }
            }
            Some(step)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Border, taps};
    use super::*;

    proptest! {
        #[test]
        fn both_passes_give_the_same_values(
            width in 1usize..400, new_width in 1usize..800, seed: u64, flip: bool
        ) {
            let mut random = fnet_common::random::Generator::from_seed(seed);
            let row: Vec<u8> = (0..width * 3).map(|_| random.below(256) as u8).collect();
            let mut list = taps(width, new_width, Border::DropFraction);
            if flip {
                list.reverse();
            }
            let columns = Columns::new(list, width);
            // The vectorized pass handles shrinking up to three times, and rows of at least six pixels.
            if simd::has_avx2() && width >= 6 && new_width * 3 >= width {
                prop_assert!(columns.steps.is_some());
            }
            let (mut fast, mut slow) = (vec![0; columns.values()], vec![0; columns.values()]);
            columns.resize(&row, &mut fast);
            columns.one_by_one(&row, &mut slow);
            prop_assert_eq!(fast, slow);
        }
    }
}
