//! `test`: the same results on any number of workers, and MMDetection's evaluation options.

use std::fs;

use crate::outputs::{files, object};
use crate::support::Scene;

#[test]
fn any_number_of_workers_writes_the_same_bytes() {
    let scene = Scene::with_detector(2, 21);
    let files = |workers: usize| {
        scene
            .launch(&format!(
                "--device cpu --nproc {workers} test work_dirs/cfg/latest.ckpt --eval bbox segm proposal \
                 --out found_{workers}.json --metrics metrics_{workers}.json --set evaluation.classwise=true"
            ))
            .expect(0, &["21 images"]);
        [format!("found_{workers}.bbox.json"), format!("found_{workers}.segm.json"), format!("metrics_{workers}.json")]
            .map(|name| fs::read(scene.path(&name)).unwrap())
    };
    let alone = files(1);
    let found: Vec<serde_json::Value> = serde_json::from_slice(&alone[1]).unwrap();
    let images: std::collections::BTreeSet<_> = found.iter().map(|entry| entry["image_id"].as_u64()).collect();
    assert!(found.len() > 100 && images.len() > 15, "{} objects in {} images prove little", found.len(), images.len());
    for workers in [2, 8] {
        assert!(files(workers) == alone, "{workers} workers wrote different bytes than one");
    }
}

#[test]
fn thresholds_limits_and_items_come_from_the_config() {
    let scene = Scene::with_detector(4, 4);
    let ended = scene.one(
        "test work_dirs/cfg/latest.ckpt --eval bbox proposal --metrics metrics.json --set evaluation.classwise=true \
         evaluation.iou_thrs=[0.1,0.5] evaluation.proposal_nums=[3,50] evaluation.metric_items=[\"mAP_50\",\"AR@3\",\"AR_l@50\"]",
    );
    ended.expect(0, &["AP uses maxDets=50", "AR@3 ", "AR@50 ", "class     bbox AP\nring "]);
    let metrics = object(&scene.path("metrics.json"));
    let names: Vec<&String> = metrics.keys().collect();
    assert_eq!(names, ["bbox_mAP_50", "bbox_AR@3", "bbox_AR_l@50", "mAP_50", "AR@3", "AR_l@50", "classwise"]);
    assert_eq!(metrics["classwise"]["bbox"].as_object().unwrap().len(), 8);
    assert!(metrics["classwise"].get("proposal").is_none(), "classes do not count for proposals");

    let ended = scene.one("test work_dirs/cfg/latest.ckpt --eval proposal --metrics recall.json");
    ended.expect(0, &["class-agnostic recall"]);
    let names: Vec<String> = object(&scene.path("recall.json")).keys().cloned().collect();
    assert_eq!(names, ["AR@100", "AR@300", "AR@1000", "AR_s@1000", "AR_m@1000", "AR_l@1000"]);

    let measured = "train cfg.toml --work-dir again --set train.epochs=1 evaluation.metrics=[\"proposal\",\"segm\"]";
    let ended = scene.one(&format!("{measured} checkpoint.save_best=AR@1000 evaluation.classwise=true"));
    ended.expect(0, &["class     segm AP", "AR@300: ", "segm_mAP_copypaste"]);
    let recall = object(&scene.path("again/results/epoch_1.metrics.json"))["AR@1000"].as_f64().unwrap();
    assert_eq!(scene.path("again/best_AR@1000.ckpt").exists(), recall > 0.0, "{recall}");

    let wrong =
        scene.launch("--device cpu --nproc 1 test work_dirs/cfg/latest.ckpt --set evaluation.proposal_nums=[5,5]");
    wrong.expect(2, &["evaluation.proposal_nums is [5, 5]", "ascending"]);
    scene.launch("--device cpu --nproc 1 test work_dirs/cfg/latest.ckpt --eval proposal_fast").expect(2, &["proposal"]);
}

#[test]
fn test_time_augmentation_is_an_option_and_a_field_and_does_not_depend_on_workers() {
    let scene = Scene::with_detector(2, 5);
    let test = |name: &str, workers: usize, options: &str| {
        scene
            .launch(&format!(
                "--device cpu --nproc {workers} test work_dirs/cfg/latest.ckpt --format-only --out {name}.json {options}"
            ))
            .expect(0, &[]);
        fs::read(scene.path(&format!("{name}.segm.json"))).unwrap()
    };
    let (plain, option) = (test("plain", 1, ""), test("option", 1, "--tta"));
    assert_ne!(plain, option);
    assert!(test("field", 2, "--set evaluation.tta=flip") == option, "the field, on two workers");
    assert!(test("alias", 1, "--aug-test") == option);
    scene.one("predict work_dirs/cfg/latest.ckpt data/val --out predicted --tta");
    let read = |path: &str| -> Vec<serde_json::Value> {
        serde_json::from_slice(&fs::read(scene.path(path)).unwrap()).unwrap()
    };
    let (predicted, tested) = (read("predicted/results.json"), read("option.segm.json"));
    let scores = |entries: &[serde_json::Value]| {
        let mut scores: Vec<String> = entries.iter().map(|entry| entry["score"].to_string()).collect();
        scores.sort();
        scores
    };
    assert_eq!(scores(&predicted), scores(&tested));
    scene.launch("--device cpu --nproc 1 test work_dirs/cfg/latest.ckpt --augment").expect(2, &["use --tta"]);
}

#[test]
fn browse_shows_the_images_that_the_model_gets() {
    let scene = Scene::with_images(6, 3);
    let size = |folder: &str, name: &str| image::image_dimensions(scene.path(folder).join(name)).unwrap();
    scene.launch("browse cfg.toml --out first --max 4").expect(0, &["4 of the 6 images of data.train with"]);
    scene.launch("browse cfg.toml --out again --max 4").expect(0, &[]);
    scene.launch("browse cfg.toml --out plain --no-augment").expect(0, &["6 of the 6 images"]);
    scene.launch("browse cfg.toml --out all --set data.pipeline.flip_probability=1.0").expect(0, &[]);
    scene.launch("browse cfg.toml --out val --split val").expect(0, &["3 of the 3 images of data.val with"]);
    let names = |folder: &str| {
        let names = files(&scene.path(folder), ".jpg").into_iter();
        names.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!((names("first").len(), names("plain").len(), names("val").len()), (4, 6, 3));
    let bytes = |folder: &str, name: &str| fs::read(scene.path(folder).join(name)).unwrap();
    for name in names("first") {
        assert_eq!(bytes("first", &name), bytes("again", &name), "an epoch's augmentation is always the same");
        assert_ne!(bytes("plain", &name), bytes("all", &name), "flipped or not");
        assert_eq!(size("plain", &name), size("all", &name));
        let shown = bytes("first", &name);
        assert!(shown == bytes("all", &name) || shown == bytes("plain", &name), "{name}: one of the two");
    }
    scene.launch("browse none.toml --out x").expect(2, &["none.toml"]);
    scene.launch("browse cfg.toml --out x --set data.train.ann_file=no.json").expect(3, &["no.json"]);
    scene.launch("browse --help").expect(0, &[]);
}

#[test]
fn output_images_of_any_name_are_unique_and_stay_in_their_folder() {
    let scene = Scene::with_detector(2, 5);
    let wanted = ["a/x.jpg", "b/x.jpg", "фото 汽车/🚗 #%20.jpg", "../val/a/../x.jpg", "c.d/x.JPG"];
    scene.edit("val", |set| {
        for (image, name) in set["images"].as_array_mut().unwrap().iter_mut().zip(wanted) {
            let path = scene.path("data/val").join(name);
            fs::create_dir_all(scene.path("data/val/a")).unwrap();
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::rename(scene.path("data/val").join(image["file_name"].as_str().unwrap()), path).unwrap();
            image["file_name"] = name.into();
        }
    });
    scene.two("test work_dirs/cfg/latest.ckpt --show-dir out/shown --eval bbox");
    scene.launch("browse cfg.toml --split val --out out/browsed").expect(0, &["5 of the 5 images"]);
    scene.one("predict work_dirs/cfg/latest.ckpt data/val --out out/predicted");
    let shown = ["a/x.jpg", "b/x.jpg", "фото 汽车/🚗 #%20.jpg", "val/a/x.jpg", "c.d/x.JPG"];
    let found = ["a/x.jpg", "b/x.jpg", "фото 汽车/🚗 #%20.jpg", "x.jpg", "c.d/x.JPG"];
    for (folder, names) in [("out/shown", shown), ("out/browsed", shown), ("out/predicted", found)] {
        for name in names {
            assert!(scene.path(folder).join(name).is_file(), "{folder}/{name}");
        }
    }
    let mut names: Vec<String> = fs::read_dir(scene.path("out"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["browsed", "predicted", "shown"], "nothing outside the folders");
}
