//! Detection operators: RoIAlign and non-maximum suppression.
//!
//! Those of tensors on the CPU are kernels of this crate. On CUDA RoIAlign is torchvision's, which
//! [`crate::cuda::load_libraries`] must have loaded; suppression runs on the host.

use tch::Tensor;
use torch_sys::C_tensor;

use crate::error::{Error, ErrorKind, RawError, Result, check};
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
        out: *mut *mut C_tensor,
    ) -> *mut RawError;
    fn fnet_roi_align_by_level(
        levels: *const *mut C_tensor,
        level_count: usize,
        rois: *mut C_tensor,
        order: *mut C_tensor,
        back: *mut C_tensor,
        counts: *const i64,
        strides: *const f64,
        stride_count: usize,
        bins: i64,
        out: *mut *mut C_tensor,
    ) -> *mut RawError;
    fn fnet_nms(
        boxes: *mut C_tensor,
        scores: *mut C_tensor,
        iou_threshold: f64,
        out: *mut *mut C_tensor,
    ) -> *mut RawError;
    fn fnet_nms_of_values(
        boxes: *const f32,
        scores: *const f32,
        count: usize,
        iou_threshold: f64,
        kept: *mut i64,
        kept_count: *mut usize,
    ) -> *mut RawError;
}

/// RoIAlign (He et al., Mask R-CNN, 2017) over all levels of a feature pyramid in one pass, on the CPU.
///
/// `levels`: feature maps `[N, C, H_l, W_l]`, level `l` having one pixel per `strides[l]` image pixels. `rois`:
/// `[K, 5]` float32, each the index of its image and x1, y1, x2, y2 in image pixels. `roi_levels`: `[K]` int64, the
/// level that each RoI is cut from. The result is `[K, C, output_size, output_size]` in the type of the levels:
/// averages over bins, coordinates shifted by half a pixel (`aligned`), ceil(bin size) samples per bin and axis
/// (sampling ratio 0), samples farther than a pixel outside counted as zero, as torchvision's operator defines it.
///
/// Gradients flow into the levels only. They do not depend on the number of threads, and the result and the gradients
/// are in channels_last order, fastest when the levels are too.
/// Errors: if the shapes do not fit, or a RoI names an image or level that is not there or is not finite.
pub fn roi_align(
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
            out,
        )
    })
}

/// RoIs in the order of the levels that they are cut from.
#[derive(Debug)]
pub struct RoisByLevel {
    /// `[K, 5]` float32: those of the first level, then those of the second, and so on.
    pub rois: Tensor,
    /// Twice `[K]` int64: where each was in the caller's order, and where each of the caller's order is here; none if that
    /// order is this one.
    pub order: Option<[Tensor; 2]>,
    /// How many each level has.
    pub counts: Vec<i64>,
}

/// As [`roi_align`], by torchvision's operator and on any device: the host knows which RoIs are of which level, and waits
/// for nothing. The result is in the caller's order.
/// Errors: if the shapes do not fit.
pub fn roi_align_by_level(
    levels: &[Tensor],
    by_level: &RoisByLevel,
    strides: &[usize],
    output_size: usize,
) -> Result<Tensor> {
    let strides: Vec<f64> = strides.iter().map(|&stride| stride as f64).collect();
    if by_level.counts.len() != levels.len() {
        let message = format!("RoIAlign: {} levels and RoIs of {}", levels.len(), by_level.counts.len());
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    let levels = pointers(levels);
    let place = |of: usize| by_level.order.as_ref().map_or(std::ptr::null_mut(), |order| pointer(&order[of]));
    // SAFETY: all pointers are valid for the call with the lengths beside them, or null where C++ allows it, and there are as
    // many counts as levels; `out` is written on success.
    new_tensor(|out| unsafe {
        fnet_roi_align_by_level(
            levels.as_ptr(),
            levels.len(),
            pointer(&by_level.rois),
            place(0),
            place(1),
            by_level.counts.as_ptr(),
            strides.as_ptr(),
            strides.len(),
            output_size as i64,
            out,
        )
    })
}

/// Greedy non-maximum suppression: indices `[k]` int64 of the boxes kept, by descending score (equal scores in the
/// order given). A box is dropped if its intersection over union with a kept box of higher score is above
/// `iou_threshold`.
///
/// `boxes`: `[n, 4]` float32 x1, y1, x2, y2, areas without an offset of one; `scores`: `[n]`. Both are on the CPU.
/// Errors: if the shapes do not fit.
pub fn nms(boxes: &Tensor, scores: &Tensor, iou_threshold: f64) -> Result<Tensor> {
    // SAFETY: both pointers are valid for the call; `out` is written on success.
    new_tensor(|out| unsafe { fnet_nms(pointer(boxes), pointer(scores), iou_threshold, out) })
}

/// As [`nms`], of values: places of the boxes kept.
/// Errors: if there is not one score per box, or memory runs out.
pub fn nms_of_values(boxes: &[[f32; 4]], scores: &[f32], iou_threshold: f64) -> Result<Vec<usize>> {
    if boxes.len() != scores.len() {
        let message = format!("NMS: {} boxes and {} scores", boxes.len(), scores.len());
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    let mut kept = vec![0_i64; boxes.len()];
    let mut count = 0;
    let values = boxes.as_flattened().as_ptr();
    // SAFETY: `values` holds four numbers for each score, `kept` has room for as many places as there are scores.
    check(unsafe {
        fnet_nms_of_values(values, scores.as_ptr(), scores.len(), iou_threshold, kept.as_mut_ptr(), &raw mut count)
    })?;
    Ok(kept[..count].iter().map(|&place| place as usize).collect())
}

#[cfg(test)]
mod tests;
