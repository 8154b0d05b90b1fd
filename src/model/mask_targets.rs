//! What the mask head should put out: the part of each object's mask inside a box.

use tch::{Device, Kind, Tensor};

use super::ops;
use crate::data::InstanceMask;
use crate::error::Result;

/// `[n, size, size]` of 0 and 1: mask `i` inside box `i`, both in the frame of the padded image. The box is clipped to
/// the frame, the bitmap is pooled by RoIAlign, and averages from 0.5 on count as object.
pub(super) fn mask_targets(masks: &[&InstanceMask], boxes: &[[f32; 4]], size: usize) -> Result<Tensor> {
    let _guard = tch::no_grad_guard();
    let side = size as i64;
    let mut targets = vec![Tensor::f_zeros([0, side, side], (Kind::Float, Device::Cpu))?];
    for (mask, [x1, y1, x2, y2]) in masks.iter().zip(boxes) {
        let (height, width) = mask.frame;
        let mut bitmap = vec![0.0_f32; height * width];
        for (row, pixels) in mask.pixels.chunks_exact(mask.width.max(1)).enumerate() {
            let start = (mask.y + row) * width + mask.x;
            for (value, &pixel) in bitmap[start..].iter_mut().zip(pixels) {
                *value = f32::from(pixel);
            }
        }
        let bitmap = Tensor::f_from_slice(&bitmap)?.f_view([1, 1, height as i64, width as i64])?;
        let clip = |value: &f32, limit: usize| value.clamp(0.0, limit as f32);
        let roi = [0.0, clip(x1, width), clip(y1, height), clip(x2, width), clip(y2, height)];
        let level = Tensor::f_zeros([1], (Kind::Int64, Device::Cpu))?;
        let pooled = ops::roi_align(&[bitmap], &Tensor::f_from_slice(&roi)?.f_view([1, 5])?, &level, &[1], size)?;
        targets.push(pooled.f_ge(0.5)?.f_to_kind(Kind::Float)?.f_view([1, side, side])?);
    }
    Ok(Tensor::f_cat(&targets, 0)?)
}
