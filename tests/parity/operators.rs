//! Stage "operators" for the network: anchors, assignment, sampling, box coding, NMS, RoIAlign.

use tch::{Device, Kind, Tensor};
use torch_ext::ops;

use fnet_config::{self as config, Assigner, Sampler};
use fnet_model::anchors::AnchorGenerator;
use fnet_model::assign::assign;
use fnet_model::boxes::{BoxColumns, decode, encode};
use fnet_model::nms::{batched_nms, batched_nms_with};
use fnet_model::sample::{First, sample};

use super::compare::{STAGE, floats, integers};
use super::fixtures::Operators;

const NAME: &str = "operators";
/// Stride of the feature map that RoIAlign reads.
const ROI_STRIDE: usize = 8;

#[test]
fn parity_operators_anchors() {
    let Some(operators) = Operators::open() else { return };
    let (stored, compare) = (&operators.tensors, operators.compare(NAME));
    let generator = AnchorGenerator::new(&config::Rpn::default());
    let joined = Tensor::cat(&stored.series("anchors.grid", 5), 0);
    let actual = generator.boxes(&[(7, 10), (4, 5), (2, 3), (1, 2), (1, 1)]);
    compare.equal("anchors", actual.as_flattened(), &floats(&joined));
    let flags = Tensor::cat(&stored.series("anchors.valid_pad224x320_of_288x320", 5), 0);
    let sizes = [(72, 80), (36, 40), (18, 20), (9, 10), (5, 5)];
    let valid: Vec<i64> = generator.valid(&sizes, (224, 320)).into_iter().map(i64::from).collect();
    compare.equal("valid anchors", &valid, &integers(&flags.nonzero().reshape([-1])));
}

#[test]
fn parity_operators_assignment() {
    let Some(operators) = Operators::open() else { return };
    let (stored, compare) = (&operators.tensors, operators.compare(NAME));
    let (boxes, objects) = (stored.boxes("assign.boxes"), stored.boxes("assign.gts"));
    let columns: BoxColumns = boxes.iter().collect();
    let overlaps = floats(&stored.get("assign.iou"));
    let mut row = Vec::new();
    for (object, expected) in objects.iter().zip(overlaps.chunks_exact(boxes.len())) {
        columns.overlaps(object, &mut row);
        compare.equal("IoU", &row, expected);
    }
    let rule = |positive_iou, negative_iou, min_positive_iou, match_low_quality| Assigner {
        positive_iou,
        negative_iou,
        min_positive_iou,
        match_low_quality,
    };
    for (name, objects, rule) in [
        ("rpn", &objects[..], rule(0.7, 0.3, 0.3, true)),
        ("rcnn", &objects[..], rule(0.5, 0.5, 0.5, true)),
        ("rcnn_nolow", &objects[..], rule(0.5, 0.5, 0.5, false)),
        ("no_gt", &[], rule(0.7, 0.3, 0.3, true)),
    ] {
        let actual: Vec<i64> = assign(&columns, objects, &rule).into_iter().map(i64::from).collect();
        compare.equal("assigned objects", &actual, &stored.integers(&format!("assign.{name}.gt_inds")));
    }
}

#[test]
fn parity_operators_sampling() {
    let Some(operators) = Operators::open() else { return };
    let (stored, compare) = (&operators.tensors, operators.compare(NAME));
    let objects = stored.boxes("assign.gts");
    for (name, add_ground_truth) in [("rpn", false), ("rcnn", true)] {
        let assigned = stored.integers(&format!("assign.{name}.gt_inds"));
        let mut assigned: Vec<i32> = assigned.into_iter().map(|object| object as i32).collect();
        if add_ground_truth {
            assigned.splice(0..0, 1..=objects.len() as i32);
        }
        let positive = stored.integers(&format!("sample.{name}.pos_inds"));
        let negative = stored.integers(&format!("sample.{name}.neg_inds"));
        let count = positive.len() + negative.len();
        let positive_fraction = positive.len() as f64 / count as f64;
        let actual = sample(&assigned, &Sampler { count, positive_fraction, add_ground_truth }, &mut First);
        // The stored choice was random, so compare only its sizes and kinds.
        compare.equal(
            "sizes of samples",
            &[actual.positive.len(), actual.negative.len()],
            &[positive.len(), negative.len()],
        );
        let objects: Vec<i64> = positive.iter().map(|&index| i64::from(assigned[index as usize]) - 1).collect();
        compare.equal("sampled objects", &objects, &stored.integers(&format!("sample.{name}.pos_assigned_gt_inds")));
        assert!(negative.iter().all(|&index| assigned[index as usize] == 0));
    }
}

#[test]
fn parity_operators_box_coding() {
    let Some(operators) = Operators::open() else { return };
    let (stored, compare) = (&operators.tensors, operators.compare(NAME));
    let (rois, objects) = (stored.boxes("coder.rois"), stored.boxes("coder.gt"));
    let deltas = stored.get("coder.deltas").reshape([200, 3, 4]);
    let sources = stored.get("coder.rois").unsqueeze(1).expand([200, 3, 4], false);
    for (name, stds) in [("rpn", [1.0; 4]), ("rcnn", [0.1, 0.1, 0.2, 0.2])] {
        let pairs = rois.iter().zip(&objects);
        let encoded: Vec<f32> =
            pairs.flat_map(|(roi, object)| encode(roi, object, &stds.map(|std: f64| std as f32))).collect();
        let encoded = Tensor::from_slice(&encoded).reshape([-1, 4]);
        compare.tensor("encoded boxes", &encoded, &stored.get(&format!("coder.encode.{name}")), STAGE);
        // The clipped boxes touch the right and the bottom border of their image.
        let clipped = stored.get(&format!("coder.decode.{name}"));
        let corners = clipped.reshape([-1, 2, 2]).amax([0, 1], false).repeat([2]).reshape([1, 1, 4]);
        for (limits, expected) in [(None, stored.get(&format!("coder.decode_noclip.{name}"))), (Some(corners), clipped)]
        {
            let decoded = decode(&sources, &deltas, Some(&stds), limits.as_ref()).unwrap().reshape([200, 12]);
            compare.tensor("decoded boxes", &decoded, &expected, STAGE);
        }
    }
}

#[test]
fn parity_operators_suppression() {
    let Some(operators) = Operators::open() else { return };
    let (stored, compare) = (&operators.tensors, operators.compare(NAME));
    let (boxes, scores, groups) = (stored.get("nms.boxes"), stored.get("nms.scores"), stored.get("nms.ids"));
    for (name, threshold) in [("nms.keep_0.5", 0.5), ("nms.keep_0.7", 0.7)] {
        let actual = integers(&ops::nms(&boxes, &scores, threshold).unwrap());
        compare.equal("boxes kept", &actual, &stored.integers(name));
    }
    for (name, split) in [("nms.batched_0.7.keep", i64::MAX), ("nms.batched_split.keep", 0)] {
        let actual = integers(&batched_nms_with(&boxes, &scores, &groups, 0.7, split).unwrap());
        compare.equal("boxes kept per group", &actual, &stored.integers(name));
    }
}

/// Selects scores above .05 of `[rows, classes + 1]` row by row, then applies NMS per class.
#[test]
fn parity_operators_suppression_of_classes() {
    let Some(operators) = Operators::open() else { return };
    let (stored, compare) = (&operators.tensors, operators.compare(NAME));
    let scores = stored.get("mcnms.scores");
    let (rows, columns) = scores.size2().unwrap();
    let scores = scores.narrow(1, 0, columns - 1);
    let found = scores.gt(0.05).nonzero();
    let (labels, places) = (found.select(1, 1), found.select(1, 0) * (columns - 1) + found.select(1, 1));
    let boxes = stored.get("mcnms.boxes").reshape([rows * (columns - 1), 4]).index_select(0, &places);
    let scores = scores.reshape([-1]).index_select(0, &places);
    let best = batched_nms(&boxes, &scores, &labels, 0.5).unwrap().narrow(0, 0, 100);
    compare.equal("labels of the best", &integers(&labels.index_select(0, &best)), &stored.integers("mcnms.labels"));
    let best = Tensor::cat(&[boxes.index_select(0, &best), scores.index_select(0, &best).unsqueeze(1)], 1);
    compare.equal("boxes and scores of the best", &floats(&best), &floats(&stored.get("mcnms.dets")));
}

#[test]
fn parity_operators_roi_align() {
    let Some(operators) = Operators::open() else { return };
    let (stored, compare) = (&operators.tensors, operators.compare(NAME));
    let level = stored.get("roialign.feat").set_requires_grad(true);
    let rois = stored.get("roialign.rois");
    let roi_levels = Tensor::zeros([rois.size()[0]], (Kind::Int64, Device::Cpu));
    let align = |size| ops::roi_align(&[level.shallow_clone()], &rois, &roi_levels, &[ROI_STRIDE], size).unwrap();
    compare.tensor("RoIAlign 14x14", &align(14).detach(), &stored.get("roialign.out14"), STAGE);
    let out = align(7);
    compare.tensor("RoIAlign 7x7", &out.detach(), &stored.get("roialign.out7"), STAGE);
    (out * stored.get("roialign.grad_out")).sum(Kind::Float).backward();
    compare.tensor("gradient of RoIAlign", &level.grad(), &stored.get("roialign.grad_in"), STAGE);
}
