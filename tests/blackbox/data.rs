//! `check-data`, and what training and testing say about data before they start.

use std::fs;

use serde_json::Value;

use crate::support::Scene;

/// Damages a set in three ways: a picture is gone, another is no picture, and the sets share one.
fn damage(scene: &Scene) -> [String; 2] {
    let file = scene.path("data/annotations/instances_train.json");
    let set: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let name = |index: usize| set["images"][index]["file_name"].as_str().unwrap().to_owned();
    fs::remove_file(scene.path("data/train").join(name(0))).unwrap();
    fs::write(scene.path("data/train").join(name(1)), "version https://git-lfs.github.com/spec/v1\n").unwrap();
    [name(0), name(1)]
}

#[test]
fn check_data_is_content_with_sound_data() {
    let scene = Scene::new();
    // A class of the eight has no object in the few pictures of the validation set, which is worth a note.
    let lines = [
        ("check-data cfg.toml --split train", "Nothing is wrong."),
        ("check-data cfg.toml --decode", "No errors: training would start. 0 warnings"),
    ];
    for (line, verdict) in lines {
        let ended = scene.launch(line);
        ended.expect(0, &["pictures, ", "8 classes are used", verdict]);
        assert_eq!(ended.stdout, "");
    }
}

#[test]
fn check_data_names_every_file_and_code() {
    let scene = Scene::with_own_pictures();
    let [missing, pointer] = damage(&scene);
    let ended = scene.launch("check-data cfg.toml --json");
    ended.expect(
        3,
        &[
            "picture-missing",
            &missing,
            "picture-unreadable",
            &pointer,
            "git lfs pull",
            "2 errors: training would not start",
        ],
    );
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&report["errors"], &report["counts"]["picture-missing"]), (&Value::from(2), &Value::from(1)));
    let findings = report["findings"].as_array().unwrap();
    // Some classes have no object in so few pictures.
    let findings: Vec<_> = findings.iter().filter(|finding| finding["severity"] != "note").collect();
    assert_eq!(findings.len(), 2);
    for finding in findings {
        assert!(["code", "severity", "file", "image", "message", "remedy"].iter().all(|key| finding[key].is_string()));
    }
    // The validation set alone is sound.
    scene.launch("check-data cfg.toml --split val").expect(0, &["No errors", "0 warnings"]);
    scene.launch("check-data cfg.toml --set data.on_error=skip").expect(0, &["picture-left-out", "2 warnings"]);
}

#[test]
fn training_stops_before_it_starts_when_data_is_wrong() {
    let scene = Scene::with_own_pictures();
    let [missing, _] = damage(&scene);
    let train = "--device cpu --nproc 2 train cfg.toml";
    scene.launch(train).expect(3, &["picture-missing", &missing, "remove the image from the annotation file"]);
    assert!(!scene.path("work_dirs/cfg/epoch_1.ckpt").exists());
}

#[test]
fn classes_of_the_sets_must_agree() {
    let scene = Scene::with_own_pictures();
    let file = scene.path("data/annotations/instances_val.json");
    let mut set: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    set["categories"].as_array_mut().unwrap().swap(0, 1);
    fs::write(&file, set.to_string()).unwrap();
    scene.launch("check-data cfg.toml").expect(3, &["split-categories", "as label 0, where that has"]);
    scene.launch("--device cpu --nproc 1 train cfg.toml").expect(3, &["split-categories"]);
    // Where it is not evaluated on, the validation set does not matter.
    scene.one("train cfg.toml --no-validate --set train.epochs=1");
}

#[test]
fn a_validation_set_of_boxes_alone_is_evaluated_by_boxes_alone() {
    let scene = Scene::with_own_pictures();
    let file = scene.path("data/annotations/instances_val.json");
    let mut set: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    for annotation in set["annotations"].as_array_mut().unwrap() {
        annotation.as_object_mut().unwrap().remove("segmentation");
    }
    fs::write(&file, set.to_string()).unwrap();
    let remedy = "evaluate boxes alone: --eval bbox (test), evaluation.metrics = [\"bbox\"] (training)";
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
    // What is only written down needs no masks either.
    scene.launch(&format!("{test} --format-only --out results.json")).expect(0, &[]);
}
