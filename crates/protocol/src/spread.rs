//! Median, minimum and maximum of repeated measurements.

use serde::Serialize;

/// Repeated measurements of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The mean of the middle two of an even number.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// That of `values`; all 0 if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (sorted.first(), sorted.last()) else {
            return Self { median: 0.0, min: 0.0, max: 0.0 };
        };
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Self { median, min, max }
    }

    /// That of `seconds` in milliseconds.
    pub fn of_seconds(seconds: impl IntoIterator<Item = f64>) -> Self {
        Self::of(seconds.into_iter().map(|second| second * 1e3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_the_mean_of_the_middle_two() {
        let spread = Spread::of_seconds([0.4, 0.1, 0.2, 0.3]);
        assert_eq!((spread.median, spread.min, spread.max), (250.0, 100.0, 400.0));
        assert_eq!(Spread::of([2.0, 1.0, 7.0]).median, 2.0);
        assert_eq!(Spread::of([]).max, 0.0);
    }
}
