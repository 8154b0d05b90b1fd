use fnet_data::Split;
use fnet_test_support::{SmallSet, fixture};
use serde_json::json;

use super::*;

/// A set of two images whose class and file names are an attack, and results in both.
fn attacked() -> (SmallSet, Arc<Dataset>) {
    let small = SmallSet::new(&[(64, 48), (64, 48)]);
    let path = small.folder.path().join("a.json");
    let mut set: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    set["categories"][0]["name"] = ATTACK.into();
    small.write(&set);
    let dataset = Arc::new(Dataset::open(&small.config, Split::Val).unwrap());
    (small, dataset)
}

const ATTACK: &str = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>";

fn read(dataset: &Dataset, text: &str) -> Result<ResultsFile> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("found.json");
    std::fs::write(&path, text).unwrap();
    ResultsFile::read(&path, dataset)
}

#[test]
fn no_name_can_run_as_a_script_and_the_page_has_the_images() {
    let (_small, dataset) = attacked();
    let found = json!([
        {"image_id": 100, "category_id": 7, "bbox": [4, 5, 20, 10], "score": 0.9},
        {"image_id": 101.0, "category_id": "7", "bbox": [30, 5, 20, 10], "score": 0.95},
    ]);
    let file = read(&dataset, &found.to_string()).unwrap();
    let settings = Evaluation::default();
    let results = Evaluated::new(Arc::clone(&dataset), file, &[Metric::Bbox], &settings, true).unwrap();
    let runs = [Run { name: ATTACK.into(), config: "a = 1".into(), results: Some(results), ..Run::default() }];
    let (images, notes) = choose_and_draw(&runs).unwrap();
    assert_eq!((images.as_array().unwrap().len(), notes.len()), (2, 0), "{notes:?}");
    assert_eq!((&images[0]["group"], &images[0]["runs"][0]), (&json!("worst"), &json!([0, 1, 1, 0, 0.0])));
    assert_eq!((&images[1]["group"], &images[1]["runs"][0]), (&json!("best"), &json!([1, 0, 0, 0, 1.0])));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/page.html");
    write(&path, &runs, images, &[ATTACK.to_owned()]).unwrap();
    let page = std::fs::read_to_string(&path).unwrap();
    // An element ends at the first end tag: that of the data must be its own.
    let (_, rest) = page.split_once("id=\"data\">").unwrap();
    let (data, rest) = rest.split_once("</script>").unwrap();
    let data: Value = serde_json::from_str(data).unwrap();
    assert_eq!(data["runs"][0]["results"]["kinds"]["bbox"]["classes"][0]["name"], ATTACK);
    assert_eq!(data["runs"][0]["name"], ATTACK);
    assert!(rest.starts_with("\n<script>\n'use strict'") && rest.matches("<script").count() == 1, "one script follows");
    for unsafe_part in ["innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "http://", "https://"] {
        let allowed = if unsafe_part == "http://" { 1 } else { 0 };
        assert_eq!(rest.matches(unsafe_part).count(), allowed, "{unsafe_part}: only the name of SVG is an address");
    }
}

#[test]
fn a_wrong_results_file_is_refused_with_the_entry_and_what_is_expected() {
    let (_small, dataset) = attacked();
    let entry = |changes: &str| {
        let plain = "\"image_id\": 100, \"category_id\": 7, \"bbox\": [4, 5, 20, 10], \"score\": 0.9";
        format!("[{{{plain}}},\n{{{}}}]", changes.replace("PLAIN", plain))
    };
    let cases: [(String, &[&str]); 14] = [
        ("[]".into(), &["the list is empty"]),
        ("".into(), &["this is no JSON"]),
        ("\u{80}abc".into(), &["this is no JSON"]),
        ("{\"images\": [], \"annotations\": []}".into(), &["an annotation file (ground truth)"]),
        ("{\"bbox_mAP\": 0.5}".into(), &["a file of metrics"]),
        ("{}".into(), &["a JSON object", "a JSON list of"]),
        (
            entry("PLAIN").replacen("100", "55", 1),
            &["entry 0: image_id 55 is none of the images of data.val", "1 detection"],
        ),
        (entry("PLAIN").replace(": 7", ": \"x\""), &["category_id \"x\" is none", "2 detections"]),
        (entry("PLAIN").replacen("0.9", "NaN", 1), &["[0].score", "NaN or Infinity"]),
        (entry("PLAIN").replace("20, 10", "20, -Infinity"), &["[0].bbox", "NaN or Infinity"]),
        (entry("PLAIN").replace("20, 10", "20, -1"), &["entry 0: bbox is", "no negative width"]),
        (entry("\"image_id\": 100, \"category_id\": 7, \"score\": 1"), &["entry 1: neither bbox nor segmentation"]),
        (entry("\"image_id\": 100, \"category_id\": 7"), &["[1]", "missing field `score`"]),
        (entry("PLAIN, \"segmentation\": {\"size\": [48, 64], \"counts\": [0, 99999]}"), &["entry 1: segmentation"]),
    ];
    for (text, expected) in cases {
        let error = read(&dataset, &text).expect_err(&text);
        assert_eq!(error.kind(), fnet_common::ErrorKind::Data, "{text}");
        let message = error.to_string();
        assert!(
            message.contains("found.json") && expected.iter().all(|part| message.contains(part)),
            "{text}: {message}"
        );
    }
    let boxes = read(&dataset, &entry("PLAIN")).unwrap();
    let error = boxes.kinds(&[Metric::Segm]).unwrap_err();
    assert!(error.kind() == fnet_common::ErrorKind::Usage && error.to_string().contains("without masks"), "{error}");
    let other =
        r#"[{"image_id": 100, "category_id": 7, "score": 1, "segmentation": {"size": [2, 3], "counts": [1, 5]}}]"#;
    let masks = read(&dataset, other).unwrap();
    assert_eq!(masks.kinds(&[]).unwrap(), [Metric::Bbox, Metric::Segm]);
    assert!(
        masks.notes[0].contains("1 of 1 mask has another size") && masks.notes[0].contains("3x2"),
        "{:?}",
        masks.notes
    );
}

#[test]
fn a_results_file_of_mmdetection_has_the_metrics_of_pycocotools() {
    let (Some(folder), Some(root)) = (fixture("reference/trained_tiny"), fixture("data/coco_mini")) else { return };
    let config = fnet_config::Data { root: root.display().to_string(), ..Default::default() };
    let dataset = Arc::new(Dataset::open(&config, Split::Val).unwrap());
    let expected: Value = serde_json::from_slice(&std::fs::read(folder.join("metrics_b.json")).unwrap()).unwrap();
    for (name, kinds) in
        [("results_b.segm.json", &[Metric::Bbox, Metric::Segm][..]), ("results_b.bbox.json", &[Metric::Bbox])]
    {
        let file = ResultsFile::read(&folder.join(name), &dataset).unwrap();
        assert_eq!(file.kinds(&[]).unwrap(), kinds, "{name}");
        let results = Evaluated::new(Arc::clone(&dataset), file, kinds, &Evaluation::default(), false).unwrap();
        for (kind, scores) in &results.metrics.scores {
            let expected = &expected["full"][kind.prefix()]["maxDets_100_300_1000"];
            for (item, value) in ["mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l"].iter().zip(scores.precision) {
                let expected = expected[item].as_f64().unwrap();
                assert!((value - expected).abs() < 1e-12, "{name} {item}: {value}, pycocotools {expected}");
            }
        }
    }
}

#[test]
fn configs_are_compared_only_if_every_run_has_one() {
    let of = |config: &str| Run { config: config.into(), ..Run::default() };
    assert_eq!(differences(&[of("a = 1\nb = 2"), of("a = 1\nb = 3")]).unwrap(), json!([["b", ["2", "3"]]]));
    assert_eq!(differences(&[of("a = 1"), of("")]).unwrap(), Value::Null);
}
