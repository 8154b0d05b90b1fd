//! Detection operators: RoIAlign and non-maximum suppression.
//!
//! Tensors on the CPU use kernels of this crate; on CUDA torchvision's are called, which
//! [`crate::cuda::load_libraries`] must have loaded.

use tch::Tensor;
use torch_sys::C_tensor;

use crate::error::{RawError, Result};
use crate::ffi::{new_tensor, pointer, pointers};

unsafe extern "C" {
    fn fnet_roi_align(
        levels: *const *mut C_tensor,
        level_count: usize,
        rois: *mut C_tensor,
        roi_levels: *mut C_tensor,
        strides: *const f64,
        stride_count: usize,
        bins: i64,
        through_torchvision: bool,
        out: *mut *mut C_tensor,
    ) -> *mut RawError;
    fn fnet_nms(
        boxes: *mut C_tensor,
        scores: *mut C_tensor,
        iou_threshold: f64,
        out: *mut *mut C_tensor,
    ) -> *mut RawError;
}

/// RoIAlign (He et al., Mask R-CNN, 2017) over all levels of a feature pyramid in one pass.
///
/// `levels`: feature maps `[N, C, H_l, W_l]`, level `l` having one pixel per `strides[l]` image pixels. `rois`:
/// `[K, 5]` float32, each the index of its image and x1, y1, x2, y2 in image pixels. `roi_levels`: `[K]` int64, the
/// level that each RoI is cut from. The result is `[K, C, output_size, output_size]` in the type of the levels:
/// averages over bins, coordinates shifted by half a pixel (`aligned`), ceil(bin size) samples per bin and axis
/// (sampling ratio 0), samples farther than a pixel outside counted as zero, as torchvision's operator defines it.
///
/// Gradients flow into the levels only. On the CPU they do not depend on the number of threads, and the result and
/// the gradients are in channels_last order, fastest when the levels are too.
///
/// # Errors
/// If the shapes do not fit, or a RoI names an image or level that is not there or is not finite.
pub fn roi_align(
    levels: &[Tensor],
    rois: &Tensor,
    roi_levels: &Tensor,
    strides: &[usize],
    output_size: usize,
) -> Result<Tensor> {
    roi_align_by(false, levels, rois, roi_levels, strides, output_size)
}

fn roi_align_by(
    through_torchvision: bool,
    levels: &[Tensor],
    rois: &Tensor,
    roi_levels: &Tensor,
    strides: &[usize],
    output_size: usize,
) -> Result<Tensor> {
    let levels = pointers(levels);
    let strides: Vec<f64> = strides.iter().map(|&stride| stride as f64).collect();
    // SAFETY: all pointers are valid for the call with the lengths beside them; `out` is written on success.
    new_tensor(|out| unsafe {
        fnet_roi_align(
            levels.as_ptr(),
            levels.len(),
            pointer(rois),
            pointer(roi_levels),
            strides.as_ptr(),
            strides.len(),
            output_size as i64,
            through_torchvision,
            out,
        )
    })
}

/// Greedy non-maximum suppression: indices `[k]` int64 of the boxes kept, by descending score (equal scores in the
/// order given). A box is dropped if its intersection over union with a kept box of higher score is above
/// `iou_threshold`.
///
/// `boxes`: `[n, 4]` float32 x1, y1, x2, y2, areas without an offset of one; `scores`: `[n]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn nms(boxes: &Tensor, scores: &Tensor, iou_threshold: f64) -> Result<Tensor> {
    // SAFETY: both pointers are valid for the call; `out` is written on success.
    new_tensor(|out| unsafe { fnet_nms(pointer(boxes), pointer(scores), iou_threshold, out) })
}

#[cfg(test)]
mod tests;
