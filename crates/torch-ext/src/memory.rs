//! Memory formats: the order in which an image's values lie in memory.
//!
//! A tensor `[N, C, H, W]` is channels_last when the channels of one pixel lie side by side. Convolutions on the CPU
//! and in half precision on CUDA are faster so. Shape and values do not change.

use tch::Tensor;
use torch_sys::C_tensor;

use crate::error::{RawError, Result};
use crate::ffi::{new_tensor, pointer};

unsafe extern "C" {
    fn fnet_channels_last(tensor: *mut C_tensor, out: *mut *mut C_tensor) -> *mut RawError;
}

/// The tensor `[N, C, H, W]` in channels_last order; the same tensor if it is already. Differentiable.
/// Errors: if the tensor does not have four dimensions or memory runs out.
pub fn channels_last(tensor: &Tensor) -> Result<Tensor> {
    // SAFETY: the pointer is valid for the call; `out` is written on success.
    new_tensor(|out| unsafe { fnet_channels_last(pointer(tensor), out) })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn channels_last_changes_the_order_but_not_the_values() {
        let plain = Tensor::arange(2 * 3 * 4 * 5, (Kind::Float, Device::Cpu)).reshape([2, 3, 4, 5]);
        let other = channels_last(&plain).unwrap();
        assert_eq!(other.stride(), [60, 1, 15, 3]);
        assert_eq!(other, plain);
    }

    #[test]
    fn a_vector_has_no_channels() {
        let error = channels_last(&Tensor::zeros([3], (Kind::Float, Device::Cpu))).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Invalid);
    }
}
