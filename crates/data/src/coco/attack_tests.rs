//! Malicious annotation files. Reading always terminates, and a set without errors can be used completely.

use std::cell::RefCell;

use hotcoco::mask::rle_to_string;
use hotcoco::types::Rle;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::Split;
use crate::Dataset;
use fnet_test_support::SmallSet;

thread_local! {
    static SMALL: RefCell<Option<SmallSet>> = const { RefCell::new(None) };
}

/// A valid file with masks of every kind.
fn sound() -> Value {
    let runs = [197, 10, 38, 10, 2817];
    let string = rle_to_string(&Rle { h: 48, w: 64, counts: runs.to_vec() });
    let rle = |counts: Value| json!({"size": [48, 64], "counts": counts});
    let object = |id: u32, image: u32, mask: Value| {
        json!({"id": id, "image_id": image, "category_id": 7 + id % 2, "bbox": [4, 5, 20, 10], "area": 200.5,
               "iscrowd": 0, "segmentation": mask})
    };
    json!({
        "images": [
            {"id": 100, "file_name": "0.png", "width": 64, "height": 48},
            {"id": 101, "file_name": "1.png", "width": 64, "height": 48}
        ],
        "annotations": [
            object(1, 100, json!([[4, 5, 24, 5, 24, 15, 4, 15], [1, 2, 3, 4, 5, 6.5]])),
            object(2, 101, json!([4, 5, 24, 5, 24, 15, 4, 15])),
            object(3, 100, rle(json!(runs))),
            object(4, 101, rle(json!(string)))
        ],
        "categories": [{"id": 7, "name": "box"}, {"id": 8, "name": "c\u{e9}p\n"}]
    })
}

/// Reads a file with this text in every way that a job does.
///
/// # Panics
/// If a set without errors cannot be used.
fn read(text: &[u8]) {
    SMALL.with_borrow_mut(|small| {
        let small = small.get_or_insert_with(|| SmallSet::new(&[(64, 48), (64, 48)]));
        std::fs::write(small.folder.path().join("a.json"), text).unwrap();
        for split in [Split::Train, Split::Val] {
            let (set, mut diagnostics) = Dataset::inspect(&small.config, split, 2);
            let Some(set) = set else {
                assert!(diagnostics.refuse_errors().is_err(), "no set and no error");
                continue;
            };
            set.check_masks(&mut diagnostics);
            set.check_files(&mut diagnostics);
            diagnostics.kept().iter().for_each(|diagnostic| assert!(!diagnostic.to_string().is_empty()));
            if diagnostics.refuse_errors().is_ok() {
                use_all(&set, split);
            }
        }
        let _ = super::category_names(&small.folder.path().join("a.json"));
    });
}

fn use_all(set: &Dataset, split: Split) {
    for index in 0..set.len() {
        let (image, objects) = (set.image(index), set.objects(index));
        assert!(objects.labels.iter().all(|&label| usize::from(label) < set.categories().len()));
        let masks = set.record(index).segmentations().unwrap();
        assert_eq!(masks.len(), objects.boxes.len());
        for mask in masks.into_iter().flatten() {
            mask.to_rle((image.height, image.width)).unwrap();
        }
        set.written_image_id(image.id);
    }
    if split == Split::Val {
        for object in set.true_objects().unwrap() {
            assert!(set.image_ids().contains(&object.image_id) && object.label < set.categories().len());
        }
    }
}

/// Mostly invalid values.
fn odd_value() -> impl Strategy<Value = Value> {
    const TEXTS: &[&str] =
        &["", "7", "007", "-1", "a", "\u{0}", "@NaN", "@Infinity", "@-Infinity", "@1e999", "@-0", "../x", "@1e40"];
    const NUMBERS: &[f64] = &[0.0, -1.0, 0.5, 1e9, -1e12, 1e300, 4_294_967_295.0, 4_294_967_296.0, 9.3e18];
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop::sample::select(TEXTS).prop_map(Value::from),
        prop::sample::select(NUMBERS).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0..70i64).prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!([[]])),
        Just(json!([null, 7])),
        Just(json!([1, 2, 3, 4])),
        Just(json!([[1, 2, 3, 4]])),
        Just(json!({"size": [48, 64], "counts": ""})),
        Just(json!({"size": [65_536, 65_536], "counts": [1]})),
        prop::collection::vec(-1e9..1e9, 0..9).prop_map(Value::from),
    ]
}

/// Pointers to all values of a file.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, value)| pointers(value, &format!("{at}/{i}"), found))
        }
        Value::Object(object) => object.iter().for_each(|(key, value)| pointers(value, &format!("{at}/{key}"), found)),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn swapped_values_never_break_the_reader(
        swaps in prop::collection::vec((any::<prop::sample::Index>(), odd_value(), any::<bool>()), 1..5)
    ) {
        let mut file = sound();
        for (index, value, is_copy) in swaps {
            let mut all = Vec::new();
            pointers(&file, "", &mut all);
            // A value from elsewhere in the file, or an unusual one.
            let value = if is_copy { file.pointer(&all[index.index(all.len()) / 2]).unwrap().clone() } else { value };
            *file.pointer_mut(&all[index.index(all.len())]).unwrap() = value;
        }
        let text = file.to_string();
        let plain = ["NaN", "Infinity", "-Infinity", "1e999", "-0", "1e40"];
        read(plain.iter().fold(text, |text, word| text.replace(&format!("\"@{word}\""), word)).as_bytes());
    }

    #[test]
    fn damaged_bytes_never_break_the_reader(
        damage in prop::collection::vec((any::<prop::sample::Index>(), 0usize..40, 0u8..5, any::<u8>()), 1..5)
    ) {
        let mut text = sound().to_string().into_bytes();
        for (index, length, kind, byte) in damage {
            let at = index.index(text.len().max(1)).min(text.len());
            let end = (at + length).min(text.len());
            match kind {
                0 => _ = text.drain(at..end),
                1 => text.insert(at, byte),
                2 => text.insert(at, b"[]{}\",:\\-0e\n"[usize::from(byte) % 12]),
                3 => text.extend_from_within(at..end),
                _ => if let Some(slot) = text.get_mut(at) { *slot = byte },
            }
        }
        read(&text);
    }
}

#[test]
fn the_undamaged_file_is_valid() {
    let small = SmallSet::new(&[(64, 48), (64, 48)]);
    small.write(&sound());
    for split in [Split::Train, Split::Val] {
        let (set, mut diagnostics) = Dataset::inspect(&small.config, split, 9);
        set.unwrap().check_masks(&mut diagnostics);
        diagnostics.refuse_errors().unwrap();
    }
}

#[test]
fn long_lists_are_read_in_time() {
    let many = |count: usize, value: fn(usize) -> Value| (0..count).map(value).collect::<Vec<_>>();
    let mut file = sound();
    file["categories"] = many(200_000, |i| json!({"id": i, "name": i.to_string()})).into();
    file["images"] = many(50_000, |i| json!({"id": i, "file_name": "0.png", "width": 64, "height": 48})).into();
    let started = std::time::Instant::now();
    read(file.to_string().as_bytes());
    read("[".repeat(1 << 20).as_bytes());
    read(format!("{{\"images\": {}", "[".repeat(1 << 20)).as_bytes());
    read(format!("{{\"annotations\": [{{\"bbox\": {}", "{\"a\":".repeat(1 << 18)).as_bytes());
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}
