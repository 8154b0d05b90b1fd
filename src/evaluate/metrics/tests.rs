use std::path::{Path, PathBuf};

use hotcoco::{Annotation, Dataset, Image, Segmentation};
use serde_json::Value;

use super::*;
use crate::evaluate::results::Detection;
use crate::evaluate::testing::fixture;

const COCO_LIMITS: Limits = Limits { all: [1, 10, 100], first: 100 };

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// All pictures and classes of an annotation file.
fn ground_truth(path: &Path) -> GroundTruth {
    let dataset: Dataset = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let images: Vec<i64> = dataset.images.iter().map(|image| image.id as i64).collect();
    let categories: Vec<Category> =
        dataset.categories.iter().map(|c| Category { id: c.id as i64, name: c.name.clone() }).collect();
    GroundTruth::open(path, &images, &categories).unwrap()
}

fn detections(path: &Path, kind: Metric) -> Vec<Annotation> {
    let mut detections: Vec<Annotation> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    if kind == Metric::Segm {
        detections.iter_mut().for_each(|detection| detection.bbox = None);
    }
    detections
}

fn assert_close(scores: &Scores, expected: &Value, names: [&str; 12], what: &str) {
    for (name, value) in names.iter().zip(scores.precision.iter().chain(&scores.recall)) {
        let expected = expected[name].as_f64().unwrap();
        assert!((value - expected).abs() < 1e-12, "{what}, {name}: {value}, pycocotools {expected}");
    }
}

const SHORT_NAMES: [&str; 12] =
    ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"];

#[test]
fn the_public_sets_give_the_numbers_of_pycocotools() {
    let Some(root) = fixture("data/eval_refs") else { return };
    let coco = root.join("cocoapi_val2014_100");
    let truth = coco.join("instances_val2014_100.json");
    let dummy = root.join("mmdet_dummy");
    let hot = root.join("hotcoco_fixtures");
    let segm = coco.join("instances_val2014_fakesegm100_results.json");
    let bbox = coco.join("instances_val2014_fakebbox100_results.json");
    let cases: [(PathBuf, PathBuf, Metric, &Path, &str); 6] = [
        (truth.clone(), bbox, Metric::Bbox, &coco, "bbox"),
        (truth, segm, Metric::Segm, &coco, "segm"),
        (dummy.join("gt.json"), dummy.join("dt.json"), Metric::Bbox, &dummy, "bbox"),
        (dummy.join("gt.json"), dummy.join("dt.json"), Metric::Segm, &dummy, "segm"),
        (hot.join("edge_gt.json"), hot.join("edge_dt.json"), Metric::Bbox, &hot, "edge bbox"),
        (hot.join("gt.json"), hot.join("dt.json"), Metric::Bbox, &hot, "gt/dt bbox"),
    ];
    for (truth, found, kind, folder, name) in cases {
        let scores = compare(&ground_truth(&truth), detections(&found, kind), kind, COCO_LIMITS).unwrap();
        let expected = json_of(&folder.join("expected.json"));
        let what = format!("{} {name}", folder.display());
        assert_close(&scores, &expected["pycocotools_2.0.11_here"][name], SHORT_NAMES, &what);
        let Some(by_class) = expected["per_category_AP_here"][name].as_object() else { continue };
        for (category, value) in ground_truth(&truth).categories.iter().zip(&scores.by_class) {
            let expected = by_class[&category.id.to_string()].as_f64().unwrap();
            assert!((value - expected).abs() < 1e-12, "{what}, {}: {value}, expected {expected}", category.name);
        }
    }
}

#[test]
fn annotation_ids_from_zero_are_matched_like_any_other() {
    let Some(root) = fixture("data/eval_refs/hotcoco_fixtures") else { return };
    let truth = ground_truth(&root.join("zero_gt.json"));
    let scores =
        compare(&truth, detections(&root.join("zero_dt.json"), Metric::Bbox), Metric::Bbox, COCO_LIMITS).unwrap();
    assert_eq!((scores.precision[0], scores.precision[1], scores.recall[2]), (1.0, 1.0, 1.0));
}

/// Detections of a results file as the worker keeps them.
fn results_of(path: &Path, truth: &GroundTruth) -> Vec<ImageResult> {
    let entries = json_of(path);
    let mut results: Vec<ImageResult> = Vec::new();
    for entry in entries.as_array().unwrap() {
        let image_id = entry["image_id"].as_i64().unwrap();
        if results.last().is_none_or(|image| image.image_id != image_id) {
            let size = &entry["segmentation"]["size"];
            let side = |index: usize| size[index].as_u64().unwrap() as u32;
            results.push(ImageResult { image_id, height: side(0), width: side(1), detections: Vec::new() });
        }
        let number = |index: usize| entry["bbox"][index].as_f64().unwrap();
        let [x, y, w, h] = [number(0), number(1), number(2), number(3)];
        let label = truth.categories.iter().position(|c| c.id == entry["category_id"].as_i64().unwrap()).unwrap();
        results.last_mut().unwrap().detections.push(Detection {
            label: label as u32,
            score: entry["score"].as_f64().unwrap() as f32,
            bbox: [x as f32, y as f32, (x + w) as f32, (y + h) as f32],
            counts: entry["segmentation"]["counts"].as_str().unwrap().into(),
        });
    }
    results
}

#[test]
fn detections_of_the_reference_tool_have_its_metrics_and_are_written_as_it_writes_them() {
    let Some(folder) = fixture("reference/trained_tiny") else { return };
    let Some(annotations) = fixture("data/coco_mini/annotations") else { return };
    for (set, file) in [("a", "overfit16"), ("b", "val2017"), ("c", "val2017")] {
        let truth = ground_truth(&annotations.join(format!("instances_{file}.json")));
        let results = results_of(&folder.join(format!("results_{set}.segm.json")), &truth);
        let metrics = Metrics::compute(&truth, &results, &[Metric::Bbox, Metric::Segm]).unwrap();
        let expected = json_of(&folder.join(format!("metrics_{set}.json")));
        for (&kind, scores) in &metrics.scores {
            let expected = &expected["full"][prefix(kind)]["maxDets_100_300_1000"];
            let mut names = ["AR_1st", "AR_2nd", "AR_3rd", "AR_s_3rd", "AR_m_3rd", "AR_l_3rd"].repeat(2);
            names[..6].copy_from_slice(&PRECISION_NAMES);
            assert_close(scores, expected, names.try_into().unwrap(), &format!("{set} {}", prefix(kind)));
            for (name, value) in metrics.classes.iter().zip(&scores.by_class) {
                let expected = expected["per_category_AP"][name].as_f64().unwrap_or(-1.0);
                assert!((value - expected).abs() < 1e-12, "{set} {name}: {value}, expected {expected}");
            }
        }
        let written = tempfile::tempdir().unwrap();
        let prefix = written.path().join(set);
        for path in crate::evaluate::results::write_files(&results, &truth.category_ids(), &prefix).unwrap() {
            let name = path.file_name().unwrap().to_str().unwrap();
            assert_eq!(json_of(&path), json_of(&folder.join(format!("results_{name}"))), "{name}");
        }
    }
}

fn square_at(image_id: u64, x: f64, iscrowd: bool) -> Annotation {
    let (low, high) = (x, x + 20.0);
    Annotation {
        image_id,
        category_id: 3,
        bbox: Some([x, 10.0, 20.0, 20.0]),
        area: Some(400.0),
        iscrowd,
        segmentation: Some(Segmentation::Polygon(vec![vec![low, 10.0, high, 10.0, high, 30.0, low, 30.0]])),
        ..Default::default()
    }
}

fn small_set(annotations: Vec<Annotation>) -> GroundTruth {
    let images = [1, 2].map(|id| Image { id, width: 100, height: 50, ..Default::default() }).to_vec();
    let category = serde_json::from_value(serde_json::json!({ "id": 3, "name": "box" })).unwrap();
    let dataset = Dataset { images, annotations, categories: vec![category], ..Default::default() };
    GroundTruth::new(dataset, &[1, 2], &[Category { id: 3, name: "box".into() }]).unwrap()
}

fn found(image_id: i64, x: f32) -> ImageResult {
    let mask = hotcoco::mask::fr_bbox(&[f64::from(x), 10.0, 20.0, 20.0], 50, 100).unwrap();
    ImageResult::new(image_id, (50, 100), &[[x, 10.0, x + 20.0, 30.0]], &[0.75], &[0], &[mask]).unwrap()
}

const BOTH: [Metric; 2] = [Metric::Bbox, Metric::Segm];

#[test]
fn the_ground_truth_itself_scores_one() {
    let truth = small_set(vec![square_at(1, 5.0, false), square_at(2, 40.0, false)]);
    let metrics = Metrics::compute(&truth, &[found(1, 5.0), found(2, 40.0)], &BOTH).unwrap();
    let named = metrics.named();
    assert_eq!(named.len(), 12);
    for name in ["bbox_mAP", "bbox_mAP_75", "bbox_mAP_s", "segm_mAP", "segm_mAP_50"] {
        assert!((named[name] - 1.0).abs() < 1e-12, "{name}: {}", named[name]);
    }
    assert_eq!(named["segm_mAP_l"], -1.0);
    assert!(metrics.notes.is_empty());
    assert_eq!(metrics.to_json(true)["classwise"]["segm"]["box"], 1.0);
}

#[test]
fn no_detections_score_zero_with_a_note() {
    let truth = small_set(vec![square_at(1, 5.0, false)]);
    let empty = ImageResult { image_id: 1, height: 50, width: 100, detections: vec![] };
    let metrics = Metrics::compute(&truth, &[empty], &BOTH).unwrap();
    assert_eq!(metrics.named()["segm_mAP"], 0.0);
    assert!(metrics.table().contains("Note: No objects were detected"), "{}", metrics.table());
}

#[test]
fn no_ground_truth_scores_minus_one_with_a_note() {
    let truth = small_set(vec![square_at(1, 5.0, true)]);
    let metrics = Metrics::compute(&truth, &[found(1, 5.0)], &BOTH).unwrap();
    assert_eq!(metrics.named()["bbox_mAP"], -1.0);
    assert!(metrics.notes[0].contains("no object to find"), "{:?}", metrics.notes);
}

#[test]
fn tables_line_up_and_show_undefined_numbers_as_a_dash() {
    let truth = small_set(vec![square_at(1, 5.0, false), square_at(2, 40.0, false)]);
    let metrics = Metrics::compute(&truth, &[found(1, 5.0)], &BOTH).unwrap();
    let table = metrics.table();
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows[1], "             bbox    segm");
    assert!(rows[2].starts_with("AP          0.505   0.505   IoU"), "{table}");
    assert!(rows[7].starts_with("APl             -       -   "), "{table}");
    assert_eq!(metrics.class_table(), "class  bbox AP  segm AP\nbox      0.505    0.505");
}

#[test]
fn a_file_that_is_no_annotation_file_is_an_error_of_the_data_with_its_name() {
    let file = tempfile::NamedTempFile::with_suffix(".json").unwrap();
    std::fs::write(file.path(), "[1, 2").unwrap();
    let error = GroundTruth::open(file.path(), &[], &[]).err().unwrap();
    assert_eq!(error.kind(), crate::ErrorKind::Data);
    assert!(error.to_string().contains(file.path().to_str().unwrap()), "{error}");
}
