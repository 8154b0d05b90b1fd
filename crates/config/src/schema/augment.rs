//! `data.pipeline.train`: the augmentations of training images, one struct for each kind.
//!
//! `crates/data/src/augment` applies them, and says there what each does.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::problem::Problems;

/// One augmentation: a table with its `kind` and fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Augmentation {
    /// Resizes the image. Several `scales` or a `ratio_range` make it random: multi-scale training, large-scale jitter.
    Resize(Resize),
    /// Flips the image in one of the directions, or not at all.
    Flip(Flip),
    /// Cuts a random part out of the image.
    RandomCrop(RandomCrop),
    /// Pads the image to a fixed size, with zeros to the right and below.
    Pad(Pad),
    /// Changes brightness, contrast, saturation and hue, and swaps color channels, each with a probability of 0.5.
    ColorJitter(ColorJitter),
    /// Pastes objects of another training image, which passes the augmentations before this one. Needs `pad` before it.
    CopyPaste(CopyPaste),
}

section! {
/// The size of the image.
pub struct Resize {
    /// Maximum size of the resized image in pixels, `[long side, short side]`; as `data.pipeline.scales`.
    #[schemars(length(min = 1), inner(inner(range(min = 1))))]
    pub scales: Vec<[usize; 2]> = vec![[1333, 800]],
    /// How one of several `scales` is chosen.
    pub scale_mode: ScaleMode = ScaleMode::Value,
    /// The scale is multiplied by a number drawn uniformly from this range. Needs a single scale.
    #[schemars(extend("items" = serde_json::json!({"type": "number", "exclusiveMinimum": 0})))]
    pub ratio_range: [f64; 2] = [1.0, 1.0],
    /// Whether the aspect ratio is kept. Without it, every image gets the size of the scale, `[width, height]`.
    pub keep_ratio: bool = true,
}
}

impl Resize {
    /// The scale multiplied by `ratio`, rounded down; at least 1.
    pub fn times(scale: [usize; 2], ratio: f64) -> [usize; 2] {
        scale.map(|side| ((side as f64 * ratio) as usize).max(1))
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

section! {
/// Probabilities of flips.
pub struct Flip {
    /// Probability of each direction. The rest to 1 is the probability of no flip.
    #[schemars(length(min = 1), inner(range(min = 0.0, max = 1.0)))]
    pub probabilities: Vec<f64> = vec![0.5],
    /// The directions, one for each probability.
    #[schemars(length(min = 1))]
    pub directions: Vec<Direction> = vec![Direction::Horizontal],
}
}

/// The direction of a flip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Left and right change places.
    Horizontal,
    /// Top and bottom change places.
    Vertical,
    /// Both: a rotation by 180 degrees.
    Diagonal,
}

impl Direction {
    /// Whether left and right change places, and whether top and bottom do.
    pub fn axes(self) -> (bool, bool) {
        (self != Self::Vertical, self != Self::Horizontal)
    }
}

section! {
/// The part of an image that is kept.
pub struct RandomCrop {
    /// How `crop_size` is meant.
    pub crop_type: CropType = CropType::Absolute,
    /// `[height, width]`, or the bounds of a range.
    #[schemars(extend("items" = serde_json::json!({"type": "number", "exclusiveMinimum": 0})))]
    pub crop_size: [f64; 2] = [1024.0, 1024.0],
    /// Whether a crop without any object is used. If not, another image of the same orientation takes its place.
    pub allow_negative_crop: bool = false,
    /// Whether boxes are clipped to the crop. Without it, every object is kept.
    pub bbox_clip_border: bool = true,
    /// Whether boxes become those of the cropped masks. Objects without a pixel in the crop are then left out.
    pub recompute_bbox: bool = false,
}
}

/// How the size of a crop is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CropType {
    /// Height and width in pixels.
    Absolute,
    /// Smallest and largest side in pixels; height and width are drawn from this range.
    AbsoluteRange,
    /// Parts of the image's height and width.
    Relative,
    /// Smallest parts of the image's height and width; they are drawn between these and 1.
    RelativeRange,
}

impl CropType {
    /// Whether the size is in pixels.
    pub fn is_absolute(self) -> bool {
        matches!(self, Self::Absolute | Self::AbsoluteRange)
    }
}

section! {
/// A fixed size.
pub struct Pad {
    /// `[height, width]` in pixels.
    #[schemars(inner(range(min = 1)))]
    pub size: [usize; 2] = [1024, 1024],
}
}

section! {
/// Ranges of color changes.
pub struct ColorJitter {
    /// Maximum number that is added to or subtracted from all values, 0 to 255.
    #[schemars(range(min = 0.0, max = 255.0))]
    pub brightness_delta: f64 = 32.0,
    /// Range of the factor of all values.
    #[schemars(inner(range(min = 0.0)))]
    pub contrast_range: [f64; 2] = [0.5, 1.5],
    /// Range of the factor of the saturation.
    #[schemars(inner(range(min = 0.0)))]
    pub saturation_range: [f64; 2] = [0.5, 1.5],
    /// Maximum change of the hue in degrees.
    #[schemars(range(min = 0.0, max = 360.0))]
    pub hue_delta: f64 = 18.0,
}
}

section! {
/// Which objects are pasted, and which stay.
pub struct CopyPaste {
    /// Fewer objects than this are pasted.
    #[schemars(range(min = 1))]
    pub max_num_pasted: usize = 100,
    /// A covered object stays if no side of its box moves by more pixels than this.
    #[schemars(range(min = 0.0))]
    pub bbox_occluded_thr: f64 = 10.0,
    /// A covered object also stays if more pixels of its mask than this remain visible.
    #[schemars(range(min = 0))]
    pub mask_occluded_thr: usize = 300,
    /// Whether the number of pasted objects is drawn; if not, all objects of the other image are pasted.
    pub selected: bool = true,
}
}

/// A side that the config does not bound.
const UNBOUNDED: usize = usize::MAX;

/// The largest images, `[height, width]`, after each of the augmentations.
fn largest_after(augmentation: &Augmentation, sizes: &[[usize; 2]]) -> Vec<[usize; 2]> {
    let each = |limit: &dyn Fn([usize; 2]) -> [usize; 2]| sizes.iter().map(|&size| limit(size)).collect();
    match augmentation {
        Augmentation::Resize(resize) => {
            let bound = |side: fn(&[usize; 2]) -> usize| resize.scales.iter().map(side).max().unwrap_or(1);
            let scales = match resize.scale_mode {
                ScaleMode::Value => resize.scales.clone(),
                ScaleMode::Range => vec![[bound(|s| s[0].max(s[1])), bound(|s| s[0].min(s[1]))]],
            };
            let scales = scales.into_iter().map(|scale| Resize::times(scale, resize.ratio_range[1]));
            match resize.keep_ratio {
                true => scales.flat_map(|[long, short]| [[short, long], [long, short]]).collect(),
                false => scales.map(|[width, height]| [height, width]).collect(),
            }
        }
        Augmentation::RandomCrop(crop) => each(&|[height, width]| {
            let [first, second] = crop.crop_size;
            let part = |side: usize, part: f64| match side {
                UNBOUNDED => UNBOUNDED,
                side => ((side as f64 * part + 0.5) as usize).max(1),
            };
            match crop.crop_type {
                CropType::Absolute => [height.min(first as usize), width.min(second as usize)],
                CropType::AbsoluteRange => [height.min(second as usize), width.min(second as usize)],
                CropType::Relative => [part(height, first), part(width, second)],
                CropType::RelativeRange => [height, width],
            }
        }),
        Augmentation::Pad(pad) => vec![pad.size],
        Augmentation::Flip(_) | Augmentation::ColorJitter(_) | Augmentation::CopyPaste(_) => sizes.to_vec(),
    }
}

/// The largest images, `[height, width]`, that the augmentations `list` make: of different shapes, none padded to the
/// divisor.
pub(super) fn largest(list: &[Augmentation]) -> Vec<[usize; 2]> {
    list.iter().fold(vec![[UNBOUNDED; 2]], |sizes, augmentation| largest_after(augmentation, &sizes))
}

/// Checks the fields of every augmentation of `list`, then their order.
pub(super) fn check(list: &[Augmentation], field: &str, problems: &mut Problems) {
    let mut sizes = vec![[UNBOUNDED; 2]];
    for (index, augmentation) in list.iter().enumerate() {
        let path = format!("{field}[{index}]");
        augmentation.check(&path, problems);
        if let Augmentation::Pad(pad) = augmentation {
            let fits = sizes.iter().all(|size| size[0] <= pad.size[0] && size[1] <= pad.size[1]);
            let largest = sizes.iter().copied().reduce(|a, b| [a[0].max(b[0]), a[1].max(b[1])]).unwrap_or([0, 0]);
            let expected = match largest.contains(&UNBOUNDED) {
                true => "images that fit into it, but nothing before limits their size".to_owned(),
                false => format!("at least {largest:?}, the largest image that the augmentations before it make"),
            };
            let remedy = "enlarge it, or put `resize` or `random_crop` with a smaller size before it";
            problems.require(fits, &format!("{path}.size"), pad.size, &expected, remedy);
        }
        if matches!(augmentation, Augmentation::CopyPaste(_)) {
            let before = &list[..index];
            problems.require(
                !before.iter().any(|other| matches!(other, Augmentation::CopyPaste(_))),
                &path,
                "copy_paste",
                "one `copy_paste` in the list",
                "remove one",
            );
            let of_any_size =
                |other: &&Augmentation| matches!(other, Augmentation::Resize(_) | Augmentation::RandomCrop(_));
            let last = before.iter().rfind(|other| of_any_size(other) || matches!(other, Augmentation::Pad(_)));
            problems.require(
                matches!(last, Some(Augmentation::Pad(_))),
                &path,
                "copy_paste",
                "images of one size before it",
                "put { kind = \"pad\", size = [height, width] } before it",
            );
        }
        sizes = largest_after(augmentation, &sizes);
    }
    problems.require(
        list.is_empty() || !sizes.iter().flatten().any(|&side| side == UNBOUNDED),
        field,
        list.iter().map(Augmentation::kind).collect::<Vec<_>>(),
        "an augmentation that limits the size of images",
        "add { kind = \"resize\", scales = [[1333, 800]] }, or a `random_crop` with an absolute size",
    );
}

impl Augmentation {
    /// The `kind` of its table.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Resize(_) => "resize",
            Self::Flip(_) => "flip",
            Self::RandomCrop(_) => "random_crop",
            Self::Pad(_) => "pad",
            Self::ColorJitter(_) => "color_jitter",
            Self::CopyPaste(_) => "copy_paste",
        }
    }

    fn check(&self, path: &str, problems: &mut Problems) {
        let field = |name: &str| format!("{path}.{name}");
        let mut ascending = |name: &str, range: [f64; 2]| {
            let swap = "swap the two numbers";
            problems.require(range[0] <= range[1], &field(name), range, "the smaller number first", swap);
        };
        match self {
            Self::Resize(resize) => {
                ascending("ratio_range", resize.ratio_range);
                check_scales(&resize.scales, resize.scale_mode, resize.keep_ratio, path, problems);
                problems.require(
                    resize.ratio_range == [1.0, 1.0] || resize.scales.len() == 1,
                    &field("scales"),
                    &resize.scales,
                    "one scale, because ratio_range multiplies it",
                    "keep one scale, or remove ratio_range",
                );
            }
            Self::Flip(flip) => {
                problems.require(
                    flip.probabilities.len() == flip.directions.len(),
                    &field("probabilities"),
                    &flip.probabilities,
                    &format!("{} numbers, one for each of the directions", flip.directions.len()),
                    "give as many probabilities as directions",
                );
                let sum: f64 = flip.probabilities.iter().sum();
                let at_most = "a sum of at most 1";
                let lower = "lower the probabilities";
                problems.require(sum <= 1.0 + 1e-9, &field("probabilities"), &flip.probabilities, at_most, lower);
            }
            Self::RandomCrop(crop) => {
                if crop.crop_type == CropType::AbsoluteRange {
                    ascending("crop_size", crop.crop_size);
                }
                let (fits, expected, remedy) = match crop.crop_type.is_absolute() {
                    true => (
                        crop.crop_size.iter().all(|side| *side >= 1.0 && side.fract() == 0.0 && *side <= 1e9),
                        "whole numbers of pixels",
                        "for parts of the image, set crop_type to \"relative\" or \"relative_range\"",
                    ),
                    false => (
                        crop.crop_size.iter().all(|part| *part <= 1.0),
                        "parts of the image's height and width, at most 1",
                        "for pixels, set crop_type to \"absolute\" or \"absolute_range\"",
                    ),
                };
                problems.require(fits, &field("crop_size"), crop.crop_size, expected, remedy);
            }
            Self::ColorJitter(jitter) => {
                ascending("contrast_range", jitter.contrast_range);
                ascending("saturation_range", jitter.saturation_range);
            }
            Self::Pad(_) | Self::CopyPaste(_) => {}
        }
    }
}

/// Checks the scales of `section`.
pub(super) fn check_scales(
    scales: &[[usize; 2]],
    mode: ScaleMode,
    keep_ratio: bool,
    section: &str,
    problems: &mut Problems,
) {
    let field = format!("{section}.scales");
    problems.require(
        !keep_ratio || scales.iter().all(|scale| scale[0] >= scale[1]),
        &field,
        scales,
        "the long side first, then the short side",
        "swap the two numbers",
    );
    problems.require(
        mode == ScaleMode::Value || scales.len() == 2,
        &field,
        scales,
        &format!("two scales, the bounds of the range, because {section}.scale_mode is \"range\""),
        "give the smallest and the largest scale, or set scale_mode to \"value\"",
    );
}
