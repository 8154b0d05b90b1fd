//! What an evaluation says beyond its means: curves, confusions, kinds of errors, calibration, and single images.

use std::collections::HashMap;
use std::sync::Arc;

use hotcoco::{COCO, COCOeval, DtStatus, GtStatus, LabelErrorType};
use serde_json::{Value, json};

use fnet_common::Result;
use fnet_config::{Evaluation, Metric};

use super::scores::{Means, wrong};
use super::{GroundTruth, distinct_names};

/// The IoU of a correct detection where one threshold is needed.
const IOU: f64 = 0.5;
/// The IoU below which a detection is on no object, as in TIDE.
const BACKGROUND_IOU: f64 = 0.1;
/// Bins of the calibration.
const BINS: usize = 10;
/// The score threshold if no detection is correct.
const DEFAULT_SCORE: f64 = 0.3;
/// Precision is written in thousandths.
const THOUSANDTHS: f64 = 1000.0;

/// What an evaluation says beyond its means.
#[derive(Debug)]
pub struct Analysis {
    /// For the page of `report`.
    pub json: Value,
    /// The score threshold with the best F1 over all classes, at IoU .50. The counts are those of detections from there on.
    pub threshold: f64,
    /// Counts of every image, by its id.
    pub images: HashMap<u64, ImageCounts>,
}

/// Counts of one image or class, at IoU .50 and from the score threshold on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImageCounts {
    /// Correct detections.
    pub correct: u32,
    /// Wrong detections.
    pub wrong: u32,
    /// Objects without a detection.
    pub missed: u32,
    /// Wrong detections in place of an object of another class.
    pub confused: u32,
}

impl ImageCounts {
    /// The harmonic mean of precision and recall; 1 if there is nothing to find and nothing is found.
    pub fn f1(&self) -> f64 {
        match 2 * self.correct + self.wrong + self.missed {
            0 => 1.0,
            all => f64::from(2 * self.correct) / f64::from(all),
        }
    }
}

/// Analyzes an evaluation of boxes or masks.
/// Errors: what hotcoco refuses.
pub fn analyze(truth: &GroundTruth, evaluation: &COCOeval, kind: Metric, settings: &Evaluation) -> Result<Analysis> {
    let means = Means::of(evaluation)?;
    let labels: HashMap<u64, usize> = truth.categories().iter().map(|category| category.id as u64).zip(0..).collect();
    // hotcoco would take the nearest threshold.
    let again;
    let at_iou = if evaluation.params.iou_thr_idx(IOU).is_some() {
        evaluation
    } else {
        again = evaluated_from(evaluation, f64::NEG_INFINITY).map_err(wrong(kind))?;
        &again
    };
    let threshold = best_threshold(at_iou).map_err(wrong(kind))?;
    let shown = evaluated_from(evaluation, threshold).map_err(wrong(kind))?;
    let counts = Counts::of(&shown, &labels).map_err(wrong(kind))?;
    let tide = at_iou.tide_errors(IOU, BACKGROUND_IOU).map_err(wrong(kind))?;
    let json = json!({
        "threshold": threshold,
        "classes": classes(truth, &means, &counts, settings),
        "by_iou": by_iou(&means, settings),
        "curves": curves(truth, &means),
        "tide": { "ap": tide.delta_ap, "counts": tide.counts },
        "calibration": calibration(at_iou),
        "confusion": confusion(evaluation, threshold, &labels),
    });
    Ok(Analysis { json, threshold, images: counts.images })
}

impl ImageCounts {
    fn to_json(self) -> Value {
        json!([self.correct, self.wrong, self.missed, self.confused])
    }
}

/// The detections from a score on, evaluated at IoU .50.
fn evaluated_from(evaluation: &COCOeval, threshold: f64) -> Result<COCOeval, hotcoco::Error> {
    let found = &evaluation.coco_dt().dataset;
    let kept = found.annotations.iter().filter(|detection| detection.score >= Some(threshold));
    let kept = COCO::from_dataset(hotcoco::Dataset {
        images: found.images.clone(),
        categories: found.categories.clone(),
        annotations: kept.cloned().collect(),
        ..Default::default()
    });
    let mut again = COCOeval::new(Arc::clone(evaluation.coco_gt()), kept, evaluation.params.iou_type);
    again.params = evaluation.params.clone();
    again.params.iou_thrs = vec![IOU];
    // The first one is that of all sizes.
    again.params.area_ranges.truncate(1);
    again.evaluate()?;
    Ok(again)
}

/// Counts of an evaluation.
struct Counts {
    images: HashMap<u64, ImageCounts>,
    classes: Vec<ImageCounts>,
}

impl Counts {
    fn of(evaluation: &COCOeval, labels: &HashMap<u64, usize>) -> Result<Self, hotcoco::Error> {
        let found = evaluation.image_diagnostics(IOU, f64::NEG_INFINITY)?;
        let index = &found.annotations;
        let label = |category: u64| labels.get(&category).copied();
        let mut counts = Self { images: HashMap::new(), classes: vec![ImageCounts::default(); labels.len()] };
        for detection in &evaluation.coco_dt().dataset.annotations {
            let (image, label) = (detection.image_id, label(detection.category_id));
            match index.dt_status.get(&detection.id) {
                Some(DtStatus::Tp) => counts.add(image, label, |count| &mut count.correct),
                Some(DtStatus::Fp) => counts.add(image, label, |count| &mut count.wrong),
                None => {}
            }
        }
        for object in &evaluation.coco_gt().dataset.annotations {
            if index.gt_status.get(&object.id) == Some(&GtStatus::Fn) {
                counts.add(object.image_id, label(object.category_id), |count| &mut count.missed);
            }
        }
        for error in found.label_errors.iter().filter(|error| error.error_type == LabelErrorType::WrongLabel) {
            counts.add(error.image_id, label(error.dt_category_id), |count| &mut count.confused);
        }
        Ok(counts)
    }

    fn add(&mut self, image: u64, label: Option<usize>, field: impl Fn(&mut ImageCounts) -> &mut u32) {
        *field(self.images.entry(image).or_default()) += 1;
        if let Some(class) = label.and_then(|label| self.classes.get_mut(label)) {
            *field(class) += 1;
        }
    }
}

/// The score with the best F1 of all detections from it on.
fn best_threshold(evaluation: &COCOeval) -> Result<f64, hotcoco::Error> {
    let index = evaluation.image_diagnostics(IOU, f64::INFINITY)?.annotations;
    let judged = |detection: &hotcoco::Annotation| {
        let correct = *index.dt_status.get(&detection.id)? == DtStatus::Tp;
        Some((detection.score?, correct))
    };
    let mut ranked: Vec<(f64, bool)> = evaluation.coco_dt().dataset.annotations.iter().filter_map(judged).collect();
    ranked.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let objects = index.gt_status.len();
    let (mut correct, mut best) = (0, (0.0, DEFAULT_SCORE));
    for (place, &(score, is_correct)) in ranked.iter().enumerate() {
        correct += usize::from(is_correct);
        // Detections of the same score are kept or dropped together.
        if ranked.get(place + 1).is_some_and(|(next, _)| *next == score) {
            continue;
        }
        let f1 = (2 * correct) as f64 / (place + 1 + objects).max(1) as f64;
        if f1 > best.0 {
            best = (f1, score);
        }
    }
    Ok(best.1)
}

/// A number for JSON; `null` if it is undefined.
fn defined(value: f64) -> Value {
    if value < 0.0 { Value::Null } else { json!((value * 1e5).round() / 1e5) }
}

/// One row for each class in the order of the labels.
fn classes(truth: &GroundTruth, means: &Means<'_>, counts: &Counts, settings: &Evaluation) -> Value {
    let last = settings.proposal_nums.len() - 1;
    let every: Vec<usize> = (0..means.thresholds.len()).collect();
    let at = |iou: f64| means.thresholds.iter().position(|&threshold| threshold == iou).into_iter().collect();
    let parts: [(&Vec<usize>, usize); 6] =
        [(&every, 0), (&at(0.5), 0), (&at(0.75), 0), (&every, 1), (&every, 2), (&every, 3)];
    let names = distinct_names(truth.categories());
    let rows = truth.categories().iter().zip(names).zip(&counts.classes).map(|((category, name), counts)| {
        let place = means.results.cat_ids.iter().position(|&id| id == category.id as u64);
        let value = |(thresholds, size): (&Vec<usize>, usize)| match place {
            Some(class) => defined(means.precision(thresholds, class..class + 1, size, last)),
            None => Value::Null,
        };
        json!({ "name": name, "ap": parts.map(value), "counts": counts.to_json() })
    });
    rows.collect()
}

/// The average precision at each IoU threshold, whose mean is `mAP`.
fn by_iou(means: &Means<'_>, settings: &Evaluation) -> Value {
    let limits = &settings.proposal_nums;
    let first = limits.iter().position(|&limit| limit == super::limit_of_first(settings)).unwrap_or(limits.len() - 1);
    let points = means
        .thresholds
        .iter()
        .enumerate()
        .map(|(place, iou)| json!([iou, defined(means.precision(&[place], 0..means.results.shape.k, 0, first))]));
    points.collect()
}

/// Precision at 101 recalls, in thousandths: at IoU .50 and .75 and over all thresholds, for all classes (first) and each one.
fn curves(truth: &GroundTruth, means: &Means<'_>) -> Value {
    let results = means.results;
    let (shape, last) = (&results.shape, results.shape.m - 1);
    let every: Vec<usize> = (0..shape.t).collect();
    let named = |iou: f64| means.thresholds.iter().position(|&threshold| threshold == iou).map(|place| vec![place]);
    let kinds = [("IoU .50", named(0.5)), ("IoU .75", named(0.75)), ("mean over IoU", Some(every))];
    let points = |thresholds: &[usize], classes: std::ops::Range<usize>| -> Value {
        let values = means.curve(thresholds, classes, last);
        match values.is_empty() {
            true => Value::Null,
            false => values.iter().map(|value| json!((value * THOUSANDTHS).round() as i64)).collect(),
        }
    };
    let curves = kinds.into_iter().filter_map(|(name, thresholds)| {
        let thresholds = thresholds?;
        let each = truth.categories().iter().map(|category| {
            let place = results.cat_ids.iter().position(|&id| id == category.id as u64);
            place.map_or(Value::Null, |class| points(&thresholds, class..class + 1))
        });
        let all = points(&thresholds, 0..shape.k);
        Some(json!({ "name": name, "lines": std::iter::once(all).chain(each).collect::<Vec<_>>() }))
    });
    curves.collect()
}

/// How often detections of a score are correct; `null` if scores are not between 0 and 1.
fn calibration(evaluation: &COCOeval) -> Value {
    match evaluation.calibration(BINS, IOU) {
        Ok(found) => {
            let bins = found.bins.iter().map(|bin| json!([bin.avg_confidence, bin.avg_accuracy, bin.count]));
            json!({ "ece": found.ece, "bins": bins.collect::<Vec<_>>() })
        }
        Err(_) => Value::Null,
    }
}

/// `[class of the object, class of the detection, count]`; the number of classes stands for neither.
fn confusion(evaluation: &COCOeval, threshold: f64, labels: &HashMap<u64, usize>) -> Value {
    let matrix = evaluation.confusion_matrix(IOU, None, Some(threshold));
    let label = |place: usize| match matrix.cat_ids.get(place) {
        Some(id) => labels.get(id).copied().unwrap_or(labels.len()),
        None => labels.len(),
    };
    let size = matrix.num_cats + 1;
    let cells = (0..size).flat_map(|object| (0..size).map(move |found| (object, found)));
    let counted = cells.map(|(object, found)| (object, found, matrix.get(object, found))).filter(|cell| cell.2 > 0);
    counted.map(|(object, found, count)| json!([label(object), label(found), count])).collect()
}

#[cfg(test)]
mod tests {
    use hotcoco::Annotation;

    use fnet_data::Category;

    use super::super::scores::evaluated;
    use super::*;

    /// An object or detection of 20x20 pixels.
    fn square(category_id: u64, x: f64, score: Option<f64>) -> Annotation {
        let (bbox, area) = (Some([x, 10.0, 20.0, 20.0]), Some(400.0));
        Annotation { image_id: 1, category_id, bbox, area, score, ..Default::default() }
    }

    #[test]
    fn counts_are_those_of_detections_from_the_threshold_on_at_iou_50() {
        let names = [(3, "cat"), (4, "dog")];
        let categories = names.map(|(id, name)| Category { id, name: name.into() });
        let named = names.map(|(id, name)| {
            let (id, name) = (id as u64, name.into());
            hotcoco::Category { id, name, ..Default::default() }
        });
        let image = hotcoco::Image { id: 1, width: 300, height: 50, ..Default::default() };
        let truth = hotcoco::Dataset {
            images: vec![image],
            annotations: vec![square(3, 10.0, None), square(3, 60.0, None)],
            categories: named.to_vec(),
            ..Default::default()
        };
        let truth = GroundTruth::new(truth, &[1], &categories);
        // The first cat is a dog at 0.9 and a cat only below the threshold. The IoU of the second is 0.6.
        let mut found = vec![square(4, 10.0, Some(0.9)), square(3, 65.0, Some(0.9)), square(3, 10.0, Some(0.03))];
        found.extend([110.0, 150.0, 190.0, 230.0].map(|x| square(3, x, Some(0.1))));
        for thresholds in [vec![], vec![0.75], vec![0.5, 0.55]] {
            let settings = Evaluation { iou_thrs: thresholds, ..Evaluation::default() };
            let evaluation = evaluated(&truth, found.clone(), Metric::Bbox, &settings).unwrap();
            let analysis = analyze(&truth, &evaluation, Metric::Bbox, &settings).unwrap();
            let counts = ImageCounts { correct: 1, wrong: 1, missed: 1, confused: 1 };
            assert_eq!((analysis.threshold, analysis.images[&1]), (0.9, counts), "{settings:?}");
            assert_eq!(analysis.json["confusion"], json!([[0, 0, 1], [0, 1, 1]]), "{settings:?}");
            assert_eq!(analysis.json["tide"]["counts"]["Cls"], json!(1), "{settings:?}");
            assert!(analysis.json["calibration"]["bins"].is_array(), "{settings:?}");
        }
    }
}
