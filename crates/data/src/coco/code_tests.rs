//! A minimal file for every code about annotation files, classes, images, annotations, boxes and masks.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::Split;
use crate::Dataset;
use crate::diagnostics::Code::{self, *};
use fnet_config::WithoutMask;
use fnet_test_support::SmallSet;

/// One change of the valid file: a JSON pointer and the new value. `None` removes it.
type Change = (&'static str, Option<Value>);

/// Two images with one valid object each.
fn sound() -> (SmallSet, Value) {
    let small = SmallSet::new(&[(64, 48), (64, 48)]);
    let text = std::fs::read(small.folder.path().join("a.json")).unwrap();
    (small, serde_json::from_slice(&text).unwrap())
}

fn change(file: &mut Value, (pointer, value): &Change) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = file.pointer_mut(parent).unwrap();
    match (parent, value) {
        (Value::Array(list), Some(value)) => list[key.parse::<usize>().unwrap()] = value.clone(),
        (Value::Object(object), Some(value)) => _ = object.insert(key.into(), value.clone()),
        (Value::Object(object), None) => _ = object.remove(key).unwrap(),
        (other, _) => panic!("{other} has no member {key}"),
    }
}

/// The codes of a set, most severe first.
fn codes(small: &SmallSet, split: Split) -> Vec<Code> {
    let (set, mut diagnostics) = Dataset::inspect(&small.config, split, 1);
    if let Some(set) = set {
        set.check_masks(&mut diagnostics);
    }
    diagnostics.counts().into_iter().map(|(code, _)| code).collect()
}

fn set(pointer: &'static str, value: Value) -> Vec<Change> {
    vec![(pointer, Some(value))]
}

fn cut(pointer: &'static str) -> Vec<Change> {
    vec![(pointer, None)]
}

/// Changes of the file and the resulting codes of the training set.
fn cases_of_training() -> Vec<(Vec<Change>, Vec<Code>)> {
    let bbox = |value: Value| set("/annotations/1/bbox", value);
    let mask = |value: Value| set("/annotations/1/segmentation", value);
    let categories = |value: Value| set("/categories", value);
    let known = json!({"id": 7, "name": "box"});
    let many: Vec<Value> = (0..65_536).map(|id| json!({"id": id, "name": id.to_string()})).collect();
    vec![
        (vec![], vec![]),
        (set("/annotations", json!([])), vec![FileNothing, CategoryUnused, ImageEmpty]),
        (cut("/annotations"), vec![FileKeyMissing]),
        (categories(json!([known, {"id": 8}])), vec![CategoryMalformed]),
        (categories(json!([])), vec![CategoryNone]),
        (categories(Value::Array(many)), vec![CategoryMany, CategoryUnused]),
        (categories(json!([known, known])), vec![CategoryRepeated]),
        (categories(json!([known, {"id": 7, "name": "cup"}])), vec![CategoryConflict]),
        (categories(json!([known, {"id": 8, "name": "box"}])), vec![CategoryNameRepeated, CategoryUnused]),
        (categories(json!([{"id": "7", "name": "box"}])), vec![CategoryIdText]),
        (set("/images/1", json!(7)), vec![ImageMalformed, AnnotationImageUnknown]),
        (set("/images/1/id", json!("101")), vec![ImageIdText]),
        (set("/images/1/id", json!(100)), vec![ImageIdRepeated, AnnotationImageUnknown]),
        (set("/images/1/file_name", json!("0.png")), vec![ImageNameRepeated]),
        (cut("/images/1/width"), vec![ImageSizeMissing]),
        (set("/images/1/width", json!("64")), vec![ImageSizeText]),
        (set("/images/1/width", json!(31)), vec![ImageSmall]),
        (vec![("/images/1/file_name", Some(json!("none.png"))), ("/images/1/width", None)], vec![ImageSizeUnknown]),
        (set("/annotations/1/image_id", json!(100)), vec![AnnotationDouble, ImageEmpty]),
        (set("/annotations/1", json!(7)), vec![AnnotationMalformed]),
        (set("/annotations/1/iscrowd", json!("0")), vec![AnnotationMalformed]),
        (set("/annotations/1/iscrowd", json!(1)), vec![AnnotationCrowd]),
        (
            vec![("/annotations/0/iscrowd", Some(json!(1))), ("/annotations/1/iscrowd", Some(json!(true)))],
            vec![AnnotationCrowdAll],
        ),
        (cut("/annotations/1/id"), vec![AnnotationIdMissing]),
        (set("/annotations/1/id", json!("2")), vec![AnnotationIdText]),
        (set("/annotations/1/id", json!(0)), vec![AnnotationIdZero]),
        (set("/annotations/1/id", json!(1)), vec![AnnotationIdRepeated]),
        (cut("/annotations/1/image_id"), vec![AnnotationImageMissing]),
        (set("/annotations/1/image_id", json!(77)), vec![AnnotationImageUnknown, ImageEmpty]),
        (set("/annotations/1/image_id", json!("0101")), vec![AnnotationIdText, AnnotationImageUnknown, ImageEmpty]),
        (
            vec![("/categories", Some(json!([known, {"id": 8, "name": "cup"}]))), ("/annotations/1/category_id", None)],
            vec![AnnotationCategoryMissing],
        ),
        (cut("/annotations/1/category_id"), vec![AnnotationCategoryImplied]),
        (set("/annotations/1/category_id", json!(9)), vec![AnnotationCategoryUnknown, ImageEmpty]),
        (cut("/annotations/1/iscrowd"), vec![AnnotationCrowdMissing]),
        (cut("/annotations/1/area"), vec![AnnotationAreaMissing]),
        (set("/annotations/1/area", json!("200")), vec![AnnotationAreaText]),
        (set("/annotations/1/area", json!(0)), vec![AnnotationAreaZero]),
        (vec![("/annotations/1/bbox", None), ("/annotations/1/segmentation", None)], vec![BoxMissing]),
        (cut("/annotations/1/bbox"), vec![BoxFromMask]),
        (bbox(json!(["4", 5, 20, 10])), vec![BoxText]),
        (bbox(json!([4, 5, "@NaN", 10])), vec![BoxNotFinite]),
        (bbox(json!([0.1, 0.1, 0.5, 0.5])), vec![BoxNormalized]),
        (bbox(json!([4, 5, 0, 10])), vec![BoxEmpty]),
        (bbox(json!([70, 5, 20, 10])), vec![BoxElsewhere]),
        (bbox(json!([4, 5, 70, 10])), vec![BoxOutside, MaskBoxDiffers]),
        (mask(json!([])), vec![MaskMissing]),
        (mask(json!("abc")), vec![MaskMalformed]),
        (mask(json!([["4", 5, 24, 5, 24, 15, 4, 15]])), vec![MaskText]),
        (mask(json!([4, 5, 24, 5, 24, 15, 4, 15])), vec![MaskFlat]),
        (mask(json!([[4, 5, 24, 5, 24, 15, 4, 15, 9]])), vec![MaskOdd]),
        (mask(json!([[], []])), vec![MaskMissing]),
        (mask(json!([[4, 5]])), vec![MaskMissing]),
        (mask(json!([[4, 5, 24, 15]])), vec![MaskMissing]),
        (mask(json!([4, 5, 24, 15])), vec![MaskMissing]),
        (mask(json!([[4, 5], [24, 5], [24, 15]])), vec![MaskMissing]),
        (mask(json!([[4, 5, 24, 15, 4]])), vec![MaskFewPoints, MaskEmpty]),
        (mask(json!([[4, 5, 24, 5, 24, 15, 4, 15], [1, 1, 2, 2]])), vec![MaskFewPoints]),
        (mask(json!([[9, 9, 9, 9, 9, 9]])), vec![MaskEmpty]),
        (mask(json!([[4, 5, 14, 10, 24, 15]])), vec![MaskEmpty]),
        (mask(json!([[70, 5, 90, 5, 90, 15]])), vec![MaskEmpty]),
        (
            ["/annotations/0/segmentation", "/annotations/1/segmentation"]
                .map(|place| (place, Some(json!([[9, 9, 9, 9, 9, 9]]))))
                .into(),
            vec![FileNothing, MaskEmpty],
        ),
        (mask(json!({"size": [48, 64], "counts": [197, 10]})), vec![MaskShort, MaskBoxDiffers]),
        (mask(json!({"size": [48, 64], "counts": [3072]})), vec![MaskEmpty]),
        (mask(json!([[4, 5, 24, 5, 24, 55, 4, 55]])), vec![MaskOutside, MaskBoxDiffers]),
    ]
}

/// Changes with other codes in the validation set.
fn cases_of_validation() -> Vec<(Vec<Change>, Vec<Code>)> {
    vec![
        (vec![], vec![]),
        (cut("/annotations"), vec![]),
        (set("/annotations/1/bbox", json!([4, 5, "@NaN", 10])), vec![BoxNotFiniteEvaluated]),
        (set("/annotations/1/segmentation", json!([])), vec![MaskMissingEvaluated]),
        (
            vec![("/annotations/1/segmentation", None), ("/annotations/1/iscrowd", Some(json!(1)))],
            vec![MaskMissingEvaluated, AnnotationCrowd],
        ),
        (set("/annotations/1/segmentation", json!([[4, 5, 24, 15]])), vec![MaskMissingEvaluated]),
        (set("/annotations/1/segmentation", json!([[9, 9, 9, 9, 9, 9]])), vec![MaskEmpty]),
        (
            vec![("/annotations/0/iscrowd", Some(json!(1))), ("/annotations/1/iscrowd", Some(json!(1)))],
            vec![AnnotationCrowdAllEvaluated],
        ),
    ]
}

/// Whole file contents and their codes.
fn cases_of_text(sound: &str) -> Vec<(Vec<u8>, Code)> {
    let bytes = |text: &str| text.as_bytes().to_vec();
    vec![
        (bytes(" \n"), FileEmpty),
        (bytes(&format!("\u{feff}{sound}")), FileEncoding),
        (sound.encode_utf16().flat_map(u16::to_le_bytes).collect(), FileEncoding),
        (bytes(sound.trim_end_matches('}')), FileCutOff),
        (bytes(&format!("{sound}]")), FileNotJson),
        (bytes("[1, 2]"), FileOtherFormat),
        (bytes(&sound.replacen("{\"", "{\"images\": [], \"", 1)), FileKeyRepeated),
    ]
}

#[test]
fn every_code_is_found_where_expected() {
    let mut seen = BTreeSet::new();
    let mut wrong = Vec::new();
    let mut compare = |what: String, found: Vec<Code>, expected: &[Code]| {
        if found != expected {
            wrong.push(format!("{what}: {found:?}, expected {expected:?}"));
        }
        seen.extend(found);
    };
    let (mut small, file) = sound();
    let path = small.folder.path().join("a.json");
    let training = cases_of_training().into_iter().map(|case| (Split::Train, case));
    let validation = cases_of_validation().into_iter().map(|case| (Split::Val, case));
    small.config.train[0].filter_empty = true;
    for (split, (changes, expected)) in training.chain(validation) {
        let mut file = file.clone();
        changes.iter().for_each(|one| change(&mut file, one));
        std::fs::write(&path, file.to_string().replace("\"@NaN\"", "NaN")).unwrap();
        let what = format!("{} {:?}", split.name(), changes.first());
        compare(what.chars().take(200).collect(), codes(&small, split), &expected);
    }
    for (number, (text, code)) in cases_of_text(&file.to_string()).into_iter().enumerate() {
        std::fs::write(&path, text).unwrap();
        compare(format!("text {number}"), codes(&small, Split::Train), &[code]);
    }
    let note = file.to_string().replacen("\"iscrowd\"", "\"note\":\"@\",\"iscrowd\"", 1);
    let note: Vec<u8> = note.bytes().map(|byte| if byte == b'@' { 0xd2 } else { byte }).collect();
    std::fs::write(&path, note).unwrap();
    compare("a note in GBK".into(), codes(&small, Split::Train), &[FileNotUtf8]);

    for mask in [json!([]), json!([[4, 5, 24, 15]])] {
        let mut file = file.clone();
        file["annotations"][1]["segmentation"] = mask;
        small.write(&file);
        small.config.without_mask = WithoutMask::Skip;
        compare("skip".into(), codes(&small, Split::Train), &[MaskMissingSkipped, ImageEmpty]);
        small.config.without_mask = WithoutMask::Box;
        compare("box".into(), codes(&small, Split::Train), &[MaskMissingBox]);
        small.config.without_mask = WithoutMask::Error;
        small.config.boxes_only = true;
        for split in [Split::Train, Split::Val] {
            compare("boxes only".into(), codes(&small, split), &[]);
        }
        small.config.boxes_only = false;
    }

    let mut two = file.clone();
    two["categories"] = json!([{"id": 7, "name": "box"}, {"id": 8, "name": "cup"}]);
    small.write(&two);
    small.config.classes = vec!["cup".into(), "box".into()];
    compare("classes".into(), codes(&small, Split::Train), &[ClassOrder, CategoryUnused]);
    two["annotations"][1]["category_id"] = json!(8);
    small.write(&two);
    small.config.classes = vec!["box".into()];
    compare("classes".into(), codes(&small, Split::Train), &[ImageEmpty, AnnotationOtherClass]);
    compare("classes".into(), codes(&small, Split::Val), &[AnnotationOtherClassEvaluated]);
    small.config.classes = vec!["bax".into()];
    compare("classes".into(), codes(&small, Split::Train), &[ClassUnknown]);
    small.config.train[0].img_prefix = "none".into();
    small.config.train[0].ann_file = "none.json".into();
    compare("files".into(), codes(&small, Split::Train), &[FileUnreadable, FileFolderMissing]);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // Codes about image files, both sets and metrics are tested with the checks.
    let place = |code: Code| Code::ALL.iter().position(|other| *other == code).unwrap();
    let of_files = place(ImageMissing)..=place(ImageExtension);
    let elsewhere = |code: &Code| {
        of_files.contains(&place(*code))
            || code.name().starts_with("split-")
            || [ClassCount, MaskNeeded, MaskMissingIgnored].contains(code)
    };
    let missing: Vec<_> = Code::ALL.iter().filter(|code| !elsewhere(code) && !seen.contains(*code)).collect();
    assert!(missing.is_empty(), "no case has {missing:?}");
}

#[test]
fn counts_match_the_file_and_nothing_is_reported_twice() {
    let (mut small, file) = sound();
    small.config.train[0].filter_empty = true;
    let inspect = |file: &Value| {
        small.write(file);
        let (set, diagnostics) = Dataset::inspect(&small.config, Split::Train, 9);
        let counts = |set: Dataset| {
            let listed = set.parts().next().unwrap().0.listed();
            (listed.images, listed.annotations, set.object_count())
        };
        (set.map(counts), diagnostics)
    };
    // Invalid entries are counted, and hide other diagnostics.
    let mut broken = file.clone();
    (broken["images"][0], broken["annotations"][1]["bbox"]) = (json!(7), json!("x"));
    broken["annotations"].as_array_mut().unwrap().push(json!(null));
    let (counts, diagnostics) = inspect(&broken);
    assert_eq!(counts, Some((2, 3, 0)));
    let found = [(ImageMalformed, 1), (AnnotationMalformed, 2), (AnnotationImageUnknown, 1)];
    assert_eq!(diagnostics.counts(), found, "{:?}", diagnostics.kept());
    // The message says why each annotation is not used.
    let mut nothing = file.clone();
    nothing["annotations"][0]["image_id"] = json!(7);
    nothing["annotations"][1]["area"] = json!(0);
    let (_, diagnostics) = inspect(&nothing);
    let text = diagnostics.kept().iter().find(|diagnostic| diagnostic.code == FileNothing).unwrap().to_string();
    let parts = [
        "data.train: ",
        "2 images and 2 annotations",
        "1 of images that are not in the list",
        "1 with an empty box or area",
    ];
    assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    let mut small_image = file.clone();
    small_image["annotations"][0]["iscrowd"] = json!(1);
    small_image["images"][1]["width"] = json!(31);
    let (_, diagnostics) = inspect(&small_image);
    assert_eq!(
        (diagnostics.count(FileNothing), diagnostics.count(AnnotationCrowd)),
        (1, 1),
        "{:?}",
        diagnostics.kept()
    );
    // All crowds.
    let mut crowds = file.clone();
    for annotation in crowds["annotations"].as_array_mut().unwrap() {
        annotation["iscrowd"] = json!(1);
    }
    let (_, diagnostics) = inspect(&crowds);
    let text = diagnostics.kept()[0].to_string();
    assert!(text.contains("2 of 2 annotations") && text.contains("set iscrowd to 0"), "{text}");
    // A list of invalid categories is not empty.
    let mut categories = file;
    categories["categories"] = json!([{"id": 7}, "box"]);
    assert_eq!(inspect(&categories).1.counts(), [(CategoryMalformed, 2)]);
}

#[test]
fn missing_lists_are_named() {
    let (small, _) = sound();
    small.write(&json!({}));
    for (split, lists) in [(Split::Train, 3), (Split::Val, 2)] {
        let (set, diagnostics) = Dataset::inspect(&small.config, split, 9);
        assert!(set.is_none());
        assert_eq!(diagnostics.counts(), [(FileKeyMissing, lists)]);
    }
}

#[test]
fn other_kinds_of_coco_files_are_named() {
    let (small, file) = sound();
    let elements = |list: Value, categories: bool| {
        let mut file = file.clone();
        file["annotations"] = list;
        if !categories {
            file.as_object_mut().unwrap().remove("categories");
        }
        file
    };
    let caption = json!({"id": 1, "image_id": 100, "caption": "a box"});
    let labels = json!({"id": 1, "image_id": 100, "category_id": 7});
    let panoptic = json!({"image_id": 100, "file_name": "0.png", "segments_info": [{"id": 1, "category_id": 7}]});
    for (file, name) in [
        (elements(json!([caption, caption]), false), "captions"),
        (elements(json!([caption]), true), "captions"),
        (elements(json!([panoptic]), true), "panoptic"),
        (elements(json!([labels, labels]), true), "classes of whole images"),
        (elements(json!([]), false), "image info"),
    ] {
        small.write(&file);
        for split in [Split::Train, Split::Val] {
            let (set, diagnostics) = Dataset::inspect(&small.config, split, 3);
            assert!(set.is_none());
            assert_eq!(diagnostics.counts(), [(FileOtherFormat, 1)], "{file}");
            assert!(diagnostics.kept()[0].message.contains(name), "{}", diagnostics.kept()[0]);
        }
        let error = super::category_names(&small.folder.path().join("a.json"));
        if file.get("categories").is_none() {
            assert!(error.unwrap_err().to_string().contains(name));
        }
    }
    // One annotation without a box does not make it another format.
    small.write(&elements(json!([labels, file["annotations"][0]]), true));
    assert_eq!(codes(&small, Split::Train)[0], BoxMissing);
}
