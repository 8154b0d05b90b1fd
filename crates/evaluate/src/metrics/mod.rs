//! COCO metrics: average precision and recall of boxes and masks, computed by hotcoco, with MMDetection's limits and
//! names.

mod analysis;
mod bootstrap;
mod scores;
mod table;
#[cfg(test)]
mod tests;
mod truth;

use hotcoco::COCOeval;
use indexmap::IndexMap;
use serde_json::{Map, Value, json};

pub use analysis::{Analysis, ImageCounts, analyze};
pub use bootstrap::{Difference, Resampling, difference};
pub use scores::{Scores, limit_of_first};
pub use truth::GroundTruth;

use fnet_common::text;
use fnet_common::{Error, Result};
use fnet_config::{Evaluation, Metric};
use fnet_data::Category;

use super::results::{ImageResult, category_id, xywh};
use scores::Means;
use truth::unsigned;

/// The result of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics {
    /// The scores of each metric.
    pub scores: IndexMap<Metric, Scores>,
    /// Unique names of the classes, in the order of the labels.
    pub classes: Vec<String>,
    /// Number of images.
    pub images: usize,
    /// Number of detections.
    pub detections: usize,
    /// Notes about the numbers.
    pub notes: Vec<String>,
    /// The settings of the evaluation.
    pub settings: Evaluation,
}

impl Metrics {
    /// Compares detections with the ground truth, with the thresholds and limits of `settings`. An image without an
    /// entry has no detections.
    /// Errors: a label that is not in the data set, or a mask of the annotation file that cannot be rasterized.
    pub fn compute(
        ground_truth: &GroundTruth,
        results: &[ImageResult],
        kinds: &[Metric],
        settings: &Evaluation,
    ) -> Result<Self> {
        let (ids, count) = (ground_truth.category_ids(), results.iter().map(|image| image.detections.len()).sum());
        let detections = |kind| annotations(results, &ids, kind);
        Self::measure(ground_truth, count, kinds, settings, &detections, &mut |_, _| Ok(()))
    }

    /// The same for `count` detections that `detections` returns for each metric. `done` gets each evaluation.
    /// Errors: those of `detections` and `done`, and a mask that cannot be rasterized.
    pub fn measure(
        ground_truth: &GroundTruth,
        count: usize,
        kinds: &[Metric],
        settings: &Evaluation,
        detections: &dyn Fn(Metric) -> Result<Vec<hotcoco::Annotation>>,
        done: &mut dyn FnMut(Metric, &COCOeval) -> Result<()>,
    ) -> Result<Self> {
        let mut metrics = Self {
            scores: IndexMap::new(),
            classes: distinct_names(&ground_truth.categories),
            images: ground_truth.image_ids.len(),
            detections: count,
            notes: Vec::new(),
            settings: settings.clone(),
        };
        for &kind in kinds {
            let evaluation = scores::evaluated(ground_truth, detections(kind)?, kind, settings)?;
            metrics.scores.insert(kind, Means::of(&evaluation)?.scores(ground_truth, settings)?);
            done(kind, &evaluation)?;
        }
        metrics.note();
        let ignored = ground_truth.without_mask();
        if ignored > 0 && kinds.contains(&Metric::Segm) {
            metrics.notes.push(format!(
                "segm: {} without a mask (data.without_mask) {} not to be found; detections in their boxes do not count",
                text::count(ignored, "object"),
                if ignored == 1 { "is" } else { "are" }
            ));
        }
        Ok(metrics)
    }

    fn note(&mut self) {
        if self.scores.values().any(|scores| scores.precision[0] < 0.0) {
            self.notes.push(
                "The annotation file has no object to find in these images (crowd regions do not count): \
                 precision and recall are undefined and reported as -1."
                    .into(),
            );
        } else if self.detections == 0 {
            self.notes.push("No objects were detected in any image: every precision and recall is 0.".into());
        }
    }

    /// The numbers of `evaluation.metric_items` under MMDetection's names (`bbox_mAP`, `segm_mAP_50`, ...), not
    /// rounded.
    pub fn named(&self) -> IndexMap<String, f64> {
        let mut named = IndexMap::new();
        let items = self.settings.items();
        for (&kind, scores) in &self.scores {
            let chosen = self.settings.chosen_items(kind);
            for (item, &value) in items.iter().zip(scores.precision.iter().chain(&scores.recall)) {
                if chosen.contains(item) {
                    named.insert(kind.name_of(item), value);
                }
            }
        }
        named
    }

    /// The content of the `--metrics` file: [`Metrics::named`], and with `evaluation.classwise` the classes under that
    /// name.
    pub fn to_json(&self) -> Value {
        let mut object: Map<String, Value> =
            self.named().into_iter().map(|(name, value)| (name, json!(value))).collect();
        if self.settings.classwise {
            let classes = self.with_classes().map(|(kind, scores)| {
                let by_name = self.classes.iter().cloned().zip(scores.by_class.iter().map(|&value| json!(value)));
                (kind.prefix().to_owned(), Value::Object(by_name.collect()))
            });
            object.insert("classwise".into(), Value::Object(classes.collect()));
        }
        Value::Object(object)
    }

    /// The metrics that distinguish classes.
    fn with_classes(&self) -> impl Iterator<Item = (Metric, &Scores)> {
        self.scores.iter().map(|(&kind, scores)| (kind, scores)).filter(|(kind, _)| *kind != Metric::Proposal)
    }
}

/// Unique names of the classes. If several categories have the same name, their ids are appended.
fn distinct_names(categories: &[Category]) -> Vec<String> {
    let is_double = |name: &String| categories.iter().filter(|category| category.name == *name).count() > 1;
    let named = |category: &Category| match is_double(&category.name) {
        true => format!("{} (category {})", category.name, category.id),
        false => category.name.clone(),
    };
    categories.iter().map(named).collect()
}

/// Detections for hotcoco. Masks have no boxes, so that the areas are those of the masks.
fn annotations(results: &[ImageResult], category_ids: &[i64], kind: Metric) -> Result<Vec<hotcoco::Annotation>> {
    let mut annotations = Vec::with_capacity(results.iter().map(|image| image.detections.len()).sum());
    for image in results {
        let image_id = unsigned(image.image_id);
        for detection in &image.detections {
            let mut annotation = hotcoco::Annotation {
                image_id,
                category_id: unsigned(*category_id(category_ids, detection.label)?),
                score: Some(f64::from(detection.score)),
                ..Default::default()
            };
            match kind {
                Metric::Bbox | Metric::Proposal => annotation.bbox = Some(xywh(detection.bbox)),
                Metric::Segm => {
                    let counts = detection.counts.clone();
                    let counts = counts.ok_or_else(|| Error::bug("masks are evaluated, but the model has none"))?;
                    let size = [image.height, image.width];
                    annotation.segmentation = Some(hotcoco::Segmentation::CompressedRle { size, counts });
                }
            }
            annotations.push(annotation);
        }
    }
    Ok(annotations)
}
