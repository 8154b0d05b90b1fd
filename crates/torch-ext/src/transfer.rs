//! Copies to a CUDA device that keep neither it nor the host waiting.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::{Device, Tensor};
use torch_sys::C_tensor;

use crate::error::{RawError, Result, check};
use crate::ffi::{RawUploader, new_object, new_tensor};

unsafe extern "C" {
    fn fnet_uploader_new(device: i32, beside: bool, out: *mut *mut RawUploader) -> *mut RawError;
    fn fnet_uploader_upload(
        uploader: *mut RawUploader,
        bytes: *const u8,
        count: usize,
        out: *mut *mut C_tensor,
    ) -> *mut RawError;
    fn fnet_uploader_free(uploader: *mut RawUploader) -> *mut RawError;
}

/// A ring of pinned buffers on the way to a device.
struct Uploader(*mut RawUploader);

// SAFETY: the buffers, events and the stream of an uploader are bound to a device, not to a thread; the handle is used by
// one thread at a time.
unsafe impl Send for Uploader {}

impl Drop for Uploader {
    fn drop(&mut self) {
        // SAFETY: the handle is live and freed once.
        let _ = check(unsafe { fnet_uploader_free(self.0) });
    }
}

/// Where a copy runs on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// In turn with what this thread gives the device to do: for a few tables.
    InTurn,
    /// Beside what the device is doing; what this thread gives it next waits for the copy. For much data that is there while
    /// the device is still busy with what came before.
    Beside,
}

/// The rings of this process, which live as long as it does, for their buffers are costly to make.
static UPLOADERS: Mutex<Option<HashMap<(usize, Lane), Uploader>>> = Mutex::new(None);

fn uploaders() -> MutexGuard<'static, Option<HashMap<(usize, Lane), Uploader>>> {
    // A map is whole whatever a panicking thread was doing.
    UPLOADERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The bytes as a tensor `[bytes]` of uint8 on `device`. The host does not wait: they are in pinned memory of this module
/// when this returns, and that is taken again once the copy is done.
pub fn upload(bytes: &[u8], device: Device, lane: Lane) -> Result<Tensor> {
    let Device::Cuda(index) = device else {
        return Ok(Tensor::f_from_slice(bytes)?);
    };
    let mut all = uploaders();
    let rings = all.get_or_insert_default();
    let ring = match rings.entry((index, lane)) {
        std::collections::hash_map::Entry::Occupied(found) => found.into_mut(),
        std::collections::hash_map::Entry::Vacant(place) => {
            let number = i32::try_from(index).unwrap_or(i32::MAX);
            // SAFETY: the out-pointer is valid for the call, and written on success.
            let raw = new_object(|out| unsafe { fnet_uploader_new(number, lane == Lane::Beside, out) })?;
            place.insert(Uploader(raw))
        }
    };
    // SAFETY: a live handle; the pointer is valid for `bytes.len()` bytes, which are copied before the call returns.
    new_tensor(|out| unsafe { fnet_uploader_upload(ring.0, bytes.as_ptr(), bytes.len(), out) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_the_host_bytes_are_copied() {
        for lane in [Lane::InTurn, Lane::Beside] {
            assert_eq!(upload(&[1, 2, 3], Device::Cpu, lane).unwrap(), Tensor::from_slice(&[1u8, 2, 3]));
        }
    }
}
