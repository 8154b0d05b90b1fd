//! How tensors pass to C++ and back.

use tch::Tensor;
use torch_sys::C_tensor;

use crate::error::{RawError, Result, check};

/// The pointer to the C++ tensor behind a handle; valid as long as the handle lives.
///
/// The bridge takes `at::Tensor*` also where it only reads; like tch's own functions it never frees it.
pub(crate) fn pointer(tensor: &Tensor) -> *mut C_tensor {
    tensor.as_ptr().cast_mut()
}

/// Pointers to the tensors of a slice, valid as long as the slice is borrowed.
pub(crate) fn pointers<T: std::borrow::Borrow<Tensor>>(tensors: &[T]) -> Vec<*mut C_tensor> {
    tensors.iter().map(|tensor| pointer(tensor.borrow())).collect()
}

/// Declares objects of the C++ side, to which there are only pointers.
macro_rules! objects {
    ($($name:ident),*) => {$(
        #[repr(C)]
        pub(crate) struct $name {
            _private: [u8; 0],
        }
    )*};
}

objects!(RawEvent, RawGroup, RawReducer, RawStore, RawStream, RawUploader, RawWork);

/// Calls a function that writes one new object through its last argument.
pub(crate) fn new_object<T>(call: impl FnOnce(*mut *mut T) -> *mut RawError) -> Result<*mut T> {
    let mut out = std::ptr::null_mut();
    check(call(&raw mut out))?;
    Ok(out)
}

/// Calls a function that writes one new tensor through its last argument.
pub(crate) fn new_tensor(call: impl FnOnce(*mut *mut C_tensor) -> *mut RawError) -> Result<Tensor> {
    // SAFETY: on success every such function stored `new at::Tensor`, whose ownership passes to the handle.
    Ok(unsafe { Tensor::from_ptr(new_object(call)?) })
}
