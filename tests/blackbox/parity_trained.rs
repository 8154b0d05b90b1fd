//! MMDetection's trained detector in the real programs: on real images, the detections, masks and metrics of
//! `fnet-launch test` match MMDetection's, and a training that MMDetection started continues with the same state.
//!
//! The numbers come from `reference/trained_tiny` and the images from `data/coco_mini`, below `FNET_TEST_DATA`.

#[path = "../parity/report.rs"]
mod report;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use hotcoco::mask::{area, merge, rle_from_string};
use serde_json::Value;

use report::Comparison;

use crate::slots;
use crate::support::{python_tool, skip};

/// The folder of test data. Without one the test is skipped.
fn test_data() -> Option<PathBuf> {
    let folder = std::env::var_os("FNET_TEST_DATA").map(PathBuf::from);
    if folder.is_none() {
        skip("FNET_TEST_DATA is unset");
    }
    folder
}

fn in_repository(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Runs `fnet-launch` in `folder` with the mini set. It must succeed.
fn launch(folder: &Path, data: &Path, arguments: &[&str]) -> Output {
    let program = Path::new(env!("CARGO_BIN_EXE_fnet-worker")).with_file_name("fnet-launch");
    assert!(program.is_file(), "{} does not exist: run `cargo build --release --workspace` first", program.display());
    let mut command = Command::new(program);
    command.current_dir(folder).args(arguments).env("FNET_DATA_ROOT", data.join("data/coco_mini"));
    command.env("OMP_NUM_THREADS", "1");
    for name in ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "FNET_WORKER"] {
        command.env_remove(name);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))).unwrap()
}

/// A detection of a results file.
struct Found {
    bbox: [f64; 4],
    score: f64,
    size: (u32, u32),
    counts: String,
}

/// The detections of `PREFIX.segm.json` by image and class. Those of `PREFIX.bbox.json` must be the same.
fn detections(prefix: &Path) -> HashMap<(i64, i64), Vec<Found>> {
    let file = |kind: &str| json(Path::new(&format!("{}.{kind}.json", prefix.display())));
    let (masks, boxes) = (file("segm"), file("bbox"));
    let (masks, boxes) = (masks.as_array().unwrap(), boxes.as_array().unwrap());
    assert_eq!(masks.len(), boxes.len());
    let mut found: HashMap<_, Vec<_>> = HashMap::new();
    for (mask, alone) in masks.iter().zip(boxes) {
        for name in ["image_id", "category_id", "score"] {
            assert_eq!(mask[name], alone[name]);
        }
        let key = (mask["image_id"].as_i64().unwrap(), mask["category_id"].as_i64().unwrap());
        let number = |value: &Value| value.as_f64().unwrap();
        let side = |axis: usize| mask["segmentation"]["size"][axis].as_u64().unwrap() as u32;
        found.entry(key).or_default().push(Found {
            bbox: std::array::from_fn(|i| number(&alone["bbox"][i])),
            score: number(&mask["score"]),
            size: (side(0), side(1)),
            counts: mask["segmentation"]["counts"].as_str().unwrap().to_owned(),
        });
    }
    found
}

/// Intersection over union of two boxes `[x, y, width, height]`.
fn overlap(a: &[f64; 4], b: &[f64; 4]) -> f64 {
    let side = |axis: usize| {
        let end = (a[axis] + a[axis + 2]).min(b[axis] + b[axis + 2]);
        (end - a[axis].max(b[axis])).max(0.0)
    };
    let shared = side(0) * side(1);
    shared / (a[2] * a[3] + b[2] * b[3] - shared)
}

/// Number of pixels in only one of two masks.
fn pixels_apart(a: &Found, b: &Found) -> f64 {
    assert_eq!(a.size, b.size);
    let [a, b] = [a, b].map(|found| rle_from_string(&found.counts, found.size.0, found.size.1).unwrap());
    let shared = area(&merge(&[a.clone(), b.clone()], true).unwrap());
    (area(&a) + area(&b) - 2 * shared) as f64
}

/// Matches detections by image, class and maximum overlap, and compares them on the images of `only`, or on all.
fn compare(own: &Path, expected: &Path, only: Option<&HashSet<i64>>, comparison: &Comparison<'_>) {
    let (mut own, mut expected) = (detections(own), detections(expected));
    expected.retain(|(image, _), _| only.is_none_or(|only| only.contains(image)));
    let count = |found: &HashMap<_, Vec<Found>>| found.values().map(Vec::len).sum::<usize>();
    let total = count(&own).max(count(&expected));
    assert!(total > 0);
    let (mut matched, mut identical) = (0, 0);
    let (mut score, mut box_side, mut apart) = (0.0_f64, 0.0_f64, 0.0_f64);
    for (key, listed) in &expected {
        let mut left = own.remove(key).unwrap_or_default();
        for expected in listed {
            let by_overlap = |(index, found): (usize, &Found)| (overlap(&found.bbox, &expected.bbox), index);
            let best = left.iter().enumerate().map(by_overlap).max_by(|a, b| a.0.total_cmp(&b.0));
            let Some((_, index)) = best.filter(|&(overlap, _)| overlap > 0.95) else { continue };
            let own = left.swap_remove(index);
            matched += 1;
            score = score.max((own.score - expected.score).abs());
            for corner in 0..2 {
                let (a, b) = (own.bbox[corner], expected.bbox[corner]);
                let far = |found: &Found| found.bbox[corner] + found.bbox[corner + 2];
                box_side = box_side.max((a - b).abs()).max((far(&own) - far(expected)).abs());
            }
            if own.counts == expected.counts {
                identical += 1;
            } else {
                apart = apart.max(pixels_apart(&own, expected));
            }
        }
    }
    let share = |part: usize, of: usize| part as f64 / of as f64;
    println!("{total} detections, {matched} matched, {identical} run lengths identical");
    comparison.at_least("share of detections matched", share(matched, total), 0.995);
    comparison.at_most("score", score, 2e-4);
    comparison.at_most("box corner, px", box_side, 0.02);
    comparison.at_least("share of run lengths identical", share(identical, matched), 0.9);
    comparison.at_most("mask pixels that differ", apart, 10.0);
}

/// Compares with MMDetection's unrounded metrics, with its `maxDets`.
fn compare_metrics(own: &Value, expected: &Value, comparison: &Comparison<'_>) {
    let mut worst = 0.0_f64;
    for kind in ["bbox", "segm"] {
        for name in ["mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l"] {
            let expected = expected["full"][kind]["maxDets_100_300_1000"][name].as_f64().unwrap();
            let found = own[format!("{kind}_{name}")].as_f64().unwrap_or_else(|| panic!("{kind}_{name} in {own}"));
            worst = worst.max((found - expected).abs());
        }
    }
    comparison.at_most("AP", worst, 1e-6);
}

/// Writes the first `count` images of an annotation file, with their objects, to `to`. Returns their ids.
fn write_first_images(from: &Path, count: usize, to: &Path) -> HashSet<i64> {
    let mut set = json(from);
    let images = set["images"].as_array_mut().unwrap();
    images.truncate(count);
    let ids: HashSet<i64> = images.iter().map(|image| image["id"].as_i64().unwrap()).collect();
    let objects = set["annotations"].as_array_mut().unwrap();
    objects.retain(|object| ids.contains(&object["image_id"].as_i64().unwrap()));
    std::fs::write(to, set.to_string()).unwrap();
    ids
}

/// Runs `test` on MMDetection's checkpoint and compares with its results of the same case: on all images including
/// metrics, or on the first images of the validation set.
fn evaluate(case: &str, first: Option<usize>, set: &[&str]) {
    let Some(data) = test_data() else { return };
    let _slots = slots::take(1);
    let folder = tempfile::tempdir().unwrap();
    let mut set = set.to_vec();
    let cut = folder.path().join("first.json");
    let only = first
        .map(|count| write_first_images(&data.join("data/coco_mini/annotations/instances_val2017.json"), count, &cut));
    let cut = format!("data.val.ann_file={}", cut.display());
    set.extend(only.is_some().then_some(cut.as_str()));
    let reference = data.join("reference/trained_tiny");
    let (checkpoint, config) = (reference.join("ckpt.pth"), in_repository("configs/tiny80.toml"));
    let mut line = vec!["--device", "cpu", "--nproc", "1", "test", checkpoint.to_str().unwrap()];
    line.extend(["--config", config.to_str().unwrap(), "--out", "found.json", "--metrics", "metrics.json", "--set"]);
    line.extend(set);
    let output = launch(folder.path(), &data, &line);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("loaded 126 tensors from") && stderr.contains("new: 0; unused: 0"), "{stderr}");
    assert!(!stderr.contains("Warning"), "{stderr}");
    let comparison = Comparison::new("end to end", "trained_tiny");
    compare(&folder.path().join("found"), &reference.join(format!("results_{case}")), only.as_ref(), &comparison);
    if only.is_some() {
        return;
    }
    let metrics = json(&reference.join(format!("metrics_{case}.json")));
    compare_metrics(&json(&folder.path().join("metrics.json")), &metrics, &comparison);
}

const VAL: [&str; 2] = ["data.val.ann_file=annotations/instances_val2017.json", "data.val.img_prefix=val2017"];

#[test]
fn parity_trained_tiny_on_the_images_that_it_knows() {
    evaluate("a", None, &["data.pipeline.test_scale=[480,320]"]);
}

#[test]
fn parity_trained_tiny_on_other_images() {
    evaluate("b", None, &[VAL[0], VAL[1], "data.pipeline.test_scale=[480,320]"]);
}

const FULL_SIZE: [&str; 3] = [VAL[0], VAL[1], "data.pipeline.test_scale=[1333,800]"];

#[test]
fn parity_trained_tiny_on_some_other_images_in_full_size() {
    evaluate("c", Some(8), &FULL_SIZE);
}

#[test]
#[ignore = "takes two minutes; run by make parity"]
fn parity_trained_tiny_on_other_images_in_full_size() {
    evaluate("c", None, &FULL_SIZE);
}

const SAME_STATE: &str = r#"
import sys, torch
expected, own = (torch.load(path) for path in sys.argv[1:])
def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
assert list(own) == list(expected) == ['meta', 'state_dict', 'optimizer']
assert list(own['state_dict']) == list(expected['state_dict']) and len(own['state_dict']) == 126
assert all(same(own['state_dict'][name], tensor) for name, tensor in expected['state_dict'].items())
assert own['optimizer']['param_groups'] == expected['optimizer']['param_groups']
assert list(own['optimizer']['state']) == list(expected['optimizer']['state']) == list(range(87))
for index, state in expected['optimizer']['state'].items():
    assert list(state) == ['step', 'exp_avg', 'exp_avg_sq']
    assert all(same(own['optimizer']['state'][index][name], value) for name, value in state.items())
for name in ('CLASSES', 'epoch', 'iter'):
    assert own['meta'][name] == expected['meta'][name], name
"#;

#[test]
fn parity_trained_tiny_goes_through_a_training_job_and_back_unchanged() {
    let Some(data) = test_data() else { return };
    let Some(python) = python_tool("python") else { return };
    let _slots = slots::take(2);
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = data.join("reference/trained_tiny/ckpt.pth");
    let config = in_repository("configs/tiny80.toml");
    let resume = format!("--resume={}", checkpoint.display());
    let job = ["--device", "cpu", "--nproc", "1", "train", config.to_str().unwrap(), "--no-validate", &resume];
    let output = launch(folder.path(), &data, &job);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("resumed epoch 160, iter 1440 with AdamW's state: loaded 126 tensors"), "{stderr}");
    launch(folder.path(), &data, &["export", "work_dirs/tiny80/epoch_160.ckpt", "back.pth", "--with-optimizer"]);
    let mut compare = Command::new(python);
    let compared =
        compare.current_dir(folder.path()).args(["-c", SAME_STATE]).arg(checkpoint).arg("back.pth").output().unwrap();
    assert!(compared.status.success(), "{}", String::from_utf8_lossy(&compared.stderr));
}
