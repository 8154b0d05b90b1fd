use std::path::{Path, PathBuf};

use hotcoco::{Annotation, Dataset, Image, Segmentation};
use serde_json::Value;

use super::*;
use crate::results::Detection;
use fnet_test_support::fixture;

/// COCO's limits; MMDetection uses 100, 300 and 1000.
fn coco_limits() -> Evaluation {
    Evaluation { proposal_nums: vec![1, 10, 100], ..Evaluation::default() }
}

fn compare(truth: &GroundTruth, found: Vec<Annotation>, kind: Metric) -> Scores {
    let evaluation = scores::evaluated(truth, found, kind, &coco_limits()).unwrap();
    Means::of(&evaluation).unwrap().scores(truth, &coco_limits()).unwrap()
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// All images and classes of an annotation file.
fn ground_truth(path: &Path) -> GroundTruth {
    let dataset: Dataset = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let images: Vec<i64> = dataset.images.iter().map(|image| image.id as i64).collect();
    let categories: Vec<Category> =
        dataset.categories.iter().map(|c| Category { id: c.id as i64, name: c.name.clone() }).collect();
    GroundTruth::new(dataset, &images, &categories)
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
fn scores_of_public_sets_match_pycocotools() {
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
        let scores = compare(&ground_truth(&truth), detections(&found, kind), kind);
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
fn the_annotation_id_zero_is_matched_like_any_other() {
    let Some(root) = fixture("data/eval_refs/hotcoco_fixtures") else { return };
    let truth = ground_truth(&root.join("zero_gt.json"));
    let scores = compare(&truth, detections(&root.join("zero_dt.json"), Metric::Bbox), Metric::Bbox);
    assert_eq!((scores.precision[0], scores.precision[1], scores.recall[2]), (1.0, 1.0, 1.0));
}

/// Reads the detections of a results file.
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
            counts: entry["segmentation"]["counts"].as_str().map(Into::into),
        });
    }
    results
}

#[test]
fn metrics_and_results_files_of_mmdetections_detections_match() {
    let Some(folder) = fixture("reference/trained_tiny") else { return };
    let Some(annotations) = fixture("data/coco_mini/annotations") else { return };
    for (set, file) in [("a", "overfit16"), ("b", "val2017"), ("c", "val2017")] {
        let truth = ground_truth(&annotations.join(format!("instances_{file}.json")));
        let results = results_of(&folder.join(format!("results_{set}.segm.json")), &truth);
        let metrics = Metrics::compute(&truth, &results, &BOTH, &Evaluation::default()).unwrap();
        let expected = json_of(&folder.join(format!("metrics_{set}.json")));
        for (&kind, scores) in &metrics.scores {
            let expected = &expected["full"][kind.prefix()]["maxDets_100_300_1000"];
            let mut names = ["AR_1st", "AR_2nd", "AR_3rd", "AR_s_3rd", "AR_m_3rd", "AR_l_3rd"].repeat(2);
            names[..6].copy_from_slice(&["mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l"]);
            assert_close(scores, expected, names.try_into().unwrap(), &format!("{set} {}", kind.prefix()));
            for (name, value) in metrics.classes.iter().zip(&scores.by_class) {
                let expected = expected["per_category_AP"][name].as_f64().unwrap_or(-1.0);
                assert!((value - expected).abs() < 1e-12, "{set} {name}: {value}, expected {expected}");
            }
        }
        let written = tempfile::tempdir().unwrap();
        let prefix = written.path().join(set);
        let categories = truth.category_ids().into_iter().map(Value::from).collect();
        let ids = crate::results::WrittenIds { image: Box::new(Value::from), categories };
        for path in crate::results::write_files(&results, &ids, &prefix, true).unwrap() {
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
    GroundTruth::new(dataset, &[1, 2], &[Category { id: 3, name: "box".into() }])
}

fn found(image_id: i64, x: f32) -> ImageResult {
    let mask = hotcoco::mask::fr_bbox(&[f64::from(x), 10.0, 20.0, 20.0], 50, 100).unwrap();
    ImageResult::new(image_id, (50, 100), &[[x, 10.0, x + 20.0, 30.0]], &[0.75], &[0], Some(&[mask])).unwrap()
}

#[test]
fn for_masks_an_object_without_one_is_a_region_in_which_detections_do_not_count() {
    let mut box_only = square_at(1, 40.0, false);
    box_only.segmentation = None;
    let truth = small_set(vec![square_at(2, 10.0, false), box_only]);
    let of = |results: &[ImageResult]| {
        let metrics = Metrics::compute(&truth, results, &BOTH, &Evaluation::default()).unwrap();
        (metrics.named()["bbox_mAP"], metrics.named()["segm_mAP"], metrics.notes)
    };
    let (boxes, masks, notes) = of(&[found(1, 40.0), found(2, 10.0)]);
    let is_perfect = |precision: f64| (precision - 1.0).abs() < 1e-9;
    assert!(is_perfect(boxes) && is_perfect(masks), "{boxes}, {masks}");
    assert!(notes.len() == 1 && notes[0].contains("1 object without a mask"), "{notes:?}");
    // It is not missed either, but its box is found or missed as any other.
    let (boxes, masks, _) = of(&[found(2, 10.0)]);
    assert!(boxes < 0.6 && is_perfect(masks), "{boxes}, {masks}");
    // Elsewhere in its image, a detection is wrong.
    let (_, masks, _) = of(&[found(1, 75.0), found(2, 10.0)]);
    assert!(masks < 0.6, "{masks}");
}

const BOTH: [Metric; 2] = [Metric::Bbox, Metric::Segm];

fn measured(truth: &GroundTruth, results: &[ImageResult], kinds: &[Metric], settings: &Evaluation) -> Metrics {
    Metrics::compute(truth, results, kinds, settings).unwrap()
}

#[test]
fn scores_match_pycocotools_with_any_limits_and_thresholds() {
    let Some(root) = fixture("data/eval_refs/cocoapi_val2014_100") else { return };
    let truth = ground_truth(&root.join("instances_val2014_100.json"));
    let files = ["instances_val2014_fakebbox100_results.json", "instances_val2014_fakesegm100_results.json"];
    // Results of pycocotools 2.0.11 for these maxDets, iouThrs, and useCats = 0 for proposals.
    type Case<'a> = (Metric, &'a [usize], &'a [f64], [f64; 6], &'a [f64]);
    let cases: [Case<'_>; 4] = [
        (
            Metric::Proposal,
            &[100, 300, 1000],
            &[],
            [
                0.5952384471295459,
                0.8801081126055128,
                0.6678978279400766,
                0.5934831511276096,
                0.6089303842909735,
                0.6036353185164051,
            ],
            &[
                0.6780722891566265,
                0.6780722891566265,
                0.6780722891566265,
                0.6658476658476659,
                0.6900000000000001,
                0.6907103825136612,
            ],
        ),
        (
            Metric::Bbox,
            &[2, 5],
            &[0.3, 0.5, 0.65],
            [0.6463546075607624, 0.6525602169656896, -1.0, 0.7229879142451532, 0.677076869177601, 0.6635276861019436],
            &[0.617362066080266, 0.7201664028233467, 0.7622942095540308, 0.7107558821803672, 0.7165242165242165],
        ),
        (
            Metric::Segm,
            &[1, 10, 100, 300],
            &[0.75],
            [
                0.29892653412086784,
                -1.0,
                0.29892653412086784,
                0.35993989920527436,
                0.32487735110129445,
                0.2599682734068202,
            ],
            &[
                0.26852708980291906,
                0.4044298364272712,
                0.4057001660976008,
                0.4057001660976008,
                0.45046654648197093,
                0.3983592970721117,
                0.3304843304843305,
            ],
        ),
        (
            Metric::Proposal,
            &[7],
            &[0.6],
            [0.5308189835457167, -1.0, -1.0, 0.43436149281328773, 0.5451336465897952, 0.7326732673267327],
            &[0.536144578313253, 0.4348894348894349, 0.5541666666666667, 0.7377049180327869],
        ),
    ];
    for (kind, limits, thresholds, precision, recall) in cases {
        let settings =
            Evaluation { proposal_nums: limits.to_vec(), iou_thrs: thresholds.to_vec(), ..Evaluation::default() };
        let file = root.join(files[usize::from(kind == Metric::Segm)]);
        let evaluation = scores::evaluated(&truth, detections(&file, kind), kind, &settings).unwrap();
        let scores = Means::of(&evaluation).unwrap().scores(&truth, &settings).unwrap();
        assert_eq!(scores.recall.len(), recall.len());
        let pairs = scores.precision.iter().chain(&scores.recall).zip(precision.iter().chain(recall));
        for ((actual, expected), item) in pairs.zip(settings.items()) {
            assert!((actual - expected).abs() < 1e-12, "{kind:?} {limits:?} {item}: {actual}, pycocotools {expected}");
        }
        assert_eq!(scores.by_class.is_empty(), kind == Metric::Proposal);
    }
}

#[test]
fn the_ground_truth_itself_scores_one() {
    let truth = small_set(vec![square_at(1, 5.0, false), square_at(2, 40.0, false)]);
    let settings = Evaluation { classwise: true, ..Evaluation::default() };
    let metrics = measured(&truth, &[found(1, 5.0), found(2, 40.0)], &BOTH, &settings);
    let named = metrics.named();
    assert_eq!(named.len(), 12);
    for name in ["bbox_mAP", "bbox_mAP_75", "bbox_mAP_s", "segm_mAP", "segm_mAP_50"] {
        assert!((named[name] - 1.0).abs() < 1e-12, "{name}: {}", named[name]);
    }
    assert_eq!(named["segm_mAP_l"], -1.0);
    assert!(metrics.notes.is_empty());
    assert_eq!(metrics.to_json()["classwise"]["segm"]["box"], 1.0);
}

#[test]
fn no_detections_score_zero_with_a_note() {
    let truth = small_set(vec![square_at(1, 5.0, false)]);
    let empty = ImageResult { image_id: 1, height: 50, width: 100, detections: vec![] };
    let kinds = [Metric::Bbox, Metric::Segm, Metric::Proposal];
    let metrics = measured(&truth, &[empty], &kinds, &Evaluation::default());
    assert_eq!((metrics.named()["segm_mAP"], metrics.named()["AR@300"]), (0.0, 0.0));
    assert!(metrics.table().contains("Note: No objects were detected"), "{}", metrics.table());
}

#[test]
fn no_ground_truth_scores_minus_one_with_a_note() {
    let truth = small_set(vec![square_at(1, 5.0, true)]);
    for results in [vec![found(1, 5.0)], vec![]] {
        let metrics = measured(&truth, &results, &[Metric::Bbox, Metric::Proposal], &Evaluation::default());
        assert_eq!((metrics.named()["bbox_mAP"], metrics.named()["AR@100"]), (-1.0, -1.0));
        assert_eq!(metrics.notes.len(), 1);
        assert!(metrics.notes[0].contains("no object to find"), "{:?}", metrics.notes);
    }
}

#[test]
fn tables_are_aligned_and_show_undefined_numbers_as_a_dash() {
    let truth = small_set(vec![square_at(1, 5.0, false), square_at(2, 40.0, false)]);
    let settings = Evaluation { classwise: true, ..Evaluation::default() };
    let table = measured(&truth, &[found(1, 5.0)], &BOTH, &settings).table();
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows[..2], ["class  bbox AP  segm AP", "box      0.505    0.505"]);
    assert_eq!(rows[3], "              bbox     segm");
    assert!(rows[4].starts_with("AP           0.505    0.505   average"), "{table}");
    assert!(rows[9].starts_with("APl              -        -   "), "{table}");
    assert!(rows[10].starts_with("AR@100       0.500    0.500   recall with"), "{table}");
}

#[test]
fn custom_limits_have_their_own_rows_and_names() {
    let truth = small_set(vec![square_at(1, 5.0, false), square_at(1, 40.0, false)]);
    let settings = Evaluation {
        proposal_nums: vec![1, 7],
        metric_items: vec!["AR@7".into(), "mAP".into(), "AR_s@7".into()],
        ..Evaluation::default()
    };
    let results =
        [ImageResult { detections: [found(1, 5.0).detections, found(1, 40.0).detections].concat(), ..found(1, 5.0) }];
    let metrics = measured(&truth, &results, &[Metric::Bbox, Metric::Proposal], &settings);
    let named = metrics.named();
    let names: Vec<&str> = named.keys().map(String::as_str).collect();
    assert_eq!(names, ["bbox_mAP", "bbox_AR@7", "bbox_AR_s@7", "mAP", "AR@7", "AR_s@7"]);
    assert!(named.values().all(|value| (value - 1.0).abs() < 1e-12), "{named:?}");
    let table = metrics.table();
    for row in [
        "AR@1         0.500    0.500   recall",
        "AR@7         1.000    1.000\n",
        "ARs          1.000    1.000   objects",
    ] {
        assert!(table.contains(row), "{table}\nlacks {row}");
    }
    assert!(table.contains("AP uses maxDets=7\n"), "{table}");
}

#[test]
fn classes_with_equal_names_are_distinguished() {
    let names = |list: &[(i64, &str)]| {
        distinct_names(&list.iter().map(|&(id, name)| Category { id, name: name.into() }).collect::<Vec<_>>())
    };
    assert_eq!(names(&[(0, "house"), (1, "house"), (2, "tree")]), ["house (category 0)", "house (category 1)", "tree"]);
}
