//! `check-data`, and the data checks at the start of training and testing.

use std::fs;

use serde_json::Value;

use crate::support::Scene;

/// Damages a set in three ways: an image is missing, another is not an image, and the sets share one.
fn damage(scene: &Scene) -> [String; 2] {
    let names =
        scene.edit("train", |set| [0, 1].map(|index| set["images"][index]["file_name"].as_str().unwrap().to_owned()));
    fs::remove_file(scene.path("data/train").join(&names[0])).unwrap();
    fs::write(scene.path("data/train").join(&names[1]), "version https://git-lfs.github.com/spec/v1\n").unwrap();
    names
}

#[test]
fn check_data_reports_no_errors_for_valid_data() {
    let scene = Scene::new();
    // One of the eight classes has no object in the small validation set, which gives a note.
    let lines = [
        ("check-data cfg.toml --split train", "No errors: training would start. 0 warnings"),
        ("check-data cfg.toml --decode", "No errors: training would start. 0 warnings"),
    ];
    for (line, verdict) in lines {
        let ended = scene.launch(line);
        ended.expect(0, &[" images, ", " annotations and 8 classes are used", verdict]);
        assert_eq!(ended.stderr, "");
    }
}

#[test]
fn check_data_names_every_file_and_code_and_training_does_not_start() {
    let scene = Scene::with_own_images();
    let [missing, pointer] = damage(&scene);
    let train = "--device cpu --nproc 2 train cfg.toml";
    scene.launch(train).expect(3, &["image-missing", &missing, "remove the image from the annotation file"]);
    assert!(!scene.path("work_dirs/cfg/epoch_1.ckpt").exists());
    let ended = scene.launch("check-data cfg.toml --json");
    ended.expect(
        3,
        &[
            "image-missing",
            &missing,
            "image-unreadable",
            &pointer,
            "git lfs pull",
            "2 errors: training would not start",
        ],
    );
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&report["errors"], &report["counts"]["image-missing"]), (&Value::from(2), &Value::from(1)));
    let findings = report["findings"].as_array().unwrap();
    // Some classes have no object in so few images.
    let findings: Vec<_> = findings.iter().filter(|finding| finding["severity"] != "note").collect();
    assert_eq!(findings.len(), 2);
    for finding in findings {
        assert!(["code", "severity", "file", "image", "message", "remedy"].iter().all(|key| finding[key].is_string()));
    }
    // The validation set alone is valid.
    scene.launch("check-data cfg.toml --split val").expect(0, &["No errors", "0 warnings"]);
    scene.launch("check-data cfg.toml --set data.on_error=skip").expect(0, &["image-left-out", "2 warnings"]);
}

#[test]
fn tiff_files_of_any_layout_are_decoded_or_named() {
    let scene = Scene::with_own_images();
    let file = scene.path("data/annotations/instances_train.json");
    let mut set: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let name = set["images"][0]["file_name"].as_str().unwrap().to_owned();
    let [width, height] = ["width", "height"].map(|side| set["images"][0][side].as_u64().unwrap() as u32);
    fs::write(scene.path("data/train").join(&name), tiled_planes(width, height, 1)).unwrap();
    scene.launch("check-data cfg.toml --decode --split train").expect(0, &["image-extension", &name, "0 warnings"]);
    scene.one("train cfg.toml --no-validate --set train.epochs=1");
    // Floating-point samples are not supported, and every command names the file.
    fs::write(scene.path("data/train").join(&name), tiled_planes(width, height, 3)).unwrap();
    let named = ["image-unreadable", "data.train", &name, "magick", "1 error:"];
    scene.launch("check-data cfg.toml --decode --split train").expect(3, &named);
    let train = "--device cpu --nproc 1 train cfg.toml --no-validate --work-dir";
    scene.launch(&format!("{train} stopped --set train.epochs=1")).expect(3, &[&name, "magick"]);
    scene.launch(&format!("{train} skipped --set train.epochs=1 data.on_error=skip")).expect(0, &[&name]);
    scene.launch("browse cfg.toml --out browsed --max 99").expect(3, &[&name, "magick"]);
    // A line break in a name is escaped.
    set["images"][0]["file_name"] = "a\nb.jpg".into();
    fs::write(&file, set.to_string()).unwrap();
    scene.launch("check-data cfg.toml").expect(3, &["image-missing", "a\\nb.jpg"]);
}

/// A TIFF with three planes in tiles of 16x16 values of 8 bits, or of 32 bits for floating-point numbers (`format` 3).
fn tiled_planes(width: u32, height: u32, format: u16) -> Vec<u8> {
    let bytes = if format == 3 { 4 } else { 1 };
    let count = width.div_ceil(16) * height.div_ceil(16) * 3;
    let tile = vec![100u8; 256 * bytes];
    let data: Vec<u8> = tile.repeat(count as usize);
    let lists = 8 + data.len() as u32;
    let tags: [(u16, u16, u32, u32); 11] = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8 * bytes as u32),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (277, 3, 1, 3),
        (284, 3, 1, 2),
        (322, 4, 1, 16),
        (323, 4, 1, 16),
        (324, 4, count, lists),
        (325, 4, count, lists + 4 * count),
    ];
    let directory = lists + 8 * count;
    let mut file = [b"II*\0".as_slice(), &directory.to_le_bytes(), &data].concat();
    (0..count).for_each(|i| file.extend((8 + i * tile.len() as u32).to_le_bytes()));
    (0..count).for_each(|_| file.extend((tile.len() as u32).to_le_bytes()));
    file.extend((tags.len() as u16 + 1).to_le_bytes());
    for (tag, kind, count, value) in tags.into_iter().chain([(339, 3, 1, u32::from(format))]) {
        file.extend(tag.to_le_bytes());
        file.extend(kind.to_le_bytes());
        file.extend(count.to_le_bytes());
        file.extend(value.to_le_bytes());
    }
    file.extend([0; 4]);
    file
}

#[test]
fn problems_of_automatic_classes_are_reported_like_any_others() {
    let scene = Scene::with_own_images();
    scene.edit("train", |set| {
        let categories = set["categories"].as_array_mut().unwrap();
        categories.iter_mut().take(5).for_each(|category| _ = category.as_object_mut().unwrap().remove("name"));
    });
    let config = fs::read_to_string(scene.path("cfg.toml")).unwrap();
    let config = config.replace("num_classes = 8\n", "").replace("[data]\n", "[data]\nclasses = \"auto\"\n");
    fs::write(scene.path("cfg.toml"), config).unwrap();
    let ended = scene.launch("check-data cfg.toml --list 5 --json --split train");
    ended.expect(3, &["category-malformed: data.train: ", "5 errors"]);
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["counts"]["category-malformed"], 5);
    scene.launch("--device cpu --nproc 1 train cfg.toml").expect(3, &["category-malformed: data.train: "]);
}

#[test]
fn wrong_listed_sizes_are_noted_with_the_metrics() {
    let scene = Scene::with_detector(8, 4);
    scene.edit("val", |set| {
        for image in set["images"].as_array_mut().unwrap() {
            image["height"] = (image["height"].as_u64().unwrap() + 1).into();
        }
        for annotation in set["annotations"].as_array_mut().unwrap() {
            // Run lengths contain their size.
            annotation["segmentation"] = serde_json::json!([[4, 5, 24, 5, 24, 15]]);
        }
    });
    let expected = ["image-size-differs", "data.val", "4 of 4 images have", "no mask in such an image can match"];
    scene.one("test work_dirs/cfg/epoch_1.ckpt").expect(0, &expected);
    scene.one("train cfg.toml --work-dir other --set train.epochs=1").expect(0, &expected);
    scene.launch("check-data cfg.toml").expect(0, &["image-size-differs", "no mask of the image can match"]);
}

#[test]
fn a_validation_set_without_masks_can_be_evaluated_with_boxes() {
    let scene = Scene::with_own_images();
    scene.edit("val", |set| {
        for annotation in set["annotations"].as_array_mut().unwrap() {
            annotation.as_object_mut().unwrap().remove("segmentation");
        }
    });
    let remedy = "evaluate only boxes: --eval bbox (test), evaluation.metrics = [\"bbox\"] (training)";
    let boxes = "--set evaluation.metrics=[\"bbox\"] train.epochs=1";
    scene.launch("check-data cfg.toml").expect(3, &["mask-needed", remedy]);
    scene.launch(&format!("check-data cfg.toml {boxes}")).expect(0, &["mask-missing-evaluated"]);

    scene.launch("--device cpu --nproc 2 train cfg.toml").expect(3, &["mask-needed", remedy]);
    assert!(!scene.path("work_dirs/cfg/epoch_1.ckpt").exists());
    scene.two(&format!("train cfg.toml {boxes}")).expect(0, &["bbox_mAP"]);

    let test = "--device cpu --nproc 2 test work_dirs/cfg/epoch_1.ckpt";
    scene.launch(test).expect(3, &["mask-needed", remedy]);
    scene.launch(&format!("{test} --eval bbox --metrics m.json")).expect(0, &["mask-missing-evaluated"]);
    let metrics: Value = serde_json::from_slice(&fs::read(scene.path("m.json")).unwrap()).unwrap();
    assert!(metrics["bbox_mAP"].is_number() && metrics["segm_mAP"].is_null());
    // Writing results needs no masks either.
    scene.launch(&format!("{test} --format-only --out results.json")).expect(0, &[]);
}
