//! The averaging buffer: each number is put once, writers pull the means.

use indexmap::IndexMap;

/// Sums and counts since the last reset, in the order in which the names first came.
#[derive(Debug, Default)]
pub struct Metrics {
    sums: IndexMap<String, (f64, u64)>,
}

impl Metrics {
    /// Adds one value of a metric.
    pub fn put(&mut self, name: &str, value: f64) {
        match self.sums.get_mut(name) {
            Some((sum, count)) => {
                *sum += value;
                *count += 1;
            }
            None => drop(self.sums.insert(name.to_owned(), (value, 1))),
        }
    }

    /// The mean of a metric, if it has a value since the last reset.
    pub fn mean(&self, name: &str) -> Option<f64> {
        self.sums.get(name).filter(|(_, count)| *count > 0).map(|(sum, count)| sum / *count as f64)
    }

    /// All means, in order.
    pub fn means(&self) -> impl Iterator<Item = (&str, f64)> {
        self.sums
            .iter()
            .filter(|(_, (_, count))| *count > 0)
            .map(|(name, (sum, count))| (name.as_str(), sum / *count as f64))
    }

    /// Forgets the values and keeps the order of the names.
    pub fn reset(&mut self) {
        self.sums.values_mut().for_each(|entry| *entry = (0.0, 0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_of_the_values_since_the_last_reset_and_the_order_stays() {
        let mut metrics = Metrics::default();
        metrics.put("b", 1.0);
        metrics.put("a", 10.0);
        metrics.put("b", 3.0);
        assert_eq!(metrics.means().collect::<Vec<_>>(), [("b", 2.0), ("a", 10.0)]);
        metrics.reset();
        assert_eq!(metrics.mean("b"), None);
        metrics.put("a", 1.0);
        metrics.put("b", 5.0);
        assert_eq!(metrics.means().collect::<Vec<_>>(), [("b", 5.0), ("a", 1.0)]);
    }
}
