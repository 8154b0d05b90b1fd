//! `[data]`: data sets and image preprocessing.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::check::Problems;

/// Data sets and the input pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// Folder that dataset paths are relative to. The environment variable FNET_DATA_ROOT overrides config files;
    /// `--set data.root=...` overrides both.
    pub root: String,
    /// Batch size of each GPU (rank).
    #[schemars(range(min = 1))]
    pub samples_per_gpu: usize,
    /// Loader threads of each rank; 0 to load in the training thread.
    pub workers_per_gpu: usize,
    /// Class names, in the order of the annotation files' categories; empty for all categories. `"auto"` takes the
    /// names from the training annotation file and sets `model.num_classes` to their number.
    #[schemars(extend("word" = "auto"))]
    pub classes: Vec<String>,
    /// Whether a config sets the classes to `"auto"`. Both sets must then have the same classes.
    #[serde(skip)]
    #[schemars(skip)]
    pub classes_are_auto: bool,
    /// Whether the model has no masks (`model.mask` is false), so that those of the sets are not read.
    #[serde(skip)]
    #[schemars(skip)]
    pub boxes_only: bool,
    /// What to do with objects without a mask if `model.mask` is true. Boxes count in all metrics of boxes. If masks are
    /// evaluated, the validation set needs one for every object with "error"; otherwise the box of an object without one is
    /// a region like a crowd: detections whose masks lie in it count neither as right nor as wrong.
    pub without_mask: WithoutMask,
    /// The training set.
    pub train: Dataset,
    /// The validation set.
    pub val: Dataset,
    /// Image preprocessing and augmentation.
    pub pipeline: Pipeline,
    /// What to do when an image cannot be read during a run.
    pub on_error: OnError,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            root: "data/coco".into(),
            samples_per_gpu: 2,
            workers_per_gpu: 2,
            classes: Vec::new(),
            classes_are_auto: false,
            boxes_only: false,
            without_mask: WithoutMask::Error,
            train: Dataset {
                ann_file: "annotations/instances_train2017.json".into(),
                img_prefix: "train2017".into(),
                filter_empty: true,
            },
            val: Dataset {
                ann_file: "annotations/instances_val2017.json".into(),
                img_prefix: "val2017".into(),
                filter_empty: false,
            },
            pipeline: Pipeline::default(),
            on_error: OnError::Stop,
        }
    }
}

impl Data {
    pub(super) fn check(&self, num_classes: usize, problems: &mut Problems) {
        let count = self.classes.len();
        problems.require(
            count == 0 || count == num_classes,
            "data.classes",
            &self.classes,
            &format!("{num_classes} names (model.num_classes), or none"),
            &format!("set model.num_classes to {count}, or correct the list"),
        );
        self.pipeline.check(problems);
    }
}

/// What to do with an object without a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WithoutMask {
    /// Stop before the job starts and list such objects.
    Error,
    /// Leave them out of training, and with `filter_empty` images that have no other objects. The model learns what is left
    /// out as background.
    Skip,
    /// Train the box head on them. The mask loss is the mean over the positive proposals whose objects have masks; it is 0
    /// without any.
    Box,
}

/// One COCO data set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dataset {
    /// The annotation file, relative to `data.root`.
    pub ann_file: String,
    /// The folder of the images, relative to `data.root`.
    pub img_prefix: String,
    /// Skip images without an object of a selected class, and images smaller than 32 pixels.
    pub filter_empty: bool,
}

/// Image preprocessing and augmentation. The defaults are MMDetection's 1x schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Pipeline {
    /// Maximum size of the resized image in pixels, `[long side, short side]`. With several scales, one is chosen for
    /// each sample, or with `scale_mode = "range"` a size between the first two.
    #[schemars(length(min = 1), inner(inner(range(min = 1))))]
    pub scales: Vec<[usize; 2]>,
    /// How one of several `scales` is chosen in training.
    pub scale_mode: ScaleMode,
    /// Maximum size at evaluation.
    #[schemars(inner(range(min = 1)))]
    pub test_scale: [usize; 2],
    /// Probability of flipping a training image horizontally.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub flip_probability: f64,
    /// Mean of each channel, RGB, 0 to 255.
    pub mean: [f64; 3],
    /// Standard deviation of each channel, RGB, 0 to 255.
    #[schemars(extend("items" = serde_json::json!({"type": "number", "exclusiveMinimum": 0})))]
    pub std: [f64; 3],
    /// Height and width are padded to a multiple of this.
    #[schemars(range(min = 1))]
    pub size_divisor: usize,
}

impl Default for Pipeline {
    fn default() -> Self {
        Self {
            scales: vec![[1333, 800]],
            scale_mode: ScaleMode::Value,
            test_scale: [1333, 800],
            flip_probability: 0.5,
            mean: [123.675, 116.28, 103.53],
            std: [58.395, 57.12, 57.375],
            size_divisor: 32,
        }
    }
}

impl Pipeline {
    fn check(&self, problems: &mut Problems) {
        let long_first = |scale: &[usize; 2]| scale[0] >= scale[1];
        let order = "the long side first, then the short side";
        let swap = "swap the two numbers";
        problems.require(self.scales.iter().all(long_first), "data.pipeline.scales", &self.scales, order, swap);
        problems.require(long_first(&self.test_scale), "data.pipeline.test_scale", self.test_scale, order, swap);
        problems.require(
            self.scale_mode == ScaleMode::Value || self.scales.len() == 2,
            "data.pipeline.scales",
            &self.scales,
            "two scales, the bounds of the range, because data.pipeline.scale_mode is \"range\"",
            "give the smallest and the largest scale, or set scale_mode to \"value\"",
        );
    }
}

/// How the size of a training image is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScaleMode {
    /// One of the listed scales.
    Value,
    /// Uniform between the first two scales.
    Range,
}

/// What to do with an image that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// Stop the job and report the file name.
    Stop,
    /// In training, use another image of the same orientation; at evaluation, skip the image. Each one is logged, and
    /// the epoch summary counts them.
    Skip,
}
