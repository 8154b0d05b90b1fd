//! Stage "operators" for data and schedule: resizing, masks from polygons to targets and back into the image, orders of
//! images, random permutations, learning rates.

use hotcoco::types::Rle;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tch::{Device, Tensor};

use fnet_common::random::Generator;
use fnet_config::{Pipeline, Schedule};
use fnet_data::{
    Augmentation, Bilinear, DecodedImage, Geometry, InstanceMask, Segmentation, instance_mask, mask_targets,
    single_image, train_batches_per_epoch, train_indices,
};
use fnet_evaluate::paste::{Probabilities, paste_all};
use fnet_train::LearningRate;

use super::compare::{floats, rows_of_four};
use super::fixtures::{Operators, Tensors};
use super::image_files::rgb;

const NAME: &str = "operators";

fn fact<T: DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{value}: {error}"))
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    Vec::try_from(tensor.reshape([-1])).unwrap()
}

/// Height and width of an image `[h, w, 3]`.
fn size(image: &Tensor) -> (usize, usize) {
    let (height, width, _) = image.size3().unwrap();
    (height as usize, width as usize)
}

#[test]
fn parity_operators_resizing() {
    let Some(operators) = Operators::open() else { return };
    let (stored, compare) = (&operators.tensors, operators.compare(NAME));
    let source = stored.get("resize.small_src");
    for name in ["resize.small_down", "resize.small_up"] {
        let expected = stored.get(name);
        let plan = Bilinear::new(size(&source), size(&expected));
        compare.equal("resized pixels", &plan.apply(&bytes(&source)), &bytes(&expected));
    }
}

/// Compares sums of the tiny model's first image.
#[test]
fn parity_operators_resizing_of_a_photograph() {
    let Some(operators) = Operators::open() else { return };
    let Some(data) = super::fixtures::reference("fixtures_tiny/data.safetensors") else { return };
    let (width, height, pixels) = rgb(&Tensors::read(&data), 0);
    for name in ["resize.320x240", "resize.777x611"] {
        let [new_height, new_width]: [usize; 2] = fact(&operators.facts[name]["hw"]);
        let resized = Bilinear::new((height as usize, width as usize), (new_height, new_width)).apply(&pixels);
        // MMDetection's first channel is blue.
        let sum = |channel: usize| resized.iter().skip(2 - channel).step_by(3).map(|&v| usize::from(v)).sum::<usize>();
        let expected: Vec<usize> = fact(&operators.facts[name]["sum"]);
        operators.compare(NAME).equal("sums of resized pixels", &[sum(0), sum(1), sum(2)], &expected);
    }
}

#[test]
fn parity_operators_normalization() {
    let Some(operators) = Operators::open() else { return };
    let (stored, compare) = (&operators.tensors, operators.compare(NAME));
    let bgr = stored.get("resize.small_up");
    let (height, width) = size(&bgr);
    let image = DecodedImage { width, height, rgb: bytes(&bgr.flip([2])), warning: None };
    let pipeline = Pipeline { test_scale: [width, height], size_divisor: 1, ..Pipeline::default() };
    let images = single_image(image, 1, "a", &pipeline).images;
    let actual = floats(&images.values(Device::Cpu).unwrap().get(0).permute([1, 2, 0]));
    compare.equal("normalized values", &actual, &floats(&stored.get("resize.small_up_norm")));
}

#[test]
fn parity_operators_sizes_of_resized_images() {
    let Some(operators) = Operators::open() else { return };
    let rows: Vec<[f64; 8]> = fact(&operators.facts["rescale_table_w_h_neww_newh_sfw_sfh_padw_padh"]);
    assert!(!rows.is_empty());
    for [width, height, new_width, new_height, factor_x, factor_y, padded_width, padded_height] in rows {
        let augmentation = Augmentation { scale: [1333, 800], flip: false };
        let geometry = Geometry::new((height as usize, width as usize), augmentation, 32);
        let sizes = [geometry.resized.0, geometry.resized.1, geometry.padded.0, geometry.padded.1];
        let expected = [new_height, new_width, padded_height, padded_width].map(|side| side as usize);
        operators.compare(NAME).equal("sizes of images", &sizes, &expected);
        let expected = [factor_x, factor_y, factor_x, factor_y].map(|factor| factor as f32);
        operators.compare(NAME).equal("scale factors", &geometry.scale_factor, &expected);
    }
}

/// The masks of the polygons in the facts.
fn polygons(facts: &Value) -> Vec<Rle> {
    let [height, width]: [usize; 2] = fact(&facts["mask_hw"]);
    let list = facts["mask_polygons"].as_array().unwrap().iter();
    let parse = |polygons: &Value| Segmentation::parse(polygons.to_string().as_bytes()).unwrap();
    list.map(|polygons| parse(polygons).to_rle((height, width)).unwrap()).collect()
}

#[test]
fn parity_operators_masks_and_their_targets() {
    let Some(operators) = Operators::open() else { return };
    let (stored, facts, compare) = (&operators.tensors, &operators.facts, operators.compare(NAME));
    let rles = polygons(facts);
    let texts: Vec<String> = rles.iter().map(hotcoco::mask::rle_to_string).collect();
    compare.equal("RLEs of polygons", &texts, &fact::<Vec<String>>(&facts["mask_rle"]));
    let made = |resized, flip, padded| -> Vec<InstanceMask> {
        rles.iter().map(|rle| instance_mask(rle, resized, flip, padded)).collect()
    };
    let size = |name: &str| -> (usize, usize) {
        let shape = stored.get(name).size();
        (shape[1] as usize, shape[2] as usize)
    };
    let (own, up, down) = (size("masks.bitmap"), size("masks.rescaled.up"), size("masks.rescaled.down"));
    let padded = made(up, true, size("masks.padded"));
    for (name, masks) in [
        ("masks.bitmap", &made(own, false, own)),
        ("masks.rescaled.up", &made(up, false, up)),
        ("masks.rescaled.down", &made(down, false, down)),
        ("masks.flipped", &made(up, true, up)),
        ("masks.padded", &padded),
    ] {
        let pixels: Vec<u8> = masks.iter().flat_map(InstanceMask::bitmap).collect();
        compare.equal("pixels of masks", &pixels, &bytes(&stored.get(name)));
    }
    let coco: [usize; 2] = fact(&facts["mask_rescaled_hw.coco"]);
    let area = |mask: &InstanceMask| mask.pixels.iter().map(|&pixel| usize::from(pixel)).sum::<usize>();
    let areas: Vec<usize> = made(coco.into(), false, coco.into()).iter().map(area).collect();
    compare.equal("areas at the training size", &areas, &fact::<Vec<usize>>(&facts["mask_rescaled_coco_area"]));
    let chosen: Vec<&InstanceMask> =
        stored.integers("masks.crop_inds").into_iter().map(|index| &padded[index as usize]).collect();
    let targets = mask_targets(&chosen, &stored.boxes("masks.crop_boxes"), 28);
    let targets: Vec<f32> = targets.into_iter().map(f32::from).collect();
    compare.equal("mask targets", &targets, &floats(&stored.get("masks.crop_targets")));
}

#[test]
fn parity_operators_pasted_masks() {
    let Some(operators) = Operators::open() else { return };
    let (stored, compare) = (&operators.tensors, operators.compare(NAME));
    let (values, boxes) = (floats(&stored.get("paste.mask_prob")), rows_of_four(&stored.get("paste.boxes")));
    for name in ["paste.full_ge_0.5", "paste.cpu_skip_empty_ge_0.5"] {
        let expected = stored.get(name);
        let (height, width) = (expected.size()[1] as usize, expected.size()[2] as usize);
        let pasted = paste_all(Probabilities { values: &values, side: 28 }, &boxes, (height, width), 0.5).unwrap();
        let pixels: Vec<u8> = pasted.iter().flat_map(hotcoco::mask::decode).collect();
        // Run lengths are column-major.
        compare.equal("pixels of pasted masks", &pixels, &bytes(&expected.transpose(1, 2)));
    }
}

#[test]
fn parity_operators_orders_of_images() {
    let Some(operators) = Operators::open() else { return };
    let (facts, compare) = (&operators.facts, operators.compare(NAME));
    let flags: Vec<u8> = fact(&facts["sampler_flag"]);
    let cases = |name: &str| facts[name].as_array().filter(|cases| !cases.is_empty()).unwrap();
    for case in cases("sampler") {
        let number = |key: &str| case[key].as_u64().unwrap();
        let (rank, world_size) = (number("rank") as usize, number("num_replicas") as usize);
        let samples = number("samples_per_gpu") as usize;
        let actual = train_indices(&flags, number("epoch"), number("seed"), rank, world_size, samples);
        compare.equal("images of a training epoch", &actual, &fact::<Vec<usize>>(&case["indices"]));
        assert_eq!(train_batches_per_epoch(&flags, world_size, samples) * samples, actual.len());
    }
}

#[test]
fn parity_operators_random_permutations() {
    let Some(operators) = Operators::open() else { return };
    for (seed, lists) in operators.facts["randperm"].as_object().unwrap() {
        for list in fact::<Vec<Vec<usize>>>(lists) {
            let actual = Generator::from_seed(seed.parse().unwrap()).permutation(list.len());
            operators.compare(NAME).equal("random permutations", &actual, &list);
        }
    }
}

#[test]
fn parity_operators_learning_rates() {
    let Some(operators) = Operators::open() else { return };
    let compare = operators.compare(NAME);
    let check = |actual: f64, expected: f64| {
        compare.at_most("learning rates, relative", (actual / expected - 1.0).abs(), 1e-9);
    };
    let rate = |schedule: &Schedule, epoch, step| {
        LearningRate { schedule, base: 2e-4, epochs: 12, steps: 12 * 7330 }.at(epoch, step).plain()
    };
    let schedule = Schedule::default();
    for (name, expected) in operators.facts["lr_1x"].as_object().unwrap() {
        let (epoch, step) = name.strip_prefix("epoch").and_then(|name| name.split_once("_iter")).unwrap();
        let (epoch, step): (usize, usize) = (epoch.parse().unwrap(), step.parse().unwrap());
        // An epoch has 7330 steps.
        check(rate(&schedule, epoch, epoch * 7330 + step), expected.as_f64().unwrap());
    }
    let schedule = Schedule { steps: vec![2, 3], ..schedule };
    for row in fact::<Vec<[f64; 3]>>(&operators.facts["lr_warmup500_epochlen200_steps_2_3"]) {
        let (epoch, step) = (row[0] as usize, row[1] as usize);
        check(rate(&schedule, epoch, epoch * 200 + step), row[2]);
    }
}
