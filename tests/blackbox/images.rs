//! Unreadable images during a job, and the speed of the input pipeline.

use std::fs;

use crate::outputs::{Object, losses, of_mode};
use crate::support::Scene;

/// Replaces the bytes of one image with objects of the set `split`, and returns its name.
fn damage_an_image(scene: &Scene, split: &str, bytes: &[u8]) -> String {
    let name = scene.edit(split, |set| {
        let id = &set["annotations"][0]["image_id"];
        let image = set["images"].as_array().unwrap().iter().find(|image| image["id"] == *id).unwrap();
        image["file_name"].as_str().unwrap().to_owned()
    });
    fs::write(scene.path(&format!("data/{split}")).join(&name), bytes).unwrap();
    name
}

/// Set, epoch and count of the JSON lines about skipped images. Each must name `image`.
fn left_out(scene: &Scene, work_dir: &str, image: &str) -> Vec<(String, u64, u64)> {
    let facts = |line: &Object| {
        assert!(line["images"][0].as_str().unwrap().contains(image), "{line:?}");
        let number = |name: &str| line[name].as_u64().unwrap();
        (line["set"].as_str().unwrap().to_owned(), number("in_epoch"), number("count"))
    };
    of_mode(&scene.path(work_dir), "left_out").iter().map(facts).collect()
}

#[test]
fn an_unreadable_image_stops_the_job_on_all_ranks_and_is_named() {
    let scene = Scene::with_own_images();
    // Only one of the two ranks reads it; the other waits for the gradients.
    let name = damage_an_image(&scene, "train", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n");
    scene.launch("--device cpu --nproc 2 train cfg.toml --no-validate").expect(3, &[&name, "git lfs pull"]);
}

#[test]
fn with_skip_an_unreadable_image_is_replaced_counted_and_named() {
    let scene = Scene::with_own_images();
    let name = damage_an_image(&scene, "train", b"this is no JPEG");
    let ended = scene.launch("--device cpu --nproc 1 train cfg.toml --no-validate --set data.on_error=skip");
    ended.expect(0, &["WARNING - skipped", &name]);
    assert_eq!(losses(&scene.path("work_dirs/cfg")).len(), 2 * 8, "another image takes its place");
    let twice = [("train".to_owned(), 1, 1), ("train".to_owned(), 2, 1)];
    assert_eq!(left_out(&scene, "work_dirs/cfg", &name), twice);
    // With two workers, either may read it. Rank 0 reports for both.
    let two = "--device cpu --nproc 2 train cfg.toml --no-validate --work-dir two --set data.on_error=skip";
    let ended = scene.launch(two);
    ended.expect(0, &["1 image of the train set could not be read in epoch 1", &name]);
    assert_eq!(left_out(&scene, "two", &name), twice);
}

#[test]
fn an_unreadable_image_at_evaluation_stops_the_job_or_is_counted_and_named() {
    let scene = Scene::with_detector(8, 4);
    let name = damage_an_image(&scene, "val", b"");
    let checkpoint = "work_dirs/cfg/latest.ckpt";
    scene.launch(&format!("--device cpu --nproc 2 test {checkpoint}")).expect(3, &[&name, "the file is empty"]);
    scene
        .two(&format!("test {checkpoint} --set data.on_error=skip"))
        .expect(0, &["1 image could not be read", &name, "the file is empty"]);
    // The same during training.
    let train = "--device cpu --nproc 2 train cfg.toml --set train.epochs=1 --work-dir";
    scene.launch(&format!("{train} stopped")).expect(3, &[&name]);
    scene
        .launch(&format!("{train} skipped --set data.on_error=skip"))
        .expect(0, &["1 image of the val set could not be read in epoch 1"]);
    assert_eq!(left_out(&scene, "skipped", &name), [("val".to_owned(), 1, 1)]);
}

#[test]
fn the_input_pipeline_is_measured_by_stage() {
    let scene = Scene::new();
    let ended = scene.launch("benchmark data cfg.toml --threads 2 --images 60 --json");
    ended.expect(0, &[]);
    let report: Object = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["images"], 60);
    let stages = report["ms_per_image"].as_object().unwrap();
    let number = |name: &str| stages[name].as_f64().unwrap();
    let names = ["read", "decode", "masks", "resize", "assemble"];
    assert!(names.iter().all(|name| number(name) > 0.0), "{stages:?}");
    assert!((names.iter().map(|name| number(name)).sum::<f64>() - number("total")).abs() < 1e-6, "{stages:?}");
    assert!(report["images_per_second"].as_f64().unwrap() > 0.0);
    let text = scene.launch("benchmark data cfg.toml --no-masks");
    text.expect(0, &["32 images without masks", "on 1 loader thread", "assemble"]);
    scene.launch("benchmark data none.toml").expect(2, &["none.toml"]);
}
