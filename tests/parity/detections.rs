//! Stages "final boxes" and "pasted masks", and detection from the image to the run lengths.

use hotcoco::mask;
use serde_json::Value;
use tch::{Kind, Tensor};

use fnet_config::Config;
use fnet_data::ImageMeta;
use fnet_evaluate::inference::{detect, encode};
use fnet_evaluate::results::{Detection, ImageResult};
use fnet_model::Detections;

use super::compare::{STAGE, floats, integers, kept, rows_of_four};
use super::fixtures::Fixtures;
use super::heads::Heads;
use super::image_files::ImageFiles;
use super::report::Comparison;

/// Minimum score of mask pixels.
const MASK_THRESHOLD: f64 = 0.5;

/// MMDetection's detections of one image, in its order.
fn stored_result(meta: &ImageMeta, expected: &Value) -> ImageResult {
    let number = |value: &Value| value.as_f64().unwrap() as f32;
    let detection = |entry: &Value| Detection {
        label: entry["label"].as_u64().unwrap() as u32,
        score: number(&entry["score"]),
        bbox: std::array::from_fn(|corner| number(&entry["bbox"][corner])),
        counts: entry["segmentation"]["counts"].as_str().map(str::to_owned),
    };
    ImageResult {
        image_id: meta.image_id,
        height: meta.original_size.0 as u32,
        width: meta.original_size.1 as u32,
        detections: expected.as_array().unwrap().iter().map(detection).collect(),
    }
}

fn overlap(a: &[f32; 4], b: &[f32; 4]) -> f64 {
    let [a, b] = [a, b].map(|bounds| bounds.map(f64::from));
    let area = |bounds: &[f64; 4]| (bounds[2] - bounds[0]) * (bounds[3] - bounds[1]);
    let (width, height) = (a[2].min(b[2]) - a[0].max(b[0]), a[3].min(b[3]) - a[1].max(b[1]));
    let shared = width.max(0.0) * height.max(0.0);
    shared / (area(&a) + area(&b) - shared).max(f64::MIN_POSITIVE)
}

/// Pairs of fnet's and MMDetection's detections of one image with the same label and an IoU above .95.
fn pairs<'r>(own: &'r ImageResult, expected: &'r ImageResult) -> Vec<(&'r Detection, &'r Detection)> {
    let mut free: Vec<&Detection> = own.detections.iter().collect();
    let mut found = Vec::new();
    for wanted in &expected.detections {
        let near = |one: &Detection| if one.label == wanted.label { overlap(&one.bbox, &wanted.bbox) } else { 0.0 };
        let best = (0..free.len()).max_by(|&a, &b| near(free[a]).total_cmp(&near(free[b])));
        if let Some(best) = best.filter(|&best| near(free[best]) > 0.95) {
            found.push((free.swap_remove(best), wanted));
        }
    }
    found
}

/// Number of pixels in only one of two masks.
fn pixels_apart(size: (u32, u32), a: &str, b: &str) -> usize {
    let [a, b] = [a, b].map(|counts| mask::decode(&mask::rle_from_string(counts, size.0, size.1).unwrap()));
    assert_eq!(a.len(), b.len());
    a.iter().zip(&b).filter(|(a, b)| a != b).count()
}

/// Compares run lengths of pairs: most must be identical, the others nearly.
fn check_masks<'r>(compare: &Comparison<'_>, pairs: impl Iterator<Item = ((u32, u32), &'r str, &'r str)>) {
    let (mut count, mut equal, mut apart) = (0, 0, 0);
    for (size, own, expected) in pairs {
        count += 1;
        equal += usize::from(own == expected);
        apart = apart.max(if own == expected { 0 } else { pixels_apart(size, own, expected) });
    }
    compare.at_least("share of identical RLEs", share(equal, count), 0.9);
    compare.at_most("masks, differing pixels of the worst mask", apart as f64, 10.0);
}

fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}

/// Compares boxes, labels and scores, matched by overlap because rounding may change the order.
fn check_boxes(compare: &Comparison<'_>, own: &[ImageResult], expected: &[ImageResult]) {
    assert_eq!(own.len(), expected.len(), "number of images");
    let (mut matched, mut most, mut score, mut corner) = (0, 0, 0.0_f64, 0.0_f64);
    for (own, expected) in own.iter().zip(expected) {
        let pairs = pairs(own, expected);
        matched += pairs.len();
        most += own.detections.len().max(expected.detections.len());
        for (own, expected) in pairs {
            score = score.max(f64::from((own.score - expected.score).abs()));
            let off = own.bbox.iter().zip(expected.bbox).map(|(a, b)| f64::from((a - b).abs()));
            corner = off.fold(corner, f64::max);
        }
    }
    compare.at_least("share of detections matched", share(matched, most), 0.995);
    compare.at_most("scores, maximum difference", score, 2e-4);
    compare.at_most("boxes, maximum difference in pixels", corner, 0.02);
}

/// Compares detections completely.
fn check_results(compare: &Comparison<'_>, own: &[ImageResult], expected: &[ImageResult]) {
    check_boxes(compare, own, expected);
    let all = own.iter().zip(expected).flat_map(|(own, expected)| {
        let of_image = pairs(own, expected).into_iter();
        of_image
            .map(|(a, b)| ((own.height, own.width), a.counts.as_deref().unwrap(), b.counts.as_deref().unwrap()))
            .collect::<Vec<_>>()
    });
    check_masks(compare, all);
}

/// The metadata of an image that was not scaled, for MMDetection's boxes in the network's frame.
fn without_scale(meta: &ImageMeta) -> ImageMeta {
    ImageMeta { scale_factor: [1.0; 4], ..meta.clone() }
}

#[test]
fn parity_final_boxes() {
    let Some(heads) = Heads::open() else { return };
    let (stored, compare) = (&heads.stored, heads.fixtures.compare("final boxes"));
    let scores = stored.get("cls_score").softmax(1, Kind::Float);
    let given = stored.find("bbox_pred").filter(|deltas| deltas.size() == heads.box_head().1.size());
    let deltas = given.map_or_else(|| heads.box_head().1, Tensor::shallow_clone);
    let rois = stored.get("rois");
    let mut start = 0;
    for (image, meta) in heads.fixtures.metas("img_metas").iter().enumerate() {
        let count = stored.get(&format!("proposals.{image}")).size()[0];
        let [rois, scores, deltas] = [&rois, &scores, &deltas].map(|all| all.narrow(0, start, count));
        start += count;
        for (suffix, meta) in [("", meta.clone()), ("_norescale", without_scale(meta))] {
            let expected = stored.get(&format!("det_bboxes{suffix}.{image}"));
            let labels = stored.integers(&format!("det_labels{suffix}.{image}"));
            let best = heads.model.roi_head.best_of_image(&rois, &scores, &deltas, &meta).unwrap();
            if given.is_some() {
                compare.equal("labels in order", &integers(&best.labels), &labels);
                compare.tensor("boxes in order", &best.boxes, &expected.narrow(1, 0, 4), STAGE);
                compare.tensor("scores in order", &best.scores, &expected.select(1, 4), STAGE);
            }
            let own = boxes_of(&best.boxes, &best.scores, &integers(&best.labels));
            let expected = boxes_of(&expected.narrow(1, 0, 4), &expected.select(1, 4), &labels);
            check_boxes(&compare, &[own], &[expected]);
        }
    }
    assert_eq!(start, rois.size()[0], "the number of RoIs equals the number of proposals");
}

/// Detections without masks.
fn boxes_of(boxes: &Tensor, scores: &Tensor, labels: &[i64]) -> ImageResult {
    let rows = rows_of_four(boxes).into_iter().zip(floats(scores)).zip(labels);
    let detection = |((bbox, score), &label)| Detection { label: label as u32, score, bbox, counts: None };
    ImageResult { image_id: 0, height: 0, width: 0, detections: rows.map(detection).collect() }
}

#[test]
fn parity_pasted_masks() {
    let Some(fixtures) = Fixtures::open() else { return };
    let (stored, expected) = (fixtures.tensors("eval_batch"), fixtures.json("eval_batch_detections"));
    let metas = fixtures.metas("img_metas");
    let labels = stored.series("det_labels", metas.len());
    let total = labels.iter().map(|labels| labels.size()[0]).sum();
    let logits = stored.get("det_mask_logits");
    let rows = kept("det_mask_logits", total, logits.size()[0]);
    let (mut own, mut wanted, mut first) = (Vec::new(), Vec::new(), 0);
    for (image, meta) in metas.iter().enumerate() {
        let count = labels[image].size()[0];
        // Indices of the kept rows among the masks, and among the image's detections.
        let of_image = rows.iter().zip(0_i64..).filter(|(row, _)| (first..first + count).contains(*row));
        let (places, masks): (Vec<i64>, Vec<i64>) = of_image.map(|(row, place)| (row - first, place)).unzip();
        first += count;
        let pick = |tensor: &Tensor, rows: &[i64]| tensor.index_select(0, &Tensor::from_slice(rows));
        let boxes = pick(&stored.get(&format!("det_bboxes.{image}")), &places);
        let found = Detections {
            boxes: boxes.narrow(1, 0, 4).contiguous(),
            scores: boxes.select(1, 4).contiguous(),
            labels: pick(&labels[image], &places),
            masks: Some(pick(&logits, &masks).sigmoid()),
        };
        own.push(encode(meta, &found, MASK_THRESHOLD).unwrap());
        let all = stored_result(meta, &expected[image]);
        let mut order: Vec<i64> = (0..count).collect();
        let all_labels = integers(&labels[image]);
        order.sort_by_key(|&index| all_labels[index as usize]);
        assert_eq!(order.len(), all.detections.len());
        let entries = order.into_iter().zip(all.detections).filter(|(index, _)| places.contains(index));
        wanted.push(entries.map(|(_, detection)| detection).collect::<Vec<_>>());
    }
    for (own, wanted) in own.iter().zip(&wanted) {
        let labels = |of: &[Detection]| of.iter().map(|detection| detection.label).collect::<Vec<_>>();
        fixtures.compare("pasted masks").equal("labels in order", &labels(&own.detections), &labels(wanted));
    }
    let all = own.iter().zip(&wanted).flat_map(|(own, wanted)| {
        let pairs = own.detections.iter().zip(wanted);
        pairs.map(|(a, b)| ((own.height, own.width), a.counts.as_deref().unwrap(), b.counts.as_deref().unwrap()))
    });
    check_masks(&fixtures.compare("pasted masks"), all);
}

#[test]
fn parity_end_to_end_batch() {
    let Some(fixtures) = Fixtures::open() else { return };
    let (model, _) = fixtures.model();
    let (batch, stored) = (fixtures.batch(), fixtures.json("eval_batch_detections"));
    let own = detect(&model, &batch, &Config::default()).unwrap();
    let expected: Vec<ImageResult> =
        batch.metas.iter().enumerate().map(|(image, meta)| stored_result(meta, &stored[image])).collect();
    check_results(&fixtures.compare("end to end"), &own, &expected);
}

/// From image files, each with its own padding, to run lengths.
#[test]
fn parity_end_to_end_single_images() {
    let Some(fixtures) = Fixtures::open() else { return };
    let (model, _) = fixtures.model();
    let files = ImageFiles::open(&fixtures);
    let (mut own, mut expected) = (Vec::new(), Vec::new());
    for (image, batch) in files.singles().iter().enumerate() {
        let stored = fixtures.json(&format!("eval_single{image}_detections"));
        expected.push(stored_result(&batch.metas[0], &stored[0]));
        own.extend(detect(&model, batch, &Config::default()).unwrap());
    }
    check_results(&fixtures.compare("end to end"), &own, &expected);
}
