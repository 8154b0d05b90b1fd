use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{Code, Loader, TrainOptions, check_before_job, train_batches_per_epoch, train_indices};
use fnet_test_support::SmallSet;

/// A second annotation file `NAME.json` for the images of a small set: those that `classes` lists, each with one object of
/// each of its classes, and with the ids of the first file.
fn write_file(small: &SmallSet, name: &str, classes: &[&[u16]]) {
    let mut annotations = Vec::new();
    let images = classes.iter().enumerate().map(|(image, own)| {
        for &class in *own {
            annotations.push(json!({
                "id": annotations.len() + 1, "image_id": image + 100, "category_id": class + 7, "bbox": [4, 5, 20, 10],
                "area": 200, "iscrowd": 0, "segmentation": [[4, 5, 24, 5, 24, 15, 4, 15]]
            }));
        }
        json!({"id": image + 100, "file_name": format!("{image}.png"), "width": 64, "height": 48})
    });
    let images: Vec<_> = images.collect();
    let names = ["box", "cup", "jar"];
    let categories: Vec<_> = (7..).zip(names).map(|(id, name)| json!({"id": id, "name": name})).collect();
    let file = json!({"images": images, "annotations": annotations, "categories": categories});
    std::fs::write(small.folder.path().join(format!("{name}.json")), file.to_string()).unwrap();
}

fn set(name: &str, repeat: usize, class_balanced: f64) -> config::TrainSet {
    config::TrainSet {
        ann_file: format!("{name}.json"),
        img_prefix: ".".into(),
        filter_empty: false,
        repeat,
        class_balanced,
    }
}

/// The annotation file and the image id of every sample.
fn samples_of(dataset: &Dataset) -> Vec<(String, i64)> {
    let sample = |record: Record<'_>| {
        (record.annotation_file().file_stem().unwrap().to_string_lossy().into_owned(), record.image.id)
    };
    (0..dataset.len()).map(|index| sample(dataset.record(index))).collect()
}

fn of(name: &str, ids: impl IntoIterator<Item = i64>) -> Vec<(String, i64)> {
    ids.into_iter().map(|id| (name.to_owned(), id)).collect()
}

#[test]
fn samples_are_those_of_concatenated_repeated_and_balanced_sets() {
    let mut small = SmallSet::new(&[(64, 48); 4]);
    write_file(&small, "a", &[&[0], &[0], &[]]);
    // f is 3/4 for class 0 and 1/4 for class 1 and for the background; with the threshold 1 the factors are 1.15, 2 and 2.
    write_file(&small, "b", &[&[0], &[0, 1], &[], &[0]]);
    let open = |small: &SmallSet, split| Dataset::open(&small.config, split).unwrap();

    small.config.train = vec![set("a", 2, 0.0), set("b", 1, 0.0)];
    let joined = open(&small, Split::Train);
    assert_eq!(samples_of(&joined), [of("a", [100, 101, 102, 100, 101, 102]), of("b", 100..104)].concat());
    assert_eq!((joined.len(), joined.object_count(), joined.categories().len()), (10, 6, 3));
    assert_eq!(joined.first_samples(), [0, 1, 2, 6, 7, 8, 9]);
    assert_eq!(samples_of(&joined.without_repetitions()), [of("a", 100..103), of("b", 100..104)].concat());

    small.config.train = vec![set("b", 2, 1.0)];
    let once = [100, 100, 101, 101, 102, 102, 103, 103];
    assert_eq!(samples_of(&open(&small, Split::Train)), of("b", [once, once].concat()));
    small.config.train[0].filter_empty = true;
    // Without the image that is empty, class 1 is in a third of the images.
    let once = [100, 101, 101, 103];
    assert_eq!(samples_of(&open(&small, Split::Train)), of("b", [once, once].concat()));
    // A set that is repeated has the same images as one that is not, with their own numbers.
    small.config.train = vec![set("b", 3, 0.0)];
    let repeated = open(&small, Split::Train);
    assert!((0..repeated.len()).all(|sample| repeated.image_id(sample) == 100 + sample as i64 % 4));
    assert!(repeated.is_same_image(1, 9) && !repeated.is_same_image(1, 2));
}

#[test]
fn equal_ids_of_two_files_are_different_images_and_messages_name_the_file() {
    let mut small = SmallSet::new(&[(64, 48); 3]);
    write_file(&small, "a", &[&[0], &[1]]);
    write_file(&small, "b", &[&[2], &[0, 1], &[2]]);
    small.config.train = vec![set("a", 1, 0.0), set("b", 1, 0.0)];
    let dataset = Arc::new(Dataset::open(&small.config, Split::Train).unwrap());
    assert!(dataset.is_renumbered());
    assert_eq!(dataset.image_ids(), [1, 2, 3, 4, 5]);
    let labels: Vec<Vec<u16>> = (0..5).map(|sample| dataset.objects(sample).labels.to_vec()).collect();
    assert_eq!(labels, [vec![0], vec![1], vec![2], vec![0, 1], vec![2]]);
    let truth: Vec<_> = dataset.true_objects().unwrap().iter().map(|object| (object.image_id, object.label)).collect();
    assert_eq!(truth, [(1, 0), (2, 1), (3, 2), (4, 0), (4, 1), (5, 2)]);

    let mut loader = Loader::train(Arc::clone(&dataset), &small.config, &[0, 2], &TrainOptions::default()).unwrap();
    let batch = loader.next().unwrap().unwrap();
    assert_eq!(batch.targets.iter().map(|target| target.labels[0]).collect::<Vec<_>>(), [0, 2]);
    let metas: Vec<_> = batch.metas.iter().map(|meta| (meta.image_id, meta.file_name.as_str())).collect();
    for ((number, name), (expected, file)) in metas.into_iter().zip([(1, "a.json"), (3, "b.json")]) {
        assert!(number == expected && name.starts_with("0.png (image 100 of ") && name.ends_with(&format!("{file})")));
    }
    std::fs::remove_file(small.folder.path().join("2.png")).unwrap();
    let mut loader = Loader::train(dataset, &small.config, &[4], &TrainOptions::default()).unwrap();
    let error = loader.next().unwrap().unwrap_err().to_string();
    assert!(error.contains("train (image 102 of ") && error.contains("b.json)"), "{error}");
}

#[test]
fn a_training_set_with_other_classes_is_named() {
    let mut small = SmallSet::new(&[(64, 48)]);
    write_file(&small, "b", &[&[0]]);
    // The file of the small set has the class "box" alone.
    small.config.train = vec![set("b", 1, 0.0), set("a", 1, 0.0)];
    for (is_auto, classes) in [(false, vec![]), (true, vec!["box".into(), "cup".into(), "jar".into()])] {
        (small.config.classes_are_auto, small.config.classes) = (is_auto, classes);
        let error = Dataset::open(&small.config, Split::Train).unwrap_err().to_string();
        for part in
            ["split-categories: data.train: ", "a.json: compared with ", "b.json, this set lacks \"cup\", \"jar\""]
        {
            assert!(error.contains(part), "{error}");
        }
    }
    // Names in the config select the common ones.
    (small.config.classes_are_auto, small.config.classes) = (false, vec!["box".into()]);
    assert_eq!(Dataset::open(&small.config, Split::Train).unwrap().len(), 2);
}

#[test]
fn a_problem_names_its_set_of_several() {
    let mut small = SmallSet::new(&[(64, 48)]);
    small.config.train = vec![set("a", 1, 0.0), set("none", 1, 0.0)];
    let error = Dataset::open(&small.config, Split::Train).unwrap_err().to_string();
    assert!(error.contains("none.json") && error.contains("set by data.train[1].ann_file"), "{error}");
}

#[test]
fn the_test_set_is_the_validation_set_unless_it_is_given() {
    let mut small = SmallSet::new(&[(64, 48); 2]);
    assert_eq!(Dataset::open(&small.config, Split::Test).unwrap().split(), Split::Val);
    write_file(&small, "b", &[&[0]]);
    (small.config.test.ann_file, small.config.test.img_prefix) = ("b.json".into(), ".".into());
    let test = Dataset::open(&small.config, Split::Test).unwrap();
    assert_eq!((test.split(), test.len()), (Split::Test, 1));
}

#[test]
fn a_fraction_divides_all_files_together_and_nothing_is_lost() {
    let mut small = SmallSet::new(&[(64, 48); 6]);
    write_file(&small, "a", &[&[0], &[0, 1], &[], &[0], &[0], &[]]);
    write_file(&small, "b", &[&[0], &[1], &[2], &[0, 2], &[], &[0]]);
    small.config.train = vec![set("a", 1, 0.0), set("b", 2, 0.0)];
    small.config.val.fraction = 0.25;
    let train = Dataset::open(&small.config, Split::Train).unwrap();
    let val = Dataset::open(&small.config, Split::Val).unwrap();
    let count = |dataset: &Dataset| {
        let mut counts: BTreeMap<(String, i64), usize> = BTreeMap::new();
        samples_of(dataset).into_iter().for_each(|sample| *counts.entry(sample).or_default() += 1);
        counts
    };
    let (trained, tested) = (count(&train), count(&val));
    assert!(!tested.is_empty() && tested.values().all(|&times| times == 1));
    for image in of("a", 100..106).into_iter().chain(of("b", 100..106)) {
        let times = if image.0 == "a" { 1 } else { 2 };
        assert_eq!((trained.get(&image), tested.get(&image)).0.is_some(), !tested.contains_key(&image), "{image:?}");
        assert_eq!(trained.get(&image).copied().unwrap_or(times), times, "{image:?}");
    }
    // Class 1 is in one image of each file, class 2 in two of one.
    for label in 0..3 {
        let has = |set: &Dataset| (0..set.len()).any(|sample| set.objects(sample).labels.contains(&label));
        assert!(has(&train) && has(&val), "class {label}");
    }
    // Ground truth is that of the part.
    let ids = val.image_ids();
    let truth = val.true_objects().unwrap();
    assert!(truth.iter().all(|object| ids.contains(&object.image_id)));
    assert_eq!(truth.len(), val.object_count());

    // The same part again, also without the training set; others with another seed, fraction or file.
    assert!(train.validation_part().is_some() && train.validation_part() == val.validation_part());
    assert_eq!(val.other_validation_part(train.validation_part()), None);
    small.config.val.seed = 1;
    let other = Dataset::open(&small.config, Split::Val).unwrap();
    assert!(samples_of(&other) != samples_of(&val));
    let warning = other.other_validation_part(train.validation_part()).unwrap();
    assert!(warning.contains("data.val.fraction") && warning.contains("b.json"), "{warning}");
    small.config.val.seed = 0;
    write_file(&small, "b", &[&[0], &[1], &[2], &[0, 2], &[], &[0], &[1]]);
    let grown = Dataset::open(&small.config, Split::Val).unwrap();
    assert!(grown.other_validation_part(train.validation_part()).is_some());
}

#[test]
fn each_side_of_a_fraction_is_filtered_and_checked_by_its_own_rules() {
    let mut small = SmallSet::new(&[(64, 48); 4]);
    write_file(&small, "a", &[&[0], &[], &[0], &[]]);
    small.config.train = vec![config::TrainSet { filter_empty: true, ..set("a", 1, 0.0) }];
    small.config.val.fraction = 0.5;
    let open = |split| Dataset::open(&small.config, split).unwrap();
    let (train, val) = (open(Split::Train), open(Split::Val));
    // One image with an object and one without; the training set leaves its empty one out.
    assert_eq!((train.len(), val.len()), (1, 2));
    // The files are reported once, by the training set.
    let (mut config, data) = (fnet_config::Config::default(), small.config.clone());
    (config.model.num_classes, config.data) = (3, data);
    let scope = crate::Scope { keep: 10, headers: true, decode: false };
    let splits = [Split::Train, Split::Val];
    let (_, diagnostics) = crate::check(&config, &splits, scope, &|_, _, _| {});
    assert_eq!(diagnostics.count(Code::CategoryUnused), 2);
    assert_eq!(diagnostics.count(Code::SplitSharedImages), 0);
    assert!(check_before_job(&config, &[&train, &val], &[]).unwrap().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn an_epoch_has_every_image_as_often_as_it_is_repeated(
        repeats in prop::collection::vec(1usize..4, 1..3), world_size in 1usize..4, samples in 1usize..3, epoch in 0u64..3
    ) {
        let mut small = SmallSet::new(&[(64, 48), (48, 64), (64, 48)]);
        small.config.train = repeats.iter().map(|&repeat| set("a", repeat, 0.0)).collect();
        let dataset = Dataset::open(&small.config, Split::Train).unwrap();
        let flags = dataset.aspect_flags();
        let lists: Vec<Vec<usize>> =
            (0..world_size).map(|rank| train_indices(&flags, epoch, 5, rank, world_size, samples)).collect();
        let steps = train_batches_per_epoch(&flags, world_size, samples);
        prop_assert!(lists.iter().all(|list| list.len() == steps * samples));
        let mut seen = lists.concat();
        seen.sort_unstable();
        // Samples that fill up a group are repeated.
        seen.dedup();
        let mut times = vec![0; 3 * repeats.len()];
        for sample in seen {
            let (part, image) = dataset.place(sample);
            times[3 * part + image] += 1;
        }
        let expected: Vec<usize> = repeats.iter().flat_map(|&repeat| [repeat; 3]).collect();
        prop_assert_eq!(times, expected);
    }
}
