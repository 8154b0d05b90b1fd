//! Comparisons of tensors, which may be stored partially.

use serde_json::Value;
use tch::{Kind, Tensor};

use super::fixtures::skip;
use super::report::Comparison;

/// The bound of a stage with MMDetection's input, relative to the maximum of its output.
pub(super) const STAGE: f64 = 1e-4;

impl Comparison<'_> {
    /// Compares the stored part of `expected`: the maximum difference relative to the maximum expected value.
    #[track_caller]
    pub(super) fn tensor(&self, what: &str, actual: &Tensor, expected: &Tensor, bound: f64) {
        self.at_most(
            &format!("{what}, relative"),
            difference(what, &stored_part(what, actual, expected), expected),
            bound,
        );
    }

    /// Checks that no value differs.
    #[track_caller]
    pub(super) fn equal<T: PartialEq>(&self, what: &str, actual: &[T], expected: &[T]) {
        assert_eq!(actual.len(), expected.len(), "{what}: number of values");
        let differing = actual.iter().zip(expected).filter(|(actual, expected)| actual != expected).count();
        self.at_most(&format!("{what}, differing values"), differing as f64, 0.0);
    }

    /// Compares shape, length, sum of absolute values and extremes of a full tensor, which may be stored partially. The
    /// extremes are relative to the maximum.
    #[track_caller]
    pub(super) fn statistics(&self, what: &str, actual: &Tensor, expected: &Value) {
        if expected.is_null() {
            return skip(&format!(
                "the comparison of statistics of the full tensor ({what}), which are not in the fixtures"
            ));
        }
        let number = |key: &str| expected[key].as_f64().unwrap_or_else(|| panic!("{what}: no statistic {key}"));
        let shape: Vec<i64> = serde_json::from_value(expected["shape"].clone()).unwrap();
        assert_eq!(actual.size(), shape, "{what}: shape");
        let values = actual.to_kind(Kind::Double);
        let maximum = number("max").abs().max(number("min").abs());
        for (name, actual, scale) in [
            ("l2", values.norm(), number("l2")),
            ("abs_sum", values.abs().sum(Kind::Double), number("abs_sum")),
            ("max", values.max(), maximum),
            ("min", values.min(), maximum),
        ] {
            let off = (scalar(&actual) - number(name)).abs() / scale.max(f64::MIN_POSITIVE);
            self.at_most(&format!("{what}, statistics of the full tensor, relative"), off, STAGE);
        }
    }
}

/// The value of a tensor of one element.
pub(super) fn scalar(tensor: &Tensor) -> f64 {
    tensor.double_value(&[])
}

/// Length of a tensor's values, in float64.
pub(super) fn length(tensor: &Tensor) -> f64 {
    scalar(&tensor.to_kind(Kind::Double).norm())
}

pub(super) fn floats(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.to_kind(Kind::Float).reshape([-1])).unwrap()
}

pub(super) fn integers(tensor: &Tensor) -> Vec<i64> {
    Vec::try_from(tensor.to_kind(Kind::Int64).reshape([-1])).unwrap()
}

pub(super) fn rows_of_four(tensor: &Tensor) -> Vec<[f32; 4]> {
    floats(tensor).as_chunks().0.to_vec()
}

/// Strides that the fixtures use: all, channels, channels of RoI features, mask RoIs.
const STEPS: [usize; 4] = [1, 4, 16, 6];

/// The indices of `kept` stored values out of `whole`: every n-th from the first. A usual n takes precedence.
pub(super) fn kept(what: &str, whole: i64, kept: i64) -> Vec<i64> {
    let every = |step: usize| (0..whole).step_by(step);
    let step = STEPS.into_iter().chain(1..=whole.max(1) as usize).find(|&step| every(step).count() as i64 == kept);
    every(step.unwrap_or_else(|| panic!("{what}: {kept} of {whole} are stored, which is not every n-th"))).collect()
}

/// Every n-th value of `actual` along each axis, as many as `expected` has.
pub(super) fn stored_part(what: &str, actual: &Tensor, expected: &Tensor) -> Tensor {
    let (own, stored) = (actual.size(), expected.size());
    assert_eq!(own.len(), stored.len(), "{what} has shape {own:?}, MMDetection's {stored:?}");
    let mut part = actual.shallow_clone();
    for (axis, (&own, &stored)) in own.iter().zip(&stored).enumerate() {
        if own != stored {
            part = part.index_select(axis as i64, &Tensor::from_slice(&kept(what, own, stored)));
        }
    }
    part
}

/// Maximum difference relative to the maximum expected value; 0 for empty tensors.
fn difference(what: &str, actual: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(actual.size(), expected.size(), "{what}: shape");
    if expected.numel() == 0 {
        return 0.0;
    }
    let most = |tensor: Tensor| scalar(&tensor.abs().max());
    let expected = expected.to_kind(Kind::Double);
    most(actual.to_kind(Kind::Double) - &expected) / most(expected).max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting(shape: &[i64]) -> Tensor {
        Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, tch::Device::Cpu)).reshape(shape)
    }

    #[test]
    fn every_nth_row_and_channel_is_compared() {
        let whole = counting(&[13, 8]);
        let part = whole.slice(0, 0, None, 6).slice(1, 0, None, 4);
        assert_eq!(part.size(), [3, 2]);
        assert_eq!(stored_part("x", &whole, &part), part);
        assert_eq!(kept("x", 10, 2), [0, 6]);
        assert_eq!(kept("x", 0, 0), Vec::<i64>::new());
        assert!(std::panic::catch_unwind(|| kept("x", 10, 7)).is_err());
        assert!(std::panic::catch_unwind(|| kept("x", 10, 0)).is_err());
    }

    #[test]
    fn a_difference_is_relative_to_the_maximum_expected_value() {
        let expected = counting(&[2, 3]);
        assert_eq!(difference("x", &(&expected + 0.5), &expected), 0.1);
        assert!(difference("x", &(&expected * f64::NAN), &expected).is_nan());
    }
}
