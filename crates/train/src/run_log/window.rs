//! The values of a log line: each number is put once, and the line shows the means since the previous line.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

/// One update of the weights, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TrainStep {
    /// Epoch, from 1.
    pub epoch: usize,
    /// Update within the epoch, from 1.
    pub iter: usize,
    /// Updates per epoch.
    pub iters_per_epoch: usize,
    /// Update since the start of training, from 1.
    pub step: u64,
    /// Learning rate.
    pub lr: f64,
    /// Momentum, or the decay of AdamW's first moment.
    pub momentum: f64,
    /// Maximum GPU memory in use so far, in MB; `None` on the CPU.
    pub memory: Option<u64>,
}

/// Sums and counts since the last line, in the order in which the names first appeared. Every rank has one, and checkpoints
/// store it, so that a resumed job logs the same lines as one that never stopped.
///
/// Between two steps it still holds the line of the last step, if there is one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// The sums are stored as bits because they may not be finite.
    #[serde(with = "bits")]
    sums: IndexMap<String, (f64, u64)>,
    /// Steps between lines.
    interval: usize,
    /// The epoch has a line already.
    logged_in_epoch: bool,
    /// The last step.
    at: Option<TrainStep>,
}

impl Window {
    /// An empty window, for a line every `interval` steps of an epoch.
    pub fn new(interval: usize) -> Self {
        Self { interval: interval.max(1), ..Self::default() }
    }

    /// The window after a restart, for a line every `interval` steps; `None` unless it ended with step `step` of the job.
    pub fn resumed(mut self, step: u64, interval: usize) -> Option<Self> {
        self.interval = interval.max(1);
        self.at.is_some_and(|at| at.step == step).then_some(self)
    }

    /// Begins a step: resets the sums after a line or at the end of an epoch. The order of the names stays.
    pub fn begin(&mut self) {
        let Some(at) = self.at.take() else { return };
        let (shown, over) = (shows(&at, self.interval, self.logged_in_epoch), ends_epoch(&at));
        if shown || over {
            self.sums.values_mut().for_each(|entry| *entry = (0.0, 0));
        }
        self.logged_in_epoch = !over && (shown || self.logged_in_epoch);
    }

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

    /// Ends a step.
    pub fn end(&mut self, at: TrainStep) {
        self.at = Some(at);
    }

    /// The step that ended last.
    pub fn at(&self) -> Option<&TrainStep> {
        self.at.as_ref()
    }

    /// The step if it ends with a line: every `interval` steps of an epoch. As in MMDetection, the steps after the last full
    /// interval of an epoch have no line, unless the epoch would then have none at all.
    pub fn line(&self) -> Option<&TrainStep> {
        self.at.as_ref().filter(|at| shows(at, self.interval, self.logged_in_epoch))
    }

    /// The mean of a metric, if it has a value.
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
}

fn shows(at: &TrainStep, interval: usize, logged_in_epoch: bool) -> bool {
    at.iter.is_multiple_of(interval) || (ends_epoch(at) && !logged_in_epoch)
}

/// Whether a step is the last one of its epoch.
pub(super) fn ends_epoch(at: &TrainStep) -> bool {
    at.iter >= at.iters_per_epoch
}

/// Floating-point numbers as the integers of their bits: exact, and never a JSON `null`.
mod bits {
    use indexmap::IndexMap;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(sums: &IndexMap<String, (f64, u64)>, to: S) -> Result<S::Ok, S::Error> {
        let bits: IndexMap<&str, (u64, u64)> =
            sums.iter().map(|(name, (sum, count))| (name.as_str(), (sum.to_bits(), *count))).collect();
        bits.serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<IndexMap<String, (f64, u64)>, D::Error> {
        let bits = IndexMap::<String, (u64, u64)>::deserialize(from)?;
        Ok(bits.into_iter().map(|(name, (sum, count))| (name, (f64::from_bits(sum), count))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(iter: usize, iters_per_epoch: usize) -> TrainStep {
        TrainStep { epoch: 1, iter, iters_per_epoch, step: iter as u64, lr: 1e-4, momentum: 0.9, memory: None }
    }

    fn step(window: &mut Window, iter: usize, values: &[(&str, f64)]) {
        window.begin();
        values.iter().for_each(|&(name, value)| window.put(name, value));
        window.end(at(iter, 5));
    }

    #[test]
    fn means_cover_the_values_since_the_last_line_and_keep_their_order() {
        let mut window = Window::new(2);
        step(&mut window, 1, &[("b", 1.0), ("a", 10.0)]);
        assert!(window.line().is_none());
        step(&mut window, 2, &[("b", 3.0)]);
        assert!(window.line().is_some());
        assert_eq!(window.means().collect::<Vec<_>>(), [("b", 2.0), ("a", 10.0)]);
        window.begin();
        assert_eq!(window.mean("b"), None);
        step(&mut window, 3, &[("a", 1.0), ("b", 5.0)]);
        assert_eq!(window.means().collect::<Vec<_>>(), [("b", 5.0), ("a", 1.0)]);
    }

    #[test]
    fn the_rest_of_an_epoch_has_a_line_only_if_the_epoch_has_no_other() {
        let lines = |interval| {
            let mut window = Window::new(interval);
            let iters = (1..=10).map(|n| (n - 1) % 5 + 1);
            iters
                .filter(|&iter| {
                    step(&mut window, iter, &[("a", 1.0)]);
                    window.line().is_some()
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(lines(2), [2, 4, 2, 4]);
        assert_eq!(lines(50), [5, 5]);
        assert_eq!(lines(1), [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_restored_window_continues_unchanged_even_with_values_that_are_not_finite() {
        let mut window = Window::new(2);
        let third = 1.0 / 3.0;
        step(&mut window, 1, &[("a", third), ("b", f64::NAN), ("c", f64::INFINITY)]);
        let stored = serde_json::to_value(&window).unwrap();
        let back = serde_json::from_value::<Window>(stored.clone()).unwrap().resumed(1, 2).unwrap();
        assert_eq!(back.mean("a"), Some(third));
        assert!(back.mean("b").is_some_and(f64::is_nan) && back.mean("c") == Some(f64::INFINITY));
        assert!(serde_json::from_value::<Window>(stored).unwrap().resumed(2, 2).is_none(), "of another step");
    }
}
