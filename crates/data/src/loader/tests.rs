use fnet_common::ErrorKind;
use fnet_config::OnError;
use tch::{Device, Tensor};

use super::*;
use crate::{Split, train_indices};
use fnet_test_support::SmallSet;

const SIZES: [(u32, u32); 5] = [(80, 60), (60, 80), (100, 40), (64, 64), (90, 50)];

fn tensor(batch: &Batch) -> Tensor {
    batch.images.values(Device::Cpu).unwrap()
}

fn values(batch: &Batch) -> Vec<f32> {
    Vec::try_from(tensor(batch).reshape([-1])).unwrap()
}

fn train(small: &SmallSet, indices: &[usize], options: &TrainOptions) -> Loader {
    let set = Arc::new(Dataset::open(&small.config, Split::Train).unwrap());
    Loader::train(set, &small.config, indices, options).unwrap()
}

fn indices(epoch: u64) -> Vec<usize> {
    let flags: Vec<u8> = SIZES.iter().map(|&(w, h)| u8::from(w > h)).collect();
    train_indices(&flags, epoch, 0, 0, 1, 2)
}

#[test]
fn batches_are_the_same_for_any_number_of_threads_and_any_start() {
    let mut small = SmallSet::new(&SIZES);
    let options = TrainOptions { seed: 5, epoch: 3, ..TrainOptions::default() };
    let mut runs = Vec::new();
    for (workers, first_batch) in [(0, 0), (1, 0), (3, 0), (2, 1)] {
        small.config.workers_per_gpu = workers;
        let loader = train(&small, &indices(3), &TrainOptions { first_batch, ..options });
        assert_eq!(loader.remaining(), 3 - first_batch);
        runs.push(loader.map(Result::unwrap).collect::<Vec<_>>());
    }
    assert_eq!(runs[0].len(), 3);
    for (run, skip) in runs[1..].iter().zip([0, 0, 1]) {
        assert_eq!(run.len(), 3 - skip);
        for (a, b) in runs[0][skip..].iter().zip(run) {
            assert_eq!(values(a), values(b));
            assert_eq!((&a.metas, &a.targets), (&b.metas, &b.targets));
        }
    }
}

#[test]
fn a_batch_is_normalized_padded_and_channels_last() {
    let mut small = SmallSet::new(&SIZES);
    small.config.pipeline.flip_probability = 1.0;
    let batch = train(&small, &[0, 2], &TrainOptions::default()).next().unwrap().unwrap();
    // 80x60 becomes 85x64, 100x40 becomes 96x38; both are padded to multiples of 32, the batch to the larger.
    let images = tensor(&batch);
    assert_eq!(images.size(), [2, 3, 64, 96]);
    assert_eq!(images.stride(), [64 * 96 * 3, 1, 96 * 3, 3]);
    assert_eq!((batch.metas[0].image_size, batch.metas[0].padded_size), ((64, 85), (64, 96)));
    assert_eq!((batch.metas[1].image_size, batch.metas[1].original_size), ((38, 96), (40, 100)));
    assert!(batch.metas.iter().all(|meta| meta.flipped));
    assert_eq!(images.double_value(&[0, 0, 10, 85]), 0.0);
    assert_eq!(images.double_value(&[1, 2, 38, 0]), 0.0);
    // The blue channel is constant in each image.
    let expected = f64::from((80.0 - 103.53f32) / 57.375);
    assert!((images.double_value(&[1, 2, 5, 5]) - expected).abs() < 1e-6);
    // Red increases to the right in the file, so to the left when flipped.
    assert!(images.double_value(&[1, 0, 5, 5]) > images.double_value(&[1, 0, 5, 50]));
    let (target, factor) = (&batch.targets[1], batch.metas[1].scale_factor);
    assert_eq!(target.labels, [0]);
    assert_eq!(target.boxes[0], [96.0 - 24.0 * factor[0], 5.0 * factor[1], 96.0 - 4.0 * factor[0], 15.0 * factor[1]]);
    let mask = target.masks[0].as_ref().unwrap();
    assert_eq!(mask.frame, (64, 96));
    assert!((mask.x as f32 - target.boxes[0][0]).abs() < 1.5);
}

#[test]
fn evaluation_returns_single_images_with_their_own_padding() {
    let small = SmallSet::new(&SIZES);
    let set = Arc::new(Dataset::open(&small.config, Split::Val).unwrap());
    let load = |with_targets| {
        let loader = Loader::test(Arc::clone(&set), &small.config, &[4, 1], &TestOptions { with_targets }).unwrap();
        loader.map(Result::unwrap).collect::<Vec<_>>()
    };
    let batches = load(false);
    assert_eq!(batches.iter().map(|b| b.metas[0].image_id).collect::<Vec<_>>(), [104, 101]);
    assert_eq!(tensor(&batches[0]).size(), [1, 3, 64, 96]);
    assert_eq!(tensor(&batches[1]).size(), [1, 3, 96, 64]);
    assert!(batches.iter().all(|b| !b.metas[0].flipped && b.targets[0].boxes.is_empty()));
    assert_eq!(load(true)[0].targets[0].boxes.len(), 1);
}

#[test]
fn an_unreadable_image_stops_the_job_with_its_name() {
    let small = SmallSet::new(&SIZES);
    std::fs::write(small.folder.path().join("2.png"), b"").unwrap();
    let mut loader = train(&small, &[0, 2, 3, 3], &TrainOptions::default());
    let error = loader.next().unwrap().unwrap_err();
    assert!(error.to_string().contains("2.png") && error.to_string().contains("image 102"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(loader.next().is_none());
}

#[test]
fn a_skipped_image_is_replaced_by_one_of_its_group_and_reported() {
    let mut small = SmallSet::new(&SIZES);
    small.config.on_error = OnError::Skip;
    std::fs::remove_file(small.folder.path().join("2.png")).unwrap();
    let mut loader = train(&small, &[0, 2, 3, 1], &TrainOptions::default());
    let batches: Vec<Batch> = loader.by_ref().map(Result::unwrap).collect();
    let ids: Vec<i64> = batches.iter().flat_map(|b| &b.metas).map(|meta| meta.image_id).collect();
    assert_eq!(ids, [100, 104, 103, 101]);
    let skipped = loader.take_skipped();
    assert_eq!(skipped.len(), 1);
    assert!(skipped[0].file.ends_with("2.png") && skipped[0].image_id == 102);

    let set = Arc::new(Dataset::open(&small.config, Split::Val).unwrap());
    let mut loader = Loader::test(set, &small.config, &[1, 2, 3], &TestOptions::default()).unwrap();
    let ids: Vec<i64> = loader.by_ref().map(|b| b.unwrap().metas[0].image_id).collect();
    assert_eq!(ids, [101, 103]);
    assert_eq!(loader.take_skipped().len(), 1);
}

#[test]
fn skipping_gives_up_when_nothing_can_be_read() {
    let mut small = SmallSet::new(&SIZES);
    small.config.on_error = OnError::Skip;
    let mut loader = {
        let set = Arc::new(Dataset::open(&small.config, Split::Train).unwrap());
        for i in 0..SIZES.len() {
            std::fs::remove_file(small.folder.path().join(format!("{i}.png"))).unwrap();
        }
        Loader::train(set, &small.config, &[0, 1], &TrainOptions::default()).unwrap()
    };
    assert!(loader.next().unwrap().unwrap_err().to_string().contains("in a row"));
}

#[test]
fn an_image_with_the_wrong_listed_size_is_an_error_if_masks_do_not_fit() {
    let small = SmallSet::new(&[(80, 60)]);
    let set = Arc::new(Dataset::open(&small.config, Split::Train).unwrap());
    image::ImageBuffer::from_pixel(60, 80, image::Rgb([1u8, 2, 3])).save(small.folder.path().join("0.png")).unwrap();
    let mut loader = Loader::train(set, &small.config, &[0], &TrainOptions::default()).unwrap();
    let message = loader.next().unwrap().unwrap_err().to_string();
    assert!(message.contains("listed as 80x60") && message.contains("60x80 pixels"), "{message}");
}

#[test]
fn a_truncated_jpeg_is_used_with_a_warning() {
    let small = SmallSet::new(&[(80, 60)]);
    let path = small.folder.path().join("0.png");
    let mut bytes = std::io::Cursor::new(Vec::new());
    let noise = image::ImageBuffer::from_fn(80, 60, |x, y| image::Rgb([((x * 37) ^ (y * 91)) as u8, 9, 200]));
    noise.write_to(&mut bytes, image::ImageFormat::Jpeg).unwrap();
    let bytes = bytes.into_inner();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let mut loader = train(&small, &[0], &TrainOptions::default());
    assert!(loader.next().unwrap().is_ok());
    let warnings = loader.take_warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("0.png: Premature end"), "{warnings:?}");
    assert!(loader.take_warnings().is_empty());
}

/// A list with every kind, for images of at most 96 pixels.
const ALL_KINDS: &str = r#"[
    {kind = "resize", scales = [[96, 64]], ratio_range = [0.4, 1.5]},
    {kind = "flip", probabilities = [0.3, 0.2, 0.2], directions = ["horizontal", "vertical", "diagonal"]},
    {kind = "random_crop", crop_type = "absolute_range", crop_size = [30, 90], allow_negative_crop = true, recompute_bbox = true},
    {kind = "color_jitter"},
    {kind = "pad", size = [96, 90]},
    {kind = "copy_paste", mask_occluded_thr = 20},
]"#;

fn augment(small: &mut SmallSet, list: &str) {
    let text = format!("data.pipeline.train = {}", list.replace('\n', " "));
    small.config.pipeline.train = config::Config::from_toml(&text, "test").unwrap().data.pipeline.train;
}

fn equal(a: &[Batch], b: &[Batch]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| values(a) == values(b) && (&a.metas, &a.targets) == (&b.metas, &b.targets))
}

#[test]
fn a_list_that_says_the_same_as_the_fields_makes_the_same_batches() {
    let mut small = SmallSet::new(&SIZES);
    small.config.pipeline.scales = vec![[96, 64], [128, 90], [40, 30]];
    let options = TrainOptions { seed: 5, epoch: 3, ..TrainOptions::default() };
    for (mode, count) in [(config::ScaleMode::Value, 3), (config::ScaleMode::Range, 2)] {
        small.config.pipeline.scales.truncate(count);
        (small.config.pipeline.scale_mode, small.config.pipeline.train) = (mode, Vec::new());
        let fields: Vec<_> = train(&small, &indices(3), &options).map(Result::unwrap).collect();
        let scales = format!("{:?}", small.config.pipeline.scales);
        let mode = format!("{mode:?}").to_lowercase();
        let list = format!("[{{kind = \"resize\", scales = {scales}, scale_mode = \"{mode}\"}}, {{kind = \"flip\"}}]");
        augment(&mut small, &list);
        let listed: Vec<_> = train(&small, &indices(3), &options).map(Result::unwrap).collect();
        assert!(equal(&fields, &listed));
    }
}

#[test]
fn augmented_batches_depend_only_on_seed_epoch_and_image() {
    let mut small = SmallSet::new(&SIZES);
    augment(&mut small, ALL_KINDS);
    let run = |small: &SmallSet, indices: &[usize], seed, epoch, first_batch| {
        let options = TrainOptions { seed, epoch, first_batch, ..TrainOptions::default() };
        train(small, indices, &options).map(Result::unwrap).collect::<Vec<_>>()
    };
    small.config.samples_per_gpu = 1;
    small.config.workers_per_gpu = 0;
    let order = [0, 1, 2, 3, 4];
    let whole = run(&small, &order, 5, 3, 0);
    for workers in [1, 3] {
        small.config.workers_per_gpu = workers;
        assert!(equal(&whole, &run(&small, &order, 5, 3, 0)));
        assert!(equal(&whole[2..], &run(&small, &order, 5, 3, 2)), "a resume starts at any batch");
    }
    // Another rank, or another number of them, gets the images in another order.
    let reversed = run(&small, &[4, 3, 2, 1, 0], 5, 3, 0);
    assert!(equal(&whole, &reversed.into_iter().rev().collect::<Vec<_>>()));
    assert!(!equal(&whole, &run(&small, &order, 5, 4, 0)) && !equal(&whole, &run(&small, &order, 6, 3, 0)));
    for batch in &whole {
        assert_eq!((batch.metas[0].image_size, batch.metas[0].padded_size), ((96, 90), (96, 96)));
        let target = &batch.targets[0];
        assert!(target.boxes.len() == target.masks.len() && target.labels.len() == target.masks.len());
        assert!(target.masks.iter().flatten().all(|mask| mask.frame == (96, 96)));
    }
    let options = TrainOptions { seed: 5, epoch: 3, without_masks: true, ..TrainOptions::default() };
    for (with, without) in whole.iter().zip(train(&small, &order, &options).map(Result::unwrap)) {
        assert_eq!(with.targets[0].boxes, without.targets[0].boxes);
        assert!(without.targets[0].masks.is_empty() && values(with) == values(&without));
    }
}

#[test]
fn a_crop_without_objects_is_replaced_by_another_image_of_the_group() {
    let mut small = SmallSet::new(&SIZES);
    small.config.samples_per_gpu = 1;
    // The object covers a part of the upper left corner, so many crops of 20 pixels miss it.
    augment(&mut small, r#"[{kind = "random_crop", crop_size = [20, 20]}]"#);
    let run = |small: &SmallSet, epoch| {
        let options = TrainOptions { epoch, ..TrainOptions::default() };
        train(small, &[0, 1, 2, 3, 4], &options).map(Result::unwrap).collect::<Vec<_>>()
    };
    let mut replaced = 0;
    for epoch in 0..5 {
        let batches = run(&small, epoch);
        assert!(equal(&batches, &run(&small, epoch)));
        assert!(batches.iter().all(|batch| !batch.targets[0].boxes.is_empty()));
        for (index, batch) in batches.iter().enumerate() {
            let used = usize::try_from(batch.metas[0].image_id - 100).unwrap();
            let landscape = |index: usize| SIZES[index].0 > SIZES[index].1;
            assert_eq!(landscape(used), landscape(index));
            replaced += usize::from(used != index);
        }
    }
    assert!(replaced > 3, "{replaced}");
    augment(&mut small, r#"[{kind = "random_crop", crop_size = [20, 20], allow_negative_crop = true}]"#);
    let empty = (0..5).flat_map(|epoch| run(&small, epoch)).filter(|batch| batch.targets[0].boxes.is_empty()).count();
    assert!(empty > 3, "{empty}");

    augment(&mut small, r#"[{kind = "random_crop", crop_size = [1, 1]}]"#);
    small.write(&serde_json::json!({
        "images": [{"id": 100, "file_name": "0.png", "width": 80, "height": 60}],
        "annotations": [{
            "id": 1, "image_id": 100, "category_id": 7, "bbox": [0, 0, 1, 1], "area": 1, "iscrowd": 0,
            "segmentation": [[0, 0, 1, 0, 1, 1, 0, 1]]
        }],
        "categories": [{"id": 7, "name": "box"}]
    }));
    let error = train(&small, &[0], &TrainOptions::default()).next().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(error.to_string().contains("0.png") && error.to_string().contains("allow_negative_crop = true"), "{error}");
}

#[test]
fn objects_of_an_image_of_another_size_than_listed_cannot_be_cut_out() {
    let mut small = SmallSet::new(&[(80, 60)]);
    augment(&mut small, r#"[{kind = "resize", scales = [[96, 64]]}]"#);
    image::ImageBuffer::from_pixel(82, 60, image::Rgb([1u8, 2, 3])).save(small.folder.path().join("0.png")).unwrap();
    let message = train(&small, &[0], &TrainOptions::default()).next().unwrap().unwrap_err().to_string();
    assert!(message.contains("listed as 80x60") && message.contains("82x60 pixels"), "{message}");
}
