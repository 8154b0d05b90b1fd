//! Inference stage by stage and from end to end.

use super::fixtures::*;
use super::*;
use crate::config::PartialConv;
use crate::model::anchors::Size;
use crate::model::rpn::RpnOutput;
use tch::Kind;

const LEVELS: usize = 5;

/// The RPN's outputs in the model's layout.
pub(super) fn rpn_output(model: &MaskRcnn, tensors: &Tensors) -> RpnOutput {
    let (mut logits, mut deltas, mut sizes) = (Vec::new(), Vec::new(), Vec::<Size>::new());
    for (cls, reg) in tensors.series("rpn_cls", LEVELS).iter().zip(tensors.series("rpn_reg", LEVELS)) {
        let (images, _, height, width) = cls.size4().unwrap();
        logits.push(cls.permute([0, 2, 3, 1]).reshape([images, -1]));
        deltas.push(reg.permute([0, 2, 3, 1]).reshape([images, -1, 4]));
        sizes.push((height as usize, width as usize));
    }
    RpnOutput { logits, deltas, anchors: model.rpn.anchors(&sizes).unwrap() }
}

fn features(model: &MaskRcnn, images: &Tensor) -> Vec<Tensor> {
    tch::no_grad(|| model.backbone.forward(&ops::channels_last(images).unwrap(), Statistics::Running, None).unwrap())
}

#[test]
fn parity_backbone_pyramid_and_rpn_outputs() {
    let Some(fixtures) = Fixtures::open() else { return };
    let (model, _) = fixtures.model();
    let expected = fixtures.tensors("eval_batch");
    let features = features(&model, &fixtures.tensors("data").get("img"));
    for (level, actual) in features.iter().enumerate() {
        assert_close(&format!("backbone.{level}"), actual, &expected.get(&format!("backbone.{level}")), 5e-6);
        assert!(torch_ext::memory::is_channels_last(actual).unwrap());
    }
    let levels = model.neck.forward(&features).unwrap();
    assert_eq!(levels.len(), LEVELS);
    for (level, actual) in levels.iter().enumerate() {
        assert_close(&format!("fpn.{level}"), actual, &expected.get(&format!("fpn.{level}")), 5e-6);
        assert!(torch_ext::memory::is_channels_last(actual).unwrap());
    }
    let (actual, expected) = (model.rpn.forward(&levels).unwrap(), rpn_output(&model, &expected));
    for level in 0..LEVELS {
        assert_close("rpn_cls", &actual.logits[level], &expected.logits[level], 1e-5);
        assert_close("rpn_reg", &actual.deltas[level], &expected.deltas[level], 1e-5);
    }
}

#[test]
fn parity_slicing_and_fused_models_give_the_same_features_and_leave_the_shortcut_alone() {
    let Some(fixtures) = Fixtures::open() else { return };
    let images = fixtures.tensors("data").get("img");
    let expected = fixtures.tensors("eval_batch").series("backbone", 4);
    let mut config = fixtures.config();
    config.backbone.partial_conv = PartialConv::Slicing;
    let (mut model, parameters) = fixtures.model_of(&config);
    let before: Vec<Tensor> = parameters.iter().map(|(_, _, tensor)| tensor.copy()).collect();
    let given = images.copy();
    for fused in [false, true] {
        if fused {
            model.fuse_conv_bn().unwrap();
        }
        for (actual, expected) in features(&model, &images).iter().zip(&expected) {
            assert_close(&format!("features, fused {fused}"), actual, expected, 1e-5);
        }
    }
    assert_eq!(images, given);
    assert!(parameters.iter().zip(&before).all(|((_, _, now), before)| now == before), "parameters were changed");
}

#[test]
fn parity_proposals_from_the_references_rpn_outputs() {
    let Some(fixtures) = Fixtures::open() else { return };
    let (model, _) = fixtures.model();
    let expected = fixtures.tensors("eval_batch");
    let output = rpn_output(&model, &expected);
    let metas = fixtures.metas("img_metas");
    for (name, nms_pre) in [("proposals", model.nms_pre), ("proposals_traincfg", model.train_nms_pre)] {
        let actual = model.rpn.proposals(&output, &metas, nms_pre).unwrap();
        for (image, actual) in actual.iter().enumerate() {
            let expected = expected.get(&format!("{name}.{image}"));
            let most = f64::try_from((actual.narrow(1, 0, 4) - expected.narrow(1, 0, 4)).abs().max()).unwrap();
            assert!(most < 1e-4, "{name}.{image} is off by {most} pixels");
            assert_close("scores", &actual.select(1, 4), &expected.select(1, 4), 1e-6);
        }
    }
}

#[test]
fn parity_roi_levels_features_and_heads() {
    let Some(fixtures) = Fixtures::open() else { return };
    let (model, _) = fixtures.model();
    let _guard = tch::no_grad_guard();
    let expected = fixtures.tensors("eval_batch");
    let levels: Vec<Tensor> =
        expected.series("fpn", LEVELS).iter().map(|level| ops::channels_last(level).unwrap()).collect();
    let head = &model.roi_head;
    let rois = expected.get("sub_rois");
    assert_eq!(integers(&head.bbox_extractor.assign_levels(&rois).unwrap()), expected.integers("sub_levels"));
    let features = head.bbox_extractor.forward(&levels, &rois).unwrap();
    assert_close("sub_bbox_feats", &features, &expected.get("sub_bbox_feats"), 5e-6);
    let (scores, deltas) = head.bbox.forward(&features).unwrap();
    assert_close("sub_cls_score", &scores, &expected.get("sub_cls_score"), 1e-5);
    assert_close("sub_bbox_pred", &deltas, &expected.get("sub_bbox_pred"), 1e-5);
    let all = head.bbox_extractor.forward(&levels, &expected.get("rois")).unwrap();
    let (scores, deltas) = head.bbox.forward(&all).unwrap();
    assert_close("cls_score", &scores, &expected.get("cls_score"), 1e-5);
    assert_close("bbox_pred", &deltas, &expected.get("bbox_pred"), 1e-5);
    let features = head.mask_extractor.forward(&levels, &expected.get("mask_rois")).unwrap();
    assert_close("mask_feats", &features, &expected.get("mask_feats"), 5e-6);
    let logits = expected.get("mask_logits");
    let (rois, classes, ..) = logits.size4().unwrap();
    for class in 0..classes {
        let labels = Tensor::full([rois], class, (Kind::Int64, Device::Cpu));
        assert_close("mask_logits", &head.mask.forward(&features, &labels).unwrap(), &logits.select(1, class), 1e-5);
    }
}

fn check_detections(actual: &Detections, expected: &Tensors, image: usize) {
    let boxes = expected.get(&format!("det_bboxes.{image}"));
    assert_eq!(integers(&actual.labels), expected.integers(&format!("det_labels.{image}")));
    let most = f64::try_from((&actual.boxes - boxes.narrow(1, 0, 4)).abs().max()).unwrap();
    assert!(most < 2e-3, "boxes are off by {most} pixels");
    assert_close("scores", &actual.scores, &boxes.select(1, 4), 2e-5);
    assert_eq!(actual.masks.size(), [actual.len() as i64, 28, 28]);
}

/// The reference's result file lists the detections class by class.
fn check_order(actual: &Detections, expected: &serde_json::Value) {
    let (labels, scores) = (integers(&actual.labels), floats(&actual.scores));
    let expected = expected.as_array().unwrap();
    let order = actual.class_major().unwrap();
    assert_eq!(order.len(), expected.len());
    for (&index, expected) in order.iter().zip(expected) {
        assert_eq!(labels[index], expected["label"].as_i64().unwrap());
        assert!((f64::from(scores[index]) - expected["score"].as_f64().unwrap()).abs() < 2e-5);
    }
}

#[test]
fn parity_detections_of_a_batch() {
    let Some(fixtures) = Fixtures::open() else { return };
    let (model, _) = fixtures.model();
    let expected = fixtures.tensors("eval_batch");
    let order = fixtures.json("eval_batch_detections");
    let found = model.predict(&fixtures.tensors("data").get("img"), &fixtures.metas("img_metas")).unwrap();
    for (image, found) in found.iter().enumerate() {
        check_detections(found, &expected, image);
        check_order(found, &order[image]);
    }
    let masks: Vec<&Tensor> = found.iter().map(|found| &found.masks).collect();
    let expected = expected.get("det_mask_logits").sigmoid();
    assert!((Tensor::cat(&masks, 0) - expected).abs().max().double_value(&[]) < 1e-3);
}

#[test]
fn parity_detections_of_single_images_with_their_own_padding() {
    let Some(fixtures) = Fixtures::open() else { return };
    for slicing in [false, true] {
        let mut config = fixtures.config();
        if slicing {
            config.backbone.partial_conv = PartialConv::Slicing;
        }
        let (model, _) = fixtures.model_of(&config);
        let data = fixtures.tensors("data");
        for (image, meta) in fixtures.metas("single_img_metas").into_iter().enumerate() {
            let name = format!("eval_single{image}");
            let found = model.predict(&data.get(&format!("single_img.{image}")), &[meta]).unwrap();
            check_detections(&found[0], &fixtures.tensors(&name), 0);
            check_order(&found[0], &fixtures.json(&format!("{name}_detections"))[0]);
        }
    }
}
