//! Anchors, assignment, sampling, box coding and suppression.

use super::fixtures::*;
use super::*;
use crate::config::{Assigner, Sampler};
use crate::model::anchors::AnchorGenerator;
use crate::model::assign::assign;
use crate::model::boxes::{BoxColumns, decode, encode};
use crate::model::nms::{batched_nms, batched_nms_with};
use crate::model::sample::{First, sample};

#[test]
fn parity_anchors_and_their_validity() {
    let Some(expected) = Tensors::operators() else { return };
    let generator = AnchorGenerator::new(&config::Rpn::default());
    let counts = expected.series("anchors.grid", 5).iter().map(|grid| grid.size()[0] / 3).collect::<Vec<_>>();
    assert_eq!(counts, [70, 20, 6, 2, 1]);
    let sizes = [(7, 10), (4, 5), (2, 3), (1, 2), (1, 1)];
    let joined = Tensor::cat(&expected.series("anchors.grid", 5), 0);
    let actual = generator.boxes(&sizes);
    assert_eq!(Tensor::from_slice(actual.as_flattened()).view([-1, 4]), joined);
    let flags = Tensor::cat(&expected.series("anchors.valid_pad224x320_of_288x320", 5), 0);
    let expected: Vec<i64> = integers(&flags.nonzero().view([-1]));
    let sizes = [(72, 80), (36, 40), (18, 20), (9, 10), (5, 5)];
    let valid: Vec<i64> = generator.valid(&sizes, (224, 320)).into_iter().map(i64::from).collect();
    assert_eq!(valid, expected);
}

#[test]
fn parity_overlaps_and_assignment() {
    let Some(expected) = Tensors::operators() else { return };
    let (boxes, objects) = (expected.boxes("assign.boxes"), expected.boxes("assign.gts"));
    let columns: BoxColumns = boxes.iter().collect();
    let overlaps = floats(&expected.get("assign.iou"));
    let mut row = Vec::new();
    for (object, expected) in objects.iter().zip(overlaps.chunks_exact(boxes.len())) {
        columns.overlaps(object, &mut row);
        assert_eq!(row, expected);
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
        assert_eq!(actual, expected.integers(&format!("assign.{name}.gt_inds")), "{name}");
    }
}

#[test]
fn parity_sampling_with_and_without_the_objects() {
    let Some(expected) = Tensors::operators() else { return };
    let objects = expected.boxes("assign.gts");
    for (name, add_ground_truth) in [("rpn", false), ("rcnn", true)] {
        let mut assigned: Vec<i32> =
            expected.integers(&format!("assign.{name}.gt_inds")).into_iter().map(|object| object as i32).collect();
        if add_ground_truth {
            assigned.splice(0..0, 1..=objects.len() as i32);
        }
        let positive = expected.integers(&format!("sample.{name}.pos_inds"));
        let negative = expected.integers(&format!("sample.{name}.neg_inds"));
        let rule = Sampler {
            count: positive.len() + negative.len(),
            positive_fraction: positive.len() as f64 / (positive.len() + negative.len()) as f64,
            add_ground_truth,
        };
        let actual = sample(&assigned, &rule, &mut First);
        assert_eq!(actual.positive.len(), positive.len(), "{name}");
        assert_eq!(actual.negative.len(), negative.len(), "{name}");
        let objects: Vec<i64> = positive.iter().map(|&index| i64::from(assigned[index as usize]) - 1).collect();
        assert_eq!(objects, expected.integers(&format!("sample.{name}.pos_assigned_gt_inds")));
        assert!(negative.iter().all(|&index| assigned[index as usize] == 0));
    }
}

#[test]
fn parity_box_coding() {
    let Some(expected) = Tensors::operators() else { return };
    let (rois, objects) = (expected.boxes("coder.rois"), expected.boxes("coder.gt"));
    let deltas = expected.get("coder.deltas").view([200, 3, 4]);
    let sources = expected.get("coder.rois").unsqueeze(1).expand([200, 3, 4], false);
    for (name, stds) in [("rpn", [1.0; 4]), ("rcnn", [0.1, 0.1, 0.2, 0.2])] {
        let encoded: Vec<f32> = rois
            .iter()
            .zip(&objects)
            .flat_map(|(roi, object)| encode(roi, object, &stds.map(|std: f64| std as f32)))
            .collect();
        let encoded = Tensor::from_slice(&encoded).view([-1, 4]);
        assert_close(name, &encoded, &expected.get(&format!("coder.encode.{name}")), 1e-6);
        let decoded = decode(&sources, &deltas, Some(&stds), None).unwrap().view([200, 12]);
        assert_close(name, &decoded, &expected.get(&format!("coder.decode_noclip.{name}")), 1e-6);
    }
}

#[test]
fn parity_suppression_in_one_pass_and_split() {
    let Some(expected) = Tensors::operators() else { return };
    let (boxes, scores, groups) = (expected.get("nms.boxes"), expected.get("nms.scores"), expected.get("nms.ids"));
    let kept = batched_nms(&boxes, &scores, &groups, 0.7).unwrap();
    assert_eq!(integers(&kept), expected.integers("nms.batched_0.7.keep"));
    let kept = batched_nms_with(&boxes, &scores, &groups, 0.7, 0).unwrap();
    assert_eq!(integers(&kept), expected.integers("nms.batched_split.keep"));
}
