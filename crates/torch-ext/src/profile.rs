//! Time of each operator, by libtorch's hook for profilers.

use std::ffi::{c_char, c_void};

use crate::error::{RawError, Result, check};

type Take = unsafe extern "C" fn(*mut c_void, *const c_char, usize, u64, u64, f64, f64);

unsafe extern "C" {
    fn fnet_profile_start() -> *mut RawError;
    fn fnet_profile_stop(to: *mut c_void, take: Take) -> *mut RawError;
}

/// All calls of an operator with arguments of the same shapes, or all calls of a node of the backward pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Operator {
    /// libtorch's name, such as `aten::mm`.
    pub name: String,
    /// The shapes of its tensors, such as `2x3 3x4`; empty for a node of the backward pass.
    pub shapes: String,
    /// Number of calls.
    pub calls: u64,
    /// Seconds without the operators that it calls.
    pub seconds: f64,
    /// Multiplications and additions of convolutions and matrix products; 0 for all others.
    pub operations: f64,
    /// Bytes of arguments and results.
    pub bytes: f64,
}

/// Calls `work` and returns its result with the operators that it has called on this thread, the longest first. On the CPU
/// that includes the backward pass.
/// Errors: a profile is running already.
pub fn profiled<T>(work: impl FnOnce() -> T) -> Result<(T, Vec<Operator>)> {
    // SAFETY: no arguments.
    check(unsafe { fnet_profile_start() })?;
    let result = work();
    let mut operators: Vec<Operator> = Vec::new();
    // SAFETY: `take` gets the pointer to `operators`, which outlives the call.
    check(unsafe { fnet_profile_stop((&raw mut operators).cast(), take) })?;
    operators.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    Ok((result, operators))
}

/// # Safety
/// `to` is a `Vec<Operator>` that nobody else uses, `text` is `length` bytes.
unsafe extern "C" fn take(
    to: *mut c_void,
    text: *const c_char,
    length: usize,
    calls: u64,
    nanoseconds: u64,
    operations: f64,
    bytes: f64,
) {
    // SAFETY: as the caller promises.
    let (operators, text) =
        unsafe { (&mut *to.cast::<Vec<Operator>>(), std::slice::from_raw_parts(text.cast::<u8>(), length)) };
    let text = String::from_utf8_lossy(text);
    let (name, shapes) = text.split_once('\t').unwrap_or((&text, ""));
    let seconds = nanoseconds as f64 * 1e-9;
    operators.push(Operator { name: name.into(), shapes: shapes.into(), calls, seconds, operations, bytes });
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    #[test]
    fn operators_are_counted_with_their_shapes_and_operations() {
        let random = |shape: &[i64]| Tensor::rand(shape, (Kind::Float, Device::Cpu));
        let weight = random(&[6, 4, 3, 3]).set_requires_grad(true);
        let (work, found) = profiled(|| {
            let (a, b) = (random(&[5, 7]), random(&[7, 3]));
            let _ = (a.mm(&b), a.mm(&b));
            let y = random(&[2, 4, 8, 9]).conv2d(&weight, None::<Tensor>, 1, 1, 1, 1);
            y.sum(Kind::Float).backward();
            11
        })
        .unwrap();
        assert_eq!(work, 11);
        let only = |name: &str| found.iter().filter(|one| one.name == name).collect::<Vec<_>>();
        let [product] = only("aten::mm")[..] else { panic!("{found:?}") };
        assert_eq!((product.calls, product.shapes.as_str()), (2, "5x7 7x3"));
        assert_eq!(product.operations, 2.0 * 2.0 * 5.0 * 7.0 * 3.0);
        assert_eq!(product.bytes, 2.0 * 4.0 * (35.0 + 21.0 + 15.0));
        let convolution = 2.0 * (2 * 6 * 8 * 9 * 4 * 9) as f64;
        assert_eq!(only("aten::mkldnn_convolution")[0].operations, convolution);
        // The input needs no gradient.
        assert_eq!(only("aten::convolution_backward")[0].operations, convolution);
        assert!(found.windows(2).all(|pair| pair[0].seconds >= pair[1].seconds));
        assert!(profiled(|| ()).unwrap().1.is_empty(), "a profile starts empty and ends");
    }
}
