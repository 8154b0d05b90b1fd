//! Unusual annotation files from real tools: their diagnostics, and invariants of the data.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::*;
use crate::Dataset;
use fnet_test_support::fixture;

/// The diagnostics of each file in `derived` and `wild`, in training and in validation.
const EXPECTED: &str = include_str!("wild.txt");

/// A set with the annotation file `file` and the images next to it.
fn config(file: &Path) -> config::Data {
    let folder = file.parent().unwrap();
    let images = [folder.join("images"), folder.join("../images")].into_iter().find(|folder| folder.is_dir());
    let images = images.unwrap_or_else(|| folder.to_owned());
    let mut config = config::Data { root: "/".into(), ..Default::default() };
    let (name, folder) = (file.display().to_string(), images.display().to_string());
    (config.train[0].ann_file, config.train[0].img_prefix) = (name.clone(), folder.clone());
    (config.val.ann_file, config.val.img_prefix) = (name, folder);
    config
}

/// The annotation files below a folder, sorted by name.
fn json_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(json_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "json") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The count of each code, most severe first.
fn found(config: &config::Data, split: Split) -> String {
    let (set, mut diagnostics) = Dataset::inspect(config, split, 1);
    if let Some(set) = &set {
        set.check_masks(&mut diagnostics);
        set.check_files(&mut diagnostics);
    }
    let counts: Vec<_> = diagnostics.counts().into_iter().map(|(code, count)| format!("{code} {count}")).collect();
    if diagnostics.refuse_errors().is_ok() {
        assert_usable(&set.expect("a set without errors"), split);
    }
    if counts.is_empty() { "nothing".into() } else { counts.join(", ") }
}

/// Checks that every object of the set can be loaded.
fn assert_usable(set: &Dataset, split: Split) {
    for index in 0..set.len() {
        let image = set.image(index);
        for mask in set.record(index).segmentations().unwrap().into_iter().flatten() {
            mask.to_rle((image.height, image.width)).unwrap();
        }
    }
    if split == Split::Val {
        assert!(set.true_objects().unwrap().len() >= set.object_count());
    }
}

/// With `FNET_UPDATE_WILD` set, updates wild.txt for review.
#[test]
fn unusual_files_have_the_recorded_diagnostics() {
    let Some(root) = fixture("") else { return };
    let root = root.join("data");
    let mut actual = String::new();
    for file in json_files(&root.join("derived")).into_iter().chain(json_files(&root.join("wild"))) {
        let config = config(&file);
        let name = file.strip_prefix(&root).unwrap().display();
        let [train, val] = [Split::Train, Split::Val].map(|split| found(&config, split));
        if train == val {
            writeln!(actual, "{name}\n    both: {train}").unwrap();
        } else {
            writeln!(actual, "{name}\n    train: {train}\n    val: {val}").unwrap();
        }
    }
    if std::env::var_os("FNET_UPDATE_WILD").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/coco/wild.txt");
        return std::fs::write(path, &actual).unwrap();
    }
    let wrong: Vec<_> = actual.lines().filter(|line| !EXPECTED.contains(line)).collect();
    assert!(actual == EXPECTED, "these lines differ from wild.txt:\n{}", wrong.join("\n"));
}

/// The objects of a set: file, box, label and mask of each.
fn objects(config: &config::Data, split: Split) -> Vec<(String, [f32; 4], u16, Vec<u32>)> {
    let set = Dataset::open(config, split).unwrap();
    let mut found = Vec::new();
    for index in 0..set.len() {
        let (image, objects) = (set.image(index), set.objects(index));
        let masks = set.record(index).segmentations().unwrap();
        for (mask, (bbox, label)) in masks.iter().flatten().zip(objects.boxes.iter().zip(objects.labels)) {
            let runs = mask.to_rle((image.height, image.width)).unwrap().counts;
            found.push((image.file_name.to_owned(), *bbox, *label, runs));
        }
    }
    found
}

/// The ground truth of a set, with image names instead of image ids.
fn truth(config: &config::Data) -> Vec<String> {
    let set = Dataset::open(config, Split::Val).unwrap();
    let name = |id: i64| set.image(set.image_ids().iter().position(|&own| own == id).unwrap()).file_name;
    let objects = set.true_objects().unwrap();
    objects
        .iter()
        .map(|object| format!("{} {:?}", name(object.image_id), TrueObject { image_id: 0, ..object.clone() }))
        .collect()
}

/// Checks that several spellings of a set are equal to the first.
fn assert_equal_sets(folder: &Path, files: &[&str]) {
    let config = |file: &str| config(&folder.join(file));
    let [train, val] = [Split::Train, Split::Val].map(|split| objects(&config(files[0]), split));
    let truth_of_first = truth(&config(files[0]));
    assert_eq!((train.len(), val.len(), truth_of_first.len()), (12, 12, 12));
    for file in &files[1..] {
        assert!(objects(&config(file), Split::Train) == train, "{file} in training");
        assert!(objects(&config(file), Split::Val) == val, "{file} in validation");
        assert_eq!(truth(&config(file)), truth_of_first, "{file}");
    }
}

#[test]
fn files_in_any_spelling_give_the_same_set_and_ids_keep_theirs() {
    let Some(root) = fixture("") else { return };
    let derived = root.join("data/derived");
    let names = ["annotations.json", "annotations_raw_utf8_bom_crlf.json"];
    assert_equal_sets(&derived.join("mask_kinds"), &["polygons.json", "rle_list.json", "rle_str.json"]);
    assert_equal_sets(&derived.join("unicode_names"), &names);
    let folder = derived.join("string_ids");
    let files = ["annotations.json", "annotations_mixed_str_int.json", "annotations_nonnumeric_ids.json"];
    assert_equal_sets(&folder, &files);
    for file in files {
        let text: Value = serde_json::from_slice(&std::fs::read(folder.join(file)).unwrap()).unwrap();
        let ids =
            |list: &str| text[list].as_array().unwrap().iter().map(|entry| entry["id"].clone()).collect::<Vec<_>>();
        let set = Dataset::open(&config(&folder.join(file)), Split::Val).unwrap();
        let written: Vec<_> = set.image_ids().iter().map(|&id| set.written_image_id(id)).collect();
        assert_eq!(written, ids("images"), "{file}");
        let written: Vec<_> = set.categories().iter().map(|class| set.written_category_id(class.id)).collect();
        assert_eq!(written, ids("categories"), "{file}");
    }
}
