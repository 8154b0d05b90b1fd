use std::collections::HashSet;

use serde_json::{Value, json};

use fnet_common::Result;

use super::*;
use crate::Dataset;
use crate::diagnostics::{Code, Severity};
use fnet_test_support::{SmallSet, fixture};

fn image(id: i64) -> Value {
    json!({"id": id, "file_name": format!("{id}.png"), "width": 64, "height": 48})
}

/// A valid annotation of category 7.
fn annotation(id: i64, image_id: i64) -> Value {
    json!({"id": id, "image_id": image_id, "category_id": 7, "bbox": [4, 5, 20, 10], "area": 200, "iscrowd": 0,
           "segmentation": [[4, 5, 24, 5, 24, 15, 4, 15]]})
}

fn with(mut annotation: Value, key: &str, value: Value) -> Value {
    annotation[key] = value;
    annotation
}

fn without(mut annotation: Value, key: &str) -> Value {
    annotation.as_object_mut().unwrap().remove(key);
    annotation
}

/// Opens a set of `images` and `annotations` with the categories 7 "box" and 3 "cup".
fn open(images: &[Value], annotations: &[Value], split: Split, classes: &[&str]) -> Result<Dataset> {
    let mut small = SmallSet::new(&[]);
    small.config.classes = classes.iter().map(ToString::to_string).collect();
    small.write(&json!({"images": images, "annotations": annotations,
                        "categories": [{"id": 7, "name": "box"}, {"id": 3, "name": "cup"}]}));
    Dataset::open(&small.config, split)
}

#[test]
fn objects_are_kept_as_in_mmdetection() {
    let dropped = [
        with(annotation(2, 1), "iscrowd", json!(1)),
        with(annotation(3, 1), "ignore", json!(true)),
        with(annotation(4, 1), "area", json!(0)),
        with(annotation(5, 1), "bbox", json!([4, 5, 0.5, 10])),
        with(annotation(6, 1), "bbox", json!([70, 5, 20, 10])),
        with(annotation(7, 1), "bbox", json!([-30, 5, 20, 10])),
        with(annotation(8, 1), "category_id", json!(99)),
    ];
    let kept = with(annotation(1, 1), "bbox", json!([4.1, 5.2, 20.3, 10.4]));
    let all: Vec<Value> = dropped.into_iter().chain([kept]).collect();
    let set = open(&[image(1)], &all, Split::Train, &[]).unwrap();
    let objects = set.objects(0);
    assert_eq!(objects.ids, [1]);
    assert_eq!(objects.boxes, [[4.1, 5.2, (4.1f64 + 20.3) as f32, (5.2f64 + 10.4) as f32]]);
    assert_eq!(set.record(0).segmentations().unwrap().len(), 1);
}

#[test]
fn training_skips_small_images_and_images_without_a_selected_object() {
    let mut small = image(2);
    small["width"] = json!(31);
    let crowd = with(annotation(3, 3), "iscrowd", json!(1));
    let images = [image(1), small, image(3), image(4), image(5)];
    let annotations = [annotation(1, 5), annotation(2, 2), crowd, with(annotation(4, 4), "category_id", json!(3))];
    let train = open(&images, &annotations, Split::Train, &["box"]).unwrap();
    // An image with only a crowd stays, without targets.
    assert_eq!(train.image_ids(), [3, 5]);
    assert!(train.objects(0).boxes.is_empty());
    assert_eq!(train.image(1), ImageInfo { id: 5, file_name: "5.png", width: 64, height: 48 });
    let val = open(&images, &annotations, Split::Val, &["box"]).unwrap();
    assert_eq!(val.image_ids(), [1, 2, 3, 4, 5]);
    assert_eq!(val.aspect_flags(), [1, 0, 1, 1, 1]);
}

#[test]
fn labels_follow_the_order_of_the_file() {
    let annotations = [annotation(1, 1), with(annotation(2, 1), "category_id", json!(3))];
    let set = open(&[image(1)], &annotations, Split::Train, &["cup", "box"]).unwrap();
    assert_eq!(set.objects(0).labels, [0, 1]);
    assert_eq!(set.categories()[0], Category { id: 7, name: "box".into() });
    assert_eq!(set.diagnostics().counts(), [(Code::ClassOrder, 1)]);
    let only = open(&[image(1)], &annotations, Split::Train, &["cup"]).unwrap();
    assert_eq!((only.objects(0).ids, only.objects(0).labels), (&[2][..], &[0][..]));
}

#[test]
fn the_last_of_several_annotations_with_one_id_is_used() {
    let second = with(annotation(1, 1), "bbox", json!([1, 1, 5, 5]));
    let set = open(&[image(1)], &[annotation(1, 1), second, annotation(2, 1)], Split::Train, &[]).unwrap();
    assert_eq!(set.objects(0).boxes[..2], [[1.0, 1.0, 6.0, 6.0]; 2]);
    assert_eq!(set.diagnostics().count(Code::AnnotationIdRepeated), 1);
}

#[test]
fn unambiguous_errors_are_repaired_with_a_warning() {
    let text_ids = with(with(annotation(1, 1), "image_id", json!("1")), "category_id", json!("7"));
    let bare = without(without(without(annotation(2, 1), "area"), "iscrowd"), "id");
    let bare = with(bare, "bbox", json!([2, 2, 5, 5]));
    let orphan = annotation(3, 77);
    let set = open(&[image(1)], &[text_ids, bare, orphan], Split::Train, &[]).unwrap();
    assert_eq!(set.objects(0).ids, [1, 2], "without an id it is the position in the list, from 1");
    use Code::{AnnotationAreaMissing, AnnotationCrowdMissing, AnnotationIdMissing, AnnotationIdText};
    let expected = [
        (AnnotationIdMissing, 1),
        (AnnotationIdText, 2),
        (Code::AnnotationImageUnknown, 1),
        (AnnotationCrowdMissing, 1),
        (AnnotationAreaMissing, 1),
        (Code::CategoryUnused, 1),
    ];
    assert_eq!(set.diagnostics().counts(), expected);
}

#[test]
fn errors_name_the_problem_and_the_remedy() {
    let images = [image(1)];
    let cases: [(Result<Dataset>, &str); 6] = [
        (
            open(&images, &[without(without(annotation(8, 1), "bbox"), "segmentation")], Split::Train, &[]),
            "annotation 8: no bbox",
        ),
        (open(&images, &[with(annotation(8, 1), "segmentation", json!([]))], Split::Train, &[]), "segmentation is []"),
        (open(&images, &[annotation(1, 1)], Split::Train, &["boxx"]), "the most similar is \"box\""),
        (open(&images, &[], Split::Train, &[]), "nothing to train on"),
        (open(&[without(image(4), "width")], &[], Split::Val, &[]), "image 4: no width"),
        (open(&[json!({"id": 4})], &[], Split::Val, &[]), "image 4: no file_name"),
    ];
    for (result, expected) in cases {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), fnet_common::ErrorKind::Data);
        assert!(error.to_string().contains(expected), "{error}");
    }
    let mut missing = SmallSet::new(&[]);
    missing.config.train[0].ann_file = "b.json".into();
    assert!(Dataset::open(&missing.config, Split::Train).unwrap_err().to_string().contains("data.train.ann_file"));
    missing.config.val.img_prefix = "nowhere".into();
    missing.write(&json!({"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}));
    assert!(Dataset::open(&missing.config, Split::Val).unwrap_err().to_string().contains("data.val.img_prefix"));
}

#[test]
fn a_file_that_changes_while_it_is_in_use_is_an_error() {
    let small = SmallSet::new(&[(64, 48)]);
    let set = Dataset::open(&small.config, Split::Train).unwrap();
    assert_eq!(set.record(0).segmentations().unwrap().len(), 1);
    small.write(&json!({"images": []}));
    assert!(set.record(0).segmentations().unwrap_err().to_string().contains("changed"));
}

#[test]
fn pipes_are_errors_and_do_not_block() {
    let small = SmallSet::new(&[]);
    let pipe = |name: &str| {
        let path = small.folder.path().join(name);
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    };
    pipe("1.png");
    let images = [without(image(1), "width")];
    small.write(&json!({"images": images, "annotations": [], "categories": [{"id": 7, "name": "box"}]}));
    let error = Dataset::open(&small.config, Split::Val).unwrap_err().to_string();
    assert!(error.contains("image 1: no width, and ") && error.contains("not a regular file"), "{error}");
    let path = small.folder.path().join("1.png");
    assert!(crate::DecodedImage::read(&path).unwrap_err().to_string().contains("not a regular file"));
    std::fs::remove_file(small.folder.path().join("a.json")).unwrap();
    pipe("a.json");
    assert!(Dataset::open(&small.config, Split::Val).unwrap_err().to_string().contains("not a regular file"));
}

#[test]
fn string_ids_refer_to_the_same_images_in_the_ground_truth() {
    let mut small = SmallSet::new(&[]);
    let named = |id: &str| with(image(1), "id", json!(id));
    let annotations = [with(annotation(1, 0), "image_id", json!("b")), with(annotation(2, 0), "image_id", json!("c"))];
    small.write(&json!({"images": [named("a"), named("b"), named("c")], "annotations": annotations,
                        "categories": [{"id": "k", "name": "box"}, {"id": 7, "name": "cup"}]}));
    small.config.val.filter_empty = true;
    let set = Dataset::open(&small.config, Split::Val).unwrap();
    let ids: Vec<i64> = set.true_objects().unwrap().iter().map(|object| object.image_id).collect();
    assert_eq!(ids, set.image_ids());
    let written: Vec<Value> = ids.iter().map(|&id| set.written_image_id(id)).collect();
    assert_eq!(written, ["b", "c"]);
}

#[test]
fn real_annotations_are_read_as_by_a_naive_reader() {
    let Some(root) = fixture("") else { return };
    let root = root.join("data/coco_mini");
    let config = config::Data { root: root.display().to_string(), ..Default::default() };
    let set = Dataset::open(&config, Split::Train).unwrap();
    let text = std::fs::read(root.join("annotations/instances_train2017.json")).unwrap();
    let naive: Value = serde_json::from_slice(&text).unwrap();
    let annotations = naive["annotations"].as_array().unwrap();
    let with_objects: HashSet<i64> = annotations.iter().map(|a| a["image_id"].as_i64().unwrap()).collect();
    let expected: Vec<i64> = naive["images"]
        .as_array()
        .unwrap()
        .iter()
        .map(|image| image["id"].as_i64().unwrap())
        .filter(|id| with_objects.contains(id))
        .collect();
    assert_eq!(set.image_ids(), expected);
    assert_eq!(set.categories().len(), 80);
    assert_eq!(set.diagnostics().number_of(Severity::Warning), 0, "{:?}", set.diagnostics().counts());
    for i in 0..set.len() {
        let masks = set.record(i).segmentations().unwrap();
        for (mask, id) in masks.iter().zip(set.objects(i).ids) {
            let original = annotations.iter().find(|a| a["id"].as_i64() == Some(*id)).unwrap();
            let expected: Vec<Vec<f64>> = serde_json::from_value(original["segmentation"].clone()).unwrap();
            assert_eq!(*mask, Segmentation::Polygons(expected), "annotation {id}");
        }
    }
    assert!(set.object_count() > 700);
}
