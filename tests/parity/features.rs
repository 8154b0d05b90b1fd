//! Stages "backbone", "FPN" and "RPN": from the images to the inputs of the heads.

use tch::Tensor;

use fnet_config::PartialConv;
use fnet_model::rpn::RpnOutput;

use super::compare::STAGE;
use super::fixtures::{Fixtures, Tensors};
use super::inputs::{LEVELS, backbone, features, levels, maps};
use super::report::Comparison;

/// Compares the RPN's outputs with the stored ones of all levels.
pub(super) fn check_rpn(compare: &Comparison<'_>, actual: &RpnOutput, stored: &Tensors) {
    assert_eq!((actual.logits.len(), actual.anchors.levels.len()), (LEVELS, LEVELS));
    for (level, &size) in actual.anchors.levels.iter().enumerate() {
        let (logits, deltas) = (maps(&actual.logits[level], size), maps(&actual.deltas[level], size));
        compare.tensor("RPN logits, 5 levels", &logits, &stored.get(&format!("rpn_cls.{level}")), STAGE);
        compare.tensor("RPN deltas, 5 levels", &deltas, &stored.get(&format!("rpn_reg.{level}")), STAGE);
    }
}

/// Compares levels with their stored parts and with statistics of the full tensors.
fn check_levels(fixtures: &Fixtures, stage: &'static str, name: &str, what: &str, actual: &[Tensor]) {
    let (expected, compare) = (fixtures.tensors("eval_batch"), fixtures.compare(stage));
    for (level, actual) in actual.iter().enumerate() {
        let name = format!("{name}.{level}");
        compare.tensor(what, actual, &expected.get(&name), STAGE);
        compare.statistics(what, actual, &fixtures.meta["eval_batch"][&name]);
    }
}

#[test]
fn parity_backbone() {
    let Some(fixtures) = Fixtures::open() else { return };
    let (model, _) = fixtures.model();
    let actual = backbone(&model, &fixtures.tensors("data").get("img"));
    assert_eq!(actual.len(), 4);
    check_levels(&fixtures, "backbone", "backbone", "4 levels", &actual);
}

#[test]
fn parity_backbone_of_single_images() {
    let Some(fixtures) = Fixtures::open() else { return };
    let (model, _) = fixtures.model();
    let data = fixtures.tensors("data");
    for image in 0..fixtures.metas("single_img_metas").len() {
        let features = backbone(&model, &data.get(&format!("single_img.{image}")));
        let levels = tch::no_grad(|| model.neck.forward(&features).unwrap());
        let stored = &fixtures.meta[format!("eval_single{image}")];
        for (level, actual) in features.iter().enumerate() {
            fixtures.compare("backbone").statistics("single image", actual, &stored[format!("backbone.{level}")]);
        }
        for (level, actual) in levels.iter().enumerate() {
            fixtures.compare("FPN").statistics("single image", actual, &stored[format!("fpn.{level}")]);
        }
    }
}

/// Both implementations of the partial convolution compute the same values.
#[test]
fn parity_backbone_slicing_equals_split_cat_to_the_last_bit() {
    let Some(fixtures) = Fixtures::open() else { return };
    let images = fixtures.tensors("data").get("img");
    let mut config = fixtures.config();
    assert_eq!(config.backbone.partial_conv, PartialConv::SplitCat);
    let (split_cat, _) = fixtures.model();
    config.backbone.partial_conv = PartialConv::Slicing;
    let (slicing, _) = fixtures.model_of(&config);
    let given = images.copy();
    for (actual, expected) in backbone(&slicing, &images).iter().zip(backbone(&split_cat, &images)) {
        assert_eq!(actual.size(), expected.size());
        let differing = super::compare::scalar(&actual.ne_tensor(&expected).sum(tch::Kind::Double));
        fixtures.compare("backbone").at_most("slicing vs. split_cat, differing values", differing, 0.0);
    }
    assert_eq!(images, given, "the images were changed");
}

/// BatchNorm fused into the convolutions, with both implementations of the partial convolution.
#[test]
fn parity_backbone_with_fused_norms() {
    let Some(fixtures) = Fixtures::open() else { return };
    let images = fixtures.tensors("data").get("img");
    let (plain, _) = fixtures.model();
    let expected = backbone(&plain, &images);
    for form in [PartialConv::SplitCat, PartialConv::Slicing] {
        let mut config = fixtures.config();
        config.backbone.partial_conv = form;
        let (mut fused, parameters) = fixtures.model_of(&config);
        let before: Vec<Tensor> = parameters.iter().map(|(_, _, tensor)| tensor.copy()).collect();
        fused.fuse_conv_bn().unwrap();
        let actual = backbone(&fused, &images);
        for (actual, expected) in actual.iter().zip(&expected) {
            fixtures.compare("backbone").tensor("fused vs. unfused norms", actual, expected, 1e-5);
        }
        check_levels(&fixtures, "backbone", "backbone", "4 levels, fused norms", &actual);
        assert!(parameters.iter().zip(&before).all(|((_, _, now), before)| now == before), "parameters were changed");
    }
}

#[test]
fn parity_fpn() {
    let Some(fixtures) = Fixtures::open() else { return };
    let (model, _) = fixtures.model();
    let features = features(&model, &fixtures.tensors("eval_batch"), &fixtures.tensors("data").get("img"));
    let actual = tch::no_grad(|| model.neck.forward(&features).unwrap());
    assert_eq!(actual.len(), LEVELS);
    check_levels(&fixtures, "FPN", "fpn", "5 levels", &actual);
}

#[test]
fn parity_rpn() {
    let Some(fixtures) = Fixtures::open() else { return };
    let (model, _) = fixtures.model();
    let stored = fixtures.tensors("eval_batch");
    let levels = levels(&model, &stored, &fixtures.tensors("data").get("img"));
    let actual = tch::no_grad(|| model.rpn.forward(&levels).unwrap());
    check_rpn(&fixtures.compare("RPN"), &actual, &stored);
}
