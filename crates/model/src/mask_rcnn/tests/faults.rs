//! Batches without input for a head. In other frameworks these cause hangs: a rank without input for a head contributes
//! no gradient, and the others wait for it. <https://github.com/open-mmlab/mmdetection/pull/3713>,
//! <https://github.com/open-mmlab/mmdetection/issues/2193>

use std::sync::Arc;

use tch::Kind;

use fnet_config::PartialConv;
use fnet_data::InstanceMask;

use super::*;

pub fn config() -> config::Model {
    let mut model = config::Model { num_classes: 3, ..Default::default() };
    (model.backbone.embed_dim, model.backbone.depths, model.backbone.drop_path_rate) = (16, [1, 1, 1, 1], 0.5);
    (model.neck.out_channels, model.rpn.feat_channels) = (16, 16);
    (model.roi_head.bbox_fc_channels, model.roi_head.mask_channels, model.roi_head.mask_convs) = (32, 16, 2);
    model
}

pub fn meta(height: usize, width: usize) -> ImageMeta {
    ImageMeta::plain(1, "a.jpg", (height, width))
}

pub fn object(x: usize, y: usize, side: usize) -> Target {
    let mask =
        InstanceMask { frame: (64, 96), x, y, width: side, height: side, pixels: Arc::from(vec![1; side * side]) };
    let corner = |start: usize| start as f32;
    Target {
        boxes: vec![[corner(x), corner(y), corner(x + side), corner(y + side)]],
        labels: vec![1],
        masks: vec![Some(mask)],
    }
}

pub fn batch(targets: Vec<Target>) -> Batch {
    let images = Tensor::randn([targets.len() as i64, 3, 64, 96], (Kind::Float, Device::Cpu));
    Batch { images: images.into(), metas: vec![meta(64, 96); targets.len()], targets }
}

/// Losses of one step. Checks that every parameter has a finite gradient.
pub fn step(config: &config::Model, batch: &Batch) -> Losses {
    let mut parameters = Parameters::new();
    let model = MaskRcnn::new(config, &mut parameters, Device::Cpu, 1).unwrap();
    let losses = model.forward_train(batch, &mut StepRandom::new(0, 0, 0)).unwrap();
    losses.total().unwrap().backward();
    for (name, tensor) in parameters.trainable() {
        assert!(tensor.grad().defined(), "{name} has no gradient");
        assert!(bool::try_from(tensor.grad().isfinite().all()).unwrap(), "the gradient of {name} is not finite");
    }
    losses
}

pub fn value(tensor: &Tensor) -> f64 {
    f64::try_from(tensor).unwrap()
}

#[test]
fn images_with_and_without_objects_can_be_trained_together() {
    let losses = step(&config(), &batch(vec![Target::default(), object(20, 10, 40)]));
    assert!(losses.positives > 0);
    assert!(losses.named().iter().filter(|(name, _)| *name != "acc").all(|(_, loss)| value(loss) > 0.0));
}

#[test]
fn without_objects_only_classification_has_a_loss_and_every_parameter_has_a_gradient() {
    let losses = step(&config(), &batch(vec![Target::default(), Target::default()]));
    assert_eq!(losses.positives, 0);
    assert!(losses.proposals > 0);
    assert_eq!([&losses.rpn_bbox, &losses.bbox, losses.mask.as_ref().unwrap()].map(value), [0.0; 3]);
    assert!(value(&losses.rpn_cls) > 0.0 && value(&losses.cls) > 0.0);
}

#[test]
fn without_proposals_every_parameter_still_has_a_gradient() {
    let mut config = config();
    config.rpn.min_box_size = 1e6;
    let losses = step(&config, &batch(vec![Target::default()]));
    assert_eq!((losses.positives, losses.proposals), (0, 0));
    assert_eq!([&losses.cls, &losses.acc, &losses.bbox, losses.mask.as_ref().unwrap()].map(value), [0.0; 4]);
    let losses = step(&config, &batch(vec![Target::default(), object(8, 8, 32)]));
    assert_eq!((losses.positives, losses.proposals), (1, 1), "the object itself is a proposal");
}

#[test]
fn without_proposals_or_good_scores_nothing_is_detected() {
    for (min_box_size, score_threshold) in [(1e6, 0.05), (0.0, 2.0)] {
        let mut config = config();
        (config.rpn.min_box_size, config.roi_head.score_threshold) = (min_box_size, score_threshold);
        let model = MaskRcnn::new(&config, &mut Parameters::new(), Device::Cpu, 1).unwrap();
        let images = Tensor::randn([2, 3, 64, 96], (Kind::Float, Device::Cpu));
        let found = model.predict(&images.into(), &[meta(64, 96), meta(64, 96)]).unwrap();
        assert_eq!(found.len(), 2);
        for found in found {
            assert!(found.is_empty());
            assert_eq!((found.boxes.size(), found.masks.unwrap().size()), (vec![0, 4], vec![0, 28, 28]));
        }
    }
}

#[test]
fn slicing_is_an_error_in_training() {
    let mut config = config();
    config.backbone.partial_conv = PartialConv::Slicing;
    let slicing = MaskRcnn::new(&config, &mut Parameters::new(), Device::Cpu, 1).unwrap();
    let error = slicing.forward_train(&batch(vec![object(8, 8, 32)]), &mut StepRandom::new(0, 0, 0)).unwrap_err();
    assert!(error.to_string().contains("split_cat"), "{error}");
}

#[test]
fn dropped_branches_depend_only_on_seed_rank_and_step() {
    let config = config();
    let mut parameters = Parameters::new();
    let model = MaskRcnn::new(&config, &mut parameters, Device::Cpu, 1).unwrap();
    let batch = batch(vec![object(8, 8, 32); 4]);
    let loss = |step| value(&model.forward_train(&batch, &mut StepRandom::new(0, 0, step)).unwrap().rpn_cls);
    let first = loss(1);
    assert_eq!(first, loss(1));
    assert!((2..8).any(|step| loss(step) != first));
}

/// MMDetection's `_freeze_stages`: parameters without gradient, and modules in evaluation mode.
#[test]
fn frozen_stages_get_no_gradient_and_keep_their_statistics() {
    let targets = || batch(vec![object(8, 8, 32); 2]);
    for frozen_stages in -1..=4 {
        let config = config::Model { frozen_stages, ..config() };
        let mut parameters = Parameters::new();
        let model = MaskRcnn::new(&config, &mut parameters, Device::Cpu, 1).unwrap();
        let before: Vec<Tensor> = parameters.buffers().map(|(_, tensor)| tensor.copy()).collect();
        let losses = model.forward_train(&targets(), &mut StepRandom::new(0, 0, 0)).unwrap();
        losses.total().unwrap().backward();
        // What the names say: `stages.0` are the blocks of stage 1, `stages.1` the merging before stage 2.
        let frozen = |name: &str| {
            let parts = [
                "patch_embed.",
                "stages.0. norm0.",
                "stages.1. stages.2. norm2.",
                "stages.3. stages.4. norm4.",
                "stages.5. stages.6. norm6.",
            ];
            let mut of_parts = parts.iter().take((frozen_stages + 1) as usize).flat_map(|part| part.split(' '));
            of_parts.any(|part| name.starts_with(&format!("backbone.{part}")))
        };
        for (name, tensor) in parameters.trainable() {
            assert_eq!(tensor.grad().defined(), !frozen(name), "{frozen_stages}: {name}");
            assert_eq!(parameters.is_frozen(name), frozen(name), "{frozen_stages}: {name}");
        }
        assert_eq!(parameters.trained().count(), parameters.trainable().filter(|(name, _)| !frozen(name)).count());
        for ((name, now), before) in parameters.buffers().zip(&before) {
            assert_eq!(now == before, frozen(name), "{frozen_stages}: {name}");
        }
    }
}

#[test]
fn norm_eval_trains_the_norms_without_their_statistics() {
    let config = config::Model { norm_eval: true, ..config() };
    let mut parameters = Parameters::new();
    let model = MaskRcnn::new(&config, &mut parameters, Device::Cpu, 1).unwrap();
    let before: Vec<Tensor> = parameters.buffers().map(|(_, tensor)| tensor.copy()).collect();
    let losses = model.forward_train(&batch(vec![object(8, 8, 32)]), &mut StepRandom::new(0, 0, 0)).unwrap();
    losses.total().unwrap().backward();
    assert!(parameters.buffers().zip(&before).all(|((_, now), before)| now == before));
    assert!(parameters.get("backbone.norm0.weight").unwrap().grad().defined());
}

#[test]
fn inconsistent_configs_are_errors_that_name_the_field() {
    let refused = |change: fn(&mut config::Model)| {
        let mut config = config();
        change(&mut config);
        MaskRcnn::new(&config, &mut Parameters::new(), Device::Cpu, 0).unwrap_err().to_string()
    };
    assert!(refused(|model| model.neck.num_outs = 6).contains("model.rpn.anchor_strides"));
    assert!(refused(|model| model.neck.num_outs = 3).contains("model.neck.num_outs"));
    assert!(refused(|model| model.num_classes = 0).contains("model.num_classes"));
    assert!(refused(|model| model.backbone.n_div = 17).contains("model.backbone.n_div"));
}

#[test]
fn a_batch_with_parts_of_different_lengths_is_an_error() {
    let model = MaskRcnn::new(&config(), &mut Parameters::new(), Device::Cpu, 0).unwrap();
    let mut batch = batch(vec![Target::default()]);
    batch.metas.clear();
    assert!(model.forward_train(&batch, &mut StepRandom::new(0, 0, 0)).is_err());
    assert!(model.predict(&batch.images, &batch.metas).is_err());
}
