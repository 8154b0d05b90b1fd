//! `[model]`: the detector.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::check::Problems;

/// Mask R-CNN on a FasterNet backbone with a feature pyramid.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// Number of object classes, without background.
    #[schemars(range(min = 1))]
    pub num_classes: usize,
    /// Batch statistics over all ranks instead of each rank's own images.
    pub sync_bn: bool,
    /// The backbone.
    pub backbone: Backbone,
    /// The feature pyramid.
    pub neck: Neck,
    /// The region proposal network.
    pub rpn: Rpn,
    /// The box and mask heads.
    pub roi_head: RoiHead,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            num_classes: 80,
            sync_bn: false,
            backbone: Backbone::default(),
            neck: Neck::default(),
            rpn: Rpn::default(),
            roi_head: RoiHead::default(),
        }
    }
}

impl Model {
    pub(super) fn check(&self, problems: &mut Problems) {
        self.backbone.check(problems);
        let strides: Vec<usize> = (0..self.neck.num_outs).map(|level| 4 << level.min(24)).collect();
        problems.require(
            self.rpn.anchor_strides == strides,
            "model.rpn.anchor_strides",
            &self.rpn.anchor_strides,
            &format!("{strides:?}, the strides of the {} levels of model.neck.num_outs", self.neck.num_outs),
            "make the two agree",
        );
        self.rpn.assigner.check("model.rpn.assigner", problems);
        self.roi_head.assigner.check("model.roi_head.assigner", problems);
    }
}

/// The backbone; the defaults are FasterNet-S (Chen et al., CVPR 2023).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Backbone {
    /// Kind of backbone: "fasternet", or another one of crates/model/src/backbones.
    pub kind: String,
    /// Channels of the first stage; each later stage doubles them.
    #[schemars(range(min = 1))]
    pub embed_dim: usize,
    /// Blocks in each of the four stages.
    #[schemars(inner(range(min = 1)))]
    pub depths: [usize; 4],
    /// Hidden over outer channels of a block's two 1x1 convolutions.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub mlp_ratio: f64,
    /// One in this many channels is convolved by the partial convolution.
    #[schemars(range(min = 1))]
    pub n_div: usize,
    /// Activation between the two 1x1 convolutions.
    pub activation: Activation,
    /// Greatest probability of dropping a block's branch (stochastic depth); it grows linearly from 0 over the blocks.
    #[schemars(extend("minimum" = 0, "exclusiveMaximum" = 1))]
    pub drop_path_rate: f64,
    /// How the partial convolution treats the channels that it leaves alone; the results are equal.
    pub partial_conv: PartialConv,
    /// File with pretrained weights (an ImageNet FasterNet `.pth`, or `.safetensors`); empty to start from scratch.
    pub pretrained: String,
}

impl Default for Backbone {
    fn default() -> Self {
        Self {
            kind: "fasternet".into(),
            embed_dim: 128,
            depths: [1, 2, 13, 2],
            mlp_ratio: 2.0,
            n_div: 4,
            activation: Activation::Relu,
            drop_path_rate: 0.15,
            partial_conv: PartialConv::SplitCat,
            pretrained: String::new(),
        }
    }
}

impl Backbone {
    fn check(&self, problems: &mut Problems) {
        problems.require(
            self.kind != "fasternet" || self.embed_dim.is_multiple_of(self.n_div),
            "model.backbone.embed_dim",
            self.embed_dim,
            &format!("a multiple of model.backbone.n_div, which is {}", self.n_div),
            "choose a width that n_div divides",
        );
        problems.require(
            self.embed_dim as f64 * self.mlp_ratio >= 1.0,
            "model.backbone.mlp_ratio",
            self.mlp_ratio,
            "at least one hidden channel in the first stage",
            "the family uses 2",
        );
    }

    pub(super) fn check_training(&self, problems: &mut Problems) {
        problems.require(
            self.partial_conv == PartialConv::SplitCat,
            "model.backbone.partial_conv",
            "slicing",
            "\"split_cat\" in training, because \"slicing\" overwrites its input and has no gradient",
            "set it to \"split_cat\"; the weights work with both",
        );
    }
}

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// Rectified linear unit.
    Relu,
    /// Gaussian error linear unit, exact form.
    Gelu,
}

/// How a partial convolution is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PartialConv {
    /// Split the channels, convolve the first part, concatenate: for training and inference.
    SplitCat,
    /// Write the convolved part over a copy of itself inside the input: for inference, without gradient.
    Slicing,
}

/// FPN (Lin et al., 2017).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Neck {
    /// Channels of every level.
    #[schemars(range(min = 1))]
    pub out_channels: usize,
    /// Number of levels; those beyond the backbone's four are made by subsampling the last.
    #[schemars(range(min = 4))]
    pub num_outs: usize,
}

impl Default for Neck {
    fn default() -> Self {
        Self { out_channels: 256, num_outs: 5 }
    }
}

/// Which boxes count as an object and which as background (the reference's MaxIoUAssigner).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Assigner {
    /// A box is positive from this IoU with an object on.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub positive_iou: f64,
    /// A box is negative below this greatest IoU.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub negative_iou: f64,
    /// The best boxes of an object are positive from this IoU on, if `match_low_quality` is set.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_positive_iou: f64,
    /// Whether the best boxes of an object are positive even below `positive_iou`.
    pub match_low_quality: bool,
}

impl Assigner {
    fn check(&self, path: &str, problems: &mut Problems) {
        problems.require(
            self.negative_iou <= self.positive_iou,
            &format!("{path}.negative_iou"),
            self.negative_iou,
            &format!("at most {path}.positive_iou, which is {}", self.positive_iou),
            "a box cannot be background and object at once",
        );
    }
}

/// How many boxes of an image enter the loss (the reference's RandomSampler).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sampler {
    /// Boxes chosen in each image.
    #[schemars(range(min = 1))]
    pub count: usize,
    /// Greatest share of positives among them.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub positive_fraction: f64,
    /// Whether the objects themselves are added to the boxes before choosing.
    pub add_ground_truth: bool,
}

/// The region proposal network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Rpn {
    /// Channels of the shared 3x3 convolution.
    #[schemars(range(min = 1))]
    pub feat_channels: usize,
    /// Side of the square anchor in units of the level's stride.
    #[schemars(length(min = 1), extend("items" = serde_json::json!({"type": "number", "exclusiveMinimum": 0})))]
    pub anchor_scales: Vec<f64>,
    /// Height over width of the anchors.
    #[schemars(length(min = 1), extend("items" = serde_json::json!({"type": "number", "exclusiveMinimum": 0})))]
    pub anchor_ratios: Vec<f64>,
    /// Stride of each level in pixels.
    #[schemars(length(min = 1), inner(range(min = 1)))]
    pub anchor_strides: Vec<usize>,
    /// Positive and negative anchors.
    pub assigner: Assigner,
    /// Anchors that enter the loss.
    pub sampler: Sampler,
    /// Best anchors of each level that are kept before suppression, at inference.
    #[schemars(range(min = 1))]
    pub nms_pre: usize,
    /// The same in training.
    #[schemars(range(min = 1))]
    pub train_nms_pre: usize,
    /// Proposals kept for each image.
    #[schemars(range(min = 1))]
    pub max_per_image: usize,
    /// Proposals that overlap a better one by more than this IoU are dropped.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub nms_iou: f64,
    /// Proposals must be wider and higher than this many pixels.
    #[schemars(range(min = 0.0))]
    pub min_box_size: f64,
}

impl Default for Rpn {
    fn default() -> Self {
        Self {
            feat_channels: 256,
            anchor_scales: vec![8.0],
            anchor_ratios: vec![0.5, 1.0, 2.0],
            anchor_strides: vec![4, 8, 16, 32, 64],
            assigner: Assigner { positive_iou: 0.7, negative_iou: 0.3, min_positive_iou: 0.3, match_low_quality: true },
            sampler: Sampler { count: 256, positive_fraction: 0.5, add_ground_truth: false },
            nms_pre: 1000,
            train_nms_pre: 2000,
            max_per_image: 1000,
            nms_iou: 0.7,
            min_box_size: 0.0,
        }
    }
}

/// The heads that classify, refine and segment the proposals.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RoiHead {
    /// Positive and negative proposals.
    pub assigner: Assigner,
    /// Proposals that enter the loss.
    pub sampler: Sampler,
    /// A proposal of this size in pixels (square root of its area) or smaller goes to the finest level.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub finest_scale: f64,
    /// Side of the box head's RoI features.
    #[schemars(range(min = 1))]
    pub bbox_roi_size: usize,
    /// Width of the box head's two shared fully connected layers.
    #[schemars(range(min = 1))]
    pub bbox_fc_channels: usize,
    /// Standard deviations that the box head's deltas are normalized by.
    #[schemars(extend("items" = serde_json::json!({"type": "number", "exclusiveMinimum": 0})))]
    pub bbox_target_stds: [f64; 4],
    /// Side of the mask head's RoI features; the masks have twice this side.
    #[schemars(range(min = 1))]
    pub mask_roi_size: usize,
    /// Number of 3x3 convolutions of the mask head.
    #[schemars(range(min = 1))]
    pub mask_convs: usize,
    /// Channels of the mask head.
    #[schemars(range(min = 1))]
    pub mask_channels: usize,
    /// Detections need a score above this.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub score_threshold: f64,
    /// Detections of one class that overlap a better one by more than this IoU are dropped.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub nms_iou: f64,
    /// Detections kept for each image.
    #[schemars(range(min = 1))]
    pub max_per_image: usize,
    /// A pixel belongs to the mask from this probability on.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub mask_threshold: f64,
}

impl Default for RoiHead {
    fn default() -> Self {
        Self {
            assigner: Assigner { positive_iou: 0.5, negative_iou: 0.5, min_positive_iou: 0.5, match_low_quality: true },
            sampler: Sampler { count: 512, positive_fraction: 0.25, add_ground_truth: true },
            finest_scale: 56.0,
            bbox_roi_size: 7,
            bbox_fc_channels: 1024,
            bbox_target_stds: [0.1, 0.1, 0.2, 0.2],
            mask_roi_size: 14,
            mask_convs: 4,
            mask_channels: 256,
            score_threshold: 0.05,
            nms_iou: 0.5,
            max_per_image: 100,
            mask_threshold: 0.5,
        }
    }
}
