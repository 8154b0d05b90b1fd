//! Non-maximum suppression per group, like MMCV's `batched_nms`.

use tch::{Kind, Tensor};
use torch_ext::ops::nms;

use fnet_common::Result;

/// From this number of boxes, groups are processed one after the other, as in MMCV, because the time of a single pass
/// grows with the square of the number. Both ways use the same offsets and round alike.
pub(crate) const SPLIT_THRESHOLD: i64 = 10_000;

/// Indices of the kept boxes of `boxes` (`[n, 4]`, float32, on the CPU), best first. Boxes suppress each other only
/// within a group of `groups` (`[n]`, int64, from 0).
///
/// Groups are separated by offsets that are multiples of the maximum coordinate, in float32. Overlaps are computed on
/// the shifted boxes, so that they round as in MMCV.
pub fn batched_nms(boxes: &Tensor, scores: &Tensor, groups: &Tensor, iou: f64) -> Result<Tensor> {
    batched_nms_with(boxes, scores, groups, iou, SPLIT_THRESHOLD)
}

/// Like [`batched_nms`], with a custom threshold instead of [`SPLIT_THRESHOLD`].
pub fn batched_nms_with(
    boxes: &Tensor,
    scores: &Tensor,
    groups: &Tensor,
    iou: f64,
    split_threshold: i64,
) -> Result<Tensor> {
    let count = scores.size1()?;
    if count == 0 {
        return Ok(Tensor::f_zeros([0], (Kind::Int64, boxes.device()))?);
    }
    let step = boxes.f_max()?.f_add_scalar(1.0)?;
    let moved = boxes.f_add(&groups.f_to_kind(boxes.kind())?.f_mul(&step)?.f_unsqueeze(1)?)?;
    if count < split_threshold {
        return Ok(nms(&moved, scores, iou)?);
    }
    let last = i64::try_from(groups.f_max()?)?;
    let mut kept = Vec::new();
    for group in 0..=last {
        let members = groups.f_eq(group)?.f_nonzero()?.f_reshape([-1])?;
        if members.size1()? > 0 {
            let best = nms(&moved.f_index_select(0, &members)?, &scores.f_index_select(0, &members)?, iou)?;
            kept.push(members.f_index_select(0, &best)?);
        }
    }
    // Sort the indices first, so that equal scores keep the order of the input.
    let (kept, _) = Tensor::f_cat(&kept, 0)?.f_sort(0, false)?;
    let (_, order) = scores.f_index_select(0, &kept)?.f_sort_stable(true, 0, true)?;
    Ok(kept.f_index_select(0, &order)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boxes() -> Tensor {
        Tensor::from_slice(&[0.0f32, 0.0, 10.0, 10.0, 0.0, 0.0, 10.0, 9.0, 0.0, 0.0, 10.0, 8.0, 30.0, 0.0, 40.0, 9.0])
            .reshape([4, 4])
    }

    #[test]
    fn boxes_suppress_only_worse_ones_of_their_group() {
        let scores = Tensor::from_slice(&[0.1f32, 0.9, 0.5, 0.3]);
        let groups = Tensor::from_slice(&[0i64, 0, 1, 0]);
        for threshold in [SPLIT_THRESHOLD, 0] {
            let kept = batched_nms_with(&boxes(), &scores, &groups, 0.5, threshold).unwrap();
            assert_eq!(Vec::<i64>::try_from(kept).unwrap(), [1, 2, 3], "split at {threshold}");
        }
    }

    #[test]
    fn no_boxes_give_no_indices() {
        let empty = Tensor::zeros([0, 4], (Kind::Float, tch::Device::Cpu));
        let none = Tensor::zeros([0], (Kind::Int64, tch::Device::Cpu));
        let kept = batched_nms(&empty, &none.to_kind(Kind::Float), &none, 0.5).unwrap();
        assert_eq!(kept.size(), [0]);
    }
}
