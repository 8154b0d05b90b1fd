//! Options of the generator.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::layout::Layout;

/// Minimum side of an image, so that objects are large enough for learnable masks.
const MIN_SIDE: u32 = 64;
/// Maximum side of an image. JPEG allows 65,535, but the masks must fit 32-bit run lengths.
const MAX_SIDE: u32 = 16_384;
/// Maximum number of objects per image; more would not fit.
const MAX_OBJECTS: u32 = 64;

/// Keeps annotation and image numbers within 31 bits.
const MAX_ANNOTATIONS: u64 = 1_000_000_000;
/// Keeps image numbers within 31 bits.
const MAX_IMAGES: u32 = 100_000_000;

/// Options of the generator. The defaults are those of the demo.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The output folder: new, empty, or with the same set.
    #[serde(skip)]
    pub out: PathBuf,
    /// File layout and numbering.
    #[serde(default, skip_serializing_if = "Layout::is_coco")]
    pub layout: Layout,
    /// Training images.
    pub images: u32,
    /// Number of validation images, and of test images if the layout has them.
    pub val_images: u32,
    /// Seed. Images depend only on it and the image number.
    pub seed: u64,
    /// Sides of the images in pixels.
    pub sides: RangeInclusive<u32>,
    /// Maximum number of objects per image. Objects that do not fit are left out.
    pub objects: RangeInclusive<u32>,
    /// Fraction of images without objects, 0 to 1.
    pub empty: f64,
    /// Fraction of images with a crowd region, 0 to 1.
    pub crowds: f64,
    /// Write only an annotation file of the training set with this many annotations, without images. `images` and
    /// `val_images` are ignored.
    pub annotations_only: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            out: PathBuf::from("data/synth"),
            layout: Layout::Coco,
            images: 400,
            val_images: 100,
            seed: 0,
            sides: 160..=256,
            objects: 1..=5,
            empty: 0.03,
            crowds: 0.06,
            annotations_only: None,
        }
    }
}

impl Options {
    /// Checks the options.
    pub fn check(&self) -> Result<()> {
        let wrong = |option: &str, value: String, expected: &str| -> Result<()> {
            Err(Error::Usage(format!("{option} is {value}, but must be {expected}")))
        };
        if let Some(annotations) = self.annotations_only
            && !(1..=MAX_ANNOTATIONS).contains(&annotations)
        {
            return wrong("annotations_only", annotations.to_string(), "1 to 1000000000");
        }
        if self.annotations_only.is_none() && self.images == 0 && self.val_images == 0 {
            return wrong("images", "0".into(), "at least 1 (or val_images)");
        }
        for (option, count) in [("images", self.images), ("val_images", self.val_images)] {
            if count > MAX_IMAGES {
                return wrong(option, count.to_string(), "at most 100000000");
            }
        }
        let (low, high) = (*self.sides.start(), *self.sides.end());
        if low < MIN_SIDE || high > MAX_SIDE || low > high {
            return wrong("sides", format!("{low} to {high}"), "a range within 64 to 16384 pixels");
        }
        let (few, many) = (*self.objects.start(), *self.objects.end());
        if few == 0 || many > MAX_OBJECTS || few > many {
            return wrong("objects", format!("{few} to {many}"), "a range within 1 to 64");
        }
        for (option, share) in [("empty", self.empty), ("crowds", self.crowds)] {
            if !(0.0..=1.0).contains(&share) {
                return wrong(option, share.to_string(), "between 0 and 1");
            }
        }
        Ok(())
    }
}
