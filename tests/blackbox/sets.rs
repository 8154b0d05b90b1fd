//! Several training sets, repeated and class-balanced images, `data.test`, and a validation set taken from the training set.

use std::fs;

use serde_json::{Value, json};

use crate::outputs::{assert_same_metrics, differences, files, losses, object, of_mode, progress, tensors};
use crate::support::Scene;

/// Both sets of a scene for training: the first twice, of the second those with rare classes more often. Their ids are the same.
const SEVERAL: &str = "data.train=[{ann_file=\"annotations/instances_train.json\",img_prefix=\"train\",repeat=2},\
    {ann_file=\"annotations/instances_val.json\",img_prefix=\"val\",class_balanced=1.0}]";

fn dry_run(scene: &Scene, line: &str) -> Value {
    let ended = scene.launch(&format!("--device cpu --nproc 2 --dry-run {line} --json"));
    serde_json::from_str(&ended.expect(0, &[]).stdout).unwrap()
}

#[test]
fn a_list_of_sets_is_trained_on_two_ranks_and_resumes_at_any_step() {
    let scene = Scene::with_images(4, 3);
    let job = format!("train cfg.toml --no-validate --set {SEVERAL} train.epochs=2");
    let planned = dry_run(&scene, &job);
    let of = |set: usize, name: &str| planned["datasets"][set][name].clone();
    assert_eq!(
        (of(0, "images").as_u64().unwrap() * 2, of(0, "split")),
        (of(0, "images_per_epoch").as_u64().unwrap(), json!("train"))
    );
    assert!(of(1, "annotation_file").as_str().unwrap().ends_with("instances_val.json"), "{planned}");
    let images: u64 = [0, 1].map(|set| of(set, "images_per_epoch").as_u64().unwrap()).iter().sum();
    // Each of two aspect groups is filled up to a step of both ranks.
    let steps = planned["training"]["iterations_per_epoch"].as_u64().unwrap();
    assert!((images.div_ceil(2)..=images.div_ceil(2) + 1).contains(&steps), "{planned}");

    scene.two(&format!("{job} --work-dir whole"));
    let whole = scene.path("whole");
    assert_eq!(progress(&whole.join("latest.ckpt")) as u64, 2 * steps);
    for step in [2, steps + 1] {
        let folder = format!("step{step}");
        let broken = format!("{job} --work-dir {folder} --fault term:rank=1,phase=forward,step={step}");
        scene.launch(&format!("--device cpu --nproc 2 {broken}")).expect(75, &[]);
        scene.two(&format!("{job} --work-dir {folder} --resume"));
        let resumed = scene.path(&folder);
        assert_eq!(losses(&resumed), losses(&whole), "step {step}");
        let [a, b] = [&resumed, &whole].map(|folder| tensors(&folder.join("latest.ckpt")));
        assert_eq!(differences(&a, &b), Vec::<String>::new(), "step {step}");
    }
    // The checkpoint stores the list.
    scene.two("test whole/latest.ckpt --split train --metrics train.json");
    assert!(object(&scene.path("train.json"))["bbox_mAP"].is_number());
}

#[test]
fn checks_and_drawings_name_each_of_several_sets() {
    let scene = Scene::with_images(4, 3);
    let ended = scene.launch(&format!("check-data cfg.toml --list 0 --json --set {SEVERAL}"));
    let report: Value =
        serde_json::from_str(&ended.expect(0, &["data.train[0]: ", "data.train[1]: ", "images per epoch"]).stdout)
            .unwrap();
    assert_eq!(report["sets"].as_array().unwrap().len(), 3, "{report}");

    let images: u64 = (0..2).map(|set| report["sets"][set]["images"].as_u64().unwrap()).sum();
    scene
        .launch(&format!("browse cfg.toml --out all --set {SEVERAL}"))
        .expect(0, &[&format!("{images} of the {images} images")]);
    assert_eq!(
        files(&scene.path("all"), ".jpg").len() as u64,
        images,
        "no image is drawn over another of the same name"
    );

    // A problem names the file and the id.
    let id = scene.edit("val", |file| {
        file["annotations"][0]["bbox"] = json!([1, 2]);
        file["annotations"][0]["id"].clone()
    });
    let ended = scene.launch(&format!("check-data cfg.toml --split train --set {SEVERAL}"));
    ended.expect(3, &["annotation-malformed: data.train: ", &format!("instances_val.json: annotation {id}: bbox")]);
    scene.edit("val", |file| file["categories"].as_array_mut().unwrap().pop());
    let line = format!("--device cpu --nproc 1 train cfg.toml --no-validate --set {SEVERAL} data.classes=auto");
    scene.launch(&line).expect(3, &["split-categories: data.train: ", "instances_val.json: compared with ", "lacks"]);
}

#[test]
fn wrong_lists_of_sets_are_explained() {
    let scene = Scene::of(1);
    for (set, texts) in [
        (
            "data.train=[{ann_file=\"a.json\",times=2}]",
            &["unknown field `data.train.times`", "use `data.train.repeat`"][..],
        ),
        (
            "data.train=[{ann_file=\"a.json\",repeat=0}]",
            &["data.train.repeat is 0; expected a whole number of at least 1"],
        ),
        ("data.train=[]", &["data.train is []; expected a table of fields, or a list of such tables"]),
        ("data.val=[{ann_file=\"a.json\"}]", &["data.val is [", "expected a table of fields"]),
        ("data.train=[{repeat=2}]", &["data.train.ann_file", "expected an annotation file"]),
        ("data.val.fraction=1.0", &["data.val.fraction is 1.0; expected a number of at least 0 and below 1"]),
    ] {
        scene.launch(&format!("print-config cfg.toml --set {set}")).expect(2, texts);
    }
    // What is printed is a config.
    let printed = scene.launch(&format!("print-config cfg.toml --set {SEVERAL}"));
    fs::write(scene.path("again.toml"), &printed.expect(0, &[]).stdout).unwrap();
    let again = scene.launch("print-config again.toml");
    assert!(again.expect(0, &[]).stdout.contains("repeat = 2"), "{}", again.stdout);
}

#[test]
fn a_part_of_the_training_set_validates_it() {
    let scene = Scene::with_images(16, 4);
    let part = "data.val.fraction=0.25";
    let ended = scene.launch(&format!("check-data cfg.toml --json --list 0 --set {part}"));
    let report: Value = serde_json::from_str(&ended.expect(0, &["data.val: "]).stdout).unwrap();
    let images = |set: usize| report["sets"][set]["images"].as_u64().unwrap();
    assert!((2..=12).contains(&images(1)) && images(0) + images(1) <= 16, "{report}");

    scene.two(&format!("train cfg.toml --set {part} train.epochs=1"));
    let checkpoint = "work_dirs/cfg/latest.ckpt";
    assert_eq!(of_mode(&scene.path("work_dirs/cfg"), "val")[0]["iter"], images(1), "all of the part");
    // `test` finds the same images, on any number of ranks.
    scene.one(&format!("test {checkpoint} --metrics one.json --show-dir shown"));
    assert_same_metrics(&scene.path("one.json"), &scene.path("work_dirs/cfg/results/epoch_1.metrics.json"));
    assert_eq!(files(&scene.path("shown"), ".jpg").len() as u64, images(1));
    let quiet = scene.two(&format!("test {checkpoint} --eval bbox"));
    assert!(!quiet.stderr.contains("data.val.fraction"), "{}", quiet.stderr);
    // Another set is not confused with it.
    let own = "data.test.ann_file=annotations/instances_val.json data.test.img_prefix=val";
    scene.two(&format!("test {checkpoint} --eval bbox --split test --show-dir own --set {own}"));
    assert_eq!(files(&scene.path("own"), ".jpg").len(), 4);
    let line = format!("--device cpu --nproc 1 test {checkpoint} --eval bbox --set");
    let ignored = "data.val.ann_file has no effect, because data.val.fraction is 0.25";
    scene.launch(&format!("{line} data.val.ann_file=annotations/instances_val.json")).expect(2, &[ignored]);

    // Other images than in training are reported: another seed, another file.
    let other = "data.val.fraction takes other images of ";
    scene.launch(&format!("{line} data.val.seed=3")).expect(0, &[other, "instances_train.json"]);
    scene.edit("train", |file| file["images"].as_array_mut().unwrap().pop());
    let warned = scene.launch(&format!("--device cpu --nproc 1 --dry-run test {checkpoint} --eval bbox"));
    assert!(warned.expect(0, &[]).stdout.contains(other) || warned.stderr.contains(other), "{}", warned.stderr);
    scene.two(&format!("train cfg.toml --resume --set {part} train.epochs=2")).expect(0, &[other]);
}
