//! Parts of a residual block that take fewer calls of libtorch, forward and backward, than its own operators would.

use tch::Tensor;
use torch_sys::C_tensor;

use crate::error::{RawError, Result};
use crate::ffi::{new_tensor, pointer};

unsafe extern "C" {
    fn fnet_partial_conv(
        x: *mut C_tensor,
        weight: *mut C_tensor,
        mixed: *mut *mut C_tensor,
        shortcut: *mut *mut C_tensor,
    ) -> *mut RawError;
    fn fnet_add_scaled(
        x: *mut C_tensor,
        branch: *mut C_tensor,
        factors: *mut C_tensor,
        out: *mut *mut C_tensor,
    ) -> *mut RawError;
    fn fnet_linear_relu(
        x: *mut C_tensor,
        weight: *mut C_tensor,
        bias: *mut C_tensor,
        out: *mut *mut C_tensor,
    ) -> *mut RawError;
}

/// `x` (`[n, c, h, w]`) with its first channels convolved by `weight` (`[k, k, s, s]`, padded to keep the size), and `x`
/// itself for the shortcut around what comes next: the gradients of both are added in one pass, without a copy of the
/// whole for the channels that are left alone.
/// Errors: if the shapes do not fit, or memory runs out.
pub fn partial_conv(x: &Tensor, weight: &Tensor) -> Result<(Tensor, Tensor)> {
    let mut shortcut = std::ptr::null_mut();
    // SAFETY: both pointers are valid for the call; both results are written on success.
    let mixed = new_tensor(|out| unsafe { fnet_partial_conv(pointer(x), pointer(weight), out, &raw mut shortcut) })?;
    // SAFETY: on success the second result is a new tensor too, whose ownership passes to the handle.
    Ok((mixed, unsafe { Tensor::from_ptr(shortcut) }))
}

/// `x + branch * factors`; the factors, which are broadcast, get no gradient.
/// Errors: if the shapes do not fit, or memory runs out.
pub fn add_scaled(x: &Tensor, branch: &Tensor, factors: &Tensor) -> Result<Tensor> {
    // SAFETY: all pointers are valid for the call; `out` is written on success.
    new_tensor(|out| unsafe { fnet_add_scaled(pointer(x), pointer(branch), pointer(factors), out) })
}

/// `relu(x weight^T + bias)` of `x` (`[n, in]`), `weight` (`[out, in]`) and `bias` (`[out]`, or a part of it, which is
/// repeated). The gradient of the weight lies in memory as the weight does.
/// Errors: if the shapes do not fit, or memory runs out.
pub fn linear_relu(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    // SAFETY: all pointers are valid for the call; `out` is written on success.
    new_tensor(|out| unsafe { fnet_linear_relu(pointer(x), pointer(weight), pointer(bias), out) })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::{ErrorKind, autocast, memory};

    fn random(shape: &[i64], seed: i64) -> Tensor {
        let count: i64 = shape.iter().product();
        ((Tensor::arange(count, (Kind::Double, Device::Cpu)) + seed).square().sin() * 3.0)
            .to_kind(Kind::Float)
            .reshape(shape)
    }

    /// The same by libtorch's operators.
    fn plain(x: &Tensor, weight: &Tensor, factors: &Tensor) -> Tensor {
        let (convolved, channels) = (weight.size()[0], x.size()[1]);
        let parts = x.split_with_sizes([convolved, channels - convolved], 1);
        let y = memory::channels_last(&parts[0]).unwrap().conv2d(weight, None::<Tensor>, [1, 1], [1, 1], [1, 1], 1);
        x.addcmul(&Tensor::cat(&[&y, &parts[1]], 1).sin(), factors)
    }

    #[test]
    fn values_and_gradients_are_those_of_the_plain_operators_to_the_last_bit() {
        for amp in [None, Some(Kind::BFloat16)] {
            for convolved in [2, 8] {
                let x = memory::channels_last(&random(&[3, 8, 9, 7], 1)).unwrap().set_requires_grad(true);
                let weight = random(&[convolved, convolved, 3, 3], 2).set_requires_grad(true);
                let factors = Tensor::from_slice(&[0.0f32, 1.25, 1.25]).reshape([3, 1, 1, 1]);
                let run = |made: bool| {
                    let y = {
                        let _guard = amp.map(|kind| autocast::Guard::new(Device::Cpu, kind).unwrap());
                        if made {
                            let (mixed, shortcut) = partial_conv(&x, &weight).unwrap();
                            add_scaled(&shortcut, &mixed.sin(), &factors).unwrap()
                        } else {
                            plain(&x, &weight, &factors)
                        }
                    };
                    let loss = (y.to_kind(Kind::Float) * random(&[3, 8, 9, 7], 5)).sum(Kind::Float);
                    let gradients = Tensor::run_backward(&[loss], &[&x, &weight], false, false);
                    (y, gradients)
                };
                assert_eq!(run(true), run(false), "{convolved} channels, {amp:?}");
            }
        }
    }

    #[test]
    fn a_rectified_linear_layer_gives_values_and_gradients_of_its_parts() {
        for rows in [5, 0] {
            let x = random(&[rows, 3], 1).set_requires_grad(true);
            for biases in [4, 2] {
                let bias = random(&[biases], 3).set_requires_grad(true);
                for weight in [random(&[4, 3], 2), random(&[3, 4], 2).transpose(0, 1)] {
                    let weight = weight.detach().set_requires_grad(true);
                    let run = |y: Tensor| {
                        let loss = (&y * random(&[rows, 4], 4)).sum(Kind::Float);
                        (y, Tensor::run_backward(&[loss], &[&x, &weight, &bias], false, false))
                    };
                    let (y, gradients) = run(linear_relu(&x, &weight, &bias).unwrap());
                    let (expected, plain) = run(x.linear(&weight, Some(&bias.repeat([4 / biases]))).relu());
                    assert!(y.allclose(&expected, 1e-6, 1e-6, false));
                    assert!(gradients.iter().zip(&plain).all(|(a, b)| a.allclose(b, 1e-5, 1e-6, false)));
                    assert!(rows == 0 || gradients[1].stride() == weight.stride());
                }
            }
        }
        // An input and a weight so wide that their gradients are computed in parts.
        let [x, weight] = [random(&[3, 4000], 1), random(&[2, 4000], 2)].map(|tensor| tensor.set_requires_grad(true));
        let bias = random(&[2], 3);
        let gradients = |y: Tensor| {
            Tensor::run_backward(&[(y * random(&[3, 2], 4)).sum(Kind::Float)], &[&x, &weight], false, false)
        };
        let found = gradients(linear_relu(&x, &weight, &bias).unwrap());
        let expected = gradients(x.linear(&weight, Some(&bias)).relu());
        assert!(found.iter().zip(&expected).all(|(a, b)| a.allclose(b, 1e-5, 1e-6, false)));
        let (x, bias) = (random(&[2, 3], 1), random(&[5], 1));
        assert_eq!(linear_relu(&x, &random(&[4, 3], 1), &bias).unwrap_err().kind(), ErrorKind::Invalid);
    }

    #[test]
    fn a_kernel_of_more_channels_than_there_are_is_refused() {
        let error = partial_conv(&random(&[1, 2, 4, 4], 0), &random(&[3, 3, 3, 3], 0)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
}
