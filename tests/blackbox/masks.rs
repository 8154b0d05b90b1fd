//! Compares masks of annotations with pycocotools, pixel by pixel.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use hotcoco::mask::{area, rle_to_string};
use serde_json::{Value, json};

use fnet_common::random::Generator;
use fnet_data::{Segmentation, rasterize};

use crate::support::{python_tool, skip};

/// Rasterizes polygons with pycocotools: `frPyObjects`, then `merge`, like MMDetection's `_poly2mask`.
const SCRIPT: &str = r#"
import json, sys
from pycocotools import mask
out = []
for case in json.load(open(sys.argv[1])):
    size, polygons = case
    rle = mask.merge(mask.frPyObjects(polygons, size[0], size[1]))
    out.append([rle["counts"].decode(), int(mask.decode(rle).sum())])
json.dump(out, sys.stdout)
"#;

/// The Python of `make setup`, if it has pycocotools. Otherwise the test is skipped.
fn python() -> Option<PathBuf> {
    let path = python_tool("python")?;
    let works = Command::new(&path).args(["-c", "import pycocotools.mask"]).status();
    if works.is_ok_and(|status| status.success()) {
        return Some(path);
    }
    skip(&format!("{} has no package pycocotools", path.display()));
    None
}

/// A polygon of one of many kinds in and around a frame.
fn polygon(random: &mut Generator, height: usize, width: usize) -> Vec<f64> {
    let (w, h) = (width as f64, height as f64);
    let points = 3 + random.below(12);
    let kind = random.below(8);
    let mut unit = || random.below(1 << 20) as f64 / f64::from(1 << 20);
    (0..points)
        .flat_map(|i| {
            let turn = i as f64 / points as f64 * std::f64::consts::TAU;
            let [x, y] = match kind {
                // Anywhere, also far outside.
                0 => [unit() * w, unit() * h],
                1 => [(unit() * 3.0 - 1.0) * w, (unit() * 3.0 - 1.0) * h],
                // Round, smaller than a pixel, a line, on the borders.
                2 => [w * (0.5 + 0.4 * turn.cos()), h * (0.5 + 0.4 * turn.sin())],
                3 => [w / 2.0 + unit(), h / 2.0 + unit()],
                4 => [unit() * w, h / 3.0],
                5 => [w * f64::from(u8::from(unit() < 0.5)), h * f64::from(u8::from(unit() < 0.5))],
                // Whole and half pixels.
                6 => [(unit() * w).floor(), (unit() * h).floor()],
                _ => [(unit() * w).floor() + 0.5, (unit() * h * 2.0).floor() / 2.0],
            };
            // Rounded as in annotation files.
            [(x * 100.0).round() / 100.0, (y * 100.0).round() / 100.0]
        })
        .collect()
}

#[test]
fn polygons_are_rasterized_as_in_pycocotools() {
    let Some(python) = python() else { return };
    let mut random = Generator::from_seed(11);
    let cases: Vec<([usize; 2], Vec<Vec<f64>>)> = (0..3000)
        .map(|i| {
            let side = if i % 10 == 0 { 700 } else { 60 };
            let size = [1 + random.below(side), 1 + random.below(side)];
            let count = 1 + random.below(3);
            (size, (0..count).map(|_| polygon(&mut random, size[0], size[1])).collect())
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cases.json");
    fs::write(&path, serde_json::to_vec(&cases).unwrap()).unwrap();
    let output = Command::new(python).arg("-c").arg(SCRIPT).arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let expected: Vec<(String, u64)> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(expected.len(), cases.len());
    let mut filled = 0;
    for ((size, polygons), (counts, pixels)) in cases.into_iter().zip(expected) {
        let size = (size[0], size[1]);
        let text = json!(polygons).to_string();
        let segmentation = Segmentation::Polygons(polygons);
        let rle = segmentation.to_rle(size).unwrap();
        assert_eq!((rle_to_string(&rle), area(&rle)), (counts, pixels), "{size:?} {text}");
        let mask = rasterize(&segmentation, size).unwrap();
        assert_eq!(mask.pixels.iter().map(|&pixel| u64::from(pixel)).sum::<u64>(), pixels, "{size:?} {text}");
        filled += u64::from(pixels > 0);
    }
    assert!(filled > 2000, "only {filled} masks have pixels");
}

#[test]
fn polygons_of_the_mask_api_tests_have_the_expected_pixels() {
    let Some(path) = fnet_test_support::fixture("data/eval_refs/mask_api/expected.json") else { return };
    let expected: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let polygons: Vec<Vec<f64>> = serde_json::from_value(expected["polygons"].clone()).unwrap();
    for (i, polygon) in polygons.into_iter().enumerate() {
        let rle = Segmentation::Polygons(vec![polygon]).to_rle((20, 20)).unwrap();
        assert_eq!(json!(rle_to_string(&rle)), expected["polygon_rle_counts"][i], "polygon {i}");
        assert_eq!(json!(area(&rle)), expected["polygon_area_px"][i], "polygon {i}");
    }
}
