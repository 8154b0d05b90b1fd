//! Inputs of the stages: MMDetection's stored tensors, or the output of fnet's previous stage if only a part is stored.

use tch::Tensor;

use fnet_model::MaskRcnn;
use fnet_model::anchors::Size;
use fnet_model::layers::Statistics;
use fnet_model::rpn::RpnOutput;

use super::fixtures::{Tensors, skip};

/// The same values with channels-last memory, without a copy if possible. Tensors that do not have four dimensions
/// become contiguous.
pub(super) fn channels_last(x: &Tensor) -> torch_ext::Result<Tensor> {
    if x.dim() == 4 { torch_ext::memory::channels_last(x) } else { Ok(x.f_contiguous()?) }
}

/// Levels of the pyramid.
pub(super) const LEVELS: usize = 5;

/// The backbone's outputs for `images`, with the running statistics.
pub(super) fn backbone(model: &MaskRcnn, images: &Tensor) -> Vec<Tensor> {
    let images = channels_last(images).unwrap();
    tch::no_grad(|| model.backbone.forward(&images, Statistics::Running, None).unwrap())
}

/// The stored tensor if it is complete, or else `own`.
pub(super) fn stored_or(tensors: &Tensors, name: &str, own: Tensor) -> Tensor {
    match tensors.find(name) {
        Some(stored) if stored.size() == own.size() => channels_last(stored).unwrap(),
        _ => own,
    }
}

fn stored_or_all(tensors: &Tensors, name: &str, own: Vec<Tensor>) -> Vec<Tensor> {
    own.into_iter().enumerate().map(|(level, own)| stored_or(tensors, &format!("{name}.{level}"), own)).collect()
}

/// The input of the pyramid.
pub(super) fn features(model: &MaskRcnn, tensors: &Tensors, images: &Tensor) -> Vec<Tensor> {
    stored_or_all(tensors, "backbone", backbone(model, images))
}

/// The input of the heads.
pub(super) fn levels(model: &MaskRcnn, tensors: &Tensors, images: &Tensor) -> Vec<Tensor> {
    let own = tch::no_grad(|| model.neck.forward(&features(model, tensors, images)).unwrap());
    stored_or_all(tensors, "fpn", own)
}

/// Converts maps `[n, channels, h, w]` to the head's outputs `[n, positions, values]`.
fn answers(maps: &Tensor, values: i64) -> Tensor {
    maps.permute([0, 2, 3, 1]).reshape([maps.size()[0], -1, values])
}

/// The head's outputs of one level as maps `[n, channels, h, w]`.
pub(super) fn maps(answers: &Tensor, (height, width): Size) -> Tensor {
    answers.reshape([answers.size()[0], height as i64, width as i64, -1]).permute([0, 3, 1, 2])
}

/// The stored outputs of the RPN in the model's layout. If they are incomplete, prints that the test is skipped.
pub(super) fn rpn_output(model: &MaskRcnn, tensors: &Tensors) -> Option<RpnOutput> {
    let (mut logits, mut deltas, mut sizes) = (Vec::new(), Vec::new(), Vec::<Size>::new());
    for (cls, reg) in tensors.series("rpn_cls", LEVELS).iter().zip(tensors.series("rpn_reg", LEVELS)) {
        let (_, anchors, height, width) = cls.size4().unwrap();
        if (anchors, reg.size()[1]) != (3, 12) {
            skip("the RPN's outputs are stored only partially, so proposals cannot be computed from them");
            return None;
        }
        logits.push(answers(cls, 1).squeeze_dim(2));
        deltas.push(answers(&reg, 4));
        sizes.push((height as usize, width as usize));
    }
    Some(RpnOutput { logits, deltas, anchors: model.rpn.anchors(&sizes).unwrap(), joined: None })
}
