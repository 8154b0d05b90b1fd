//! The training step with each numeric type: what it changes, and what stays unchanged after an overflow.

use std::collections::HashMap;
use std::sync::Arc;

use tch::{Kind, Tensor};

use fnet_checkpoint::native::{Checkpoint, CheckpointMeta};
use fnet_config::OptimizerKind;
use fnet_data::{ImageMeta, Images, InstanceMask, Target};

use super::*;

const HEIGHT: usize = 64;
const WIDTH: usize = 96;
const LEARNING_RATE: f64 = 0.01;
/// A loss scale at which every gradient overflows float16.
const OVERFLOWING_SCALE: f64 = 1e30;

/// A small detector whose losses use all proposals, so that nothing is sampled at random.
fn config(amp: Amp) -> Config {
    let mut config = Config::default();
    let model = &mut config.model;
    model.num_classes = 3;
    (model.backbone.embed_dim, model.backbone.depths, model.backbone.drop_path_rate) = (8, [1; 4], 0.0);
    (model.neck.out_channels, model.rpn.feat_channels) = (16, 16);
    (model.roi_head.bbox_fc_channels, model.roi_head.mask_channels, model.roi_head.mask_convs) = (32, 16, 1);
    (model.rpn.train_nms_pre, model.rpn.max_per_image) = (100, 50);
    (model.rpn.sampler.count, model.roi_head.sampler.count) = (8192, 8192);
    (config.train.amp, config.train.loss_scale) = (amp, 1024.0);
    config
}

/// Two images with one object each.
fn batch() -> Batch {
    let target = |label: i64, [x1, y1, x2, y2]: [usize; 4]| {
        let (width, height) = (x2 - x1, y2 - y1);
        let pixels = Arc::from(vec![1u8; width * height]);
        Target {
            boxes: vec![[x1 as f32, y1 as f32, x2 as f32, y2 as f32]],
            labels: vec![label],
            masks: vec![Some(InstanceMask { frame: (HEIGHT, WIDTH), x: x1, y: y1, width, height, pixels })],
        }
    };
    let meta = |image_id: i64| ImageMeta::plain(image_id, format!("{image_id}.png"), (HEIGHT, WIDTH));
    let count = (2 * 3 * HEIGHT * WIDTH) as i64;
    let values = Tensor::arange(count, (Kind::Double, Device::Cpu)).square().sin().to_kind(Kind::Float) * 2.0;
    Batch {
        images: values.reshape([2, 3, HEIGHT as i64, WIDTH as i64]).into(),
        metas: vec![meta(1), meta(2)],
        targets: vec![target(0, [8, 10, 40, 52]), target(2, [30, 4, 90, 60])],
    }
}

fn index(updates: bool, micro_steps: usize) -> StepIndex {
    StepIndex { epoch: 0, step_in_epoch: 0, step: 0, micro_steps, updates }
}

fn take(train_state: &mut TrainState<'_>, communicator: &Communicator, index: StepIndex) -> Result<StepOutcome> {
    train_state.train_step(&batch(), index, LEARNING_RATE, StepVote::default(), communicator, &Client::disconnected())
}

fn one_step(train_state: &mut TrainState<'_>, communicator: &Communicator) -> Result<StepOutcome> {
    take(train_state, communicator, index(true, 1))
}

#[test]
fn gradients_have_the_strides_of_their_weights() {
    for amp in [Amp::Off, Amp::Bf16] {
        for micro_steps in [1, 2] {
            let communicator = Communicator::alone(Device::Cpu);
            let config = config(amp);
            let mut train_state = TrainState::new(&config, &communicator).unwrap();
            for _ in 0..micro_steps {
                let losses = train_state.forward(&batch(), index(false, 1), &communicator).unwrap();
                train_state.backward(&losses.total().unwrap(), index(false, 1)).unwrap();
            }
            for (name, weight) in train_state.trained() {
                assert_eq!(weight.grad().stride(), weight.stride(), "{name} {:?}, {amp:?}", weight.size());
                if let [_, inputs, height, width] = weight.size()[..] {
                    assert_eq!(weight.stride(), [inputs * height * width, 1, inputs * width, inputs], "{name}");
                }
            }
        }
    }
}

/// Copies of everything that an update changes.
fn state(train_state: &TrainState<'_>) -> HashMap<String, Tensor> {
    let weights = train_state.trained().iter().map(|(name, tensor)| (name.clone(), tensor.detach().copy()));
    let optimizer = train_state.optimizer.state().into_iter().map(|(name, tensor)| (name, tensor.copy()));
    let averages =
        train_state.ema.iter().flat_map(|ema| ema.averages()).map(|(name, t)| (format!("ema {name}"), t.copy()));
    weights.chain(optimizer).chain(averages).collect()
}

/// One update with plain gradient descent. Returns the change of the weights.
fn update(amp: Amp, grad_clip: f64) -> (Tensor, StepOutcome) {
    let mut config = config(amp);
    (config.optimizer.kind, config.optimizer.momentum, config.optimizer.weight_decay) = (OptimizerKind::Sgd, 0.0, 0.0);
    config.optimizer.grad_clip = grad_clip;
    let communicator = Communicator::alone(Device::Cpu);
    let mut train_state = TrainState::new(&config, &communicator).unwrap();
    let flat = |train_state: &TrainState<'_>| {
        let all: Vec<Tensor> = train_state.trained().iter().map(|(_, tensor)| tensor.detach().reshape([-1])).collect();
        Tensor::cat(&all, 0)
    };
    let before = flat(&train_state);
    let outcome = one_step(&mut train_state, &communicator).unwrap();
    assert_eq!(outcome.skipped, None);
    for (_, _, tensor) in train_state.parameters.iter() {
        assert!(matches!(tensor.kind(), Kind::Float | Kind::Int64), "weights and statistics stay float32");
    }
    (flat(&train_state) - before, outcome)
}

fn length(tensor: &Tensor) -> f64 {
    f64::try_from(tensor.to_kind(Kind::Double).norm()).unwrap()
}

#[test]
fn float16_and_bfloat16_steps_are_close_to_float32_and_gradients_are_unscaled_before_clipping() {
    let (exact, full) = update(Amp::Off, 1e9);
    let norm = full.grad_norm.unwrap();
    assert_eq!(full.loss_scale, None);
    for (amp, scale, bound) in [(Amp::Bf16, None, 0.2), (Amp::Fp16, Some(1024.0), 0.05)] {
        let (moved, outcome) = update(amp, 1e9);
        assert_eq!(outcome.loss_scale, scale);
        let off = length(&(&moved - &exact)) / length(&exact);
        assert!(off > 0.0 && off < bound, "{amp:?}: the update is off by {off}");
        assert!((outcome.report.total() / full.report.total() - 1.0).abs() < bound / 10.0);
        assert!((outcome.grad_norm.unwrap() / norm - 1.0).abs() < bound / 4.0);
        let (clipped, outcome) = update(amp, norm / 4.0);
        assert!((length(&clipped) / (LEARNING_RATE * norm / 4.0) - 1.0).abs() < 1e-3);
        assert!((outcome.grad_norm.unwrap() / norm - 1.0).abs() < bound / 4.0, "the norm is that before clipping");
    }
}

#[test]
fn an_overflow_changes_no_weights_optimizer_state_or_average_and_halves_the_scale() {
    let mut config = config(Amp::Fp16);
    (config.train.loss_scale, config.train.ema, config.optimizer.grad_clip) = (OVERFLOWING_SCALE, 0.9, 1.0);
    let communicator = Communicator::alone(Device::Cpu);
    let mut train_state = TrainState::new(&config, &communicator).unwrap();
    let before = state(&train_state);
    let outcome = one_step(&mut train_state, &communicator).unwrap();
    assert_eq!(outcome.skipped, Some(Skip::Overflow));
    assert!(outcome.report.not_finite.is_empty() && outcome.report.total().is_finite());
    assert_eq!((outcome.loss_scale, outcome.grad_norm), (Some(OVERFLOWING_SCALE), None));
    let scale = train_state.loss_scale.as_ref().unwrap();
    assert_eq!((scale.scale(), scale.skipped()), (OVERFLOWING_SCALE / 2.0, 1));
    assert!(state(&train_state).iter().all(|(name, tensor)| *tensor == before[name]));
    assert_eq!(train_state.ema.as_ref().unwrap().updates(), 0);
    assert!(train_state.trained().iter().all(|(_, tensor)| !tensor.grad().defined()), "gradients are cleared");
    // The forward pass still updates the running statistics, as in PyTorch.
    let seen = train_state.parameters.get("backbone.norm0.num_batches_tracked").unwrap();
    assert_eq!(i64::try_from(seen).unwrap(), 1);

    train_state.loss_scale = Some(LossScale::new(1024.0));
    assert_eq!(one_step(&mut train_state, &communicator).unwrap().skipped, None);
    let after = state(&train_state);
    assert!(after.iter().any(|(name, tensor)| *tensor != before[name]));
    assert!(after.values().all(|tensor| bool::try_from(tensor.isfinite().all()).unwrap()));
    assert_eq!(train_state.ema.as_ref().unwrap().updates(), 1);
}

#[test]
fn gradients_that_overflow_unscaled_stop_training() {
    let communicator = Communicator::alone(Device::Cpu);
    let config = config(Amp::Fp16);
    let mut train_state = TrainState::new(&config, &communicator).unwrap();
    train_state.loss_scale = Some(LossScale::new(OVERFLOWING_SCALE));
    take(&mut train_state, &communicator, index(false, 2)).unwrap();
    train_state.loss_scale = Some(LossScale::new(1.0));
    let error = take(&mut train_state, &communicator, index(true, 2)).unwrap_err();
    assert_eq!(error.kind(), fnet_common::ErrorKind::Usage);
    assert!(error.to_string().contains("even at a loss scale of 1"), "{error}");
}

/// A train state whose objectness exceeds float16, and so is not finite there.
fn beyond_float16<'a>(config: &'a Config, communicator: &'a Communicator) -> TrainState<'a> {
    let train_state = TrainState::new(config, communicator).unwrap();
    let bias = train_state.parameters.get("rpn_head.rpn_cls.bias").unwrap().shallow_clone();
    let _ = tch::no_grad(|| bias.shallow_clone().fill_(1e6));
    train_state
}

#[test]
fn losses_that_are_not_finite_do_not_change_the_loss_scale() {
    let communicator = Communicator::alone(Device::Cpu);
    let mut config = config(Amp::Fp16);
    let error = one_step(&mut beyond_float16(&config, &communicator), &communicator).unwrap_err().to_string();
    assert!(error.contains("loss_rpn_cls") && error.contains("set train.amp to \"bf16\""), "{error}");

    config.train.on_nan = OnNan::Skip;
    let mut train_state = beyond_float16(&config, &communicator);
    let before = state(&train_state);
    let outcome = one_step(&mut train_state, &communicator).unwrap();
    assert_eq!(outcome.skipped, Some(Skip::NotFinite));
    assert!(outcome.report.not_finite.contains(&"loss_rpn_cls"));
    assert_eq!(train_state.loss_scale, Some(LossScale::new(1024.0)));
    assert!(state(&train_state).iter().all(|(name, tensor)| *tensor == before[name]));

    config.train.amp = Amp::Bf16;
    assert_eq!(one_step(&mut beyond_float16(&config, &communicator), &communicator).unwrap().skipped, None);
}

/// Weights, optimizer, average, statistics and loss scale after an update of several micro-steps. Those in `bad` have an
/// image that is not finite.
fn group(
    train_state: &mut TrainState<'_>,
    communicator: &Communicator,
    micro_steps: usize,
    bad: &[usize],
) -> HashMap<String, Tensor> {
    for step in 0..micro_steps {
        let batch = batch();
        if bad.contains(&step) {
            let Images::Values(values) = &batch.images else { panic!("the batch has pixel values") };
            let _ = values.get(0).fill_(f64::NAN);
        }
        let index = StepIndex { step, step_in_epoch: step, ..index(step + 1 == micro_steps, micro_steps) };
        let vote = StepVote::default();
        let outcome =
            train_state.train_step(&batch, index, LEARNING_RATE, vote, communicator, &Client::disconnected()).unwrap();
        assert_eq!(outcome.bad.is_some(), bad.contains(&step));
        assert_eq!(outcome.skipped, (index.updates && !bad.is_empty()).then_some(Skip::NotFinite));
    }
    assert!(train_state.trained().iter().all(|(_, tensor)| !tensor.grad().defined()), "gradients are cleared");
    let mut all = state(train_state);
    all.extend(train_state.parameters.buffers().map(|(name, buffer)| (name.to_owned(), buffer.copy())));
    all.extend(
        [("held.own", &train_state.last_good.own), ("held.first", &train_state.last_good.first)]
            .map(|(n, t)| (n.to_owned(), t.copy())),
    );
    all
}

#[test]
fn any_micro_step_that_is_not_finite_skips_the_whole_update() {
    let communicator = Communicator::alone(Device::Cpu);
    for amp in [Amp::Off, Amp::Fp16] {
        let mut config = config(amp);
        (config.train.on_nan, config.train.ema) = (OnNan::Skip, 0.9);
        let mut train_state = TrainState::new(&config, &communicator).unwrap();
        // From the initial state, and from one with optimizer state.
        for _ in 0..2 {
            let before = group(&mut train_state, &communicator, 1, &[]);
            let scale = train_state.loss_scale.clone();
            for (micro_steps, bad) in
                [(1, &[0][..]), (2, &[0]), (2, &[1]), (3, &[0]), (3, &[1]), (3, &[2]), (3, &[0, 1, 2])]
            {
                let after = group(&mut train_state, &communicator, micro_steps, bad);
                for (name, tensor) in &after {
                    assert!(*tensor == before[name], "{amp:?}: {name} after {bad:?} of {micro_steps}");
                }
                assert_eq!(after.len(), before.len());
                assert_eq!(train_state.loss_scale, scale);
            }
        }
    }
}

#[test]
fn a_skipped_update_does_not_affect_the_next_one() {
    let communicator = Communicator::alone(Device::Cpu);
    let mut config = config(Amp::Off);
    (config.train.on_nan, config.train.ema) = (OnNan::Skip, 0.9);
    let after = |bad: &[usize]| {
        let mut train_state = TrainState::new(&config, &communicator).unwrap();
        if !bad.is_empty() {
            group(&mut train_state, &communicator, 3, bad);
        }
        group(&mut train_state, &communicator, 2, &[])
    };
    let expected = after(&[]);
    for bad in [[0], [1], [2]] {
        assert!(after(&bad).iter().all(|(name, tensor)| *tensor == expected[name]), "{bad:?}");
    }
}

fn of_one_rank() -> CheckpointMeta {
    CheckpointMeta { world_size: 1, ..CheckpointMeta::default() }
}

#[test]
fn the_state_of_the_last_update_is_captured_whatever_happened_since() {
    let communicator = Communicator::alone(Device::Cpu);
    let mut config = config(Amp::Fp16);
    config.train.ema = 0.9;
    let mut train_state = TrainState::new(&config, &communicator).unwrap();
    one_step(&mut train_state, &communicator).unwrap();
    let copies = |state: &Checkpoint| -> HashMap<String, Tensor> {
        state.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.copy())).collect()
    };
    let state = train_state.capture(&communicator, of_one_rank()).unwrap().unwrap();
    let (expected, meta) = (copies(&state), state.meta);
    let deadline = Instant::now() + Duration::from_secs(3600);
    let check = |train_state: &TrainState<'_>, when: &str| {
        for precedes_evaluation in [false, true] {
            let buffers = train_state.last_buffers(precedes_evaluation, deadline).unwrap();
            let alone = train_state.capture_alone(0, buffers, of_one_rank(), deadline).unwrap();
            let found = copies(&alone);
            assert!(
                found.iter().all(|(name, tensor)| *tensor == expected[name]) && found.len() == expected.len(),
                "{when}"
            );
            assert_eq!(alone.meta, meta, "{when}");
        }
    };
    check(&train_state, "nothing");

    // A step that was aborted before its update.
    train_state.forward(&batch(), index(true, 1), &communicator).unwrap();
    train_state.loss_scale.as_mut().unwrap().update(false).unwrap();
    check(&train_state, "a step");

    train_state.swap_average().unwrap();
    check(&train_state, "an evaluation");
    train_state.swap_average().unwrap();
    check(&train_state, "its end");

    train_state.update_in_progress = true;
    assert!(train_state.last_buffers(false, deadline).is_err());
}

#[test]
fn an_inconsistent_checkpoint_is_an_error_that_names_the_part() {
    let communicator = Communicator::alone(Device::Cpu);
    let mut config = config(Amp::Off);
    config.train.ema = 0.9;
    let mut train_state = TrainState::new(&config, &communicator).unwrap();
    one_step(&mut train_state, &communicator).unwrap();
    let sound = || {
        let mut checkpoint = train_state.capture(&communicator, of_one_rank()).unwrap().unwrap();
        checkpoint.meta.world_size = 2;
        for (name, buffer) in train_state.parameters.buffers() {
            checkpoint.tensors.insert(format!("rank1.{name}"), buffer.copy());
        }
        checkpoint
    };
    let (weight, mean) = ("backbone.norm0.weight", "backbone.norm0.running_mean");
    let (average, own) = (format!("ema.{weight}"), format!("rank1.{mean}"));
    type Damage<'a> = Box<dyn Fn(&mut Checkpoint) + 'a>;
    let without = |name: &str| -> Damage<'_> {
        let name = name.to_owned();
        Box::new(move |checkpoint| drop(checkpoint.tensors.shift_remove(&name).unwrap()))
    };
    // A scalar would be broadcast to all values.
    let scalar = |name: &str| -> Damage<'_> {
        let name = name.to_owned();
        Box::new(move |checkpoint| drop(checkpoint.tensors.insert(name.clone(), Tensor::from(7.0f32))))
    };
    let damages: [(Damage<'_>, &[&str]); 7] = [
        (Box::new(|checkpoint| checkpoint.meta.state.ema_updates = None), &["fnet.meta has no state.ema_updates"]),
        (without(&average), &[&average]),
        (scalar(&average), &[&average, "shape []"]),
        (scalar("ema.none"), &["ema.none"]),
        (without(&own), &[&own, "is missing"]),
        (scalar(&own), &["rank1.*", mean]),
        (scalar("rank1.none"), &["rank1.*", "none"]),
    ];
    let mut resumed = TrainState::new(&config, &communicator).unwrap();
    for (damage, expected) in damages {
        let mut checkpoint = sound();
        damage(&mut checkpoint);
        let error = resumed.restore(&checkpoint, 1).unwrap_err();
        assert_eq!(error.kind(), fnet_common::ErrorKind::Data);
        assert!(expected.iter().all(|text| error.to_string().contains(text)), "{expected:?}: {error}");
    }
    resumed.restore(&sound(), 1).unwrap();
    assert_eq!(resumed.ema.as_ref().unwrap().updates(), 1);
    // Another rank wrote an emergency checkpoint: this rank continues with rank 0's statistics.
    let mut alone = sound();
    alone.tensors.retain(|name, _| !name.starts_with("rank1."));
    resumed.restore(&alone, 1).unwrap();
}

#[test]
fn a_checkpoint_has_the_loss_scale_and_other_types_ignore_it() {
    let communicator = Communicator::alone(Device::Cpu);
    let [fp16, bf16] = [Amp::Fp16, Amp::Bf16].map(config);
    let mut train_state = TrainState::new(&fp16, &communicator).unwrap();
    train_state.loss_scale = Some(LossScale::new(OVERFLOWING_SCALE));
    one_step(&mut train_state, &communicator).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let saved = |train_state: &TrainState<'_>, name: &str| {
        let path = folder.path().join(name);
        train_state.capture(&communicator, of_one_rank()).unwrap().unwrap().save(&path).unwrap();
        Checkpoint::load(&path).unwrap()
    };
    let with_scale = saved(&train_state, "fp16.ckpt");
    let mut resumed = TrainState::new(&fp16, &communicator).unwrap();
    resumed.restore(&with_scale, 0).unwrap();
    assert_eq!(resumed.loss_scale, train_state.loss_scale);

    let mut other = TrainState::new(&bf16, &communicator).unwrap();
    other.restore(&with_scale, 0).unwrap();
    assert_eq!(other.loss_scale, None);
    let mut fresh = TrainState::new(&fp16, &communicator).unwrap();
    fresh.restore(&saved(&other, "bf16.ckpt"), 0).unwrap();
    assert_eq!(fresh.loss_scale, Some(LossScale::new(1024.0)));
}
