//! Operators that tch lacks, with this crate's errors.

use tch::{Device, Tensor};
use torch_ext::ops::RoisByLevel;

use fnet_common::Result;

/// The few values of a tensor on the host, on `device`. The device is not waited for: up to 64 KB of ordinary host memory
/// are copied to the driver's own before this returns. What may be more goes by [`super::pack`] or as images do.
pub fn upload(x: &Tensor, device: Device) -> Result<Tensor> {
    Ok(x.f_to_device_(device, x.kind(), true, false)?)
}

/// See [`torch_ext::ops::roi_align`].
pub fn roi_align(
    levels: &[Tensor],
    rois: &Tensor,
    roi_levels: &Tensor,
    strides: &[usize],
    size: usize,
) -> Result<Tensor> {
    Ok(torch_ext::ops::roi_align(levels, rois, roi_levels, strides, size)?)
}

/// See [`torch_ext::ops::roi_align_by_level`].
pub fn roi_align_by_level(levels: &[Tensor], by_level: &RoisByLevel, strides: &[usize], size: usize) -> Result<Tensor> {
    Ok(torch_ext::ops::roi_align_by_level(levels, by_level, strides, size)?)
}

/// See [`torch_ext::ops::nms`].
pub fn nms(boxes: &Tensor, scores: &Tensor, iou: f64) -> Result<Tensor> {
    Ok(torch_ext::ops::nms(boxes, scores, iou)?)
}
