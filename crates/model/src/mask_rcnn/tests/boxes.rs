//! A model without masks, and objects without masks in a model with masks.

use fnet_config as config;

use super::super::*;
use super::faults::{batch, config, meta, object, step, value};

/// A model that draws no random numbers: all anchors and proposals enter the losses.
fn whole(mask: bool) -> config::Model {
    let mut config = config::Model { mask, ..config() };
    config.backbone.drop_path_rate = 0.0;
    (config.rpn.sampler.count, config.roi_head.sampler.count) = (8192, 8192);
    config
}

fn two_objects() -> Target {
    let (mut all, other) = (object(8, 6, 24), object(44, 20, 40));
    all.boxes.extend(other.boxes);
    all.labels.push(2);
    all.masks.extend(other.masks);
    all
}

#[test]
fn without_masks_the_rest_of_the_model_and_its_losses_are_the_same() {
    let (mut all, mut boxes) = (Parameters::new(), Parameters::new());
    let with_masks = MaskRcnn::new(&whole(true), &mut all, Device::Cpu, 1).unwrap();
    let boxes_only = MaskRcnn::new(&whole(false), &mut boxes, Device::Cpu, 1).unwrap();
    let is_of_mask_head = |name: &&str| name.starts_with("roi_head.mask_head.");
    let names: Vec<&str> = all.iter().map(|(name, ..)| name).filter(|name| !is_of_mask_head(name)).collect();
    assert!(boxes.iter().map(|(name, ..)| name).eq(names));
    // Two convolutions, the upsampling and the logits: weights and biases.
    assert_eq!(all.iter().filter(|(name, ..)| is_of_mask_head(name)).count(), 8);
    for (name, _, tensor) in boxes.iter() {
        assert_eq!(Some(tensor), all.get(name), "{name}");
    }

    let batch = batch(vec![two_objects(), Target::default()]);
    let losses = |model: &MaskRcnn| model.forward_train(&batch, &mut StepRandom::new(0, 0, 0)).unwrap();
    let (with_masks, boxes_only) = (losses(&with_masks), losses(&boxes_only));
    let named = |losses: &Losses| losses.to_host().unwrap();
    let (expected, found) = (named(&with_masks), named(&boxes_only));
    assert_eq!(found[..5], expected[..5]);
    let names: Vec<&str> = found.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "acc", "loss_bbox", "loss"]);
    let sum: f64 = found.iter().filter(|(name, _)| !["acc", "loss"].contains(name)).map(|(_, value)| value).sum();
    assert!((found[5].1 - sum).abs() < 1e-5 && expected[6].1 > sum);

    // Targets without masks are all that it needs.
    let mut without = two_objects();
    without.masks.clear();
    step(&whole(false), &super::faults::batch(vec![without, Target::default()]));
}

#[test]
fn without_masks_the_same_boxes_are_found() {
    let of = |mask: bool| {
        let mut config = whole(mask);
        config.roi_head.score_threshold = 0.0;
        let model = MaskRcnn::new(&config, &mut Parameters::new(), Device::Cpu, 1).unwrap();
        let images = Tensor::arange(3 * 64 * 96, (Kind::Float, Device::Cpu)).sin().reshape([1, 3, 64, 96]);
        model.predict(&images.into(), &[meta(64, 96)]).unwrap().remove(0)
    };
    let (with_masks, boxes_only) = (of(true), of(false));
    assert!(!boxes_only.is_empty());
    assert_eq!((&boxes_only.boxes, &boxes_only.scores), (&with_masks.boxes, &with_masks.scores));
    assert!(with_masks.masks.is_some() && boxes_only.masks.is_none());
}

#[test]
fn the_mask_loss_is_the_mean_over_the_positives_with_masks() {
    let model = MaskRcnn::new(&whole(true), &mut Parameters::new(), Device::Cpu, 1).unwrap();
    let full = batch(vec![two_objects(), object(30, 12, 32)]);
    let mut mixed = Batch { images: full.images.share(), metas: full.metas.clone(), targets: full.targets.clone() };
    mixed.targets[0].masks[1] = None;
    let losses = |batch: &Batch| model.forward_train(batch, &mut StepRandom::new(0, 0, 0)).unwrap();
    let (of_full, of_mixed) = (losses(&full), losses(&mixed));
    for ((name, a), (_, b)) in of_full.named().into_iter().zip(of_mixed.named()).take(5) {
        assert_eq!(a, b, "{name}");
    }

    // The definition, from the logits of all positives.
    let mut random = StepRandom::new(0, 0, 0);
    let proposals = model.training_proposals(&full.images, &full.metas, &mut random).unwrap();
    let sample = model.roi_head.sample(&proposals, &full.targets, random.choice.as_mut()).unwrap();
    let rows: Vec<usize> = sample.positives.iter().map(|&row| row as usize).collect();
    let rois: Vec<f32> = rows.iter().flat_map(|&row| sample.rois[row]).collect();
    let labels: Vec<i64> = rows.iter().map(|&row| sample.labels[row]).collect();
    let drop_path = Tensor::from_slice(&[1.0f32; 0]);
    let levels = tch::no_grad(|| model.training_levels(&full.images, &drop_path)).unwrap();
    let features = model.roi_head.mask_extractor.forward(&levels, &Tensor::from_slice(&rois).reshape([-1, 5])).unwrap();
    let logits = model.roi_head.mask.as_ref().unwrap().forward(&features, &Tensor::from_slice(&labels)).unwrap();
    let logits = Vec::<f32>::try_from(logits.reshape([-1])).unwrap();
    let targets = model.roi_head.mask_targets(&sample, &full.targets);
    let pixels = 28 * 28;
    assert_eq!((logits.len(), targets.len()), (rows.len() * pixels, rows.len() * pixels));
    let mean = |counts: &dyn Fn(usize) -> bool| {
        let (mut sum, mut count) = (0.0, 0.0);
        for (index, (&logit, &target)) in logits.iter().zip(&targets).enumerate() {
            if counts(index / pixels) {
                let x = f64::from(logit);
                sum += x.max(0.0) - x * f64::from(target) + (-x.abs()).exp().ln_1p();
                count += 1.0;
            }
        }
        sum / count
    };
    let lacks = |positive: usize| sample.rois[rows[positive]][0] == 0.0 && sample.objects[positive] == 1;
    assert!((0..rows.len()).any(lacks) && !(0..rows.len()).all(lacks));
    let loss = |losses: &Losses| value(losses.mask.as_ref().unwrap());
    assert!((loss(&of_full) - mean(&|_| true)).abs() < 1e-5);
    assert!((loss(&of_mixed) - mean(&|positive| !lacks(positive))).abs() < 1e-5);
    assert!((loss(&of_full) - loss(&of_mixed)).abs() > 1e-5, "the comparison proves nothing");
}

#[test]
fn without_a_mask_among_the_positives_the_mask_loss_is_zero_and_stays_connected() {
    let mut target = two_objects();
    target.masks.fill(None);
    let losses = step(&whole(true), &batch(vec![target, Target::default()]));
    assert!(losses.positives > 0 && value(&losses.bbox) > 0.0);
    assert_eq!(value(losses.mask.as_ref().unwrap()), 0.0);
}
