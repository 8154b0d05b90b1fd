//! The backward pass, with errors of their own kind.

use tch::Tensor;
use torch_sys::C_tensor;

use crate::error::{RawError, Result, check};
use crate::ffi::pointer;

unsafe extern "C" {
    fn fnet_backward(loss: *mut C_tensor) -> *mut RawError;
}

/// Computes the gradients of the scalar `loss` and adds them to the parameters'.
///
/// Unlike `Tensor::backward` it returns the error of a failed all-reduce inside the pass as
/// [`ErrorKind::Collective`](crate::ErrorKind::Collective), and exhausted memory as such.
/// Errors: if an operator's backward or a collective that hooks into it fails.
pub fn backward(loss: &Tensor) -> Result<()> {
    // SAFETY: the pointer is valid for the call.
    check(unsafe { fnet_backward(pointer(loss)) })
}
