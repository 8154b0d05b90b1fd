//! The main job: training, evaluation, its output files and their use.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::outputs::{Object, assert_same_metrics, files, lines, object};
use crate::support::Scene;

const LOSSES: [&str; 7] = ["loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "acc", "loss_bbox", "loss_mask", "loss"];
const RESULTS: [&str; 6] = ["mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l"];

/// Names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}

#[test]
fn two_workers_train_and_write_all_documented_files_without_raw_messages() {
    let scene = Scene::small();
    let line = "train cfg.toml --set optimizer.base_batch_size=2";
    let ended = scene.two(&format!("{line} log.tensorboard=true"));
    let result = ended.stdout.strip_prefix("trained 2 epochs: bbox_mAP ").expect("stdout has the result alone");
    assert!(result.contains(" since epoch 1)") && result.ends_with("; work_dirs/cfg/latest.ckpt\n"), "{result}");
    let last = format!("Epoch [2][{0}/{0}]\tlr: 1.000e-03, eta: 0:00:00, time: ", scene.steps(2));
    ended.expect(0, &[&last]);
    assert!(!ended.stderr.to_lowercase().contains("warning"), "{}", ended.stderr);
    let folder = scene.path("work_dirs/cfg");
    assert_documented_files(&folder);
    assert_json_lines(&lines(&folder), scene.steps(2) as u64);

    let logs = [files(&folder, ".log"), files(&folder, ".log.json"), files(&folder.join("logs"), ".log")].concat();
    assert_eq!(logs.len(), 4, "{logs:?}");
    let mut texts = vec![("stdout".to_owned(), ended.stdout), ("stderr".to_owned(), ended.stderr)];
    texts.extend(logs.iter().map(|path| (path.display().to_string(), fs::read_to_string(path).unwrap())));
    for (name, text) in &texts {
        for raw in ["[W", "Warning:", "UserWarning", "at ../", ".cpp:"] {
            assert!(!text.contains(raw), "{raw} in {name}:\n{text}");
        }
    }
    // With --verbose, notes of libtorch would be shown, numbered; training must cause none.
    let ended = scene.two(&format!("--verbose {line} train.epochs=1 --no-validate --work-dir verbose"));
    assert!(!ended.stderr.contains("of libtorch: "), "{}", ended.stderr);
    assert!(!scene.path("verbose/tensorboard").exists(), "log.tensorboard is off");
}

fn assert_documented_files(folder: &Path) {
    let (dated, fixed): (Vec<_>, Vec<_>) = names(folder).into_iter().partition(|name| name.contains(".log"));
    let expected = [
        ".fnet.generation",
        ".fnet.lock",
        "config.toml",
        "epoch_1.ckpt",
        "epoch_2.ckpt",
        "latest.ckpt",
        "logs",
        "metrics.prom",
        "results",
        "status.json",
        "tensorboard",
    ];
    assert_eq!(fixed, expected);
    let [text, json] = dated.as_slice() else { panic!("{dated:?}") };
    let stamp = text.strip_suffix(".log").unwrap();
    assert_eq!(json, &format!("{stamp}.log.json"));
    assert!(stamp.len() == 15 && stamp.as_bytes()[8] == b'_', "{stamp}: date_time");
    assert_eq!(names(&folder.join("logs")), ["rank_0.log", "rank_1.log"]);
    assert_eq!(names(&folder.join("results")), ["epoch_1.metrics.json", "epoch_2.metrics.json", "latest.segm.json"]);
    assert_eq!(files(&folder.join("tensorboard"), "").len(), 2);
    assert_eq!(fs::read(folder.join("latest.ckpt")).unwrap(), fs::read(folder.join("epoch_2.ckpt")).unwrap());
    let config = fs::read_to_string(folder.join("config.toml")).unwrap();
    assert!(config.contains("embed_dim = 8") && config.contains("positive_iou"), "resolved: {config}");
}

/// The lines of two epochs have the keys and the order of MMDetection's.
fn assert_json_lines(all: &[Object], steps: u64) {
    let keys = |line: &Object| line.keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&all[0]), ["env_info", "config", "seed", "exp_name", "hook_msgs"]);
    let of_mode = |mode: &str| all.iter().filter(|line| line.get("mode") == Some(&mode.into())).collect::<Vec<_>>();
    let train = of_mode("train");
    let mut expected = vec!["mode", "epoch", "iter", "lr", "data_time"];
    expected.extend(LOSSES);
    expected.push("time");
    assert!(train.iter().all(|line| keys(line) == expected), "{train:?}");
    let places: Vec<_> = train.iter().map(|line| (line["epoch"].as_u64(), line["iter"].as_u64())).collect();
    let wanted = (1..=2).flat_map(|epoch| (1..=steps).map(move |step| (Some(epoch), Some(step))));
    assert!(places.iter().copied().eq(wanted), "{places:?}");

    let val = of_mode("val");
    let mut expected: Vec<String> = ["mode", "epoch", "iter", "lr"].map(String::from).into();
    for kind in ["bbox", "segm"] {
        expected.extend(RESULTS.map(|name| format!("{kind}_{name}")));
        expected.push(format!("{kind}_mAP_copypaste"));
    }
    assert_eq!(val.len(), 2);
    assert!(val.iter().all(|line| keys(line) == expected), "{val:?}");
    assert_eq!(val[1]["iter"], 4, "images of the validation set");
}

#[test]
fn testing_a_checkpoint_with_one_or_two_workers_gives_the_metrics_of_training() {
    let scene = Scene::with_images(48, 8);
    scene.two(
        "train cfg.toml --set train.epochs=8 evaluation.interval=4 checkpoint.interval=4 optimizer.lr=0.006 \
         model.roi_head.mask_threshold=0.2",
    );
    for (epoch, workers) in [(4, 1), (8, 2)] {
        let measured = scene.path(&format!("work_dirs/cfg/results/epoch_{epoch}.metrics.json"));
        let metrics = object(&measured);
        // Zeros prove nothing; the first masks take longer than the first boxes.
        let is_found = |name: &str| metrics[name].as_f64().unwrap() > 0.0;
        assert!(is_found("bbox_mAP") && (epoch == 4 || is_found("segm_mAP")), "{metrics:?}");
        let line = format!("test work_dirs/cfg/epoch_{epoch}.ckpt --metrics again.json");
        let ended = scene.launch(&format!("--device cpu --nproc {workers} {line}"));
        ended.expect(0, &["AP75"]);
        assert!(!ended.stderr.contains("AP75"), "{}", ended.stderr);
        assert_same_metrics(&measured, &scene.path("again.json"));
    }
    scene.two("test work_dirs/cfg/latest.ckpt --eval segm --metrics segm.json --out found.json --show-dir shown");
    let segm = object(&scene.path("segm.json"));
    assert!(segm.keys().all(|name| name.starts_with("segm_")) && segm.len() == 6, "{segm:?}");
    let text = fs::read_to_string(scene.path("found.segm.json")).unwrap();
    let found: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert!(found[0]["segmentation"]["counts"].is_string() && found[0]["score"].is_number(), "{}", found[0]);
    assert_eq!(files(&scene.path("shown"), ".jpg").len(), 8);
}

#[test]
fn predict_draws_detections_on_the_users_images() {
    let scene = Scene::with_detector(2, 4);
    let images = files(&scene.path("data/val"), ".jpg");
    assert_eq!(images.len(), 4);
    let ended = scene.one("predict work_dirs/cfg/latest.ckpt data/val --out painted --score-thr 0");
    assert!(!ended.stderr.contains("WARNING"), "{}", ended.stderr);
    scene.one("predict work_dirs/cfg/latest.ckpt data/val --out bare --score-thr 1");
    for image in &images {
        let name = image.file_name().unwrap();
        let open = |folder: &str| image::open(scene.path(folder).join(name)).unwrap().into_rgb8();
        let (bare, painted) = (open("bare"), open("painted"));
        let ((width, height), (wide, high)) = (image::image_dimensions(image).unwrap(), painted.dimensions());
        assert!((f64::from(width * high) / f64::from(height * wide) - 1.0).abs() < 0.02, "{wide} x {high}");
        let changed = bare.pixels().zip(painted.pixels()).filter(|(a, b)| a[0].abs_diff(b[0]) > 40).count();
        assert!(changed > 500, "{}: {changed} pixels painted", image.display());
    }
    let text = fs::read_to_string(scene.path("painted/results.json")).unwrap();
    let results: Value = serde_json::from_str(&text).unwrap();
    assert!(text.contains("category_id") && (results.is_array() || results.is_object()));
}

#[test]
fn flops_and_print_config_write_to_stdout() {
    let scene = Scene::new();
    let ended = scene.launch("flops cfg.toml --json --shape 64 96");
    let counted: Value = serde_json::from_str(&ended.expect(0, &[]).stdout).unwrap();
    for name in ["flops", "macs", "params"] {
        assert!(counted[name].as_u64().unwrap() > 1000, "{name}: {counted}");
    }
    assert!(counted["per_module"].is_object());
    let larger: Value = serde_json::from_str(&scene.launch("flops cfg.toml --json").stdout).unwrap();
    assert_eq!(larger["params"], counted["params"]);
    assert!(larger["flops"].as_u64() > counted["flops"].as_u64());
    let padded = scene.launch("flops cfg.toml --shape 70").expect(0, &[]).stdout.clone();
    assert!(padded.starts_with("Use size divisor set input shape from (3, 70, 70) to (3, 96, 96)\n"), "{padded}");

    let ended = scene.launch("print-config cfg.toml --set optimizer.lr=0.25");
    let printed = &ended.expect(0, &[]).stdout;
    let config: toml::Table = printed.parse().unwrap();
    assert_eq!(config["optimizer"]["lr"].as_float(), Some(0.25));
    assert!(printed.contains("lr = 0.25  # --set") && printed.contains("embed_dim = 8  # cfg.toml:"), "{printed}");
}

#[test]
fn benchmark_infer_counts_images_as_mmdetection_does() {
    let scene = Scene::with_detector(2, 8);
    let job = "benchmark infer cfg.toml work_dirs/cfg/latest.ckpt --log-interval 3 --fuse-conv-bn";
    let ended = scene.one(&format!("{job} --max-iter 7 --repeat-num 2 --set model.backbone.partial_conv=slicing"));
    ended.expect(
        0,
        &["Done image [6  / 7], fps: ", " img / s, times per image: ", "2 of the validation set", "Overall fps: ["],
    );
    assert!(!ended.stderr.contains("Done image [3"), "the warm-up is not reported: {}", ended.stderr);

    let report: Value = serde_json::from_str(&scene.one(&format!("{job} --json --max-iter 100")).stdout).unwrap();
    assert_eq!(report["images"], 3, "5 of the 8 images of the validation set are the warm-up");
    assert!(report["images_per_second"].as_f64().unwrap() > 0.0 && report["fuse_conv_bn"] == true);
}
