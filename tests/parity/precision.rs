//! Stage "mixed precision": bfloat16 and float16 vs. MMDetection's float32 numbers, with separate bounds.
//!
//! Bfloat16 has 8 significant bits and float16 has 11. A value is correct to about its last bits. A gradient, which
//! sums many terms of both signs, has an error proportional to its length. Float16 is slow on the CPU, so it is
//! compared only for small models.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tch::{Device, Kind, Tensor};

use fnet_config::{self as config, Amp, Metric};
use fnet_data::{Dataset, Split};
use fnet_distributed::Communicator;
use fnet_evaluate::inference::{RankResult, evaluate};
use fnet_model::layers::Statistics;
use fnet_model::{Losses, MaskRcnn, Parameters};

use super::compare::{length, scalar};
use super::fixtures::{Fixtures, Tensors, load_all, reference, skip};
use super::inputs::channels_last;
use super::inputs::maps;
use super::report::Comparison;
use super::samples;
use super::training::{adamw_step, check_distances, check_norms, is_canceled, optimizer};

/// Maximum number of weights of a model that is compared in float16 on the CPU.
const SMALL: usize = 5_000_000;

/// Bounds of the difference from float32: about twice the measured values of the small model.
struct Bounds {
    amp: Amp,
    name: &'static str,
    /// Values of maps and box deltas, relative to the maximum.
    values: f64,
    /// Scores and mask probabilities.
    probabilities: f64,
    /// Each loss, relative.
    losses: f64,
    /// Each parameter's gradient, relative to its length.
    gradients: f64,
    /// Length of the full gradient, relative.
    total: f64,
    /// Each running statistic, relative to the maximum of its layer.
    statistics: f64,
    /// 1 - cosine of the angle between the full update and MMDetection's.
    update: f64,
}

const BF16: Bounds = Bounds {
    amp: Amp::Bf16,
    name: "bf16",
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
    name: "fp16",
    values: 5e-3,
    probabilities: 0.01,
    losses: 5e-4,
    gradients: 0.1,
    total: 3e-3,
    statistics: 3e-4,
    update: 0.04,
};

impl Bounds {
    /// The bounds of a model. Rounding errors accumulate over its blocks.
    fn of(&self, config: &config::Model) -> Self {
        let blocks = config.backbone.depths.iter().sum::<usize>();
        let factor = (blocks as f64 / 5.0).max(1.0).sqrt();
        Self {
            values: self.values * factor,
            probabilities: self.probabilities * factor,
            losses: self.losses * factor,
            gradients: self.gradients * factor,
            total: self.total * factor,
            statistics: self.statistics * factor,
            update: self.update * factor,
            ..*self
        }
    }

    fn what(&self, what: &str) -> String {
        format!("{}: {what}", self.name)
    }

    /// Whether the fixtures' model is too large for this type on the CPU. Prints it if so.
    fn is_too_slow(&self, parameters: &Parameters) -> bool {
        let slow = self.amp == Amp::Fp16 && parameters.count() > SMALL;
        if slow {
            skip("float16 has no fast kernels on the CPU, and the model is large");
        }
        slow
    }
}

/// Computes the losses with the stored samples, and their unscaled gradients in the parameters.
fn step(fixtures: &Fixtures, model: &MaskRcnn, parameters: &Parameters, amp: Amp) -> Losses {
    let tensors: Vec<Tensor> = parameters.trainable().map(|(_, tensor)| tensor.shallow_clone()).collect();
    let before: Vec<Tensor> = parameters.buffers().map(|(_, buffer)| buffer.copy()).collect();
    let mut scale = if amp == Amp::Fp16 { config::Train::default().loss_scale } else { 1.0 };
    loop {
        let losses = forward(fixtures, model, amp);
        (losses.total().unwrap() * scale).backward();
        if scalar(&torch_ext::optim::unscale(&tensors, scale).unwrap()) == 0.0 {
            return losses;
        }
        // As in training, a step with overflowing gradients is skipped and the scale is halved.
        torch_ext::optim::clear_gradients(&tensors).unwrap();
        parameters.buffers().zip(&before).for_each(|((_, buffer), before)| buffer.shallow_clone().copy_(before));
        scale /= 2.0;
        assert!(scale >= 1.0, "the gradients overflow");
    }
}

fn forward(fixtures: &Fixtures, model: &MaskRcnn, amp: Amp) -> Losses {
    let (batch, stored) = (fixtures.batch(), fixtures.tensors("train_first"));
    let _autocast = model.autocast(amp).unwrap();
    let images = batch.images.values(Device::Cpu).unwrap();
    let features = model.backbone.forward(&images, Statistics::Batch, None).unwrap();
    let levels = model.neck.forward(&features).unwrap();
    // As in training, the head first runs without gradient, which must not affect the cached casts of its parameters.
    let rpn = tch::no_grad(|| model.rpn.forward(&levels)).unwrap();
    let anchors = samples::anchors(model, &rpn.anchors, &batch, &stored);
    let rois = samples::rois(&stored, batch.metas.len(), fixtures.config().num_classes as i64);
    let (rpn_cls, rpn_bbox) = model.rpn.loss(&levels, &rpn.anchors, &anchors).unwrap();
    let roi = model.roi_head.loss(&levels, &rois, &batch.targets).unwrap();
    let losses = [rpn_cls, rpn_bbox, roi.bbox.cls, roi.bbox.bbox];
    Losses::new(losses, roi.mask, roi.bbox.acc, rois.positives.len(), rois.rois.len()).unwrap()
}

fn check_losses(compare: &Comparison<'_>, bounds: &Bounds, losses: &Losses, expected: &Value) {
    for (name, actual) in losses.named() {
        assert_eq!(actual.kind(), Kind::Float, "{name}");
        let (off, expected) = (scalar(actual) - expected[name].as_f64().unwrap(), expected[name].as_f64().unwrap());
        if name == "acc" {
            // A few proposals may change their class.
            compare.at_most(&bounds.what("accuracy, percent"), off.abs(), 0.5);
        } else {
            compare.at_most(&bounds.what("losses, relative"), off.abs() / expected.max(1e-3), bounds.losses);
        }
    }
}

/// Compares each gradient, or only its length if gradients are not stored.
fn check_gradients(compare: &Comparison<'_>, bounds: &Bounds, parameters: &Parameters, fixtures: &Fixtures) {
    let json = fixtures.json("train_first");
    check_norms(compare, &bounds.what("gradients, L2 norm"), parameters, &json, (bounds.gradients, bounds.total));
    check_distances(compare, &bounds.what("gradients"), parameters, fixtures, bounds.gradients);
}

fn check_statistics(compare: &Comparison<'_>, bounds: &Bounds, parameters: &Parameters, exact: &Parameters) {
    for ((name, actual), (_, expected)) in parameters.buffers().zip(exact.buffers()) {
        assert_eq!(actual.kind(), expected.kind(), "{name}");
        compare.tensor(&bounds.what("running statistics"), actual, expected, bounds.statistics);
    }
}

/// Compares one AdamW update with that of `exact`'s gradients: the length per parameter, and the direction of the full
/// update.
fn check_update(compare: &Comparison<'_>, bounds: &Bounds, models: [&Parameters; 2], stored: &Value) {
    let rate = optimizer(stored).1;
    let updates = models.map(|parameters| adamw_step(parameters, stored));
    let (mut product, mut squares) = (0.0, [0.0; 2]);
    for (own, exact) in updates[0].iter().zip(&updates[1]) {
        let name = &own.name;
        let [own, exact] = [own, exact].map(|updated| &updated.after - &updated.before);
        if !is_canceled(name) {
            let expected = stored["param_delta_l2"][name].as_f64().unwrap();
            let off = (length(&own) - expected).abs() / expected.max(rate);
            compare.at_most(&bounds.what("AdamW step, length per parameter, relative"), off, bounds.total);
        }
        product += scalar(&(&own * &exact).sum(Kind::Double));
        squares = [squares[0] + length(&own).powi(2), squares[1] + length(&exact).powi(2)];
    }
    let cosine = product / (squares[0] * squares[1]).sqrt();
    compare.at_most(&bounds.what("AdamW step, 1 - cosine of the full update"), 1.0 - cosine, bounds.update);
}

fn check_step(bounds: &Bounds) {
    let Some(fixtures) = Fixtures::open() else { return };
    let (bounds, compare) = (bounds.of(&fixtures.config()), fixtures.compare("mixed precision"));
    let ((model, parameters), (exact_model, exact)) = (fixtures.model(), fixtures.model());
    if bounds.is_too_slow(&parameters) {
        return;
    }
    let json = fixtures.json("train_first");
    check_losses(&compare, &bounds, &step(&fixtures, &model, &parameters, bounds.amp), &json["log_vars"]);
    check_gradients(&compare, &bounds, &parameters, &fixtures);
    step(&fixtures, &exact_model, &exact, Amp::Off);
    check_statistics(&compare, &bounds, &parameters, &exact);
    check_update(&compare, &bounds, [&parameters, &exact], &json);
}

#[test]
fn parity_bf16_losses_gradients_statistics_and_update() {
    check_step(&BF16);
}

#[test]
fn parity_fp16_losses_gradients_statistics_and_update() {
    check_step(&FP16);
}

fn most_apart(actual: &Tensor, expected: &Tensor) -> f64 {
    scalar(&(actual - expected).abs().max())
}

/// Compares backbone, pyramid and RPN head from the images, and the box head at the stored RoIs.
fn check_stages(compare: &Comparison<'_>, bounds: &Bounds, model: &MaskRcnn, images: &Tensor, stored: &Tensors) {
    let features = model.backbone.forward(images, Statistics::Running, None).unwrap();
    let levels = model.neck.forward(&features).unwrap();
    let rpn = model.rpn.forward(&levels).unwrap();
    for (name, maps) in [("backbone", &features), ("fpn", &levels)] {
        for (level, map) in maps.iter().enumerate() {
            let expected = stored.get(&format!("{name}.{level}"));
            compare.tensor(&bounds.what(&format!("{name}, per level")), map, &expected, bounds.values);
        }
    }
    for (level, &size) in rpn.anchors.levels.iter().enumerate() {
        for (name, answers) in [("rpn_cls", &rpn.logits), ("rpn_reg", &rpn.deltas)] {
            let (own, expected) = (maps(&answers[level], size), stored.get(&format!("{name}.{level}")));
            compare.tensor(&bounds.what(&format!("{name}, per level")), &own, &expected, bounds.values);
        }
    }
    let head = &model.roi_head;
    let own = head.bbox_extractor.forward(&levels, &stored.get("rois")).unwrap();
    let (scores, deltas) = head.bbox.forward(&own).unwrap();
    let expected = stored.get("cls_score").softmax(1, Kind::Float);
    let off = most_apart(&scores.softmax(1, Kind::Float), &expected);
    compare.at_most(&bounds.what("scores of all proposals"), off, bounds.probabilities);
    if let Some(expected) = stored.optional("bbox_pred") {
        compare.tensor(&bounds.what("deltas of all proposals"), &deltas, expected, bounds.values);
    }
    let (Some(logits), rois) = (stored.optional("mask_logits"), stored.get("mask_rois")) else { return };
    if logits.size()[0] != rois.size()[0] {
        return;
    }
    let features = head.mask_extractor.forward(&levels, &rois).unwrap();
    for class in 0..logits.size()[1] {
        let labels = Tensor::full([logits.size()[0]], class, (Kind::Int64, Device::Cpu));
        let own = head.mask.as_ref().unwrap().forward(&features, &labels).unwrap().to_kind(Kind::Float).sigmoid();
        let off = most_apart(&own, &logits.select(1, class).sigmoid());
        compare.at_most(&bounds.what("mask probabilities"), off, bounds.probabilities);
    }
}

fn check_inference(bounds: &Bounds) {
    let Some(fixtures) = Fixtures::open() else { return };
    let (bounds, compare) = (bounds.of(&fixtures.config()), fixtures.compare("mixed precision"));
    let (model, parameters) = fixtures.model();
    if bounds.is_too_slow(&parameters) {
        return;
    }
    let _guard = tch::no_grad_guard();
    let _autocast = model.autocast(bounds.amp).unwrap();
    let images = channels_last(&fixtures.tensors("data").get("img")).unwrap();
    check_stages(&compare, &bounds, &model, &images, &fixtures.tensors("eval_batch"));
    for found in model.predict(&images.shallow_clone().into(), &fixtures.metas("img_metas")).unwrap() {
        for tensor in [&found.boxes, &found.scores, found.masks.as_ref().unwrap()] {
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

/// Average precision of boxes and masks of MMDetection's trained detector on its 16 images. `None` without data.
fn average_precision(amp: &str) -> Option<[f64; 2]> {
    let weights = reference("trained_tiny/ckpt.pth")?;
    let data = reference("../data/coco_mini")?;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tiny80.toml");
    let sets = [format!("data.root={}", data.display()), format!("evaluation.amp={amp}")];
    let config = fnet_data::load_config(file, &sets).unwrap().config;
    let mut parameters = Parameters::new();
    let model = MaskRcnn::build(&config.model, &mut parameters, Device::Cpu).unwrap();
    load_all(&weights, &parameters);
    let dataset = Arc::new(Dataset::open(&config.data, Split::Val).unwrap());
    let kinds = [Metric::Bbox, Metric::Segm];
    let outcome =
        evaluate(&model, &dataset, &config, &kinds, &Communicator::alone(Device::Cpu), &mut |_| Ok(())).unwrap();
    let RankResult::Here(evaluation) = outcome else { panic!("a single rank has no result") };
    let named = evaluation.metrics.named();
    Some(["bbox_mAP", "segm_mAP"].map(|name| named[name]))
}

#[test]
fn parity_average_precision_of_a_trained_detector_in_narrow_types() {
    // MMDetection's results for these weights, in float32.
    let expected = [("boxes", 0.8034), ("masks", 0.7024)];
    for (amp, bound) in [("bf16", 0.03), ("fp16", 0.01)] {
        let Some(actual) = average_precision(amp) else { return };
        for (actual, (kind, expected)) in actual.iter().zip(expected) {
            let compare = Comparison::new("mixed precision", "trained_tiny");
            compare.at_most(&format!("{amp}: AP of {kind}"), (actual - expected).abs(), bound);
        }
    }
}
