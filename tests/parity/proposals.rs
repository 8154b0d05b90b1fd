//! Stage "proposals": from the RPN's stored outputs to the boxes for the heads.
//!
//! MMDetection's sort by score is not stable, so the order of equal scores depends on the processor. If there are equal
//! scores, proposals are compared as a set, because the order of a few, and what they suppress, is random.

use tch::Tensor;

use fnet_data::ImageMeta;
use fnet_model::MaskRcnn;
use fnet_model::rpn::RpnOutput;

use super::compare::{STAGE, scalar};
use super::fixtures::{Fixtures, Tensors, skip};
use super::inputs::rpn_output;
use super::report::Comparison;

/// Minimum fraction of proposals that equal MMDetection's if equal scores may be in any order.
const SHARE: f64 = 0.99;

/// Whether two of the best `count` scores of a level of `image` are equal.
fn has_equal_scores(output: &RpnOutput, image: i64, count: usize) -> bool {
    output.logits.iter().any(|logits| {
        let (best, _) = logits.get(image).sigmoid().sort(0, true);
        let best = best.narrow(0, 0, best.size()[0].min(count as i64 + 1));
        let (first, second) = (best.slice(0, 0, -1, 1), best.slice(0, 1, None, 1));
        scalar(&first.eq_tensor(&second).sum(tch::Kind::Double)) > 0.0
    })
}

/// Whether all rows are equal, in order, within the bound of a stage.
fn in_order(actual: &Tensor, expected: &Tensor) -> bool {
    let most = |tensor: &Tensor| scalar(&tensor.abs().max());
    actual.size() == expected.size()
        && [(0, 4), (4, 1)].into_iter().all(|(start, columns)| {
            let [actual, expected] = [actual, expected].map(|rows| rows.narrow(1, start, columns));
            expected.numel() == 0 || most(&(actual - &expected)) <= STAGE * most(&expected)
        })
}

/// Fraction of the rows of `expected` that are in `actual`.
fn share_found(actual: &Tensor, expected: &Tensor) -> f64 {
    let apart = (expected.unsqueeze(1) - actual.unsqueeze(0)).abs().amax([2], false);
    let found = apart.amin([1], false).le(STAGE * scalar(&expected.abs().max()));
    scalar(&found.sum(tch::Kind::Double)) / expected.size()[0].max(1) as f64
}

/// Compares the proposals of every image, computed from the RPN outputs in `stored`.
fn check(compare: &Comparison<'_>, name: &str, model: &MaskRcnn, stored: &Tensors, metas: &[ImageMeta], pre: usize) {
    let Some(output) = rpn_output(model, stored) else { return };
    let proposals = model.rpn.proposals(&output, metas, pre).unwrap();
    assert_eq!(proposals.len(), metas.len());
    for (image, actual) in (0..).zip(&proposals) {
        let expected = stored.get(&format!("{name}.{image}"));
        if !in_order(actual, &expected) && has_equal_scores(&output, image, pre) {
            skip(&format!("the order of {name}.{image}, which depends on how MMDetection sorted equal scores"));
            let what = format!("{name} with equal scores, share equal to MMDetection's");
            compare.at_least(&what, share_found(actual, &expected), SHARE);
            continue;
        }
        assert_eq!(actual.size(), expected.size(), "{name}.{image}");
        compare.tensor(&format!("{name}, boxes"), &actual.narrow(1, 0, 4), &expected.narrow(1, 0, 4), STAGE);
        compare.tensor(&format!("{name}, scores"), &actual.select(1, 4), &expected.select(1, 4), STAGE);
    }
}

/// Whether the proposals in `stored` follow from its RPN outputs. They do not if equal scores were sorted in another
/// order.
pub(super) fn are_defined(model: &MaskRcnn, stored: &Tensors, metas: &[ImageMeta]) -> bool {
    let Some(output) = rpn_output(model, stored) else { return true };
    let proposals = model.rpn.proposals(&output, metas, model.train_nms_pre).unwrap();
    (0..).zip(&proposals).all(|(image, actual)| {
        in_order(actual, &stored.get(&format!("proposals.{image}")))
            || !has_equal_scores(&output, image, model.train_nms_pre)
    })
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
