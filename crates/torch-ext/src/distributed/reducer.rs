//! Averages gradients over the ranks while the backward pass runs.

use tch::Tensor;
use torch_sys::C_tensor;

use super::group::ProcessGroup;
use crate::error::{RawError, Result, check};
use crate::ffi::{RawGroup, RawReducer, new_object, pointer, pointers};

unsafe extern "C" {
    fn fnet_reducer_new(
        group: *mut RawGroup,
        parameters: *const *mut C_tensor,
        count: usize,
        bucket_of: *const i64,
        as_bfloat16: bool,
        out: *mut *mut RawReducer,
    ) -> *mut RawError;
    fn fnet_reducer_backward(reducer: *mut RawReducer, loss: *mut C_tensor) -> *mut RawError;
    fn fnet_reducer_wait(reducer: *mut RawReducer) -> *mut RawError;
    fn fnet_reducer_free(reducer: *mut RawReducer) -> *mut RawError;
}

/// How many bytes of gradients travel together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketSizes {
    /// The bucket of the first parameters, which is the last to be filled; small, since nothing hides its all-reduce.
    pub first: usize,
    /// Every other bucket.
    pub other: usize,
}

impl Default for BucketSizes {
    /// Those of PyTorch's DistributedDataParallel: 1 MiB and 25 MiB.
    fn default() -> Self {
        Self { first: 1 << 20, other: 25 << 20 }
    }
}

/// Leaves the mean over the ranks in the gradients of a backward pass.
///
/// Gradients are copied into buckets, a row of memory each, in one go. A bucket is all-reduced as soon as the pass has filled
/// it and those before it; its places are the parameters' gradients from then on. Which parameter lies where is a
/// function of the parameter list alone, so equal inputs give equal bits in every step of every process. A parameter that
/// takes no part in a pass on a rank counts there with the gradient that it has, or as zero. After an error the reducer
/// is unusable.
///
/// The share of each rank (the gradient divided by their number; NCCL divides itself) travels in the parameters' type, or
/// rounded to bfloat16: each sum of two ranks is rounded again then, and all ranks get the same bits.
pub struct Reducer {
    raw: *mut RawReducer,
}

// SAFETY: the handle is used by one thread at a time; a backward pass on a GPU fills the buckets from the one thread that
// libtorch has for the device, while the thread that began the pass waits for it.
unsafe impl Send for Reducer {}

impl Reducer {
    /// Hooks into the gradients of the parameters, given in the same order on every rank: leaves that require gradients, of
    /// one type and on one device.
    /// Errors: there is no parameter, or one has another type or device than the first.
    pub fn new(group: &ProcessGroup, parameters: &[Tensor], sizes: BucketSizes, as_bfloat16: bool) -> Result<Self> {
        let bytes = parameters.iter().map(|parameter| parameter.numel() * parameter.kind().elt_size_in_bytes());
        let layout = layout(bytes, sizes);
        let parameters = pointers(parameters);
        let count = parameters.len();
        // SAFETY: a live group and arrays of `count` valid pointers, whose handles C++ copies, and numbers.
        let raw = new_object(|out| unsafe {
            fnet_reducer_new(group.raw(), parameters.as_ptr(), count, layout.as_ptr(), as_bfloat16, out)
        })?;
        Ok(Self { raw })
    }

    /// Computes the gradients of `loss` and leaves the mean over the ranks of what this pass, and passes without the reducer
    /// before it, have added up. `computed` is called when all gradients of this rank are computed and it only waits for
    /// the other ranks; on a GPU, when both are queued.
    /// Errors: if the pass fails, a peer is lost, or the deadline passes.
    pub fn backward(&self, loss: &Tensor, computed: impl FnOnce()) -> Result<()> {
        // SAFETY: a live reducer and a live tensor.
        check(unsafe { fnet_reducer_backward(self.raw, pointer(loss)) })?;
        computed();
        // SAFETY: a live reducer whose sums are under way.
        check(unsafe { fnet_reducer_wait(self.raw) })
    }
}

impl Drop for Reducer {
    fn drop(&mut self) {
        // SAFETY: the handle is live and freed once. Its destructor takes its hooks away and waits for nothing.
        let _ = check(unsafe { fnet_reducer_free(self.raw) });
    }
}

/// The bucket of every parameter, numbered in the order of reduction: the backward pass computes the last parameters' gradients
/// first. A bucket is closed when it has its bytes.
fn layout(bytes: impl Iterator<Item = usize>, sizes: BucketSizes) -> Vec<i64> {
    let (mut bucket, mut filled, mut limit) = (0, 0, sizes.first);
    let mut layout = Vec::new();
    for bytes in bytes {
        if filled >= limit {
            (bucket, filled, limit) = (bucket + 1, 0, sizes.other);
        }
        layout.push(bucket);
        filled += bytes;
    }
    layout.iter().map(|number| bucket - number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_parameters_are_reduced_first_and_the_first_bucket_is_small() {
        let sizes = BucketSizes { first: 1024, other: 2048 };
        assert_eq!(layout([1024; 6].into_iter(), sizes), [3, 2, 2, 1, 1, 0]);
        assert_eq!(layout([100, 9000, 10, 10].into_iter(), sizes), [1, 1, 0, 0], "a bucket is never split");
        assert_eq!(layout([1024, 2048].into_iter(), sizes), [1, 0], "none is empty");
        assert!(layout(std::iter::empty(), sizes).is_empty());
    }
}
