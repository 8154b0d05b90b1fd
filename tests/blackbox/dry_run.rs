//! `--dry-run`: what a job would do, and that it does the same.

use std::fs;
use std::path::Path;

use crate::support::{Scene, finish, worker_program};

const DRY: &str = "--device cpu --nproc 2 --dry-run";

fn report(text: &str) -> serde_json::Value {
    serde_json::from_str(text.trim()).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_dry_run_predicts_the_training_and_writes_nothing() {
    let scene = Scene::small();
    let dry = scene.launch(&format!("{DRY} train cfg.toml --json --step-time 0.5 --links 0.1,1"));
    dry.expect(0, &[]);
    assert!(!scene.path("work_dirs").exists(), "nothing was written");
    let report = report(&dry.stdout);
    assert_eq!(report["training"]["iterations_per_epoch"], scene.steps(2));
    assert_eq!(report["training"]["iterations"], 2 * scene.steps(2));
    assert_eq!((&report["datasets"][0]["images"], &report["datasets"][1]["images"]), (&8.into(), &4.into()));
    assert_eq!(report["training"]["effective_batch"], 2);
    assert_eq!(report["workers"][1]["rank"], 1);
    assert_eq!(report["problems"].as_array().unwrap().len(), 0);
    let forecast = |name: &str| report["forecast"][name].as_f64().unwrap();
    assert!(forecast("compute_seconds") == 0.5 && forecast("communication_seconds") > 0.0);
    assert!(forecast("update_seconds") > 0.5 && forecast("job_seconds") > 2.0 * scene.steps(2) as f64 * 0.5);
    scene.two("train cfg.toml --no-validate");
    let mut log = fs::read_dir(scene.path("work_dirs/cfg")).unwrap().map(|entry| entry.unwrap().path());
    let log = log.find(|path| path.to_string_lossy().ends_with(".log.json")).unwrap();
    let lines = fs::read_to_string(log).unwrap();
    let trained =
        lines.lines().filter(|line| line.contains("\"mode\": \"train\"") || line.contains("\"mode\":\"train\""));
    assert_eq!(trained.count(), 2 * scene.steps(2), "each step has a line");
    // The tensors are counted to the byte, the header within a few KB.
    let written = fs::metadata(scene.path("work_dirs/cfg/epoch_1.ckpt")).unwrap().len();
    let predicted = report["disk"]["checkpoint"].as_u64().unwrap();
    assert!(predicted.abs_diff(written) < 24 << 10, "{predicted} predicted, {written} written");
    assert_eq!(report["disk"]["count"], 2);
    let resumed = scene.launch(&format!("{DRY} train cfg.toml --resume --set train.epochs=5 --json"));
    resumed.expect(0, &[]);
    let resumed: serde_json::Value = serde_json::from_str(&resumed.stdout).unwrap();
    assert_eq!((&resumed["training"]["epochs_done"], &resumed["disk"]["count"]), (&2.into(), &3.into()));
    let test = scene.launch(&format!("{DRY} test work_dirs/cfg/latest.ckpt"));
    test.expect(0, &["val          4 images, 8 classes", "memory       about"]);
}

#[test]
fn errors_of_training_are_reported_with_the_same_exit_code() {
    let scene = Scene::new();
    scene.launch(&format!("{DRY} train cfg.toml --set optimizer.lrr=1")).expect(2, &["optimizer.lr"]);
    scene.launch(&format!("{DRY} train cfg.toml --set data.train.ann_file=none.json")).expect(3, &["none.json"]);
    scene.launch(&format!("{DRY} train cfg.toml --set model.num_classes=5")).expect(3, &["model.num_classes"]);
    scene.launch(&format!("{DRY} train cfg.toml --resume")).expect(3, &["no checkpoint"]);
    scene.launch(&format!("{DRY} flops cfg.toml")).expect(2, &["--dry-run supports train and test only"]);
    scene.launch("--device cpu --nproc 2 train cfg.toml --json").expect(2, &["--json requires --dry-run"]);
    scene.launch("--device cpu train cfg.toml --step-time 1").expect(2, &["--step-time requires --dry-run"]);
    scene.launch(&format!("{DRY} train cfg.toml --step-time 1 --links 370")).expect(2, &["--links", "370,45"]);
    assert!(!scene.path("work_dirs").exists());
}

#[test]
fn a_job_that_would_fill_the_disk_is_an_error() {
    let scene = Scene::new();
    // More checkpoints than fit on any disk.
    let ended = scene.launch(&format!("{DRY} train cfg.toml --set train.epochs=1000000000000 schedule.steps=[]"));
    ended.expect(6, &["the checkpoints need", "checkpoint.keep_last", "work_dirs/cfg"]);
    scene
        .launch(&format!("{DRY} train cfg.toml --set train.epochs=1000000000000 checkpoint.keep_last=2"))
        .expect(0, &[]);
}

#[test]
fn all_reduces_are_measured_and_correct() {
    let scene = Scene::new();
    let ended = scene.launch("--device cpu --nproc 2 benchmark comm --max-bytes 64K --iters 3 --json");
    ended.expect(0, &[]);
    let report = report(&ended.stdout);
    assert_eq!((&report["backend"], &report["world_size"]), (&"gloo".into(), &2.into()));
    let sizes: Vec<u64> =
        report["sizes"].as_array().unwrap().iter().map(|row| row["bytes"].as_u64().unwrap()).collect();
    assert_eq!(sizes, [4, 16, 64, 256, 1024, 4096, 16384, 65536]);
    for row in report["sizes"].as_array().unwrap() {
        let number = |name: &str| row[name].as_f64().unwrap();
        assert!(number("min_us") > 0.0 && number("median_us") >= number("min_us"), "{row}");
        // On two ranks both bandwidths are the same.
        assert_eq!(number("algorithm_gb_per_s"), number("bus_gb_per_s"));
    }
    scene.launch("--device cpu --nproc 1 benchmark comm").expect(2, &["needs at least 2 workers", "--nproc 2"]);
}

#[test]
fn start_up_is_measured() {
    let scene = Scene::new();
    let ended = scene.launch("--device cpu --nproc 2 benchmark launch --repeat 2 --json");
    ended.expect(0, &[]);
    let report = report(&ended.stdout);
    assert_eq!((&report["workers"], &report["repeat"]), (&2.into(), &2.into()));
    let (first, whole) = (&report["fnet"]["first_all_reduce"], &report["fnet"]["whole"]);
    assert!(first["min"].as_f64().unwrap() > 0.0);
    assert!(first["median"].as_f64().unwrap() <= whole["median"].as_f64().unwrap());
    scene
        .launch("--device cpu --nproc 2 benchmark launch --against no-such-program")
        .expect(2, &["no-such-program", "--against"]);
}

#[test]
fn libtorch_does_not_look_up_names_of_peers() {
    let scene = Scene::new();
    // The worker's function takes precedence over the C library's if it is a dynamic symbol.
    let mut command = scene.command(Path::new("nm"), "-D --defined-only");
    command.arg(worker_program());
    let symbols = finish(command);
    assert_eq!(symbols.code, 0, "{}", symbols.stderr);
    assert!(symbols.stdout.lines().any(|line| line.ends_with(" T getnameinfo")), "not a dynamic symbol");
}

#[test]
fn doctor_names_the_libraries() {
    let scene = Scene::new();
    let ended = scene.launch("doctor --json");
    ended.expect(0, &[]);
    let report = report(&ended.stdout);
    assert_eq!(report["able"], true);
    let found = |what: &str| {
        let findings = report["findings"].as_array().unwrap();
        let finding = findings.iter().find(|finding| finding["what"] == what);
        finding.unwrap_or_else(|| panic!("{what} is not among {findings:?}"))["found"].as_str().unwrap().to_owned()
    };
    assert!(found("libtorch").starts_with("2.11"), "{}", found("libtorch"));
    for what in ["GPUs", "worker", "processors", "memory", "disk", "shared memory", "open files", "ports", "clock"] {
        assert!(!found(what).is_empty());
    }
    let text = scene.launch("doctor");
    text.expect(0, &["ok   worker", "ok   ports"]);
    assert!(text.stderr.is_empty(), "{}", text.stderr);
}
