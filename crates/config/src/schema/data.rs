//! `[data]`: data sets and how their images are prepared.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::check::Problems;

/// Data sets and the input pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// Folder that relative paths of the sets start from. The environment variable FNET_DATA_ROOT wins over config
    /// files, `--set data.root=...` over both.
    pub root: String,
    /// Images of one step on one GPU.
    #[schemars(range(min = 1))]
    pub samples_per_gpu: usize,
    /// Loader threads of each rank; 0 to load in the training thread.
    pub workers_per_gpu: usize,
    /// Class names, in the order of the annotation files' categories; empty for all categories. `"auto"` takes the
    /// names from the training annotation file, and with them `model.num_classes`, which then need not be set.
    #[schemars(extend("word" = "auto"))]
    pub classes: Vec<String>,
    /// Whether a config says `"auto"` for them, so that both sets must have the same.
    #[serde(skip)]
    #[schemars(skip)]
    pub classes_are_auto: bool,
    /// The set to train on.
    pub train: Dataset,
    /// The set to evaluate on.
    pub val: Dataset,
    /// How images are prepared.
    pub pipeline: Pipeline,
    /// What to do when an image cannot be read in the middle of a run.
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
            &format!("{num_classes} names, as model.num_classes says, or none"),
            &format!("set model.num_classes to {count}, or correct the list"),
        );
        self.pipeline.check(problems);
    }
}

/// One COCO data set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dataset {
    /// The annotation file, relative to `data.root`.
    pub ann_file: String,
    /// The folder of the images, relative to `data.root`.
    pub img_prefix: String,
    /// Leave out images without an object of a wanted class, and those under 32 pixels.
    pub filter_empty: bool,
}

/// How images are prepared; the defaults are the reference's 1x recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Pipeline {
    /// Bounds of the resized image in pixels, `[long side, short side]`. More than one: one is chosen for each
    /// sample, or, with `scale_mode = "range"`, a size between the first two.
    #[schemars(length(min = 1), inner(inner(range(min = 1))))]
    pub scales: Vec<[usize; 2]>,
    /// How one of several `scales` is chosen in training.
    pub scale_mode: ScaleMode,
    /// Bounds at evaluation.
    #[schemars(inner(range(min = 1)))]
    pub test_scale: [usize; 2],
    /// Probability of mirroring a training image left to right.
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
            "give the smallest and the greatest scale, or set scale_mode to \"value\"",
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
    /// End the job with the name of the file.
    Stop,
    /// Take another image of the same orientation in training, leave it out at evaluation. Each is named in the log,
    /// and counted at the end of the epoch.
    Skip,
}
