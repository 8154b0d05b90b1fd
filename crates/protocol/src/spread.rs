//! Median, minimum and maximum of repeated measurements.

use serde::Serialize;

/// Repeated measurements of one thing, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// The median.
    pub median: f64,
    /// The minimum.
    pub min: f64,
    /// The maximum.
    pub max: f64,
}

impl Summary {
    /// The summary of `seconds`; all 0 if there are none.
    pub fn of_seconds(seconds: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = seconds.into_iter().map(|second| second * 1e3).collect();
        sorted.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (sorted.first(), sorted.last()) else {
            return Self { median: 0.0, min: 0.0, max: 0.0 };
        };
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Self { median, min, max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_the_mean_of_the_middle_two() {
        let summary = Summary::of_seconds([0.4, 0.1, 0.2, 0.3]);
        assert_eq!((summary.median, summary.min, summary.max), (250.0, 100.0, 400.0));
        assert_eq!(Summary::of_seconds([0.002, 0.001, 0.007]).median, 2.0);
        assert_eq!(Summary::of_seconds([]).max, 0.0);
    }
}
