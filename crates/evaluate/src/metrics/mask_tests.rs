//! Compares the mask operations with pycocotools.

use hotcoco::Rle;
use hotcoco::mask::{area, decode, encode, fr_bbox, fr_poly, iou, merge, rle_from_string, rle_to_string, to_bbox};
use serde_json::Value;

use fnet_test_support::fixture;

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn rows(value: &Value) -> Vec<Vec<f64>> {
    value.as_array().unwrap().iter().map(numbers).collect()
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

fn assert_near(actual: &[Vec<f64>], expected: &Value, what: &str) {
    for (actual, expected) in actual.iter().flatten().zip(rows(expected).iter().flatten()) {
        assert!((actual - expected).abs() < 1e-8, "{what}: {actual}, pycocotools {expected}");
    }
}

#[test]
fn mask_operations_match_pycocotools() {
    let Some(path) = fixture("data/eval_refs/mask_api/expected.json") else { return };
    let expected: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let boxes: Vec<Rle> = rows(&expected["bboxes_xywh"])
        .iter()
        .map(|bounds| fr_bbox(bounds.as_slice().try_into().unwrap(), 20, 20).unwrap())
        .collect();
    let polygons: Vec<Rle> =
        rows(&expected["polygons"]).iter().map(|points| fr_poly(points, 20, 20).unwrap()).collect();
    let spelled = |masks: &[Rle]| masks.iter().map(rle_to_string).collect::<Vec<_>>();
    assert_eq!(spelled(&boxes), texts(&expected["bbox_rle_counts"]));
    assert_eq!(spelled(&polygons), texts(&expected["polygon_rle_counts"]));
    let areas = |masks: &[Rle]| masks.iter().map(|mask| area(mask) as f64).collect::<Vec<_>>();
    assert_eq!(areas(&boxes), numbers(&expected["bbox_area"]));
    assert_eq!(areas(&polygons), numbers(&expected["polygon_area_px"]));
    assert_eq!(
        polygons.iter().map(|mask| to_bbox(mask).to_vec()).collect::<Vec<_>>(),
        rows(&expected["polygon_toBbox"])
    );
    assert_eq!(rle_to_string(&merge(&boxes, false).unwrap()), expected["merge_union_counts"]);
    assert_eq!(rle_to_string(&merge(&boxes, true).unwrap()), expected["merge_intersect_counts"]);
    for crowds in [[false, false], [true, true], [true, false], [false, true]] {
        let name = format!("iscrowd {},{}", u8::from(crowds[0]), u8::from(crowds[1]));
        let found = iou(&boxes[..2], &boxes[..2], &crowds);
        assert_near(&found, &expected["iou_bbox_rle_first2"][&name], &name);
    }
    assert_near(&iou(&polygons[..3], &polygons[..3], &[false; 3]), &expected["iou_polygon_first3"], "polygons");
}

#[test]
fn unusual_run_lengths_are_read_as_in_pycocotools_and_invalid_ones_are_errors() {
    let Some(path) = fixture("data/eval_refs/mask_api/expected.json") else { return };
    let expected: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let side = |case: &Value, index: usize| case["size"][index].as_u64().unwrap() as u32;
    let read = |case: &Value| rle_from_string(case["counts"].as_str().unwrap(), side(case, 0), side(case, 1));

    let short = &expected["uncompressed"];
    let counts = numbers(&short["counts"]).iter().map(|&count| count as u32).collect();
    let rle = Rle { h: side(short, 0), w: side(short, 1), counts };
    assert_eq!(rle_to_string(&rle), short["compressed_counts"], "run lengths that end before the image");

    assert!(read(&expected["invalid_rle"]).is_err());

    let leading = &expected["zero_leading_rle"];
    let rle = read(leading).unwrap();
    let again = encode(&decode(&rle), rle.h, rle.w).unwrap();
    for mask in [&rle, &again] {
        assert_eq!(area(mask), leading["area"].as_u64().unwrap());
        assert_eq!(to_bbox(mask).to_vec(), numbers(&leading["bbox"]));
    }
}
