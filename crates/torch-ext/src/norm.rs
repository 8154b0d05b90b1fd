//! Batch normalization in training on the CPU.

use tch::Tensor;
use torch_sys::C_tensor;

use crate::error::{RawError, Result};
use crate::ffi::{new_tensor, pointer};

unsafe extern "C" {
    fn fnet_batch_norm(
        input: *mut C_tensor,
        weight: *mut C_tensor,
        bias: *mut C_tensor,
        running_mean: *mut C_tensor,
        running_variance: *mut C_tensor,
        momentum: f64,
        epsilon: f64,
        rectify: bool,
        out: *mut *mut C_tensor,
    ) -> *mut RawError;
}

/// The learned and the running values of a batch normalization, `[C]` float32 on the CPU each.
#[derive(Debug, Clone, Copy)]
pub struct BatchNorm<'a> {
    /// Factor of each channel.
    pub weight: &'a Tensor,
    /// Added to each channel.
    pub bias: &'a Tensor,
    /// Mean that inference uses; changed in place.
    pub running_mean: &'a Tensor,
    /// Variance that inference uses; changed in place, towards the batch's unbiased variance.
    pub running_variance: &'a Tensor,
    /// Share of the batch in the running values.
    pub momentum: f64,
    /// Added to the variance.
    pub epsilon: f64,
}

/// Normalises `input` (`[N, C, H, W]`, float32, on the CPU) by its own mean and variance per channel (Ioffe and
/// Szegedy, 2015), and cuts the result at zero if `rectify`. Differentiable in input, weight and bias.
///
/// Sums are taken in float64, in an order that does not depend on the number of threads; libtorch's kernel adds in
/// float32 when the channels come last.
/// Errors: if shapes, types or devices do not fit.
pub fn batch_norm(input: &Tensor, norm: &BatchNorm, rectify: bool) -> Result<Tensor> {
    // SAFETY: all pointers are valid for the call; `out` is written on success.
    new_tensor(|out| unsafe {
        fnet_batch_norm(
            pointer(input),
            pointer(norm.weight),
            pointer(norm.bias),
            pointer(norm.running_mean),
            pointer(norm.running_variance),
            norm.momentum,
            norm.epsilon,
            rectify,
            out,
        )
    })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    const OPTIONS: (Kind, Device) = (Kind::Double, Device::Cpu);

    struct Case {
        input: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_variance: Tensor,
    }

    impl Case {
        fn new(shape: [i64; 4], offset: f64) -> Self {
            let channels = shape[1];
            let leaf = |tensor: Tensor| tensor.to_kind(Kind::Float).set_requires_grad(true);
            Self {
                input: leaf(Tensor::randn(shape, OPTIONS) * 2.0 + offset),
                weight: leaf(Tensor::rand([channels], OPTIONS) + 0.5),
                bias: leaf(Tensor::randn([channels], OPTIONS)),
                running_mean: Tensor::zeros([channels], (Kind::Float, Device::Cpu)),
                running_variance: Tensor::ones([channels], (Kind::Float, Device::Cpu)),
            }
        }

        fn forward(&self, rectify: bool) -> Tensor {
            let norm = BatchNorm {
                weight: &self.weight,
                bias: &self.bias,
                running_mean: &self.running_mean,
                running_variance: &self.running_variance,
                momentum: 0.1,
                epsilon: 1e-5,
            };
            batch_norm(&self.input, &norm, rectify).unwrap()
        }

        /// Output, gradients and running values by libtorch in float64.
        fn exact(&self, rectify: bool, grad: &Tensor) -> (Tensor, Vec<Tensor>, [Tensor; 2]) {
            let leaf = |tensor: &Tensor| tensor.detach().to_kind(Kind::Double).set_requires_grad(true);
            let (input, weight, bias) = (leaf(&self.input), leaf(&self.weight), leaf(&self.bias));
            let channels = weight.size();
            let (mean, variance) = (Tensor::zeros(&channels[..], OPTIONS), Tensor::ones(&channels[..], OPTIONS));
            let output =
                input.batch_norm(Some(&weight), Some(&bias), Some(&mean), Some(&variance), true, 0.1, 1e-5, true);
            let output = if rectify { output.relu() } else { output };
            let loss = (&output * grad.to_kind(Kind::Double)).sum(Kind::Double);
            let gradients = Tensor::run_backward(&[loss], &[&input, &weight, &bias], false, false);
            (output, gradients, [mean, variance])
        }
    }

    #[track_caller]
    fn assert_close(actual: &Tensor, expected: &Tensor, tolerance: f64) {
        let scale = expected.abs().max().double_value(&[]).max(1e-30);
        let difference = (actual.to_kind(Kind::Double) - expected).abs().max().double_value(&[]) / scale;
        assert!(difference < tolerance, "differs by {difference:e} of the largest value");
    }

    #[test]
    fn results_and_gradients_are_those_of_float64() {
        for (shape, offset) in
            [([2, 5, 7, 9], 0.0), ([1, 64, 40, 50], 30.0), ([3, 16, 1, 1], -1.0), ([2, 1, 96, 96], 5.0)]
        {
            for rectify in [false, true] {
                let case = Case::new(shape, offset);
                let grad = Tensor::randn(shape, (Kind::Float, Device::Cpu));
                let output = case.forward(rectify);
                let loss = (&output * &grad).sum(Kind::Float);
                let gradients = Tensor::run_backward(&[loss], &[&case.input, &case.weight, &case.bias], false, false);
                let (expected, expected_gradients, running) = case.exact(rectify, &grad);
                assert_close(&output, &expected, 1e-5);
                for (actual, expected) in gradients.iter().zip(&expected_gradients) {
                    assert_close(actual, expected, 5e-5);
                }
                assert_close(&case.running_mean, &running[0], 5e-6);
                assert_close(&case.running_variance, &running[1], 5e-6);
            }
        }
    }

    #[test]
    fn values_of_another_type_or_number_are_refused() {
        let case = Case::new([2, 3, 4, 4], 0.0);
        let norm = BatchNorm {
            weight: &case.weight,
            bias: &case.bias,
            running_mean: &case.running_mean,
            running_variance: &case.running_variance,
            momentum: 0.1,
            epsilon: 1e-5,
        };
        for input in [case.input.to_kind(Kind::Double), case.input.narrow(1, 0, 2), case.input.narrow(0, 0, 0)] {
            assert!(batch_norm(&input, &norm, false).is_err());
        }
    }
}
