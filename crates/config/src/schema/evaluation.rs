//! `[evaluation]`: when and how the model is evaluated.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use fnet_protocol::cli;

use crate::problem::Problems;

section! {
/// When and how the model is evaluated.
pub struct Evaluation {
    /// Epochs between evaluations; 0 for none.
    pub interval: usize = 1,
    /// Metrics that are computed during training. The default is `["bbox"]` if `model.mask` is false.
    pub metrics: Vec<Metric> = vec![Metric::Bbox, Metric::Segm],
    /// Add the average precision of each class: a table in the log, and `classwise` in metrics files.
    pub classwise: bool = false,
    /// IoU thresholds of a correct detection, used for all averages; empty for COCO's ten, .50 to .95. `mAP_50` and
    /// `mAP_75` are undefined (-1) unless the list has 0.5 and 0.75.
    #[schemars(extend("items" = serde_json::json!({"type": "number", "exclusiveMinimum": 0, "maximum": 1})))]
    pub iou_thrs: Vec<f64> = Vec::new(),
    /// Maximum numbers of detections per image (`maxDets` of pycocotools), ascending. Each gives a recall `AR@N`. `mAP`
    /// uses 100, as pycocotools does, or the largest number here if 100 is not in the list. All other metrics use the
    /// largest.
    #[schemars(length(min = 1), inner(range(min = 1)))]
    pub proposal_nums: Vec<usize> = vec![100, 300, 1000],
    /// Metrics that logs and metrics files contain: of `mAP`, `mAP_50`, `mAP_75`, `mAP_s`, `mAP_m`, `mAP_l`, `AR@N` (N
    /// of `proposal_nums`), `AR_s@N`, `AR_m@N`, `AR_l@N` (the largest N). Empty for the six precision metrics, or for
    /// `proposal` all recall metrics.
    pub metric_items: Vec<String> = Vec::new(),
    /// Keep the detections of the last evaluation of training in `results/latest.segm.json` (`.bbox.json` without masks), and
    /// those of the best with `checkpoint.save_best` in `results/best_<metric>.segm.json`, for `report`.
    pub keep_results: bool = true,
    /// Automatic mixed precision at inference: in the evaluations of training, `test`, `predict` and `benchmark infer`.
    /// The default is float32 regardless of `train.amp`, so that metrics depend only on the weights. MMDetection
    /// evaluates in float16 if its config has `fp16`.
    pub amp: Amp = Amp::Off,
    /// Test-time augmentation in the evaluations of training, `test`, `predict` and `benchmark infer`. `test` and `predict`
    /// also have the option `--tta`.
    pub tta: Tta = Tta::Off,
}
}

/// Automatic mixed precision: which type convolutions and matrix products compute in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Amp {
    /// Float32.
    Off,
    /// Bfloat16: the range of float32 with 8 significant bits.
    Bf16,
    /// Float16: 11 significant bits and a small range, so that training scales the loss.
    Fp16,
}

/// Test-time augmentation: what each image is evaluated with besides itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Tta {
    /// Nothing.
    Off,
    /// Its mirror image. Proposals of both are joined, boxes, scores and masks are averaged (`aug_test` of MMDetection
    /// 2.25), which takes twice the time.
    Flip,
}

/// The precision metrics.
const PRECISION: [&str; 6] = ["mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l"];

impl Evaluation {
    pub(super) fn check(&self, has_masks: bool, problems: &mut Problems) {
        problems.require(
            has_masks || !self.metrics.contains(&Metric::Segm),
            "evaluation.metrics",
            &self.metrics,
            "no segm, because model.mask is false",
            "set it to [\"bbox\"]",
        );
        let mut kinds = self.metrics.clone();
        kinds.sort_unstable();
        kinds.dedup();
        problems.require(
            kinds.len() == self.metrics.len(),
            "evaluation.metrics",
            &self.metrics,
            "each metric once",
            "remove the duplicate",
        );
        problems.require(
            self.interval == 0 || !self.metrics.is_empty(),
            "evaluation.metrics",
            &self.metrics,
            "at least one metric, because evaluation.interval is not 0",
            "name bbox or segm, or set evaluation.interval to 0",
        );
        let ascending = "ascending numbers without duplicates";
        problems.require(
            self.iou_thrs.is_sorted_by(|a, b| a < b),
            "evaluation.iou_thrs",
            &self.iou_thrs,
            ascending,
            "sort them",
        );
        problems.require(
            self.proposal_nums.is_sorted_by(|a, b| a < b),
            "evaluation.proposal_nums",
            &self.proposal_nums,
            ascending,
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

    /// The maximum number of detections per image.
    pub fn most_detections(&self) -> usize {
        self.proposal_nums.iter().copied().max().unwrap_or(100)
    }

    /// Names of the recall metrics: one for each of `proposal_nums`, then for small, medium and large objects.
    pub fn recall_items(&self) -> Vec<String> {
        let most = self.most_detections();
        let by_size = ["s", "m", "l"].map(|size| format!("AR_{size}@{most}"));
        self.proposal_nums.iter().map(|number| format!("AR@{number}")).chain(by_size).collect()
    }

    /// Names of all metrics: precision, then recall, as in MMDetection.
    pub fn items(&self) -> Vec<String> {
        PRECISION.map(String::from).into_iter().chain(self.recall_items()).collect()
    }

    /// The metrics that logs and files contain for one kind of evaluation.
    pub fn chosen_items(&self, kind: Metric) -> Vec<String> {
        match kind {
            _ if !self.metric_items.is_empty() => self.metric_items.clone(),
            Metric::Bbox | Metric::Segm => PRECISION.map(String::from).into(),
            Metric::Proposal => self.recall_items(),
        }
    }

    /// The full names of these metrics: `bbox_mAP`, `segm_mAP_50`, `AR@100`.
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
    /// Boxes regardless of class: how many objects are found at all. As in MMDetection, the boxes are those of the
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

    /// The full name of a metric. Those of `proposal` have no prefix, as in MMDetection.
    pub fn name_of(self, item: &str) -> String {
        match self {
            Self::Bbox | Self::Segm => format!("{}_{item}", self.prefix()),
            Self::Proposal => item.to_owned(),
        }
    }

    /// The names of the six precision metrics in MMDetection's order: `bbox_mAP`, `bbox_mAP_50`, and so on.
    pub fn names(self) -> [String; 6] {
        PRECISION.map(|item| self.name_of(item))
    }
}
