//! Averages gradients over the ranks while the backward pass runs.

use std::ffi::c_void;

use tch::Tensor;
use torch_sys::C_tensor;

use super::group::{ProcessGroup, RawGroup};
use crate::error::{RawError, Result, check};
use crate::ffi::pointers;

#[repr(C)]
struct RawReducer {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn fnet_reducer_new(
        group: *mut RawGroup,
        parameters: *const *mut C_tensor,
        count: usize,
        first_bucket_bytes: i64,
        bucket_bytes: i64,
        out: *mut *mut RawReducer,
    ) -> *mut RawError;
    fn fnet_reducer_prepare(reducer: *mut RawReducer, outputs: *const *mut C_tensor, count: usize) -> *mut RawError;
    fn fnet_reducer_on_computed(
        reducer: *mut RawReducer,
        function: unsafe extern "C" fn(*mut c_void),
        context: *mut c_void,
    );
    fn fnet_reducer_free(reducer: *mut RawReducer) -> *mut RawError;
    fn fnet_bucket_layout(
        parameters: *const *mut C_tensor,
        count: usize,
        first_bucket_bytes: i64,
        bucket_bytes: i64,
        out: *mut i64,
    ) -> *mut RawError;
}

/// How many bytes of gradients travel together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketSizes {
    /// The bucket of the first parameters, which is the last to be filled; small, since nothing hides its all-reduce.
    pub first: i64,
    /// Every other bucket.
    pub other: i64,
}

impl Default for BucketSizes {
    /// c10d's own: 1 MiB and 25 MiB.
    fn default() -> Self {
        Self { first: 1 << 20, other: 25 << 20 }
    }
}

/// `c10d::Reducer`, the engine of PyTorch's DistributedDataParallel: gradients are packed into buckets, each of which
/// is all-reduced as soon as the backward pass has filled it.
///
/// Parameters that take no part in a step on one rank count as zero there; what no rank used keeps its gradient. The
/// layout of the buckets is a function of the parameter list alone ([`bucket_layout`]), so equal inputs give equal
/// bits in every step of every process. After an error in the backward pass the reducer is unusable.
pub struct Reducer {
    raw: *mut RawReducer,
    /// Behind a second box, for C++ has room for one pointer.
    on_computed: Option<Box<OnComputed>>,
}

/// What is called when a rank has computed its gradients.
type OnComputed = Box<dyn Fn() + Send + Sync>;

/// # Safety
/// `context` is a live `OnComputed`.
unsafe extern "C" fn call_on_computed(context: *mut c_void) {
    // SAFETY: as the caller promises.
    let action = unsafe { &*context.cast::<OnComputed>() };
    action();
}

// SAFETY: c10d's reducer guards its state with a lock and is not bound to a thread.
unsafe impl Send for Reducer {}

impl Reducer {
    /// Hooks into the gradients of the parameters, given in the same order on every rank, all requiring gradients.
    ///
    /// # Errors
    /// If there is no parameter or one does not require gradients.
    pub fn new(group: &ProcessGroup, parameters: &[Tensor], sizes: BucketSizes) -> Result<Self> {
        let parameters = pointers(parameters);
        let mut raw = std::ptr::null_mut();
        // SAFETY: a live group and an array of `parameters.len()` valid pointers, whose handles C++ copies.
        check(unsafe {
            fnet_reducer_new(group.raw(), parameters.as_ptr(), parameters.len(), sizes.first, sizes.other, &raw mut raw)
        })?;
        Ok(Self { raw, on_computed: None })
    }

    /// Has `action` called in every reduced backward pass, when all gradients of this rank are computed and it only
    /// waits for the other ranks. It must not panic.
    pub fn on_computed(&mut self, action: impl Fn() + Send + Sync + 'static) {
        let action = self.on_computed.insert(Box::new(Box::new(action)));
        let context = (&raw mut **action).cast::<c_void>();
        // SAFETY: a live reducer; the box keeps its address and lives as long as the reducer, which alone calls it.
        unsafe { fnet_reducer_on_computed(self.raw, call_on_computed, context) };
    }

    /// Makes the next backward pass from `outputs` (usually the loss) leave the mean over the ranks in the gradients,
    /// of what this pass and passes without this call before it have added up.
    ///
    /// # Errors
    /// If the previous reduction did not end.
    pub fn prepare(&self, outputs: &[Tensor]) -> Result<()> {
        let outputs = pointers(outputs);
        // SAFETY: a live reducer and an array of `outputs.len()` valid pointers.
        check(unsafe { fnet_reducer_prepare(self.raw, outputs.as_ptr(), outputs.len()) })
    }
}

impl Drop for Reducer {
    fn drop(&mut self) {
        // SAFETY: the handle is live and freed once. Its destructor only takes its hooks away.
        let _ = check(unsafe { fnet_reducer_free(self.raw) });
    }
}

/// The bucket of every parameter, numbered in the order of reduction.
///
/// # Errors
/// If libtorch fails.
pub fn bucket_layout(parameters: &[Tensor], sizes: BucketSizes) -> Result<Vec<usize>> {
    let parameters = pointers(parameters);
    let mut layout = vec![0i64; parameters.len()];
    // SAFETY: arrays of `parameters.len()` pointers and numbers.
    check(unsafe {
        fnet_bucket_layout(parameters.as_ptr(), parameters.len(), sizes.first, sizes.other, layout.as_mut_ptr())
    })?;
    Ok(layout.into_iter().map(|bucket| usize::try_from(bucket).unwrap_or(0)).collect())
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn the_last_parameters_are_reduced_first_and_the_first_bucket_is_small() {
        let parameters: Vec<_> = (0..6).map(|_| Tensor::zeros([256], (Kind::Float, Device::Cpu))).collect();
        let layout = bucket_layout(&parameters, BucketSizes { first: 1024, other: 2048 }).unwrap();
        assert_eq!(layout, [3, 2, 2, 1, 1, 0]);
    }
}
