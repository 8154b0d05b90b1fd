//! `[model]`: the detector.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::problem::Problems;

section! {
/// Mask R-CNN or Faster R-CNN on a FasterNet backbone with a feature pyramid.
pub struct Model {
    /// Number of object classes, without background.
    #[schemars(range(min = 1))]
    pub num_classes: usize = 80,
    /// Whether the detector finds masks: Mask R-CNN. Without them it is Faster R-CNN, which has no mask head and needs only
    /// boxes; all other names and fields stay the same.
    pub mask: bool = true,
    /// Synchronize BatchNorm statistics across ranks (SyncBatchNorm).
    pub sync_bn: bool = false,
    /// Parts of the backbone that are not trained: -1 for none, 0 for the patch embedding, n for it and the first n stages
    /// with their output norms. Their BatchNorm uses its running statistics, and no branch of theirs is dropped.
    #[schemars(range(min = -1, max = 4))]
    pub frozen_stages: i64 = -1,
    /// Use the running statistics of the backbone's BatchNorm in training too; its weights and biases are trained.
    pub norm_eval: bool = false,
    /// The backbone.
    pub backbone: Backbone = Backbone::default(),
    /// The feature pyramid.
    pub neck: Neck = Neck::default(),
    /// The region proposal network.
    pub rpn: Rpn = Rpn::default(),
    /// The box and mask heads.
    pub roi_head: RoiHead = RoiHead::default(),
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
            "change one of the two",
        );
        self.rpn.assigner.check("model.rpn.assigner", problems);
        self.roi_head.assigner.check("model.roi_head.assigner", problems);
    }
}

section! {
/// The backbone; the defaults are FasterNet-S (Chen et al., CVPR 2023).
pub struct Backbone {
    /// Kind of backbone: "fasternet", or another one of crates/model/src/backbones.
    pub kind: String = "fasternet".into(),
    /// Channels of the first stage; each later stage doubles them.
    #[schemars(range(min = 1))]
    pub embed_dim: usize = 128,
    /// Blocks in each of the four stages.
    #[schemars(inner(range(min = 1)))]
    pub depths: [usize; 4] = [1, 2, 13, 2],
    /// Expansion ratio of the two 1x1 convolutions of a block.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub mlp_ratio: f64 = 2.0,
    /// The partial convolution processes 1/`n_div` of the channels.
    #[schemars(range(min = 1))]
    pub n_div: usize = 4,
    /// Activation between the two 1x1 convolutions.
    pub activation: Activation = Activation::Relu,
    /// Maximum drop path rate (stochastic depth). The rate increases linearly from 0 over the blocks.
    #[schemars(extend("minimum" = 0, "exclusiveMaximum" = 1))]
    pub drop_path_rate: f64 = 0.15,
    /// Implementation of the partial convolution. Results are the same.
    pub partial_conv: PartialConv = PartialConv::SplitCat,
    /// File with pretrained weights (an ImageNet FasterNet `.pth`, or `.safetensors`); empty to start from scratch.
    pub pretrained: String = String::new(),
}
}

impl Backbone {
    fn check(&self, problems: &mut Problems) {
        problems.require(
            self.kind != "fasternet" || self.embed_dim.is_multiple_of(self.n_div),
            "model.backbone.embed_dim",
            self.embed_dim,
            &format!("a multiple of model.backbone.n_div, which is {}", self.n_div),
            "choose an embed_dim that n_div divides",
        );
        problems.require(
            self.embed_dim as f64 * self.mlp_ratio >= 1.0,
            "model.backbone.mlp_ratio",
            self.mlp_ratio,
            "at least one hidden channel in the first stage",
            "FasterNet uses 2",
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

/// The implementation of a partial convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PartialConv {
    /// Split the channels, convolve the first part and concatenate. For training and inference.
    SplitCat,
    /// Overwrite the first channels of the input in place. For inference only.
    Slicing,
}

section! {
/// FPN (Lin et al., 2017).
pub struct Neck {
    /// Channels of every level.
    #[schemars(range(min = 1))]
    pub out_channels: usize = 256,
    /// Number of levels. Levels beyond the backbone's four subsample the last one.
    #[schemars(range(min = 4))]
    pub num_outs: usize = 5,
}
}

/// Which boxes are positive and which are negative (MMDetection's MaxIoUAssigner).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Assigner {
    /// A box is positive if its IoU with an object is at least this.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub positive_iou: f64,
    /// A box is negative if its maximum IoU is below this.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub negative_iou: f64,
    /// The best boxes of an object are positive if their IoU is at least this and `match_low_quality` is set.
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
            "a box cannot be both positive and negative",
        );
    }
}

/// How many boxes of an image are sampled for the loss (MMDetection's RandomSampler).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sampler {
    /// Boxes sampled per image.
    #[schemars(range(min = 1))]
    pub count: usize,
    /// Maximum fraction of positive boxes.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub positive_fraction: f64,
    /// Whether ground-truth boxes are added before sampling.
    pub add_ground_truth: bool,
}

section! {
/// The region proposal network.
pub struct Rpn {
    /// Channels of the shared 3x3 convolution.
    #[schemars(range(min = 1))]
    pub feat_channels: usize = 256,
    /// Side of the square anchor, in multiples of the level's stride.
    #[schemars(length(min = 1), extend("items" = serde_json::json!({"type": "number", "exclusiveMinimum": 0})))]
    pub anchor_scales: Vec<f64> = vec![8.0],
    /// Aspect ratios (height / width) of the anchors.
    #[schemars(length(min = 1), extend("items" = serde_json::json!({"type": "number", "exclusiveMinimum": 0})))]
    pub anchor_ratios: Vec<f64> = vec![0.5, 1.0, 2.0],
    /// Stride of each level in pixels.
    #[schemars(length(min = 1), inner(range(min = 1)))]
    pub anchor_strides: Vec<usize> = vec![4, 8, 16, 32, 64],
    /// Assignment of anchors to objects.
    pub assigner: Assigner =
        Assigner { positive_iou: 0.7, negative_iou: 0.3, min_positive_iou: 0.3, match_low_quality: true },
    /// Sampling of anchors for the loss.
    pub sampler: Sampler = Sampler { count: 256, positive_fraction: 0.5, add_ground_truth: false },
    /// Top-scoring anchors per level before NMS, at inference.
    #[schemars(range(min = 1))]
    pub nms_pre: usize = 1000,
    /// Top-scoring anchors per level before NMS, in training.
    #[schemars(range(min = 1))]
    pub train_nms_pre: usize = 2000,
    /// Maximum number of proposals per image.
    #[schemars(range(min = 1))]
    pub max_per_image: usize = 1000,
    /// IoU threshold of NMS.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub nms_iou: f64 = 0.7,
    /// Proposals must be wider and higher than this, in pixels.
    #[schemars(range(min = 0.0))]
    pub min_box_size: f64 = 0.0,
}
}

section! {
/// The heads that classify, refine and segment the proposals.
pub struct RoiHead {
    /// Assignment of proposals to objects.
    pub assigner: Assigner =
        Assigner { positive_iou: 0.5, negative_iou: 0.5, min_positive_iou: 0.5, match_low_quality: true },
    /// Sampling of proposals for the loss.
    pub sampler: Sampler = Sampler { count: 512, positive_fraction: 0.25, add_ground_truth: true },
    /// Proposals up to this size in pixels (square root of the area) use the finest level.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub finest_scale: f64 = 56.0,
    /// Output size of RoIAlign for the box head.
    #[schemars(range(min = 1))]
    pub bbox_roi_size: usize = 7,
    /// Width of the box head's two shared fully connected layers.
    #[schemars(range(min = 1))]
    pub bbox_fc_channels: usize = 1024,
    /// Standard deviations that normalize the box head's deltas.
    #[schemars(extend("items" = serde_json::json!({"type": "number", "exclusiveMinimum": 0})))]
    pub bbox_target_stds: [f64; 4] = [0.1, 0.1, 0.2, 0.2],
    /// Output size of RoIAlign for the mask head. Masks are twice as large.
    #[schemars(range(min = 1))]
    pub mask_roi_size: usize = 14,
    /// Number of 3x3 convolutions of the mask head.
    #[schemars(range(min = 1))]
    pub mask_convs: usize = 4,
    /// Channels of the mask head.
    #[schemars(range(min = 1))]
    pub mask_channels: usize = 256,
    /// Score threshold of detections.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub score_threshold: f64 = 0.05,
    /// IoU threshold of NMS, per class.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub nms_iou: f64 = 0.5,
    /// Maximum number of detections per image.
    #[schemars(range(min = 1))]
    pub max_per_image: usize = 100,
    /// Probability from which a pixel belongs to the mask.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub mask_threshold: f64 = 0.5,
}
}
