//! Waiting for a device, and copying from it, in ways that come to an end whatever becomes of the collectives.
//!
//! A kernel of a collective whose peer is gone never ends, and what CUDA's own functions wait for behind it never comes:
//! they cannot be broken off. So the host asks for an event again and again, together with whether the job is broken off.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tch::{Device, Tensor};
use torch_sys::C_tensor;

use super::number;
use crate::error::{Error, ErrorKind, RawError, Result, check};
use crate::ffi::{RawEvent, RawStream, new_object, new_tensor, pointer};

unsafe extern "C" {
    fn fnet_event_record(device: i32, out: *mut *mut RawEvent) -> *mut RawError;
    fn fnet_event_is_reached(event: *mut RawEvent, out: *mut bool) -> *mut RawError;
    fn fnet_event_free(event: *mut RawEvent) -> *mut RawError;
    fn fnet_stream_new(device: i32, out: *mut *mut RawStream) -> *mut RawError;
    fn fnet_stream_wait(stream: *mut RawStream, event: *mut RawEvent) -> *mut RawError;
    fn fnet_stream_copy(
        stream: *mut RawStream,
        from: *mut C_tensor,
        start: usize,
        count: usize,
        to: *mut C_tensor,
        out: *mut *mut RawEvent,
    ) -> *mut RawError;
    fn fnet_stream_free(stream: *mut RawStream) -> *mut RawError;
    fn fnet_pinned_bytes(count: usize, out: *mut *mut C_tensor) -> *mut RawError;
}

/// Bytes of the host that a [`Downloader`] keeps for its copies.
pub const STAGING_BYTES: usize = 16 << 20;

/// Why the job of this process is broken off; it stays so.
static BROKEN_OFF: OnceLock<String> = OnceLock::new();

/// Ends every wait for a device in this process, now and from now on, with an error that says `why`. For the end of a job
/// whose collectives may never end.
pub fn break_off(why: &str) {
    BROKEN_OFF.get_or_init(|| why.to_owned());
}

/// A point in what a device was given to do.
#[derive(Debug)]
pub struct Event(*mut RawEvent);

// SAFETY: an event of CUDA is bound to a device, not to a thread; the handle is used by one thread at a time.
unsafe impl Send for Event {}

impl Event {
    /// The present end of what this thread's current stream of the device was given.
    /// Errors: if the device has failed.
    pub fn record(device: usize) -> Result<Self> {
        // SAFETY: the out-pointer is valid for the call, and written on success.
        new_object(|out| unsafe { fnet_event_record(number(device), out) }).map(Self)
    }

    /// Whether the device has come so far.
    /// Errors: if the device has failed.
    pub fn is_reached(&self) -> Result<bool> {
        let mut answer = false;
        // SAFETY: live handle and out-pointer.
        check(unsafe { fnet_event_is_reached(self.0, &raw mut answer) })?;
        Ok(answer)
    }

    /// Waits until the device has come so far.
    /// Errors: if the device has failed; of kind [`ErrorKind::Collective`] if the job is broken off before.
    pub fn wait(&self) -> Result<()> {
        poll(|| self.is_reached(), || BROKEN_OFF.get().map(|why| Error::new(ErrorKind::Collective, why.as_str())))
    }

    /// Waits until the device has come so far, also when the job is broken off.
    /// Errors: if the device has failed; of kind [`ErrorKind::Collective`] after `deadline`.
    pub fn wait_until(&self, deadline: Instant) -> Result<()> {
        poll(
            || self.is_reached(),
            || {
                (Instant::now() >= deadline)
                    .then(|| Error::new(ErrorKind::Collective, "the device does not come to an end"))
            },
        )
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the handle is live and freed once. What comes after reports that the device has failed.
        let _ = check(unsafe { fnet_event_free(self.0) });
    }
}

/// Asks until it is so, or there is a reason to give up. At first without a pause, for most waits are short; then so often
/// that a step of some milliseconds does not notice.
fn poll(is_so: impl Fn() -> Result<bool>, give_up: impl Fn() -> Option<Error>) -> Result<()> {
    const BUSY: Duration = Duration::from_micros(100);
    const PAUSE: Duration = Duration::from_micros(20);
    let start = Instant::now();
    while !is_so()? {
        if let Some(error) = give_up() {
            return Err(error);
        }
        match start.elapsed() < BUSY {
            true => std::thread::yield_now(),
            false => std::thread::sleep(PAUSE),
        }
    }
    Ok(())
}

/// Waits until this thread's current stream of the device has done all it was given; the CPU always has.
pub fn wait(device: Device) -> Result<()> {
    match device {
        Device::Cuda(index) => Event::record(index)?.wait(),
        _ => Ok(()),
    }
}

/// A tensor on its way to the host, in the order of the current stream.
#[must_use]
pub struct Download {
    host: Tensor,
    copied: Option<Event>,
}

impl Download {
    /// Has the device copy the tensor to pinned memory of the host, and goes on. One that is on the host stays there.
    /// Errors: if the device has failed; for lack of memory.
    pub fn start(tensor: &Tensor) -> Result<Self> {
        let Device::Cuda(device) = tensor.device() else {
            return Ok(Self { host: tensor.shallow_clone(), copied: None });
        };
        // A copy to the host that is not to block goes to pinned memory.
        let host = tensor.f_to_device_(Device::Cpu, tensor.kind(), true, false)?;
        Ok(Self { host, copied: Some(Event::record(device)?) })
    }

    /// The tensor on the host, once it is there.
    pub fn finish(self) -> Result<Tensor> {
        if let Some(copied) = &self.copied {
            copied.wait()?;
        }
        Ok(self.host)
    }
}

/// The tensor on the host: itself if it is there, else a copy in pinned memory, which is waited for.
/// Errors: as [`Event::wait`]; for lack of memory.
pub fn to_host(tensor: &Tensor) -> Result<Tensor> {
    Download::start(tensor)?.finish()
}

/// Copies tensors from a device beside all that it was given to do: on a stream of its own, behind an event only.
///
/// Its piece of pinned memory ([`STAGING_BYTES`]) and its stream are made with it, for CUDA may wait for running kernels
/// when it makes them.
pub struct Downloader {
    raw: *mut RawStream,
    staging: Tensor,
}

impl Downloader {
    /// One for a device.
    pub fn new(device: usize) -> Result<Self> {
        // SAFETY: the out-pointer is written on success.
        let staging = new_tensor(|out| unsafe { fnet_pinned_bytes(STAGING_BYTES, out) })?;
        // SAFETY: as above.
        let raw = new_object(|out| unsafe { fnet_stream_new(number(device), out) })?;
        Ok(Self { raw, staging })
    }

    /// From now on copies begin only once the device has come so far.
    /// Errors: if the device has failed.
    pub fn follow(&self, event: &Event) -> Result<()> {
        // SAFETY: live handles.
        check(unsafe { fnet_stream_wait(self.raw, event.0) })
    }

    /// The tensor on the host, laid out in memory as it is: itself if it is there, else a copy.
    /// Errors: if the device has failed, or has not come to the end of a copy by `deadline`; for lack of memory.
    pub fn download(&self, tensor: &Tensor, deadline: Instant) -> Result<Tensor> {
        if !tensor.device().is_cuda() {
            return Ok(tensor.shallow_clone());
        }
        let width = tensor.kind().elt_size_in_bytes();
        let total = tensor.numel();
        let host = Tensor::f_empty_strided(tensor.size(), tensor.stride(), (tensor.kind(), Device::Cpu))?;
        let (from, to) = (self.staging.data_ptr().cast::<u8>(), host.data_ptr().cast::<u8>());
        for start in (0..total).step_by((STAGING_BYTES / width).max(1)) {
            let count = (total - start).min(STAGING_BYTES / width);
            // SAFETY: live handles; C++ checks that the values lie in the tensors; `out` is written on success.
            let copied = new_object(|out| unsafe {
                fnet_stream_copy(self.raw, pointer(tensor), start, count, pointer(&self.staging), out)
            })?;
            Event(copied).wait_until(deadline)?;
            // SAFETY: `host` was just made with the sizes and strides of `tensor`, which C++ has found to be without gaps,
            // so it has `total` values of `width` bytes in a row; `count` of them fit into the staging.
            unsafe { std::ptr::copy_nonoverlapping(from, to.add(start * width), count * width) };
        }
        Ok(host)
    }
}

impl Drop for Downloader {
    fn drop(&mut self) {
        // SAFETY: the handle is live and freed once; libtorch keeps the stream.
        let _ = check(unsafe { fnet_stream_free(self.raw) });
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_is_never_reached_is_given_up_and_what_is_reached_is_not() {
        let asked = Cell::new(0);
        let third_time = || {
            asked.set(asked.get() + 1);
            Ok(asked.get() == 3)
        };
        poll(third_time, || None).unwrap();
        assert_eq!(asked.get(), 3);
        poll(|| Ok(true), || Some(Error::new(ErrorKind::Collective, "too late"))).unwrap();
        let error = poll(|| Ok(false), || Some(Error::new(ErrorKind::Collective, "rank 3 is lost"))).unwrap_err();
        assert_eq!((error.kind(), error.message()), (ErrorKind::Collective, "rank 3 is lost"));
        let error = poll(|| Err(Error::new(ErrorKind::Environment, "ECC")), || None).unwrap_err();
        assert_eq!(error.message(), "ECC");
    }

    #[test]
    fn a_tensor_of_the_host_is_where_it_should_be() {
        let tensor = Tensor::from_slice(&[1.0f32, 2.0]);
        assert_eq!(to_host(&tensor).unwrap().data_ptr(), tensor.data_ptr());
    }
}
