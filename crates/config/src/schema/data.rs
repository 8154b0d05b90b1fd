//! `[data]`: data sets and image preprocessing.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::augment::{self, Augmentation, ScaleMode, check_scales};
use crate::problem::Problems;

section! {
/// Data sets and the input pipeline.
pub struct Data {
    /// Folder that dataset paths are relative to. The environment variable FNET_DATA_ROOT overrides config files;
    /// `--set data.root=...` overrides both.
    pub root: String = "data/coco".into(),
    /// Batch size of each GPU (rank).
    #[schemars(range(min = 1))]
    pub samples_per_gpu: usize = 2,
    /// Loader threads of each rank; 0 to load in the training thread.
    pub workers_per_gpu: usize = 2,
    /// Class names, in the order of the annotation files' categories; empty for all categories. `"auto"` takes the
    /// names from the training annotation file and sets `model.num_classes` to their number.
    #[schemars(extend("word" = "auto"))]
    pub classes: Vec<String> = Vec::new(),
    /// Whether a config sets the classes to `"auto"`. Both sets must then have the same classes.
    #[serde(skip)]
    #[schemars(skip)]
    pub classes_are_auto: bool = false,
    /// Whether the model has no masks (`model.mask` is false), so that those of the sets are not read.
    #[serde(skip)]
    #[schemars(skip)]
    pub boxes_only: bool = false,
    /// What to do with objects without a mask if `model.mask` is true. Boxes count in all metrics of boxes. If masks are
    /// evaluated, the validation set needs one for every object with "error"; otherwise the box of an object without one is
    /// a region like a crowd: detections whose masks lie in it count neither as right nor as wrong.
    pub without_mask: WithoutMask = WithoutMask::Error,
    /// The training set. A list of such tables trains on several: an epoch has the images of the first set, then those
    /// of the second, and so on.
    #[serde(with = "one_or_several")]
    #[schemars(with = "TrainSet", extend("several" = true))]
    pub train: Vec<TrainSet> = vec![TrainSet {
        ann_file: "annotations/instances_train2017.json".into(),
        img_prefix: "train2017".into(),
        ..TrainSet::default()
    }],
    /// The validation set.
    pub val: ValSet = ValSet {
        ann_file: "annotations/instances_val2017.json".into(),
        img_prefix: "val2017".into(),
        ..ValSet::default()
    },
    /// The set of `test --split test`. Without `ann_file` it is `data.val`.
    pub test: TestSet = TestSet::default(),
    /// Image preprocessing and augmentation.
    pub pipeline: Pipeline = Pipeline::default(),
    /// What to do when an image cannot be read during a run.
    pub on_error: OnError = OnError::Stop,
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
        problems.require(
            self.train.iter().all(|set| !set.ann_file.is_empty()),
            "data.train.ann_file",
            "",
            "an annotation file",
            "to change one of several sets, give the whole list data.train",
        );
    }

    /// The name of training set `index` in the config: `data.train`, or one of several, `data.train[1]`.
    pub fn train_field(&self, index: usize) -> String {
        if self.train.len() == 1 { "data.train".into() } else { format!("data.train[{index}]") }
    }

    /// Whether `data.val` is a part of the training images.
    pub fn val_is_fraction(&self) -> bool {
        self.val.fraction > 0.0
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

section! {
/// A training set in COCO format.
pub struct TrainSet {
    /// The annotation file, relative to `data.root`.
    pub ann_file: String = String::new(),
    /// The folder of the images, relative to `data.root`.
    pub img_prefix: String = String::new(),
    /// Skip images without an object of a selected class, and images smaller than 32 pixels.
    pub filter_empty: bool = true,
    /// Each image is used this many times per epoch, each time with its own augmentation, as with RepeatDataset.
    #[schemars(range(min = 1, max = 100_000))]
    pub repeat: usize = 1,
    /// Repeats the images of rare classes, as ClassBalancedDataset does: a class in less than this fraction of the images is
    /// used `ceil(sqrt(class_balanced / fraction))` times per epoch, and each image as often as its rarest class. 0 to
    /// disable.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub class_balanced: f64 = 0.0,
}
}

/// The validation set: a COCO file of its own, or a part of the training images.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ValSet {
    /// The annotation file, relative to `data.root`.
    pub ann_file: String,
    /// The folder of the images, relative to `data.root`.
    pub img_prefix: String,
    /// Skip images without an object of a selected class, and images smaller than 32 pixels.
    pub filter_empty: bool,
    /// Validates on this fraction of the images of `data.train`, with or without objects, in place of `ann_file`; the
    /// training set loses them. Classes are distributed evenly. 0 to disable.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1))]
    pub fraction: f64,
    /// Selects the images of `fraction`: equal files, classes, fractions and seeds give equal parts.
    pub seed: u64,
}

/// A set in COCO format that is only evaluated.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TestSet {
    /// The annotation file, relative to `data.root`.
    pub ann_file: String,
    /// The folder of the images, relative to `data.root`.
    pub img_prefix: String,
    /// Skip images without an object of a selected class, and images smaller than 32 pixels.
    pub filter_empty: bool,
}

/// A table, or a list of tables.
mod one_or_several {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::TrainSet;

    pub fn serialize<S: Serializer>(sets: &[TrainSet], serializer: S) -> Result<S::Ok, S::Error> {
        match sets {
            [one] => one.serialize(serializer),
            several => several.serialize(serializer),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<TrainSet>, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Given {
            One(TrainSet),
            Several(Vec<TrainSet>),
        }
        Ok(match Given::deserialize(deserializer)? {
            Given::One(set) => vec![set],
            Given::Several(sets) => sets,
        })
    }
}

section! {
/// Image preprocessing and augmentation. The defaults are MMDetection's 1x schedule.
pub struct Pipeline {
    /// Maximum size of the resized image in pixels, `[long side, short side]`. With several scales, one is chosen for
    /// each sample, or with `scale_mode = "range"` a size between the first two.
    #[schemars(length(min = 1), inner(inner(range(min = 1))))]
    pub scales: Vec<[usize; 2]> = vec![[1333, 800]],
    /// How one of several `scales` is chosen in training.
    pub scale_mode: ScaleMode = ScaleMode::Value,
    /// Maximum size at evaluation.
    #[schemars(inner(range(min = 1)))]
    pub test_scale: [usize; 2] = [1333, 800],
    /// Probability of flipping a training image horizontally.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub flip_probability: f64 = 0.5,
    /// Augmentations of training images in their order: tables with a `kind` and its fields, listed below. A list that is
    /// not empty replaces `scales`, `scale_mode` and `flip_probability`. Without it, images are resized and flipped as
    /// these fields say.
    pub train: Vec<Augmentation> = Vec::new(),
    /// Mean of each channel, RGB, 0 to 255.
    pub mean: [f64; 3] = [123.675, 116.28, 103.53],
    /// Standard deviation of each channel, RGB, 0 to 255.
    #[schemars(extend("items" = serde_json::json!({"type": "number", "exclusiveMinimum": 0})))]
    pub std: [f64; 3] = [58.395, 57.12, 57.375],
    /// Height and width are padded to a multiple of this.
    #[schemars(range(min = 1))]
    pub size_divisor: usize = 32,
}
}

impl Pipeline {
    fn check(&self, problems: &mut Problems) {
        let long_first = |scale: &[usize; 2]| scale[0] >= scale[1];
        let order = "the long side first, then the short side";
        let swap = "swap the two numbers";
        problems.require(long_first(&self.test_scale), "data.pipeline.test_scale", self.test_scale, order, swap);
        check_scales(&self.scales, self.scale_mode, true, "data.pipeline", problems);
        self.check_replaced(problems);
        augment::check(&self.train, "data.pipeline.train", problems);
    }

    /// Fields that the list of augmentations replaces must not say something else.
    fn check_replaced(&self, problems: &mut Problems) {
        let default = Self::default();
        let resized = self.train.iter().any(|augmentation| {
            matches!(augmentation, Augmentation::Resize(resize)
                if resize.scales == self.scales && resize.scale_mode == self.scale_mode)
        });
        let flipped = self.train.iter().any(|augmentation| {
            matches!(augmentation, Augmentation::Flip(flip)
                if flip.directions == [augment::Direction::Horizontal] && flip.probabilities == [self.flip_probability])
        });
        let unused = "no value beside data.pipeline.train, which replaces it";
        let mut require = |holds: bool, name: &str, value: &dyn std::fmt::Debug, kind: &str| {
            let remedy = format!("remove it, and put its value into the entry of kind \"{kind}\"");
            problems.require(self.train.is_empty() || holds, &format!("data.pipeline.{name}"), value, unused, &remedy);
        };
        require(resized || self.scales == default.scales, "scales", &self.scales, "resize");
        require(resized || self.scale_mode == default.scale_mode, "scale_mode", &self.scale_mode, "resize");
        let flipped = flipped || self.flip_probability == default.flip_probability;
        require(flipped, "flip_probability", &self.flip_probability, "flip");
    }

    /// The largest training images, `[height, width]`, of different shapes, before they are padded to `size_divisor`.
    pub fn largest_training_images(&self) -> Vec<[usize; 2]> {
        match self.train.as_slice() {
            [] => self.scales.iter().map(|&[long, short]| [short, long]).collect(),
            list => augment::largest(list),
        }
    }
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
