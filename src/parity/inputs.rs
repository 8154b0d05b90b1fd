//! Inputs of the stages: as the reference stored them, or, where it kept a part only, as the stage before gives them.

use tch::Tensor;

use super::fixtures::{Tensors, skip};
use crate::model::anchors::Size;
use crate::model::layers::Statistics;
use crate::model::rpn::RpnOutput;
use crate::model::{MaskRcnn, ops};

/// Levels of the pyramid.
pub(super) const LEVELS: usize = 5;

/// The backbone's outputs for `images`, by the running statistics.
pub(super) fn backbone(model: &MaskRcnn, images: &Tensor) -> Vec<Tensor> {
    let images = ops::channels_last(images).unwrap();
    tch::no_grad(|| model.backbone.forward(&images, Statistics::Running, None).unwrap())
}

/// `own`, or what is stored of it as a whole.
pub(super) fn stored_or(tensors: &Tensors, name: &str, own: Tensor) -> Tensor {
    match tensors.find(name) {
        Some(stored) if stored.size() == own.size() => ops::channels_last(stored).unwrap(),
        _ => own,
    }
}

fn stored_or_all(tensors: &Tensors, name: &str, own: Vec<Tensor>) -> Vec<Tensor> {
    own.into_iter().enumerate().map(|(level, own)| stored_or(tensors, &format!("{name}.{level}"), own)).collect()
}

/// What enters the pyramid.
pub(super) fn features(model: &MaskRcnn, tensors: &Tensors, images: &Tensor) -> Vec<Tensor> {
    stored_or_all(tensors, "backbone", backbone(model, images))
}

/// What enters the heads.
pub(super) fn levels(model: &MaskRcnn, tensors: &Tensors, images: &Tensor) -> Vec<Tensor> {
    let own = tch::no_grad(|| model.neck.forward(&features(model, tensors, images)).unwrap());
    stored_or_all(tensors, "fpn", own)
}

/// Maps `[n, channels, h, w]` as the head's answers `[n, places, values]`.
fn answers(maps: &Tensor, values: i64) -> Tensor {
    maps.permute([0, 2, 3, 1]).reshape([maps.size()[0], -1, values])
}

/// The head's answers of one level as maps `[n, channels, h, w]`.
pub(super) fn maps(answers: &Tensor, (height, width): Size) -> Tensor {
    answers.reshape([answers.size()[0], height as i64, width as i64, -1]).permute([0, 3, 1, 2])
}

/// The stored outputs of the RPN in the model's layout; says that the test is skipped if a part of them is not stored.
pub(super) fn rpn_output(model: &MaskRcnn, tensors: &Tensors) -> Option<RpnOutput> {
    let (mut logits, mut deltas, mut sizes) = (Vec::new(), Vec::new(), Vec::<Size>::new());
    for (cls, reg) in tensors.series("rpn_cls", LEVELS).iter().zip(tensors.series("rpn_reg", LEVELS)) {
        let (_, anchors, height, width) = cls.size4().unwrap();
        if (anchors, reg.size()[1]) != (3, 12) {
            skip("the RPN's outputs are stored in part, so no proposals can be made of them");
            return None;
        }
        logits.push(answers(cls, 1).squeeze_dim(2));
        deltas.push(answers(&reg, 4));
        sizes.push((height as usize, width as usize));
    }
    Some(RpnOutput { logits, deltas, anchors: model.rpn.anchors(&sizes).unwrap(), joined: None })
}
