//! Training mode, stage by stage: features with batch statistics, sampling and targets, losses, gradients, one step of
//! AdamW. Proposals and sampled indices are MMDetection's, so that rounding does not change them. The first step of
//! `train_first` is also compared end to end.

use serde_json::Value;
use tch::{Device, Kind, Tensor};

use fnet_common::random::Generator;
use fnet_config as config;
use fnet_data::Batch;
use fnet_model::layers::Statistics;
use fnet_model::roi_head::RoiSample;
use fnet_model::rpn::{ImageSample, RpnOutput};
use fnet_model::sample::{Choice, First, StepRandom};
use fnet_model::{Losses, MaskRcnn, Parameters};
use fnet_train::Optimizer;

use super::compare::{STAGE, length, scalar};
use super::features::check_rpn;
use super::fixtures::{Fixtures, Tensors, skip};
use super::proposals;
use super::report::Comparison;
use super::samples::{self, Even, Torch};

/// The two sets of numbers with their choices.
fn sets() -> [(&'static str, Box<dyn Choice>); 2] {
    [("train_first", Box::new(First)), ("train_even", Box::new(Even))]
}

/// A model in the middle of a step, with the outputs of the pyramid and the RPN.
struct Step {
    fixtures: Fixtures,
    model: MaskRcnn,
    parameters: Parameters,
    batch: Batch,
    features: Vec<Tensor>,
    levels: Vec<Tensor>,
    rpn: RpnOutput,
}

impl Step {
    fn open() -> Option<Self> {
        let fixtures = Fixtures::open()?;
        let (model, parameters) = fixtures.model();
        let batch = fixtures.batch();
        let images = batch.images.values(Device::Cpu).unwrap();
        let features = model.backbone.forward(&images, Statistics::Batch, None).unwrap();
        let levels = model.neck.forward(&features).unwrap();
        let rpn = tch::no_grad(|| model.rpn.forward(&levels)).unwrap();
        Some(Self { fixtures, model, parameters, batch, features, levels, rpn })
    }

    /// The stored choice of anchors and RoIs.
    fn stored_samples(&self, stored: &Tensors) -> (Vec<ImageSample>, RoiSample) {
        let classes = self.fixtures.config().num_classes as i64;
        let anchors = samples::anchors(&self.model, &self.rpn.anchors, &self.batch, stored);
        (anchors, samples::rois(stored, self.batch.metas.len(), classes))
    }

    fn losses(&self, anchors: &[ImageSample], rois: &RoiSample) -> Losses {
        let (rpn_cls, rpn_bbox) = self.model.rpn.loss(&self.levels, &self.rpn.anchors, anchors).unwrap();
        let roi = self.model.roi_head.loss(&self.levels, rois, &self.batch.targets).unwrap();
        let losses = [rpn_cls, rpn_bbox, roi.bbox.cls, roi.bbox.bbox];
        Losses::new(losses, roi.mask, roi.bbox.acc, rois.positives.len(), rois.rois.len()).unwrap()
    }

    /// Computes the gradients of the losses with the stored choice of `name`.
    fn backward(&self, name: &str) {
        let (anchors, rois) = self.stored_samples(&self.fixtures.tensors(name));
        self.losses(&anchors, &rois).total().unwrap().backward();
    }
}

/// The bound of losses with the same proposals and samples, and the bound with others.
const LOSSES: f64 = 1e-5;
const LOSSES_OF_OTHER_PROPOSALS: f64 = 0.02;

/// Relative difference of each loss, of their total and of the accuracy.
fn differences(losses: &Losses, expected: &Value) -> Vec<f64> {
    let difference = |(name, actual): (&str, f64)| {
        let expected = expected[name].as_f64().unwrap_or_else(|| panic!("the stored losses have no {name}"));
        (actual - expected).abs() / if expected == 0.0 { 1.0 } else { expected.abs() }
    };
    losses.to_host().unwrap().into_iter().map(difference).collect()
}

fn check_losses(compare: &Comparison<'_>, what: &str, losses: &Losses, expected: &Value, bound: f64) {
    for difference in differences(losses, expected) {
        compare.at_most(&format!("{what}, relative"), difference, bound);
    }
}

/// Compares the norm of each parameter's gradient, to a thousandth. A norm that cancels is compared to a millionth of
/// the total.
pub(super) fn check_gradients(compare: &Comparison<'_>, what: &str, parameters: &Parameters, expected: &Value) {
    check_norms(compare, what, parameters, expected, (1e-3, 1e-3));
}

/// The same with bounds per parameter and for the total.
pub(super) fn check_norms(
    compare: &Comparison<'_>,
    what: &str,
    parameters: &Parameters,
    expected: &Value,
    (each, together): (f64, f64),
) {
    let all = expected["total_grad_l2"].as_f64().unwrap();
    let mut squares = 0.0;
    for (name, tensor) in parameters.trainable() {
        let gradient = tensor.grad();
        assert!(gradient.defined(), "{name} has no gradient");
        let stored = expected["grad_l2"][name].as_f64().unwrap_or_else(|| panic!("grad_l2 lacks {name}"));
        let actual = length(&gradient);
        compare.at_most(&format!("{what}, per parameter, relative"), off(actual, stored, all), each);
        squares += actual * actual;
    }
    compare.at_most(&format!("{what}, total, relative"), (squares.sqrt() / all - 1.0).abs(), together);
}

/// Compares each parameter's gradient with the stored one, relative to its length, if the fixtures have it.
pub(super) fn check_distances(
    compare: &Comparison<'_>,
    what: &str,
    parameters: &Parameters,
    fixtures: &Fixtures,
    bound: f64,
) {
    if fixtures.optional("grads_first.safetensors").is_none() {
        return;
    }
    let all = fixtures.json("train_first")["total_grad_l2"].as_f64().unwrap();
    let stored = fixtures.tensors("grads_first");
    for (name, tensor) in parameters.trainable() {
        let (gradient, expected) = (tensor.grad(), stored.get(name));
        assert_eq!(gradient.kind(), Kind::Float, "{name}");
        let off = length(&(gradient - &expected)) / length(&expected).max(1e-3 * all);
        compare.at_most(&format!("{what}, distance per parameter, relative"), off, bound);
    }
}

/// A parameter before and after an update.
pub(super) struct Updated {
    pub(super) name: String,
    pub(super) before: Tensor,
    pub(super) after: Tensor,
}

/// Makes one AdamW update with the gradients of the parameters and the settings of a stored step.
pub(super) fn adamw_step(parameters: &Parameters, stored: &Value) -> Vec<Updated> {
    let (config, rate) = optimizer(stored);
    let trained: Vec<(String, Tensor)> =
        parameters.trainable().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())).collect();
    let before: Vec<Tensor> = trained.iter().map(|(_, tensor)| tensor.detach_copy()).collect();
    Optimizer::new(&config, &trained, |_| false).unwrap().step(rate).unwrap();
    let updated = |((name, after), before): ((String, Tensor), Tensor)| Updated { name, before, after: after.detach() };
    trained.into_iter().zip(before).map(updated).collect()
}

/// Difference of two lengths relative to the second, or to a thousandth of `all` if that is larger, because smaller
/// values are noise.
fn off(actual: f64, expected: f64, all: f64) -> f64 {
    (actual - expected).abs() / expected.max(1e-3 * all)
}

#[test]
fn parity_training_features() {
    let Some(step) = Step::open() else { return };
    for (name, _) in sets() {
        let (stored, compare) = (step.fixtures.json(name), step.fixtures.compare("training features"));
        for (key, what, actual) in
            [("backbone_train", "backbone, 4 levels", &step.features), ("fpn_train", "FPN, 5 levels", &step.levels)]
        {
            let expected = stored[key].as_array().unwrap();
            assert_eq!(actual.len(), expected.len());
            for (actual, expected) in actual.iter().zip(expected) {
                compare.statistics(what, actual, expected);
            }
        }
        check_rpn(&compare, &step.rpn, &step.fixtures.tensors(name));
    }
}

#[test]
fn parity_training_running_statistics() {
    let Some(step) = Step::open() else { return };
    for (name, _) in sets() {
        let stored = &step.fixtures.json(name)["buffers_l2_after"];
        for (buffer, tensor) in step.parameters.buffers() {
            let expected = stored[buffer].as_f64().unwrap_or_else(|| panic!("buffers_l2_after lacks {buffer}"));
            let off = (length(tensor) - expected).abs() / expected.max(f64::MIN_POSITIVE);
            step.fixtures.compare("training features").at_most("running statistics, length, relative", off, STAGE);
        }
    }
}

#[test]
fn parity_training_samples_and_targets() {
    let Some(step) = Step::open() else { return };
    let (model, batch) = (&step.model, &step.batch);
    for (name, mut choice) in sets() {
        let (stored, compare) = (step.fixtures.tensors(name), step.fixtures.compare("sampling and targets"));
        let anchors = model.rpn.sample(&step.rpn.anchors, &batch.metas, &batch.targets, choice.as_mut());
        samples::check_anchors(&compare, model, &step.rpn.anchors, batch, &anchors, &stored);
        let proposals = stored.series("proposals", batch.metas.len());
        samples::check_assignment(&compare, &step.fixtures.config(), &proposals, batch, &stored);
        let rois = model.roi_head.sample(&proposals, &batch.targets, choice.as_mut()).unwrap();
        samples::check_rois(&compare, &rois, &step.stored_samples(&stored).1);
        let targets: Vec<f32> = model.roi_head.mask_targets(&rois, &batch.targets).into_iter().map(f32::from).collect();
        let expected = Vec::<f32>::try_from(stored.get("mask.targets").to_kind(Kind::Float).reshape([-1])).unwrap();
        compare.equal("mask targets", &targets, &expected);
    }
}

#[test]
fn parity_training_heads() {
    let Some(step) = Step::open() else { return };
    let (head, _guard) = (&step.model.roi_head, tch::no_grad_guard());
    for (name, _) in sets() {
        let stored = step.fixtures.tensors(name);
        let features = head.bbox_extractor.forward(&step.levels, &stored.get("rcnn.rois")).unwrap();
        let (scores, deltas) = head.bbox.forward(&features).unwrap();
        let compare = step.fixtures.compare("box head");
        compare.tensor("scores in training", &scores, &stored.get("rcnn.cls_score"), STAGE);
        if let Some(expected) = stored.optional("rcnn.bbox_pred") {
            compare.tensor("deltas in training", &deltas, expected, STAGE);
        }
        if let Some(expected) = stored.optional("mask.logits_own_class") {
            let rois = step.stored_samples(&stored).1;
            let labels: Vec<i64> = rois.positives.iter().map(|&row| rois.labels[row as usize]).collect();
            let features = head.mask_extractor.forward(&step.levels, &stored.get("rcnn.pos_rois")).unwrap();
            let logits = head.mask.as_ref().unwrap().forward(&features, &Tensor::from_slice(&labels)).unwrap();
            step.fixtures.compare("mask head").tensor("logits in training", &logits, expected, STAGE);
        }
    }
}

#[test]
fn parity_training_losses() {
    let Some(step) = Step::open() else { return };
    for (name, _) in sets() {
        let stored = step.fixtures.json(name);
        let (anchors, rois) = step.stored_samples(&step.fixtures.tensors(name));
        let compare = step.fixtures.compare("losses");
        let losses = step.losses(&anchors, &rois);
        check_losses(&compare, &format!("{name}, injected samples"), &losses, &stored["log_vars"], LOSSES);
        for (level, (cls, bbox)) in samples::losses_by_level(&step.model, &step.levels, &step.rpn, &anchors) {
            for (key, actual) in [("loss_rpn_cls", cls), ("loss_rpn_bbox", bbox)] {
                let expected = stored["losses"][key][level].as_f64().unwrap();
                // The difference of one level is relative to the total loss.
                let off = (actual - expected).abs() / stored["log_vars"][key].as_f64().unwrap().max(f64::MIN_POSITIVE);
                compare.at_most("RPN losses per level, relative to their sum", off, LOSSES);
            }
        }
    }
}

#[test]
fn parity_training_gradients() {
    for (name, _) in sets() {
        let Some(step) = Step::open() else { return };
        step.backward(name);
        let what = format!("{name}, L2 norm");
        check_gradients(&step.fixtures.compare("gradients"), &what, &step.parameters, &step.fixtures.json(name));
    }
}

/// Biases of norms that a later norm cancels. Their true gradient is 0, and AdamW makes a full step from the remaining
/// noise.
pub(super) fn is_canceled(name: &str) -> bool {
    name == "backbone.patch_embed.norm.bias"
        || [1, 3, 5].iter().any(|stage| name == format!("backbone.stages.{stage}.norm.bias"))
}

/// AdamW with MMDetection's settings.
pub(super) fn optimizer(stored: &Value) -> (config::Optimizer, f64) {
    let number = |value: &Value| value.as_f64().unwrap();
    let (stored, group) = (&stored["optimizer"], config::Optimizer::default());
    let betas = [number(&stored["betas"][0]), number(&stored["betas"][1])];
    let stored_group = (betas, number(&stored["eps"]), number(&stored["weight_decay"]));
    assert_eq!((group.betas, group.eps, group.weight_decay), stored_group, "the defaults are MMDetection's");
    (group, number(&stored["lr"]))
}

#[test]
fn parity_training_adamw_step() {
    for (name, _) in sets() {
        let Some(step) = Step::open() else { return };
        let (stored, compare) = (step.fixtures.json(name), step.fixtures.compare("AdamW step"));
        assert_eq!(stored["n_param_groups"], 1);
        step.backward(name);
        let rate = optimizer(&stored).1;
        for Updated { name: parameter, before, after } in adamw_step(&step.parameters, &stored) {
            let value = |key: &str| {
                stored[key][&parameter].as_f64().unwrap_or_else(|| panic!("{key} of {name}.json lacks {parameter}"))
            };
            let change = &after - &before;
            let lengths = [(value("param_l2_after"), length(&after)), (value("param_delta_l2"), length(&change))];
            if is_canceled(&parameter) {
                // A difference of two learning rates in every value corresponds to twice the root of their number in
                // the length.
                let each = rate * (before.numel() as f64).sqrt();
                let off = lengths.map(|(expected, actual)| (actual - expected).abs() / each);
                compare.at_most("canceled biases, by length, in learning rates", off[0], 2.0);
                compare.at_most("change of canceled biases, by length, in learning rates", off[1], 2.0);
                let largest = scalar(&change.abs().max()) / rate;
                compare.at_most("change of canceled biases, maximum, in learning rates", largest, 2.0);
            } else {
                let off = lengths.map(|(expected, actual)| (actual - expected).abs() / expected.max(f64::MIN_POSITIVE));
                compare.at_most("parameters, length, relative", off[0], STAGE);
                compare.at_most("change of parameters, length, relative", off[1], 1e-2);
            }
        }
    }
}

/// Compares the draws of the unmodified sampler and the resulting losses. Its step had the same proposals as
/// `train_first`.
#[test]
fn parity_training_random_samples() {
    let Some(step) = Step::open() else { return };
    for name in ["train_rand42.json", "train_rand42.safetensors"] {
        if step.fixtures.optional(name).is_none() {
            return;
        }
    }
    let (stored, facts) = (step.fixtures.tensors("train_rand42"), step.fixtures.json("train_rand42"));
    let (model, batch, compare) = (&step.model, &step.batch, step.fixtures.compare("sampling and targets"));
    let mut choice = Torch::new(Generator::from_seed(42));
    let anchors = model.rpn.sample(&step.rpn.anchors, &batch.metas, &batch.targets, &mut choice);
    samples::check_chosen_anchors(&compare, model, &step.rpn.anchors, batch, &anchors, &stored);
    let proposals = step.fixtures.tensors("train_first").series("proposals", batch.metas.len());
    let rois = model.roi_head.sample(&proposals, &batch.targets, &mut choice).unwrap();
    compare.equal("sampled RoIs", &rois.rois, &samples::chosen_rois(&proposals, batch, &stored));
    let calls: Vec<(usize, Vec<usize>)> = serde_json::from_value(facts["randperm_calls_n_and_first5"].clone()).unwrap();
    compare.equal("random draws", &choice.calls, &calls);
    let losses = step.losses(&anchors, &rois);
    check_losses(&step.fixtures.compare("losses"), "train_rand42", &losses, &facts["log_vars"], LOSSES);
}

/// Nothing is injected: the model computes its own proposals and chooses samples like `train_first`.
#[test]
fn parity_training_end_to_end() {
    let Some(fixtures) = Fixtures::open() else { return };
    let (model, parameters) = fixtures.model();
    let (json, stored) = (fixtures.json("train_first"), fixtures.tensors("train_first"));
    let mut random = StepRandom { choice: Box::new(First), ..StepRandom::new(0, 0, 0) };
    let losses = model.forward_train(&fixtures.batch(), &mut random).unwrap();
    let compare = fixtures.compare("losses");
    let close = differences(&losses, &json["log_vars"]).iter().all(|&difference| difference <= LOSSES);
    if !close && !proposals::are_defined(&model, &stored, &fixtures.metas("img_metas")) {
        skip("the strict bounds, because the proposals depend on how MMDetection sorted equal scores");
        let what = "train_first, end to end with other proposals";
        return check_losses(&compare, what, &losses, &json["log_vars"], LOSSES_OF_OTHER_PROPOSALS);
    }
    check_losses(&compare, "train_first, end to end", &losses, &json["log_vars"], LOSSES);
    let expected = [stored.get("rcnn.pos_rois"), stored.get("rcnn.rois")].map(|rois| rois.size()[0] as usize);
    compare.equal("number of RoIs and positives", &[losses.positives, losses.proposals], &expected);
    losses.total().unwrap().backward();
    let compare = fixtures.compare("gradients");
    check_gradients(&compare, "train_first, end to end, L2 norm", &parameters, &json);
    check_distances(&compare, "train_first, end to end", &parameters, &fixtures, 1e-3);
}
