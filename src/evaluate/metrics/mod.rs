//! COCO metrics: average precision and recall of boxes and masks, by hotcoco, with the reference's limits and names.

mod table;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use hotcoco::params::IouType;
use hotcoco::{COCO, COCOeval};
use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use super::results::{ImageResult, category_id, xywh};
use crate::config::Metric;
use crate::data::Category;
use crate::error::{Error, Result};

/// Greatest numbers of detections per image that are looked at; the reference's choice. `AP` uses the first, the other
/// average precisions the last.
pub const MAX_DETECTIONS: [usize; 3] = [100, 300, 1000];

/// What the detections are compared with: the objects of the annotation file, ready for evaluation.
#[derive(Clone)]
pub struct GroundTruth {
    coco: Arc<COCO>,
    image_ids: Vec<u64>,
    categories: Vec<Category>,
}

impl GroundTruth {
    /// Reads an annotation file. `image_ids` are the pictures that count, `categories` the classes in the order of the
    /// labels.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is no COCO annotation file, or its ids are negative.
    pub fn open(path: &Path, image_ids: &[i64], categories: &[Category]) -> Result<Self> {
        let mut coco = COCO::new(path)
            .map_err(|error| Error::data(format!("{}: {error}. Expected a COCO annotation file", path.display())))?;
        Self::new(std::mem::take(&mut coco.dataset), image_ids, categories)
    }

    /// Takes an annotation file in memory.
    ///
    /// Annotation ids are given anew from 1: the reference's evaluator takes the id 0 for "not matched", and an id
    /// that occurs twice for one object.
    ///
    /// # Errors
    ///
    /// An id of an image or a category is negative.
    pub fn new(mut dataset: hotcoco::Dataset, image_ids: &[i64], categories: &[Category]) -> Result<Self> {
        for (id, annotation) in (1..).zip(&mut dataset.annotations) {
            annotation.id = id;
        }
        let image_ids = image_ids.iter().map(|&id| unsigned("image", id)).collect::<Result<_>>()?;
        for category in categories {
            unsigned("category", category.id)?;
        }
        Ok(Self { coco: Arc::new(COCO::from_dataset(dataset)), image_ids, categories: categories.to_vec() })
    }

    /// The classes in the order of the labels.
    pub fn categories(&self) -> &[Category] {
        &self.categories
    }

    /// The `category_id` of every label.
    pub fn category_ids(&self) -> Vec<i64> {
        self.categories.iter().map(|category| category.id).collect()
    }

    /// The annotations and their masks.
    pub fn coco(&self) -> &COCO {
        &self.coco
    }
}

fn unsigned(what: &str, id: i64) -> Result<u64> {
    u64::try_from(id).map_err(|_| Error::data(format!("{what} id {id} is negative; COCO ids start from 0")))
}

/// The numbers of one comparison; -1 where there is nothing to find.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// Average precision over IoU .50 to .95 with 100 detections per image; at IoU .50; at .75; of small, medium and
    /// large objects (borders at 32 and 96 pixels squared), with 1000 detections per image.
    pub precision: [f64; 6],
    /// Average recall with 100, 300 and 1000 detections per image; of small, medium and large objects with 1000.
    pub recall: [f64; 6],
    /// Average precision of each class in the order of the labels, with 1000 detections per image.
    pub by_class: Vec<f64>,
}

/// Names of [`Scores::precision`] after `bbox_` or `segm_`, as the reference calls them.
pub const PRECISION_NAMES: [&str; 6] = ["mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l"];

/// The result of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics {
    /// What was compared, and the outcome.
    pub scores: IndexMap<Metric, Scores>,
    /// Names of the classes in the order of the labels.
    pub classes: Vec<String>,
    /// Pictures looked at.
    pub images: usize,
    /// Objects found in them.
    pub detections: usize,
    /// What a reader of the numbers should know.
    pub notes: Vec<String>,
}

impl Metrics {
    /// Compares detections with the ground truth; an image without an entry counts as one without detections.
    ///
    /// # Errors
    ///
    /// A label that the data set lacks, or masks of the annotation file that cannot be rasterised.
    pub fn compute(ground_truth: &GroundTruth, results: &[ImageResult], kinds: &[Metric]) -> Result<Self> {
        let mut metrics = Self {
            scores: IndexMap::new(),
            classes: ground_truth.categories.iter().map(|category| category.name.clone()).collect(),
            images: ground_truth.image_ids.len(),
            detections: results.iter().map(|image| image.detections.len()).sum(),
            notes: Vec::new(),
        };
        for &kind in kinds {
            let detections = annotations(results, &ground_truth.category_ids(), kind)?;
            metrics.scores.insert(kind, compare(ground_truth, detections, kind, LIMITS)?);
        }
        if metrics.detections == 0 {
            metrics.notes.push("No objects were detected in any picture: every precision is 0.".into());
        }
        if metrics.scores.values().any(|scores| scores.precision[0] < 0.0) {
            metrics.notes.push(
                "The annotation file has no object to find in these pictures (crowd regions do not count): \
                 precision is undefined, given as -1."
                    .into(),
            );
        }
        Ok(metrics)
    }

    /// All numbers by the reference's names (`bbox_mAP`, `segm_mAP_50`, ...), unrounded.
    pub fn named(&self) -> IndexMap<String, f64> {
        let mut named = IndexMap::new();
        for (&kind, scores) in &self.scores {
            for (name, &value) in PRECISION_NAMES.iter().zip(&scores.precision) {
                named.insert(format!("{}_{name}", prefix(kind)), value);
            }
        }
        named
    }

    /// What `--metrics` writes: [`Metrics::named`], and with `classwise` the classes under that name.
    pub fn to_json(&self, classwise: bool) -> Value {
        let mut object: Map<String, Value> =
            self.named().into_iter().map(|(name, value)| (name, json!(value))).collect();
        if classwise {
            let classes = self.scores.iter().map(|(&kind, scores)| {
                let by_name = self.classes.iter().cloned().zip(scores.by_class.iter().map(|&value| json!(value)));
                (prefix(kind).to_owned(), Value::Object(by_name.collect()))
            });
            object.insert("classwise".into(), Value::Object(classes.collect()));
        }
        Value::Object(object)
    }

    /// The average precision and recall as a table for people.
    pub fn table(&self) -> String {
        table::summary(self)
    }

    /// The average precision of every class as a table for people.
    pub fn class_table(&self) -> String {
        table::by_class(self)
    }
}

/// How a comparison is called in names of metrics.
pub fn prefix(kind: Metric) -> &'static str {
    match kind {
        Metric::Bbox => "bbox",
        Metric::Segm => "segm",
    }
}

/// How many detections of an image count.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// In the order of [`Scores::recall`]; the last is for all other numbers too.
    all: [usize; 3],
    /// For the average precision over all IoUs and sizes; one of `all`.
    first: usize,
}

const LIMITS: Limits = Limits { all: MAX_DETECTIONS, first: MAX_DETECTIONS[0] };

fn compare(
    ground_truth: &GroundTruth,
    detections: Vec<hotcoco::Annotation>,
    kind: Metric,
    limits: Limits,
) -> Result<Scores> {
    let iou_type = match kind {
        Metric::Bbox => IouType::Bbox,
        Metric::Segm => IouType::Segm,
    };
    let wrong = |error: hotcoco::Error| Error::data(format!("{} evaluation: {error}", prefix(kind)));
    let detections = ground_truth.coco.load_res_anns(detections).map_err(wrong)?;
    let mut evaluation = COCOeval::new(Arc::clone(&ground_truth.coco), detections, iou_type);
    evaluation.params.img_ids = ground_truth.image_ids.clone();
    evaluation.params.cat_ids = ground_truth.categories.iter().map(|category| category.id as u64).collect();
    evaluation.params.max_dets = limits.all.to_vec();
    evaluation.evaluate().map_err(wrong)?;
    evaluation.accumulate();
    evaluation.summarize_lines();
    let all = evaluation.stats().map(<[f64]>::to_vec).unwrap_or_default();
    let by_class: std::collections::HashMap<u64, f64> =
        per_class(&evaluation).ok_or_else(|| Error::bug("an evaluation without results"))?.into_iter().collect();
    // The first row alone has a limit of its own.
    evaluation.params.max_dets = vec![limits.first];
    evaluation.accumulate();
    evaluation.summarize_lines();
    let first = evaluation.stats().and_then(|stats| stats.first().copied());
    let (Some(first), Some(&[_, p50, p75, ps, pm, pl, recall @ ..])) = (first, all.first_chunk::<12>()) else {
        return Err(Error::bug(format!("an evaluation of {} numbers: expected 12", all.len())));
    };
    Ok(Scores {
        precision: [first, p50, p75, ps, pm, pl],
        recall,
        by_class: ground_truth
            .categories
            .iter()
            .map(|c| by_class.get(&(c.id as u64)).copied().unwrap_or(-1.0))
            .collect(),
    })
}

/// Average precision by category id: all sizes, the greatest number of detections; -1 without an object to find.
fn per_class(evaluation: &COCOeval) -> Option<Vec<(u64, f64)>> {
    let results = evaluation.accumulated()?;
    let (area, limit) = (evaluation.params.all_area_idx(), evaluation.params.max_det_idx());
    let shape = results.shape;
    let of_class = |(class, &id): (usize, &u64)| {
        let values = (0..shape.t).flat_map(|iou| (0..shape.r).map(move |recall| (iou, recall)));
        let values =
            values.map(|(iou, recall)| results.precision[results.precision_idx(iou, recall, class, area, limit)]);
        let values: Vec<f64> = values.filter(|&value| value > -1.0).collect();
        let mean = if values.is_empty() { -1.0 } else { values.iter().sum::<f64>() / values.len() as f64 };
        (id, mean)
    };
    Some(results.cat_ids.iter().enumerate().map(of_class).collect())
}

/// Detections as hotcoco takes them. Masks go without their boxes, so that sizes are those of the masks.
fn annotations(results: &[ImageResult], category_ids: &[i64], kind: Metric) -> Result<Vec<hotcoco::Annotation>> {
    let mut annotations = Vec::with_capacity(results.iter().map(|image| image.detections.len()).sum());
    for image in results {
        let image_id = unsigned("image", image.image_id)?;
        for detection in &image.detections {
            let mut annotation = hotcoco::Annotation {
                image_id,
                category_id: unsigned("category", category_id(category_ids, detection.label)?)?,
                score: Some(f64::from(detection.score)),
                ..Default::default()
            };
            match kind {
                Metric::Bbox => annotation.bbox = Some(xywh(detection.bbox)),
                Metric::Segm => {
                    annotation.segmentation = Some(hotcoco::Segmentation::CompressedRle {
                        size: [image.height, image.width],
                        counts: detection.counts.clone(),
                    });
                }
            }
            annotations.push(annotation);
        }
    }
    Ok(annotations)
}
