//! The losses of a step, divided and added up together: for a GPU, whose time goes by calls.

use tch::Tensor;
use torch_sys::C_tensor;

use crate::error::{Error, ErrorKind, RawError, Result};
use crate::ffi::{new_tensor, pointers};

unsafe extern "C" {
    fn fnet_join_losses(
        sums: *const *mut C_tensor,
        divisors: *const f64,
        count: usize,
        first: usize,
        total: *mut *mut C_tensor,
        all: *mut *mut C_tensor,
    ) -> *mut RawError;
}

/// The total of the losses from number `first` on, each of `sums` (float32, no dimension) divided by its divisor, and all
/// quotients with the total behind them, `[n + 1]`. Only the total is differentiable.
/// Errors: if there is not one divisor for each sum, or no loss.
pub fn join(sums: &[&Tensor], divisors: &[f64], first: usize) -> Result<(Tensor, Tensor)> {
    if sums.len() != divisors.len() {
        let message = format!("losses: {} sums and {} divisors", sums.len(), divisors.len());
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    let sums = pointers(sums);
    let mut all = std::ptr::null_mut();
    // SAFETY: all pointers are valid for the call, with as many divisors as sums; both results are written on success.
    let total = new_tensor(|out| unsafe {
        fnet_join_losses(sums.as_ptr(), divisors.as_ptr(), sums.len(), first, out, &raw mut all)
    })?;
    // SAFETY: on success the second result is a new tensor too, whose ownership passes to the handle.
    Ok((total, unsafe { Tensor::from_ptr(all) }))
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn losses_divided_together_are_those_divided_one_by_one() {
        let sums = [97.0f32, 3.0, 0.0, -7.25, 1e-3, 511.0].map(|sum| Tensor::from(sum).set_requires_grad(true));
        let divisors = [1.28, 512.0 + 1e-7, 1.0, 3.0, 1.0, 7.0];
        let (total, all) = join(&sums.each_ref(), &divisors, 1).unwrap();
        let one_by_one: Vec<Tensor> = sums.iter().zip(divisors).map(|(sum, divisor)| sum / divisor).collect();
        let sum = Tensor::stack(&one_by_one[1..], 0).sum(Kind::Float);
        let expected: Vec<&Tensor> = one_by_one.iter().chain([&sum]).collect();
        assert_eq!(all, Tensor::stack(&expected, 0).detach());
        assert_eq!(total, sum);
        assert!(!all.requires_grad());
        let gradients = |total: &Tensor| Tensor::run_backward(&[total * 3.0], &sums.each_ref()[1..], false, false);
        assert_eq!(gradients(&total), gradients(&sum));
        let refused = [join(&sums.each_ref(), &divisors[1..], 1), join(&sums.each_ref(), &divisors, 6)];
        assert!(refused.into_iter().all(|result| result.unwrap_err().kind() == ErrorKind::Invalid));
    }
}
