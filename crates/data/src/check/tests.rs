use serde_json::{Value, json};

use super::*;
use fnet_test_support::{SmallSet, fixture};

/// Checks both sets of a small data set. Returns the count of each code except unused categories, and the diagnostics.
fn found(small: &SmallSet, classes: usize, decode: bool) -> (Vec<(Code, usize)>, Diagnostics) {
    let mut config = Config { data: small.config.clone(), ..Config::default() };
    config.model.num_classes = classes;
    let scope = Scope { keep: 10, headers: true, decode };
    let (_, diagnostics) = check(&config, &[Split::Train, Split::Val], scope, &|_, _, _| {});
    let counts = diagnostics.counts().into_iter().filter(|&(code, _)| code != Code::CategoryUnused).collect();
    (counts, diagnostics)
}

/// The annotation file of `small` as JSON.
fn annotations(small: &SmallSet) -> Value {
    serde_json::from_slice(&std::fs::read(small.folder.path().join("a.json")).unwrap()).unwrap()
}

/// Writes a second annotation file for `data.val`.
fn write_val(small: &mut SmallSet, file: &Value) {
    std::fs::write(small.folder.path().join("val.json"), file.to_string()).unwrap();
    small.config.val.ann_file = "val.json".into();
}

#[test]
fn a_valid_set_has_no_diagnostics() {
    let small = SmallSet::new(&[(64, 48), (48, 64)]);
    let (counts, diagnostics) = found(&small, 1, true);
    assert!(counts.is_empty(), "{:?}", diagnostics.kept());
}

#[test]
fn images_are_compared_with_the_annotation_file() {
    let mut small = SmallSet::new(&[(64, 48), (64, 48), (64, 48), (64, 48)]);
    let folder = small.folder.path().to_owned();
    let path = |name: &str| folder.join(name);
    let mut file = annotations(&small);
    // A wrong height, swapped sides, a JPEG named PNG, and a truncated file.
    file["images"][0]["height"] = json!(47);
    (file["images"][1]["width"], file["images"][1]["height"]) = (json!(48), json!(64));
    small.write(&file);
    let jpeg = image::RgbImage::from_pixel(64, 48, image::Rgb([9, 9, 9]));
    jpeg.save_with_format(path("2.png"), image::ImageFormat::Jpeg).unwrap();
    let whole = std::fs::read(path("3.png")).unwrap();
    std::fs::write(path("3.png"), &whole[..whole.len() - 60]).unwrap();
    let (counts, diagnostics) = found(&small, 1, false);
    let expected = [(Code::ImageSizeUnusable, 1), (Code::ImageSizeDiffers, 3), (Code::ImageExtension, 2)];
    assert_eq!(counts, expected, "{:?}", diagnostics.kept());
    let swapped = diagnostics.kept().iter().find(|diagnostic| diagnostic.code == Code::ImageSizeUnusable).unwrap();
    assert!(swapped.message.contains("listed as 48x64, but it has 64x48"), "{swapped}");
    assert_eq!(swapped.place.image.as_deref(), Some("101"));
    let (counts, diagnostics) = found(&small, 1, true);
    assert!(counts.contains(&(Code::ImageUnreadable, 2)), "{:?}", diagnostics.kept());
    // The augmentations of a list need masks of the image's size.
    small.config.pipeline.train = vec![fnet_config::augment::Augmentation::Resize(Default::default())];
    let (counts, _) = found(&small, 1, false);
    assert_eq!(counts[..2], [(Code::ImageSizeUnusable, 2), (Code::ImageSizeDiffers, 2)]);
}

#[test]
fn missing_files_are_errors_unless_they_are_skipped() {
    let mut small = SmallSet::new(&[(64, 48), (64, 48)]);
    std::fs::remove_file(small.folder.path().join("1.png")).unwrap();
    assert_eq!(found(&small, 1, true).0, [(Code::ImageMissing, 2)]);
    small.config.on_error = OnError::Skip;
    let (counts, diagnostics) = found(&small, 1, true);
    assert_eq!(counts, [(Code::ImageLeftOut, 2)]);
    assert!(diagnostics.kept().iter().all(|diagnostic| diagnostic.code == Code::ImageLeftOut));
    diagnostics.refuse_errors().unwrap();
}

#[test]
fn the_sets_are_compared_with_each_other_and_the_model() {
    let mut small = SmallSet::new(&[(64, 48)]);
    let file = annotations(&small);
    let with_categories = |categories: Value| {
        let mut file = file.clone();
        file["categories"] = categories;
        file
    };
    let (box_, cup) = (json!({"id": 7, "name": "box"}), json!({"id": 8, "name": "cup"}));
    small.write(&with_categories(json!([box_, cup])));

    write_val(&mut small, &with_categories(json!([box_])));
    let (counts, diagnostics) = found(&small, 2, false);
    assert_eq!(counts, [(Code::ClassCount, 1), (Code::SplitCategories, 1), (Code::SplitSharedImages, 1)]);
    assert!(
        diagnostics.kept().iter().any(|diagnostic| diagnostic.message.ends_with("lacks \"cup\"")),
        "{:?}",
        diagnostics.kept()
    );

    write_val(&mut small, &with_categories(json!([cup, box_])));
    let (counts, diagnostics) = found(&small, 2, false);
    assert_eq!(counts, [(Code::SplitCategories, 1), (Code::SplitSharedImages, 1)]);
    let text = "has \"cup\" as label 0 instead of \"box\"";
    assert!(diagnostics.kept().iter().any(|diagnostic| diagnostic.message.contains(text)), "{:?}", diagnostics.kept());

    let others = json!([{"id": 1, "name": "box"}, {"id": 8, "name": "cup"}]);
    let mut renumbered = with_categories(others);
    renumbered["annotations"][0]["category_id"] = json!(1);
    write_val(&mut small, &renumbered);
    assert_eq!(found(&small, 2, false).0, [(Code::SplitCategoryIds, 1), (Code::SplitSharedImages, 1)]);
    let error = {
        let (_, diagnostics) = found(&small, 5, false);
        diagnostics.refuse_errors().unwrap_err()
    };
    assert_eq!(error.exit_code(), fnet_protocol::exit::DATA);
    assert!(error.to_string().contains("class-count") && error.to_string().contains("model.num_classes"), "{error}");
}

#[test]
fn automatic_and_explicit_classes_are_checked_the_same_way() {
    let mut small = SmallSet::new(&[(64, 48), (64, 48)]);
    let file = annotations(&small);
    let with = |names: [&str; 2], more: Option<&str>| {
        let mut file = file.clone();
        let entries = (7..).zip(names.into_iter().chain(more));
        file["categories"] = entries.map(|(id, name)| json!({"id": id, "name": name})).collect();
        file["annotations"][1]["category_id"] = json!(if more.is_some() { 9 } else { 8 });
        file
    };
    small.write(&with(["red", "blue"], None));
    let all = |config: &fnet_config::Data| {
        let mut config = Config { data: config.clone(), ..Config::default() };
        config.model.num_classes = 2;
        let scope = Scope { keep: 10, headers: false, decode: false };
        let (_, diagnostics) = check(&config, &[Split::Train, Split::Val], scope, &|_, _, _| {});
        let alone = Dataset::open(&config.data, Split::Val).map(|val| check_classes(&config, &[&val]));
        let lines = diagnostics.kept().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        (diagnostics.count(Code::SplitCategories), lines, alone)
    };
    for (val, expected) in [
        (with(["red", "green"], None), "lacks \"blue\" and adds \"green\""),
        (with(["red", "blue"], Some("green")), "adds \"green\""),
    ] {
        write_val(&mut small, &val);
        for (is_auto, classes) in [(false, vec![]), (true, vec!["red".to_owned(), "blue".into()]), (true, vec![])] {
            (small.config.classes_are_auto, small.config.classes) = (is_auto, classes);
            let (count, lines, alone) = all(&small.config);
            assert!(count == 1 && lines.contains(expected) && lines.contains("data.val: "), "{lines}");
            assert!(!lines.contains("class-unknown"), "{lines}");
            // A single set is compared with the classes that were found.
            let refused = alone.unwrap().is_err_and(|error| error.to_string().contains("split-categories"));
            assert_eq!(refused, is_auto && !small.config.classes.is_empty(), "{val}");
        }
    }
    // Explicit names select classes. A warning names the annotations that the metrics leave out.
    (small.config.classes_are_auto, small.config.classes) = (false, vec!["red".into(), "blue".into()]);
    let (count, lines, _) = all(&small.config);
    assert!(count == 0 && lines.contains("annotation-other-class-evaluated: data.val"), "{lines}");
}

#[test]
fn masks_are_required_when_they_are_evaluated() {
    let mut small = SmallSet::new(&[(64, 48)]);
    let mut file = annotations(&small);
    file["annotations"][0]["segmentation"] = json!([]);
    write_val(&mut small, &file);
    let mut config = Config { data: small.config.clone(), ..Config::default() };
    config.model.num_classes = 1;
    let set = Dataset::open(&config.data, Split::Val).unwrap();
    for metrics in [&[Metric::Bbox, Metric::Proposal][..], &[]] {
        let warnings = check_before_job(&config, &[&set], metrics).unwrap();
        assert!(warnings.len() == 1 && warnings[0].contains("mask-missing-evaluated"), "{warnings:?}");
    }
    let error = check_before_job(&config, &[&set], &[Metric::Bbox, Metric::Segm]).unwrap_err();
    assert_eq!(error.exit_code(), fnet_protocol::exit::DATA);
    for part in ["mask-needed", "--eval bbox", "evaluation.metrics", "model.mask = false", "data.without_mask"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    config.data.without_mask = WithoutMask::Box;
    let warnings = check_before_job(&config, &[&set], &[Metric::Segm]).unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("mask-missing-ignored"), "{warnings:?}");
}

/// The image codes of whole data sets with quirks.
#[test]
fn real_unusual_images_have_the_expected_codes() {
    let Some(root) = fixture("") else { return };
    let of = |folder: &str, file: &str, images: &str, split: Split| {
        let mut config = Config::default();
        config.data.root = root.join("data").join(folder).display().to_string();
        let data = &mut config.data;
        let (train, val) = (&mut data.train[0], &mut data.val);
        for (ann_file, img_prefix) in
            [(&mut train.ann_file, &mut train.img_prefix), (&mut val.ann_file, &mut val.img_prefix)]
        {
            (*ann_file, *img_prefix) = (file.into(), images.into());
        }
        let scope = Scope { keep: 100, headers: true, decode: true };
        let (_, diagnostics) = check(&config, &[split], scope, &|_, _, _| {});
        let about_images = |(code, _): &(Code, usize)| code.name().starts_with("image");
        diagnostics.counts().into_iter().filter(about_images).collect::<Vec<_>>()
    };
    use Code::{ImageDamaged, ImageExtension, ImageMissing, ImageRotated, ImageSizeDiffers};
    use Code::{ImageSizeUnusable, ImageUnreadable};
    let encodings = [(ImageUnreadable, 2), (ImageDamaged, 1), (ImageExtension, 1)];
    assert_eq!(of("derived/encodings", "annotations.json", "images", Split::Train), encodings);
    assert_eq!(of("derived/exif_rotated", "display_coords.json", "images", Split::Train), [(ImageRotated, 1)]);
    assert_eq!(of("derived/exif_rotated", "stored_coords.json", "images", Split::Train), [(ImageSizeUnusable, 1)]);
    assert_eq!(
        of("derived/broken_values", "swapped_width_height.json", "images", Split::Train)[0].0,
        ImageSizeUnusable
    );
    assert_eq!(of("derived/00_reference", "annotations.json", "images", Split::Train), []);
    let label_studio = of("wild/labelstudio_boxes_jpeg_as_png", "result.json", ".", Split::Val);
    assert_eq!(label_studio, [(ImageExtension, 11)]);
    assert_eq!(of("wild/labelme2coco_fruit", "trainval.json", "images", Split::Train), []);
    let off_by_one = of("wild/roboflow_size_off_by_one", "train/_annotations.coco.json", "train", Split::Train);
    assert!(off_by_one.iter().any(|&(code, count)| code == ImageSizeDiffers && count > 0), "{off_by_one:?}");
    assert!(off_by_one.iter().all(|&(code, _)| [ImageSizeDiffers, ImageMissing].contains(&code)), "{off_by_one:?}");
}
