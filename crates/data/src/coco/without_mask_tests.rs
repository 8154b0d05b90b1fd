//! Objects without a mask, under each `data.without_mask`, and sets whose masks are not used.

use fnet_config::WithoutMask;
use fnet_test_support::SmallSet;
use serde_json::{Value, json};

use super::Split;
use crate::dataset::Dataset;
use crate::transform::{Augmentation, Geometry};

/// Image 100 has one object with a mask and two without, image 101 only one without.
fn mixed() -> SmallSet {
    let mut small = SmallSet::new(&[(64, 48), (64, 48)]);
    let object = |id: u32, image: u32, x: u32, mask: Value| {
        json!({"id": id, "image_id": image, "category_id": 7, "bbox": [x, 5, 20, 10], "area": 200, "iscrowd": 0,
               "segmentation": mask})
    };
    let sound = json!([[4, 5, 24, 5, 24, 15, 4, 15]]);
    let image = |id: u32| json!({"id": id, "file_name": format!("{}.png", id - 100), "width": 64, "height": 48});
    small.write(&json!({
        "images": [image(100), image(101)],
        "annotations": [
            object(1, 100, 4, sound), object(2, 100, 10, json!([])), object(3, 100, 30, json!([[30, 5, 50, 15]])),
            object(4, 101, 4, Value::Null),
        ],
        "categories": [{"id": 7, "name": "box"}]
    }));
    small.config.train[0].filter_empty = true;
    small
}

/// The ids of the objects of each image, and which of them have masks when an image is loaded.
fn objects(small: &SmallSet, split: Split) -> Vec<(Vec<i64>, Vec<bool>)> {
    let set = Dataset::open(&small.config, split).unwrap();
    let geometry = Geometry::new((48, 64), Augmentation { scale: [64, 48], flip: false }, 32);
    let of = |index: usize| {
        let target = geometry.map_objects(&set.record(index)).unwrap();
        assert_eq!((target.boxes.len(), target.labels.len()), (target.masks.len(), target.masks.len()));
        (set.objects(index).ids.to_vec(), target.masks.iter().map(Option::is_some).collect())
    };
    (0..set.len()).map(of).collect()
}

#[test]
fn objects_without_a_mask_are_refused_left_out_or_trained_on_with_their_box() {
    let mut small = mixed();
    let error = Dataset::open(&small.config, Split::Train).unwrap_err().to_string();
    for part in ["mask-missing", "model.mask = false", "data.without_mask = \"box\""] {
        assert!(error.contains(part), "{error}");
    }
    small.config.without_mask = WithoutMask::Skip;
    assert_eq!(objects(&small, Split::Train), [(vec![1], vec![true])]);
    small.config.train[0].filter_empty = false;
    assert_eq!(objects(&small, Split::Train), [(vec![1], vec![true]), (vec![], vec![])]);
    small.config.without_mask = WithoutMask::Box;
    let all = [(vec![1, 2, 3], vec![true, false, false]), (vec![4], vec![false])];
    assert_eq!(objects(&small, Split::Train), all);
    for rule in [WithoutMask::Error, WithoutMask::Skip, WithoutMask::Box] {
        small.config.without_mask = rule;
        assert_eq!(objects(&small, Split::Val), all, "the boxes are evaluated");
    }
}

#[test]
fn a_training_set_without_any_mask_needs_boxes_that_count() {
    let mut small = mixed();
    let mut file: Value = serde_json::from_slice(&std::fs::read(small.folder.path().join("a.json")).unwrap()).unwrap();
    for annotation in file["annotations"].as_array_mut().unwrap() {
        annotation["segmentation"] = json!([]);
    }
    small.write(&file);
    let checked = |small: &SmallSet| {
        let (set, mut diagnostics) = Dataset::inspect(&small.config, Split::Train, 3);
        set.unwrap().check_masks(&mut diagnostics);
        diagnostics.refuse_errors().map_err(|error| error.to_string())
    };
    small.config.without_mask = WithoutMask::Skip;
    let error = checked(&small).unwrap_err();
    assert!(error.contains("file-nothing") && error.contains("4 without a mask"), "{error}");
    small.config.without_mask = WithoutMask::Box;
    checked(&small).unwrap();
    small.config.without_mask = WithoutMask::Error;
    small.config.boxes_only = true;
    checked(&small).unwrap();
}

#[test]
fn masks_that_are_not_used_are_not_read() {
    let mut small = mixed();
    let mut file: Value = serde_json::from_slice(&std::fs::read(small.folder.path().join("a.json")).unwrap()).unwrap();
    file["annotations"][0]["segmentation"] = json!("no mask");
    file["annotations"][1].as_object_mut().unwrap().remove("area");
    small.write(&file);
    assert!(Dataset::open(&small.config, Split::Val).unwrap().true_objects().is_err());
    small.config.boxes_only = true;
    for split in [Split::Train, Split::Val] {
        let set = Dataset::open(&small.config, split).unwrap();
        assert_eq!((set.len(), set.object_count()), (2, 4));
    }
    let truth = Dataset::open(&small.config, Split::Val).unwrap().true_objects().unwrap();
    let areas: Vec<f64> = truth.iter().map(|object| object.area).collect();
    assert_eq!(areas, [200.0; 4]);
    assert!(truth.iter().all(|object| object.mask.is_none()));
}
