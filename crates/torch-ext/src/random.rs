//! State of libtorch's own random-number generators, one per device.

use tch::{Device, Tensor};
use torch_sys::C_tensor;

use crate::error::{RawError, Result, check};
use crate::ffi::{new_tensor, pointer};

unsafe extern "C" {
    fn fnet_generator_state(device: i32, out: *mut *mut C_tensor) -> *mut RawError;
    fn fnet_set_generator_state(device: i32, state: *mut C_tensor) -> *mut RawError;
    fn fnet_seed_generator(device: i32, seed: u64) -> *mut RawError;
}

/// The bridge's number for a device: -1 is the CPU.
fn number(device: Device) -> i32 {
    match device {
        Device::Cuda(index) => i32::try_from(index).unwrap_or(i32::MAX),
        _ => -1,
    }
}

/// The state of the device's default generator, a tensor of bytes on the CPU.
///
/// # Errors
/// If the device is not there.
pub fn state(device: Device) -> Result<Tensor> {
    // SAFETY: `out` is written on success.
    new_tensor(|out| unsafe { fnet_generator_state(number(device), out) })
}

/// Brings the device's default generator into a state that [`state`] returned.
///
/// # Errors
/// If the device is not there or the tensor is no such state.
pub fn set_state(device: Device, state: &Tensor) -> Result<()> {
    // SAFETY: the pointer is valid for the call.
    check(unsafe { fnet_set_generator_state(number(device), pointer(state)) })
}

/// Seeds the device's default generator.
///
/// # Errors
/// If the device is not there.
pub fn seed(device: Device, seed: u64) -> Result<()> {
    // SAFETY: plain values.
    check(unsafe { fnet_seed_generator(number(device), seed) })
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn a_restored_state_gives_the_same_numbers_again() {
        seed(Device::Cpu, 7).unwrap();
        let saved = state(Device::Cpu).unwrap();
        let first = Tensor::rand([8], (Kind::Float, Device::Cpu));
        set_state(Device::Cpu, &saved).unwrap();
        assert_eq!(Tensor::rand([8], (Kind::Float, Device::Cpu)), first);
    }

    #[test]
    fn a_state_of_the_wrong_size_is_refused() {
        assert!(set_state(Device::Cpu, &Tensor::zeros([3], (Kind::Uint8, Device::Cpu))).is_err());
    }
}
