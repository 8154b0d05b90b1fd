//! Stage "proposals": from the RPN's stored outputs to the boxes that the heads look at.

use tch::Tensor;

use super::compare::STAGE;
use super::fixtures::{Fixtures, Tensors};
use super::inputs::rpn_output;
use super::report::Comparison;
use crate::data::ImageMeta;
use crate::model::MaskRcnn;

/// The proposals of every image, made from the RPN outputs in `stored`.
fn check(compare: &Comparison<'_>, name: &str, model: &MaskRcnn, stored: &Tensors, metas: &[ImageMeta], pre: usize) {
    let Some(output) = rpn_output(model, stored) else { return };
    let proposals = model.rpn.proposals(&output, metas, pre).unwrap();
    assert_eq!(proposals.len(), metas.len());
    for (image, actual) in proposals.iter().enumerate() {
        let expected: Tensor = stored.get(&format!("{name}.{image}"));
        assert_eq!(actual.size(), expected.size(), "{name}.{image}");
        compare.tensor(&format!("{name}, boxes"), &actual.narrow(1, 0, 4), &expected.narrow(1, 0, 4), STAGE);
        compare.tensor(&format!("{name}, scores"), &actual.select(1, 4), &expected.select(1, 4), STAGE);
    }
}

#[test]
fn parity_proposals_at_evaluation() {
    let Some(fixtures) = Fixtures::open() else { return };
    let (model, _) = fixtures.model();
    let (stored, metas) = (fixtures.tensors("eval_batch"), fixtures.metas("img_metas"));
    check(&fixtures.compare("proposals"), "proposals", &model, &stored, &metas, model.nms_pre);
    check(&fixtures.compare("proposals"), "proposals_traincfg", &model, &stored, &metas, model.train_nms_pre);
}

#[test]
fn parity_proposals_in_training() {
    let Some(fixtures) = Fixtures::open() else { return };
    let (model, _) = fixtures.model();
    let metas = fixtures.metas("img_metas");
    for name in ["train_first", "train_even"] {
        let stored = fixtures.tensors(name);
        check(&fixtures.compare("proposals"), "proposals", &model, &stored, &metas, model.train_nms_pre);
    }
}
