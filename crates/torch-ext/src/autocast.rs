//! Automatic casts: inside a region, convolutions and matrix products run in a narrow type, on the CPU and on CUDA.

use std::marker::PhantomData;

use tch::{Device, Kind};

use crate::error::{Error, ErrorKind, RawError, Result, check};

unsafe extern "C" {
    fn fnet_autocast_enter(cuda: bool, kind: i8, was_enabled: *mut bool, previous_kind: *mut i8) -> *mut RawError;
    fn fnet_autocast_leave(cuda: bool, was_enabled: bool, previous_kind: i8) -> *mut RawError;
}

/// A region of automatic casts on this thread, until the guard is dropped. Regions nest; what was set before comes
/// back, and the cache of cast parameters is emptied at the end of the outermost one.
#[must_use = "the region ends when the guard is dropped"]
pub struct Guard {
    cuda: bool,
    was_enabled: bool,
    previous_kind: i8,
    /// The state is this thread's.
    _not_send: PhantomData<*const ()>,
}

impl Guard {
    /// Begins a region that casts to `kind` (`BFloat16` or `Half`) on the device's type.
    /// Errors: if the kind is not one of the two.
    pub fn new(device: Device, kind: Kind) -> Result<Self> {
        let number = match kind {
            Kind::Half => 5,
            Kind::BFloat16 => 15,
            _ => {
                let message = format!("autocast to {kind:?}: expected BFloat16 or Half");
                return Err(Error::new(ErrorKind::Invalid, message));
            }
        };
        let mut guard = Self {
            cuda: matches!(device, Device::Cuda(_)),
            was_enabled: false,
            previous_kind: 0,
            _not_send: PhantomData,
        };
        // SAFETY: both out-pointers are valid for the call.
        let entered = check(unsafe {
            fnet_autocast_enter(guard.cuda, number, &raw mut guard.was_enabled, &raw mut guard.previous_kind)
        });
        match entered {
            Ok(()) => Ok(guard),
            Err(error) => {
                // Nothing was entered, so nothing may be left.
                std::mem::forget(guard);
                Err(error)
            }
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // SAFETY: plain values; the region was entered on this thread, as the guard cannot leave it.
        // An error here could only come from libtorch's thread-local flags, which do not fail.
        let _ = check(unsafe { fnet_autocast_leave(self.cuda, self.was_enabled, self.previous_kind) });
    }
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::*;

    fn kind_of_product() -> Kind {
        let a = Tensor::ones([4, 4], (Kind::Float, Device::Cpu));
        a.matmul(&a).kind()
    }

    #[test]
    fn products_are_narrow_inside_a_region_and_regions_nest() {
        assert_eq!(kind_of_product(), Kind::Float);
        {
            let _outer = Guard::new(Device::Cpu, Kind::BFloat16).unwrap();
            assert_eq!(kind_of_product(), Kind::BFloat16);
            {
                let _inner = Guard::new(Device::Cpu, Kind::Half).unwrap();
                assert_eq!(kind_of_product(), Kind::Half);
            }
            assert_eq!(kind_of_product(), Kind::BFloat16);
        }
        assert_eq!(kind_of_product(), Kind::Float);
    }

    #[test]
    fn a_changed_parameter_is_cast_anew_in_the_next_region() {
        let mut weight = Tensor::ones([2, 2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let x = Tensor::ones([1, 2], (Kind::Float, Device::Cpu));
        let output = |weight: &Tensor| {
            let _region = Guard::new(Device::Cpu, Kind::BFloat16).unwrap();
            f64::try_from(x.matmul(weight).sum(Kind::Float)).unwrap()
        };
        assert_eq!(output(&weight), 4.0);
        let _ = tch::no_grad(|| weight.fill_(2.0));
        assert_eq!(output(&weight), 8.0);
    }

    #[test]
    fn a_wide_kind_is_refused() {
        assert_eq!(Guard::new(Device::Cpu, Kind::Double).err().unwrap().kind(), ErrorKind::Invalid);
        assert_eq!(kind_of_product(), Kind::Float);
    }
}
