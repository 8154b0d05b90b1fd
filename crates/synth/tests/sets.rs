//! Generates whole data sets like a user.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails the test that called it")]

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use fnet_synth::{Error, Layout, Options, Summary, generate};
use hotcoco::mask as coco_mask;
use hotcoco::types::Rle;
use serde_json::Value;

fn options(out: &Path) -> Options {
    Options { out: out.to_path_buf(), images: 60, val_images: 20, crowds: 0.2, empty: 0.1, ..Options::default() }
}

fn make(options: &Options) -> Summary {
    generate(options, &|_| ()).unwrap()
}

fn read(out: &Path, split: &str) -> Value {
    serde_json::from_slice(&fs::read(out.join(format!("annotations/instances_{split}.json"))).unwrap()).unwrap()
}

/// Every file below a folder and its content.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { open.push(path) } else { drop(found.insert(path.clone(), fs::read(path).unwrap())) }
        }
    }
    found
}

/// The run lengths of a segmentation within its image.
fn rle(segmentation: &Value, width: u32, height: u32) -> Rle {
    if let Some(parts) = segmentation.as_array() {
        let polygons: Vec<Vec<f64>> =
            parts.iter().map(|p| p.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()).collect();
        return coco_mask::fr_polys(&polygons, height, width).unwrap();
    }
    assert_eq!(segmentation["size"], serde_json::json!([height, width]));
    match &segmentation["counts"] {
        Value::String(text) => coco_mask::rle_from_string(text, height, width).unwrap(),
        counts => Rle {
            h: height,
            w: width,
            counts: counts.as_array().unwrap().iter().map(|c| c.as_u64().unwrap() as u32).collect(),
        },
    }
}

fn image_sizes(set: &Value) -> BTreeMap<u64, (u32, u32)> {
    let side = |image: &Value, key: &str| image[key].as_u64().unwrap() as u32;
    let images = set["images"].as_array().unwrap();
    images.iter().map(|i| (i["id"].as_u64().unwrap(), (side(i, "width"), side(i, "height")))).collect()
}

#[test]
fn a_set_depends_on_the_seed_but_not_on_the_number_of_threads() {
    let sets: Vec<BTreeMap<PathBuf, Vec<u8>>> = [(1, 5), (3, 5), (3, 6)]
        .map(|(threads, seed)| {
            let folder = tempfile::tempdir().unwrap();
            let options = Options { seed, images: 12, val_images: 4, ..options(folder.path()) };
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| make(&options));
            contents(folder.path())
                .into_iter()
                .map(|(path, bytes)| (path.strip_prefix(folder.path()).unwrap().to_path_buf(), bytes))
                // The manifest contains the generation time.
                .filter(|(path, _)| !path.ends_with("synth.json"))
                .collect()
        })
        .into();
    assert_eq!(sets[0].len(), 18);
    assert!(sets[0] == sets[1], "one thread and three threads generated different sets");
    assert!(sets[1] != sets[2], "two seeds generated the same set");
}

#[test]
fn a_set_has_all_kinds_of_images_and_masks_and_its_annotations_match_its_masks() {
    let folder = tempfile::tempdir().unwrap();
    let summary = make(&options(folder.path()));
    assert_eq!((summary.images, summary.reused), (80, false));
    let mut kinds = BTreeMap::<&str, usize>::new();
    let (mut fills, mut ids, mut total) = (Vec::new(), HashSet::new(), 0);
    for split in ["train", "val"] {
        let set = read(folder.path(), split);
        let sizes = image_sizes(&set);
        for image in set["images"].as_array().unwrap() {
            let path = folder.path().join(split).join(image["file_name"].as_str().unwrap());
            let found = image::open(&path).unwrap();
            assert_eq!((found.width(), found.height()), sizes[&image["id"].as_u64().unwrap()], "{}", path.display());
            let shape = if found.width() > found.height() { "landscape" } else { "portrait" };
            *kinds.entry(shape).or_default() += 1;
        }
        let annotations = set["annotations"].as_array().unwrap();
        total += annotations.len() as u64;
        let mut used = HashSet::new();
        for annotation in annotations {
            assert!(ids.insert(annotation["id"].as_u64().unwrap()), "an annotation id occurs twice");
            let image = annotation["image_id"].as_u64().unwrap();
            used.insert(image);
            let (width, height) = sizes[&image];
            let mask = rle(&annotation["segmentation"], width, height);
            let bbox: Vec<f64> = annotation["bbox"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
            assert_eq!(coco_mask::area(&mask), annotation["area"].as_u64().unwrap());
            assert_eq!(coco_mask::to_bbox(&mask).to_vec(), bbox);
            let crowd = annotation["iscrowd"] == 1;
            let kind = match &annotation["segmentation"] {
                Value::Array(parts) if parts.len() > 1 => "several parts",
                Value::Array(_) => "one part",
                segmentation if segmentation["counts"].is_string() => "run lengths as text",
                _ => "run lengths as numbers",
            };
            assert_eq!(crowd, kind == "run lengths as numbers");
            *kinds.entry(kind).or_default() += 1;
            if !crowd {
                fills.push(coco_mask::area(&mask) as f64 / (bbox[2] * bbox[3]));
            }
        }
        *kinds.entry("without objects").or_default() += sizes.len() - used.len();
    }
    assert_eq!(total, summary.annotations);
    let wanted = [
        "landscape",
        "portrait",
        "without objects",
        "one part",
        "several parts",
        "run lengths as text",
        "run lengths as numbers",
    ];
    assert!(wanted.iter().all(|kind| kinds.get(kind).is_some_and(|&count| count >= 3)), "{kinds:?}");
    let poor = fills.iter().filter(|&&fill| fill < 0.6).count();
    assert!(poor * 10 >= fills.len() * 9, "only {poor} of {} masks cover less than 0.6 of their boxes", fills.len());
}

#[test]
fn the_roboflow_layout_has_its_folders_ids_and_unused_category() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { layout: Layout::Roboflow, images: 12, val_images: 6, ..options(folder.path()) };
    let summary = make(&options);
    assert_eq!((summary.images, summary.crowds, summary.annotation_files.len()), (24, 0, 3));
    let mut names = HashSet::new();
    for (split, count) in [("train", 12), ("valid", 6), ("test", 6)] {
        let path = folder.path().join(split).join("_annotations.coco.json");
        let set: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let list = |key: &str| set[key].as_array().unwrap();
        let ids = |key: &str| list(key).iter().map(|entry| entry["id"].as_u64().unwrap()).collect::<Vec<_>>();
        assert_eq!(ids("images"), (0..count).collect::<Vec<_>>());
        assert_eq!(ids("annotations"), (0..list("annotations").len() as u64).collect::<Vec<_>>());
        assert_eq!(ids("categories"), (0..9).collect::<Vec<_>>());
        assert_eq!(list("categories")[0]["name"], "shapes");
        let used: HashSet<u64> = list("annotations").iter().map(|a| a["category_id"].as_u64().unwrap()).collect();
        assert!(!used.contains(&0) && used.iter().all(|&id| id <= 8) && used.len() > 3, "{used:?}");
        let sizes = image_sizes(&set);
        for annotation in list("annotations") {
            let (width, height) = sizes[&annotation["image_id"].as_u64().unwrap()];
            assert!(coco_mask::area(&rle(&annotation["segmentation"], width, height)) > 0);
        }
        for image in list("images") {
            let name = image["file_name"].as_str().unwrap();
            assert!(folder.path().join(split).join(name).is_file() && names.insert(name.to_owned()), "{name}");
        }
    }
    assert!(make(&options).reused);
}

#[test]
fn a_finished_set_is_kept_an_interrupted_one_is_repeated_and_another_one_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { images: 3, val_images: 1, ..options(folder.path()) };
    let first = make(&options);
    let before = contents(folder.path());
    let second = make(&options);
    assert_eq!(second, Summary { reused: true, ..first });
    assert_eq!(contents(folder.path()), before);

    let other = Options { seed: 9, ..options.clone() };
    let error = generate(&other, &|_| ()).unwrap_err();
    assert!(matches!(&error, Error::Usage(text) if text.contains("generated with other options")), "{error}");
    assert_eq!(contents(folder.path()), before);

    let manifest = folder.path().join("synth.json");
    let mut interrupted: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    interrupted["summary"] = Value::Null;
    fs::write(&manifest, interrupted.to_string()).unwrap();
    fs::remove_file(folder.path().join("annotations/instances_val.json")).unwrap();
    assert!(!make(&options).reused);
    assert!(folder.path().join("annotations/instances_val.json").exists());
}

#[test]
fn a_folder_with_other_files_is_an_error_and_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("thesis.txt"), "precious").unwrap();
    let error = generate(&options(folder.path()), &|_| ()).unwrap_err();
    assert!(matches!(&error, Error::Usage(text) if text.contains("contains no generated set")), "{error}");
    assert_eq!(contents(folder.path()).len(), 1);
}

#[test]
fn options_out_of_range_are_errors_that_name_the_option() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = [
        ("images", Options { images: 0, val_images: 0, ..options(folder.path()) }),
        ("sides", Options { sides: 8..=100, ..options(folder.path()) }),
        ("objects", Options { objects: 0..=3, ..options(folder.path()) }),
        ("empty", Options { empty: 1.5, ..options(folder.path()) }),
        ("annotations_only", Options { annotations_only: Some(0), ..options(folder.path()) }),
    ];
    for (name, options) in wrong {
        let error = generate(&options, &|_| ()).unwrap_err().to_string();
        assert!(error.starts_with(name), "{error}");
    }
}

#[test]
fn an_annotations_only_set_has_the_requested_number_and_matches_its_masks() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { annotations_only: Some(5003), ..options(folder.path()) };
    let summary = make(&options);
    assert_eq!((summary.annotations, summary.images), (5003, 715));
    let set = read(folder.path(), "train");
    let sizes = image_sizes(&set);
    let annotations = set["annotations"].as_array().unwrap();
    assert_eq!(annotations.len(), 5003);
    for annotation in annotations {
        let (width, height) = sizes[&annotation["image_id"].as_u64().unwrap()];
        let mask = rle(&annotation["segmentation"], width, height);
        assert_eq!(coco_mask::area(&mask), annotation["area"].as_u64().unwrap());
        assert!(coco_mask::area(&mask) > 0);
    }
    assert!(!folder.path().join("train").exists());
}
