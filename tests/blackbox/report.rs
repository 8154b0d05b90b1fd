//! `evaluate` and `report`: results files and pages.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::outputs::{object, of_mode};
use crate::support::{Scene, finish, skip};

fn data_of(page: &str) -> Value {
    let (_, rest) = page.split_once("id=\"data\">").unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

/// A Chromium, from FNET_CHROMIUM or PATH. Without one the test is skipped.
fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let named = std::env::var_os("FNET_CHROMIUM").map(PathBuf::from);
    let names = ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome"];
    let on_path =
        || std::env::split_paths(&path).flat_map(|folder| names.map(|name| folder.join(name))).find(|p| p.is_file());
    let found = named.or_else(on_path);
    if found.is_none() {
        skip("no Chromium on PATH or in FNET_CHROMIUM");
    }
    found
}

#[test]
fn kept_results_have_the_metrics_of_the_evaluation_and_make_a_page() {
    let scene = Scene::with_images(8, 6);
    scene.two(
        "train cfg.toml --set train.epochs=2 optimizer.lr=0.003 checkpoint.save_best=bbox_mAP evaluation.classwise=true",
    );
    let kept = "work_dirs/cfg/results/latest.segm.json";
    let (config, set) = ("--config work_dirs/cfg/config.toml", "--set evaluation.classwise=true");
    let best = scene.path("work_dirs/cfg/results/best_bbox_mAP.segm.json");
    assert_eq!(best.exists(), scene.path("work_dirs/cfg/best_bbox_mAP.ckpt").exists());
    // The same numbers to the last digit, and the same table.
    let read: Value =
        serde_json::from_str(&scene.launch(&format!("evaluate {kept} {config} --json")).expect(0, &[]).stdout).unwrap();
    let trained = Value::Object(object(&scene.path("work_dirs/cfg/results/epoch_2.metrics.json")));
    assert_eq!((&read["results"][0]["metrics"], &read["results"][0]["images"]), (&trained, &Value::from(6)));
    let tested = scene.one("test work_dirs/cfg/latest.ckpt --out again.json --metrics again.metrics.json");
    assert_eq!(fs::read(scene.path("again.segm.json")).unwrap(), fs::read(scene.path(kept)).unwrap());
    let table = scene.launch(&format!("evaluate again.segm.json {config} {set}")).stdout;
    assert!(tested.stdout.contains(table.trim()), "{table}\n{}", tested.stdout);
    // Compared with itself, and with half of its detections.
    let mut half: Vec<Value> = serde_json::from_slice(&fs::read(scene.path(kept)).unwrap()).unwrap();
    half.retain(|entry| entry["image_id"].as_u64().unwrap() % 2 == 0);
    fs::write(scene.path("half.json"), Value::from(half).to_string()).unwrap();
    let compared = scene.launch(&format!("evaluate half.json {kept} {config} --resamples 50 --out compared.html"));
    compared.expect(0, &["compared.html"]);
    assert!(compared.stdout.contains("50 paired bootstrap resamples (6 images, seed 0)"), "{}", compared.stdout);
    let same = scene.launch(&format!("evaluate {kept} {kept} {config} --resamples 50"));
    assert!(same.stdout.contains("[+0.000, +0.000]   no significant difference"), "{}", same.stdout);
    for (line, code, text) in [
        ("evaluate none.json --config cfg.toml", 3, "none.json: no such file"),
        ("evaluate cfg.toml --config cfg.toml", 3, "a JSON list of"),
        ("evaluate data/annotations/instances_val.json --config cfg.toml", 3, "annotation file"),
        ("evaluate half.json --config cfg.toml --split train", 3, "data.train"),
        ("evaluate a b c --config cfg.toml", 2, "RESULTS"),
        ("report data", 2, "not a work folder"),
        ("report none", 3, "none"),
    ] {
        scene.launch(line).expect(code, &[text]);
    }
    // Where the time of both ranks went.
    let times = of_mode(&scene.path("work_dirs/cfg"), "times");
    let ranks: Vec<&Vec<Value>> = times.iter().map(|line| line["ranks"].as_array().unwrap()).collect();
    assert!(ranks.iter().all(|ranks| ranks.len() == 2), "{times:?}");
    for part in ["data", "forward", "backward", "waiting", "optimizer", "evaluation"] {
        assert!(ranks.iter().flat_map(|ranks| ranks.iter()).any(|rank| rank.get(part).is_some()), "{part}: {times:?}");
    }
    let page = "two.html";
    fs::create_dir(scene.path("bare")).unwrap();
    fs::copy(scene.path("work_dirs/cfg/config.toml"), scene.path("bare/config.toml")).unwrap();
    let ended = scene.launch(&format!("report work_dirs/cfg bare --out {page}"));
    ended.expect(
        0,
        &[
            "bare: Metrics, errors and images are missing",
            "fnet-launch test bare/latest.ckpt --out bare/results/latest.json",
        ],
    );
    let data = data_of(&fs::read_to_string(scene.path(page)).unwrap());
    let shown = &data["runs"][0]["results"];
    let index = shown["metrics"].as_array().unwrap().iter().position(|kind| kind == "segm").unwrap();
    let expected = trained["segm_mAP"].as_f64().filter(|&value| value >= 0.0);
    assert_eq!((&shown["table"][0][0], shown["table"][0][2][index].as_f64()), (&"AP".into(), expected));
    let images = data["images"].as_array().unwrap();
    assert!(!images.is_empty() && images.iter().all(|image| image["jpeg"].as_str().unwrap().starts_with("/9j/")));
    assert!(data["runs"][0]["log"]["train"]["loss"]["y"].as_array().unwrap().len() > 3);
    // A browser draws it without an error.
    let Some(chromium) = chromium() else { return };
    let mut browser = Command::new(chromium);
    browser.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--virtual-time-budget=3000",
    ]);
    browser.arg("--dump-dom").arg(format!("file://{}", scene.path(page).display())).env("HOME", scene.path("bare"));
    let drawn = finish(browser);
    assert!(!drawn.stderr.contains("CONSOLE"), "{}", drawn.stderr);
    for part in
        ["Overview", "Curves", "Classes", "Confusions", "Calibration", "Images", "Time", "rank 1", "Machine and config"]
    {
        assert!(drawn.stdout.contains(&format!(">{part}</")), "{part} is not on the page");
    }
}
