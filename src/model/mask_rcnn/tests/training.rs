//! Training: losses and gradients.

use serde_json::Value;
use tch::Kind;

use super::fixtures::*;
use super::inference::rpn_output;
use super::*;
use crate::model::roi_head::RoiSample;
use crate::model::rpn::{ImageSample, RpnOutput};
use crate::model::sample::{Choice, First};
use crate::random::Generator;

/// Evenly spaced choices.
struct Even;

impl Choice for Even {
    fn choose(&mut self, count: usize, of: usize) -> Vec<usize> {
        (0..count).map(|index| index * of / count).collect()
    }
}

/// The choices of `torch.randperm` after `torch.manual_seed`.
struct Torch(Generator);

impl Choice for Torch {
    fn choose(&mut self, count: usize, of: usize) -> Vec<usize> {
        self.0.permutation(of)[..count].to_vec()
    }
}

fn forward_to_rpn(model: &MaskRcnn, batch: &Batch) -> (Vec<Tensor>, RpnOutput) {
    let images = ops::channels_last(&batch.images).unwrap();
    let features = model.backbone.forward(&images, Statistics::Batch, None).unwrap();
    let levels = model.neck.forward(&features).unwrap();
    let rpn = model.rpn.forward(&levels).unwrap();
    (levels, rpn)
}

fn as_integers(values: &[usize]) -> Vec<i64> {
    values.iter().map(|&value| value as i64).collect()
}

/// The reference counts anchors among the valid ones of an image.
fn check_anchors(model: &MaskRcnn, rpn: &RpnOutput, metas: &[ImageMeta], samples: &[ImageSample], expected: &Tensors) {
    for (image, sample) in samples.iter().enumerate() {
        let valid = model.rpn.valid(&rpn.anchors, metas[image].padded_size);
        for (sign, actual) in [("pos", &sample.sampled.positive), ("neg", &sample.sampled.negative)] {
            let expected = expected.integers(&format!("rpn.{sign}_inds.{image}"));
            let expected: Vec<i64> = expected.iter().map(|&index| i64::from(valid[index as usize])).collect();
            assert_eq!(as_integers(actual), expected, "{sign} anchors of image {image}");
        }
    }
}

fn check_targets(count: usize, anchors: &[ImageSample], sample: &RoiSample, expected: &Tensors) {
    for (image, anchors) in anchors.iter().enumerate() {
        // The stored rows were picked from the targets of all anchors by indices among the valid ones.
        let mut deltas = vec![[0.0; 4]; count];
        for (&anchor, &delta) in anchors.sampled.positive.iter().zip(&anchors.deltas) {
            deltas[anchor] = delta;
        }
        let picked = expected.integers(&format!("rpn.pos_inds.{image}"));
        let picked: Vec<[f32; 4]> = picked.into_iter().map(|index| deltas[index as usize]).collect();
        let picked = Tensor::from_slice(picked.as_flattened()).view([-1, 4]);
        assert_close("anchor deltas", &picked, &expected.get(&format!("rpn.pos_bbox_targets.{image}")), 1e-6);
    }
    let rois = Tensor::from_slice(sample.rois.as_flattened()).view([-1, 5]);
    assert_eq!(rois, expected.get("rcnn.rois"));
    assert_eq!(sample.labels, expected.integers("rcnn.labels"));
    let positives = Tensor::from_slice(&sample.positives);
    let deltas = Tensor::from_slice(sample.deltas.as_flattened()).view([-1, 4]);
    let expected_deltas = expected.get("rcnn.bbox_targets").index_select(0, &positives);
    assert_close("RoI deltas", &deltas, &expected_deltas, 1e-6);
}

#[track_caller]
fn check_losses(losses: &Losses, expected: &Value, tolerance: f64) {
    for (name, actual) in losses.named() {
        let (actual, expected) = (f64::try_from(actual).unwrap(), expected[name].as_f64().unwrap());
        assert!((actual - expected).abs() <= tolerance * expected.abs(), "{name} is {actual}, not {expected}");
    }
    let total = f64::try_from(losses.total().unwrap()).unwrap();
    assert!((total / expected["loss"].as_f64().unwrap() - 1.0).abs() <= tolerance);
}

/// Each parameter's gradient to a thousandth of its length; gradients that cancel to nothing, to a millionth of all.
fn check_gradients(parameters: &Parameters, expected: &Value) {
    let all = expected["total_grad_l2"].as_f64().unwrap();
    let mut sum = 0.0;
    for (name, tensor) in parameters.trainable() {
        let gradient = tensor.grad();
        assert!(gradient.defined(), "{name} has no gradient");
        let actual = f64::try_from(gradient.to_kind(Kind::Double).norm()).unwrap();
        let expected = expected["grad_l2"][name].as_f64().unwrap();
        assert!((actual - expected).abs() <= 1e-3 * expected + 1e-6 * all, "{name}: {actual}, not {expected}");
        sum += actual * actual;
    }
    assert!((sum.sqrt() / all - 1.0).abs() < 1e-4, "total gradient {}, not {all}", sum.sqrt());
}

fn check_buffers(parameters: &Parameters, expected: &Value) {
    for (name, tensor) in parameters.buffers() {
        let actual = f64::try_from(tensor.to_kind(Kind::Double).norm()).unwrap();
        let expected = expected["buffers_l2_after"][name].as_f64().unwrap();
        assert!((actual - expected).abs() <= 1e-5 * expected, "{name}: {actual}, not {expected}");
    }
}

/// Losses and gradients with the reference's proposals in place of the model's own.
fn check_with_injected_proposals(name: &str, choice: &mut dyn Choice) {
    let Some(fixtures) = Fixtures::open() else { return };
    let (model, parameters) = fixtures.model();
    let (batch, expected) = (fixtures.batch(), fixtures.tensors(name));
    let (levels, rpn) = forward_to_rpn(&model, &batch);
    let stored = rpn_output(&model, &expected);
    for level in 0..stored.logits.len() {
        assert_close("rpn_cls", &rpn.logits[level], &stored.logits[level], 1e-5);
        assert_close("rpn_reg", &rpn.deltas[level], &stored.deltas[level], 1e-5);
    }
    let anchors = model.rpn.sample(&rpn.anchors, &batch.metas, &batch.targets, choice);
    check_anchors(&model, &rpn, &batch.metas, &anchors, &expected);
    let (rpn_cls, rpn_bbox) = model.rpn.loss(&levels, &rpn.anchors, &anchors).unwrap();
    let proposals = expected.series("proposals", batch.metas.len());
    let sample = model.roi_head.sample(&proposals, &batch.targets, choice).unwrap();
    check_targets(rpn.anchors.boxes.len(), &anchors, &sample, &expected);
    let targets = model.roi_head.mask_targets(&sample, &batch.targets).unwrap();
    assert_eq!(targets.to_kind(Kind::Uint8), expected.get("mask.targets"));
    let roi = model.roi_head.loss(&levels, &sample, &batch.targets).unwrap();
    let losses = Losses {
        rpn_cls,
        rpn_bbox,
        cls: roi.bbox.cls,
        acc: roi.bbox.acc,
        bbox: roi.bbox.bbox,
        mask: roi.mask,
        positives: sample.positives.len(),
        proposals: sample.rois.len(),
    };
    let json = fixtures.json(name);
    check_losses(&losses, &json["log_vars"], 1e-5);
    losses.total().unwrap().backward();
    check_gradients(&parameters, &json);
    check_buffers(&parameters, &json);
}

#[test]
fn parity_losses_and_gradients_with_the_first_choices_and_the_references_proposals() {
    check_with_injected_proposals("train_first", &mut First);
}

#[test]
fn parity_losses_and_gradients_with_even_choices_and_the_references_proposals() {
    check_with_injected_proposals("train_even", &mut Even);
}

#[test]
fn parity_own_proposals_in_training_are_the_references() {
    let Some(fixtures) = Fixtures::open() else { return };
    let (model, _) = fixtures.model();
    let expected = fixtures.tensors("train_first");
    let output = rpn_output(&model, &expected);
    let actual = model.rpn.proposals(&output, &fixtures.metas("img_metas"), model.train_nms_pre).unwrap();
    for (actual, expected) in actual.iter().zip(expected.series("proposals", 2)) {
        assert!((actual - expected).abs().max().double_value(&[]) < 1e-4);
    }
}

#[test]
fn parity_a_whole_step_from_end_to_end() {
    let Some(fixtures) = Fixtures::open() else { return };
    let (model, parameters) = fixtures.model();
    let json = fixtures.json("train_first");
    let losses = model.forward_train(&fixtures.batch(), &mut StepRandom::new(0, 0, 0).with_choice(First)).unwrap();
    check_losses(&losses, &json["log_vars"], 1e-5);
    assert_eq!((losses.positives, losses.proposals), (44, 1024));
    losses.total().unwrap().backward();
    check_gradients(&parameters, &json);
    let expected = fixtures.tensors("grads_first");
    let all = json["total_grad_l2"].as_f64().unwrap();
    for (name, tensor) in parameters.trainable() {
        let (actual, expected) = (tensor.grad(), expected.get(name));
        let distance = f64::try_from((actual - &expected).to_kind(Kind::Double).norm()).unwrap();
        let length = f64::try_from(expected.to_kind(Kind::Double).norm()).unwrap();
        assert!(distance <= 1e-3 * length + 1e-6 * all, "{name}: off by {distance} of {length}");
    }
}

#[test]
fn parity_random_choices_are_those_of_torch() {
    let Some(fixtures) = Fixtures::open() else { return };
    let (model, _) = fixtures.model();
    let (batch, expected) = (fixtures.batch(), fixtures.tensors("train_rand42"));
    let mut choice = Torch(Generator::from_seed(42));
    let (_, rpn) = tch::no_grad(|| forward_to_rpn(&model, &batch));
    let anchors = model.rpn.sample(&rpn.anchors, &batch.metas, &batch.targets, &mut choice);
    check_anchors(&model, &rpn, &batch.metas, &anchors, &expected);
    let proposals = fixtures.tensors("train_first").series("proposals", 2);
    let sample = model.roi_head.sample(&proposals, &batch.targets, &mut choice).unwrap();
    let joined: Vec<[f32; 5]> = (0..2)
        .flat_map(|image| {
            let boxes = fixtures.tensors("data").boxes(&format!("gt_bboxes.{image}"));
            let proposals = floats(&proposals[image].narrow(1, 0, 4)).as_chunks::<4>().0.to_vec();
            let boxes: Vec<[f32; 4]> = boxes.into_iter().chain(proposals).collect();
            let indices = [format!("rcnn.pos_inds.{image}"), format!("rcnn.neg_inds.{image}")];
            let indices: Vec<i64> = indices.iter().flat_map(|name| expected.integers(name)).collect();
            indices
                .into_iter()
                .map(|index| {
                    let [x1, y1, x2, y2] = boxes[index as usize];
                    [image as f32, x1, y1, x2, y2]
                })
                .collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(sample.rois, joined);
    let losses = model
        .forward_train(&batch, &mut StepRandom::new(0, 0, 0).with_choice(Torch(Generator::from_seed(42))))
        .unwrap();
    check_losses(&losses, &fixtures.json("train_rand42")["log_vars"], 1e-5);
}
