//! The scores of one metric.

use hotcoco::params::IouType;
use hotcoco::{AccumulatedEval, COCOeval};

use fnet_common::{Error, Result};
use fnet_config::{Evaluation, Metric};

use super::truth::GroundTruth;

/// The limit of `mAP` if the config has it, as in pycocotools.
const LIMIT_OF_FIRST: usize = 100;
/// Indices of the sizes in hotcoco's results: all, small, medium, large.
const SIZES: [usize; 4] = [0, 1, 2, 3];

/// The numbers of one metric. -1 if there is nothing to find or the threshold is not measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// Average precision over all IoU thresholds with 100 detections per image (or the largest limit if 100 is not
    /// among the limits); at IoU .50; at .75; of small, medium and large objects (borders at 32 and 96 pixels squared),
    /// with the largest limit.
    pub precision: [f64; 6],
    /// Average recall with each limit of detections per image; then of small, medium and large objects with the largest
    /// limit.
    pub recall: Vec<f64>,
    /// Average precision of each class in the order of the labels, with the largest limit. Empty for proposals, which
    /// ignore classes.
    pub by_class: Vec<f64>,
    /// Precision at IoU .50 at ascending recalls from 0 to 1, over all classes, with the largest limit. Empty if it is undefined.
    pub curve: Vec<f64>,
}

/// The limit of detections per image for the average precision over all thresholds.
pub fn limit_of_first(settings: &Evaluation) -> usize {
    if settings.proposal_nums.contains(&LIMIT_OF_FIRST) { LIMIT_OF_FIRST } else { settings.most_detections() }
}

/// An evaluation before its first step.
pub(super) fn prepared(
    ground_truth: &GroundTruth,
    detections: Vec<hotcoco::Annotation>,
    kind: Metric,
    settings: &Evaluation,
) -> Result<COCOeval> {
    let iou_type = match kind {
        Metric::Bbox | Metric::Proposal => IouType::Bbox,
        Metric::Segm => IouType::Segm,
    };
    let coco = ground_truth.of_kind(kind);
    let detections = coco.load_res_anns(detections).map_err(wrong(kind))?;
    let mut evaluation = COCOeval::new(coco, detections, iou_type);
    let params = &mut evaluation.params;
    params.img_ids = ground_truth.image_ids.clone();
    params.cat_ids = ground_truth.categories.iter().map(|category| category.id as u64).collect();
    params.use_cats = kind != Metric::Proposal;
    params.max_dets = settings.proposal_nums.clone();
    if !settings.iou_thrs.is_empty() {
        params.iou_thrs = settings.iou_thrs.clone();
    }
    Ok(evaluation)
}

/// Compares detections with the ground truth.
pub(super) fn evaluated(
    ground_truth: &GroundTruth,
    detections: Vec<hotcoco::Annotation>,
    kind: Metric,
    settings: &Evaluation,
) -> Result<COCOeval> {
    let mut evaluation = prepared(ground_truth, detections, kind, settings)?;
    evaluation.evaluate().map_err(wrong(kind))?;
    evaluation.accumulate();
    Ok(evaluation)
}

/// What hotcoco refuses.
pub(super) fn wrong(kind: Metric) -> impl Fn(hotcoco::Error) -> Error {
    move |error| Error::data(format!("{} evaluation: {error}", kind.prefix()))
}

/// Means over parts of an evaluation's tables.
pub(super) struct Means<'e> {
    pub results: &'e AccumulatedEval,
    pub thresholds: Vec<f64>,
}

impl<'e> Means<'e> {
    pub fn of(evaluation: &'e COCOeval) -> Result<Self> {
        let results = evaluation.accumulated().ok_or_else(|| Error::bug("hotcoco returned no results"))?;
        Ok(Self { results, thresholds: evaluation.params.iou_thrs.clone() })
    }

    pub fn scores(&self, ground_truth: &GroundTruth, settings: &Evaluation) -> Result<Scores> {
        let shape = &self.results.shape;
        let limits = &settings.proposal_nums;
        if shape.a != SIZES.len() || shape.m != limits.len() || shape.t != self.thresholds.len() {
            return Err(Error::bug(format!("unexpected shape {shape:?} of an evaluation with {settings:?}")));
        }
        let last = limits.len() - 1;
        let first = limits.iter().position(|&limit| limit == limit_of_first(settings)).unwrap_or(last);
        let every: Vec<usize> = (0..shape.t).collect();
        let at = |iou: f64| self.thresholds.iter().position(|&threshold| threshold == iou).into_iter().collect();
        let (classes, [all, small, medium, large]) = (0..shape.k, SIZES);
        let precision = |thresholds: &Vec<usize>, size, limit| self.precision(thresholds, classes.clone(), size, limit);
        let recall = |size, limit| self.recall(&every, classes.clone(), size, limit);
        Ok(Scores {
            precision: [
                precision(&every, all, first),
                precision(&at(0.5), all, last),
                precision(&at(0.75), all, last),
                precision(&every, small, last),
                precision(&every, medium, last),
                precision(&every, large, last),
            ],
            recall: (0..limits.len())
                .map(|limit| recall(all, limit))
                .chain([small, medium, large].map(|size| recall(size, last)))
                .collect(),
            by_class: self.by_class(ground_truth, &every, last),
            curve: self.curve(&at(0.5), classes.clone(), last),
        })
    }

    pub fn precision(&self, thresholds: &[usize], classes: std::ops::Range<usize>, size: usize, limit: usize) -> f64 {
        let results = self.results;
        mean(thresholds.iter().flat_map(|&iou| (0..results.shape.r).map(move |recall| (iou, recall))).flat_map(
            |(iou, recall)| {
                classes
                    .clone()
                    .map(move |class| results.precision[results.precision_idx(iou, recall, class, size, limit)])
            },
        ))
    }

    fn recall(&self, thresholds: &[usize], classes: std::ops::Range<usize>, size: usize, limit: usize) -> f64 {
        let results = self.results;
        mean(thresholds.iter().flat_map(|&iou| {
            classes.clone().map(move |class| results.recall[results.recall_idx(iou, class, size, limit)])
        }))
    }

    /// Precision at ascending recalls; empty if it is undefined.
    pub fn curve(&self, thresholds: &[usize], classes: std::ops::Range<usize>, limit: usize) -> Vec<f64> {
        let results = self.results;
        let at = |recall: usize| {
            mean(thresholds.iter().flat_map(|&iou| {
                let index = move |class| results.precision_idx(iou, recall, class, SIZES[0], limit);
                classes.clone().map(move |class| results.precision[index(class)])
            }))
        };
        let values: Vec<f64> = (0..results.shape.r).map(at).collect();
        if values.first().is_some_and(|&first| first >= 0.0) { values } else { Vec::new() }
    }

    /// In the order of the labels, which may differ from hotcoco's order.
    fn by_class(&self, ground_truth: &GroundTruth, thresholds: &[usize], limit: usize) -> Vec<f64> {
        let ids = &self.results.cat_ids;
        if ids.is_empty() {
            return Vec::new();
        }
        let of_class = |id: i64| {
            let place = ids.iter().position(|&known| known == id as u64);
            place.map_or(-1.0, |class| self.precision(thresholds, class..class + 1, SIZES[0], limit))
        };
        ground_truth.categories.iter().map(|category| of_class(category.id)).collect()
    }
}

/// The mean of the defined values (above -1), or -1 if there are none.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) =
        values.filter(|&value| value > -1.0).fold((0.0, 0_usize), |(sum, n), value| (sum + value, n + 1));
    if count == 0 { -1.0 } else { sum / count as f64 }
}
