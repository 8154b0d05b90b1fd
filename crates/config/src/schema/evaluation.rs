//! `[evaluation]`: when and how the model is evaluated.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use fnet_protocol::cli;

use super::Amp;
use crate::check::Problems;

/// When and how the model is evaluated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Evaluation {
    /// Epochs between evaluations; 0 for none.
    pub interval: usize,
    /// What is measured in training.
    pub metrics: Vec<Metric>,
    /// Add the average precision of each class: a table in the log, and `classwise` in files of metrics.
    pub classwise: bool,
    /// IoU from which on a detection counts as right, one list for all averages; empty for COCO's ten, .50 to .95.
    /// `mAP_50` and `mAP_75` are undefined (-1) without 0.5 and 0.75 in it.
    #[schemars(extend("items" = serde_json::json!({"type": "number", "exclusiveMinimum": 0, "maximum": 1})))]
    pub iou_thrs: Vec<f64>,
    /// Greatest numbers of detections of an image that count (`maxDets` of pycocotools), rising. There is a recall
    /// `AR@N` for each. `mAP` counts 100 detections, as pycocotools does, or the greatest number here if 100 is not
    /// among them; all other numbers count the greatest.
    #[schemars(length(min = 1), inner(range(min = 1)))]
    pub proposal_nums: Vec<usize>,
    /// Which numbers have a name in logs and files of metrics: of `mAP`, `mAP_50`, `mAP_75`, `mAP_s`, `mAP_m`,
    /// `mAP_l`, `AR@N` (N of `proposal_nums`), `AR_s@N`, `AR_m@N`, `AR_l@N` (the greatest N). Empty for the six of
    /// precision, or for `proposal` all of recall.
    pub metric_items: Vec<String>,
    /// Automatic mixed precision at inference: in the evaluations of training, `test`, `predict` and `benchmark infer`.
    /// Float32 by default, however the model was trained, so that a metric depends on the weights alone; the reference
    /// evaluates in float16 where its config says `fp16`.
    pub amp: Amp,
}

impl Default for Evaluation {
    fn default() -> Self {
        Self {
            interval: 1,
            metrics: vec![Metric::Bbox, Metric::Segm],
            classwise: false,
            iou_thrs: Vec::new(),
            proposal_nums: vec![100, 300, 1000],
            metric_items: Vec::new(),
            amp: Amp::Off,
        }
    }
}

/// The items of precision.
const PRECISION: [&str; 6] = ["mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l"];

impl Evaluation {
    pub(super) fn check(&self, problems: &mut Problems) {
        let mut kinds = self.metrics.clone();
        kinds.sort_unstable();
        kinds.dedup();
        problems.require(
            kinds.len() == self.metrics.len(),
            "evaluation.metrics",
            &self.metrics,
            "each metric once",
            "remove the double one",
        );
        problems.require(
            self.interval == 0 || !self.metrics.is_empty(),
            "evaluation.metrics",
            &self.metrics,
            "at least one metric, because evaluation.interval is not 0",
            "name bbox or segm, or set evaluation.interval to 0",
        );
        let rising = "rising numbers, each once";
        problems.require(
            self.iou_thrs.is_sorted_by(|a, b| a < b),
            "evaluation.iou_thrs",
            &self.iou_thrs,
            rising,
            "sort them",
        );
        problems.require(
            self.proposal_nums.is_sorted_by(|a, b| a < b),
            "evaluation.proposal_nums",
            &self.proposal_nums,
            rising,
            "sort them",
        );
        let known = self.items();
        let unknown: Vec<&String> = self.metric_items.iter().filter(|item| !known.contains(item)).collect();
        problems.require(
            unknown.is_empty(),
            "evaluation.metric_items",
            &unknown,
            &format!("some of {}", known.join(", ")),
            "the numbers behind AR@ are those of evaluation.proposal_nums",
        );
    }

    /// The greatest number of detections of an image that count.
    pub fn most_detections(&self) -> usize {
        self.proposal_nums.iter().copied().max().unwrap_or(100)
    }

    /// Names of the recalls: one for each of `proposal_nums`, then of small, medium and large objects.
    pub fn recall_items(&self) -> Vec<String> {
        let most = self.most_detections();
        let by_size = ["s", "m", "l"].map(|size| format!("AR_{size}@{most}"));
        self.proposal_nums.iter().map(|number| format!("AR@{number}")).chain(by_size).collect()
    }

    /// Names of all numbers of an evaluation: precision, then recall, as the reference calls them.
    pub fn items(&self) -> Vec<String> {
        PRECISION.map(String::from).into_iter().chain(self.recall_items()).collect()
    }

    /// The items that have a name in logs and files for one kind of comparison.
    pub fn chosen_items(&self, kind: Metric) -> Vec<String> {
        match kind {
            _ if !self.metric_items.is_empty() => self.metric_items.clone(),
            Metric::Bbox | Metric::Segm => PRECISION.map(String::from).into(),
            Metric::Proposal => self.recall_items(),
        }
    }

    /// The names of these items: `bbox_mAP`, `segm_mAP_50`, `AR@100`.
    pub fn names(&self, kind: Metric) -> Vec<String> {
        self.chosen_items(kind).iter().map(|item| kind.name_of(item)).collect()
    }
}

/// What COCO evaluation compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Boxes.
    Bbox,
    /// Masks.
    Segm,
    /// Boxes whatever their classes: how many objects are found at all. As in the reference, the boxes are those of the
    /// final detections.
    Proposal,
}

impl From<cli::Metric> for Metric {
    fn from(metric: cli::Metric) -> Self {
        match metric {
            cli::Metric::Bbox => Self::Bbox,
            cli::Metric::Segm => Self::Segm,
            cli::Metric::Proposal => Self::Proposal,
        }
    }
}

impl Metric {
    /// `bbox`, `segm` or `proposal`.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Bbox => "bbox",
            Self::Segm => "segm",
            Self::Proposal => "proposal",
        }
    }

    /// The name of one of its numbers; those of `proposal` have no prefix, as in the reference.
    pub fn name_of(self, item: &str) -> String {
        match self {
            Self::Bbox | Self::Segm => format!("{}_{item}", self.prefix()),
            Self::Proposal => item.to_owned(),
        }
    }

    /// The names of the six numbers of precision in the reference's order: `bbox_mAP`, `bbox_mAP_50`, and so on.
    pub fn names(self) -> [String; 6] {
        PRECISION.map(|item| self.name_of(item))
    }
}
