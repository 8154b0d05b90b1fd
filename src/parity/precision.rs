//! Automatic mixed precision against the reference's float32 numbers, with bounds of its own.
//!
//! Bfloat16 keeps 8 significant bits and float16 keeps 11. A value comes out right to about its last bits; a gradient,
//! which sums many terms of either sign, is off by a share of its length. The bounds are about twice what was measured
//! on the CPU, so that other kernels (a GPU's, other vector instructions) have room.

use tch::Kind;
use torch_ext::optim::{AdamW, AdamWOptions};

use super::fixtures::*;
use super::inference::rpn_output;
use super::*;
use crate::model::sample::First;

/// How far a type may lie from float32.
struct Bounds {
    amp: Amp,
    /// Values of maps and deltas of boxes, over the greatest.
    values: f64,
    /// Scores and mask probabilities.
    probabilities: f64,
    /// Each loss, relative.
    losses: f64,
    /// Each parameter's gradient, over its length.
    gradients: f64,
    /// Length of the whole gradient, relative.
    total: f64,
    /// Each running statistic, over the greatest of its layer.
    statistics: f64,
    /// One less the cosine between the whole update and the reference's.
    update: f64,
}

const BF16: Bounds = Bounds {
    amp: Amp::Bf16,
    values: 0.05,
    probabilities: 0.1,
    losses: 5e-3,
    gradients: 0.25,
    total: 0.01,
    statistics: 2e-3,
    update: 0.12,
};

const FP16: Bounds = Bounds {
    amp: Amp::Fp16,
    values: 5e-3,
    probabilities: 0.01,
    losses: 5e-4,
    gradients: 0.1,
    total: 3e-3,
    statistics: 3e-4,
    update: 0.04,
};

/// The factor of the float16 loss that training begins with.
const LOSS_SCALE: f64 = 65_536.0;
/// Biases whose true gradient is nothing, for a later BatchNorm takes them out again: AdamW steps by the sign of noise.
const CANCELLED: [&str; 4] = [
    "backbone.patch_embed.norm.bias",
    "backbone.stages.1.norm.bias",
    "backbone.stages.3.norm.bias",
    "backbone.stages.5.norm.bias",
];

fn number(tensor: &Tensor) -> f64 {
    f64::try_from(tensor.detach().to_kind(Kind::Double)).unwrap()
}

fn length(tensor: &Tensor) -> f64 {
    number(&tensor.detach().to_kind(Kind::Double).norm())
}

/// Losses with the reference's proposals and the first choices, and unscaled gradients in the parameters.
fn step(fixtures: &Fixtures, amp: Amp) -> (Parameters, Losses) {
    let (model, parameters) = fixtures.model();
    let losses = losses(fixtures, &model, amp);
    let scale = if amp == Amp::Fp16 { LOSS_SCALE } else { 1.0 };
    (losses.total().unwrap() * scale).backward();
    let tensors: Vec<Tensor> = parameters.trainable().map(|(_, tensor)| tensor.shallow_clone()).collect();
    assert!(!torch_ext::optim::unscale(&tensors, scale).unwrap(), "the gradients overflow");
    (parameters, losses)
}

fn losses(fixtures: &Fixtures, model: &MaskRcnn, amp: Amp) -> Losses {
    let batch = fixtures.batch();
    let _autocast = model.autocast(amp).unwrap();
    let images = ops::channels_last(&batch.images).unwrap();
    let features = model.backbone.forward(&images, Statistics::Batch, None).unwrap();
    let levels = model.neck.forward(&features).unwrap();
    // As in training the head runs without gradient first, which must not spoil the kept casts of its parameters.
    let rpn = tch::no_grad(|| model.rpn.forward(&levels)).unwrap();
    let anchors = model.rpn.sample(&rpn.anchors, &batch.metas, &batch.targets, &mut First);
    let (rpn_cls, rpn_bbox) = model.rpn.loss(&levels, &rpn.anchors, &anchors).unwrap();
    let proposals = fixtures.tensors("train_first").series("proposals", batch.metas.len());
    let sample = model.roi_head.sample(&proposals, &batch.targets, &mut First).unwrap();
    let roi = model.roi_head.loss(&levels, &sample, &batch.targets).unwrap();
    Losses {
        rpn_cls,
        rpn_bbox,
        cls: roi.bbox.cls,
        acc: roi.bbox.acc,
        bbox: roi.bbox.bbox,
        mask: roi.mask,
        positives: sample.positives.len(),
        proposals: sample.rois.len(),
    }
}

fn check_losses(losses: &Losses, expected: &serde_json::Value, bounds: &Bounds) {
    for (name, actual) in losses.named() {
        assert_eq!(actual.kind(), Kind::Float, "{name}");
        let (actual, expected) = (number(actual), expected[name].as_f64().unwrap());
        // A few of 1024 proposals may change sides.
        let allowed = if name == "acc" { 0.5 } else { bounds.losses * expected };
        assert!((actual - expected).abs() <= allowed, "{name} is {actual}, not {expected}");
    }
}

fn check_gradients(parameters: &Parameters, fixtures: &Fixtures, bounds: &Bounds) {
    let expected = fixtures.tensors("grads_first");
    let mut sum = 0.0;
    for (name, tensor) in parameters.trainable() {
        let (gradient, expected) = (tensor.grad(), expected.get(name));
        assert!(gradient.defined() && gradient.kind() == Kind::Float, "{name}");
        let (distance, of) = (length(&(&gradient - &expected)), length(&expected));
        assert!(distance <= bounds.gradients * of, "{name}: off by {distance} of {of}");
        sum += length(&gradient).powi(2);
    }
    let all = fixtures.json("train_first")["total_grad_l2"].as_f64().unwrap();
    assert!((sum.sqrt() / all - 1.0).abs() <= bounds.total, "total gradient {}, not {all}", sum.sqrt());
}

fn check_statistics(parameters: &Parameters, exact: &Parameters, bounds: &Bounds) {
    for ((name, actual), (_, expected)) in parameters.buffers().zip(exact.buffers()) {
        assert_eq!(actual.kind(), expected.kind(), "{name}");
        assert_close(name, actual, expected, bounds.statistics);
    }
}

/// One AdamW update against that of the reference: each parameter's length, and the direction of the whole.
fn check_update(parameters: &Parameters, fixtures: &Fixtures, bounds: &Bounds) {
    let (before, gradients) = (fixtures.tensors("ckpt"), fixtures.tensors("grads_first"));
    let own: Vec<Tensor> = parameters.trainable().map(|(_, tensor)| tensor.shallow_clone()).collect();
    let with_reference_gradient = |name: &str| {
        let copy = before.get(name).copy().set_requires_grad(true);
        (&copy * gradients.get(name)).sum(Kind::Float).backward();
        copy
    };
    let exact: Vec<Tensor> = parameters.trainable().map(|(name, _)| with_reference_gradient(name)).collect();
    let options = AdamWOptions { betas: (0.9, 0.999), eps: 1e-8, weight_decay: 1e-4 };
    for tensors in [&own, &exact] {
        AdamW::new(tensors, options).unwrap().step(2e-4).unwrap();
    }
    let lengths = &fixtures.json("train_first")["param_delta_l2"];
    let (mut product, mut squares) = (0.0, (0.0, 0.0));
    for ((name, own), exact) in parameters.trainable().zip(&exact) {
        let start = before.get(name);
        let (own, exact) = (own.detach() - &start, exact.detach() - &start);
        let expected = lengths[name].as_f64().unwrap();
        if !CANCELLED.contains(&name) {
            assert!((length(&own) - expected).abs() <= 0.01 * expected + 1e-7, "{name}: {own:?}, not {expected}");
        }
        product += number(&(&own * &exact).sum(Kind::Double));
        squares = (squares.0 + length(&own).powi(2), squares.1 + length(&exact).powi(2));
    }
    let cosine = product / (squares.0 * squares.1).sqrt();
    assert!(1.0 - cosine <= bounds.update, "cosine of the updates: {cosine}");
}

fn check_step(bounds: &Bounds) {
    let Some(fixtures) = Fixtures::open() else { return };
    let (parameters, losses) = step(&fixtures, bounds.amp);
    check_losses(&losses, &fixtures.json("train_first")["log_vars"], bounds);
    check_gradients(&parameters, &fixtures, bounds);
    check_statistics(&parameters, &step(&fixtures, Amp::Off).0, bounds);
    check_update(&parameters, &fixtures, bounds);
}

#[test]
fn parity_bf16_losses_gradients_statistics_and_update() {
    check_step(&BF16);
}

#[test]
fn parity_fp16_losses_gradients_statistics_and_update() {
    check_step(&FP16);
}

/// Features, proposal head, box head and mask head at the reference's RoIs.
fn check_inference(bounds: &Bounds) {
    let Some(fixtures) = Fixtures::open() else { return };
    let (model, _) = fixtures.model();
    let _guard = tch::no_grad_guard();
    let _autocast = model.autocast(bounds.amp).unwrap();
    let expected = fixtures.tensors("eval_batch");
    let images = ops::channels_last(&fixtures.tensors("data").get("img")).unwrap();
    let features = model.backbone.forward(&images, Statistics::Running, None).unwrap();
    let levels = model.neck.forward(&features).unwrap();
    let rpn = model.rpn.forward(&levels).unwrap();
    let stored = rpn_output(&model, &expected);
    for (name, maps) in [("backbone", &features), ("fpn", &levels)] {
        for (level, (map, expected)) in maps.iter().zip(expected.series(name, maps.len())).enumerate() {
            assert_close(&format!("{name}.{level}"), map, &expected, bounds.values);
        }
    }
    for level in 0..levels.len() {
        assert_close("rpn_cls", &rpn.logits[level], &stored.logits[level], bounds.values);
        assert_close("rpn_reg", &rpn.deltas[level], &stored.deltas[level], bounds.values);
    }
    let head = &model.roi_head;
    let (scores, deltas) =
        head.bbox.forward(&head.bbox_extractor.forward(&levels, &expected.get("rois")).unwrap()).unwrap();
    let most = |actual: Tensor, expected: Tensor| number(&(actual - expected).abs().max());
    let softmax = |scores: &Tensor| scores.softmax(1, Kind::Float);
    let off = most(softmax(&scores), softmax(&expected.get("cls_score")));
    assert!(off <= bounds.probabilities, "scores are off by {off}");
    assert_close("bbox_pred", &deltas, &expected.get("bbox_pred"), bounds.values);
    let features = head.mask_extractor.forward(&levels, &expected.get("mask_rois")).unwrap();
    let logits = expected.get("mask_logits");
    for class in 0..logits.size()[1] {
        let labels = Tensor::full([logits.size()[0]], class, (Kind::Int64, Device::Cpu));
        let own = head.mask.forward(&features, &labels).unwrap().to_kind(Kind::Float);
        let off = most(own.sigmoid(), logits.select(1, class).sigmoid());
        assert!(off <= bounds.probabilities, "masks of class {class} are off by {off}");
    }
    for found in model.predict(&images, &fixtures.metas("img_metas")).unwrap() {
        for tensor in [&found.boxes, &found.scores, &found.masks] {
            assert_eq!(tensor.kind(), Kind::Float);
        }
    }
}

#[test]
fn parity_bf16_inference_stage_by_stage() {
    check_inference(&BF16);
}

#[test]
fn parity_fp16_inference_stage_by_stage() {
    check_inference(&FP16);
}
