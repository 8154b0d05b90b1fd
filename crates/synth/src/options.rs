//! What is to be generated.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::layout::Layout;

/// Smallest side of an image that objects with learnable masks fit into.
const MIN_SIDE: u32 = 64;
/// Greatest side that a JPEG file can have is 65,535; masks of this size still fit 32-bit run lengths.
const MAX_SIDE: u32 = 16_384;
/// More objects than this find no room.
const MAX_OBJECTS: u32 = 64;

/// Annotation and image numbers stay within 31 bits.
const MAX_ANNOTATIONS: u64 = 1_000_000_000;
/// Image numbers stay within 31 bits.
const MAX_IMAGES: u32 = 100_000_000;

/// What is to be generated; the defaults are the demonstration's set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The folder to write to: new, empty, or one that holds the same set.
    #[serde(skip)]
    pub out: PathBuf,
    /// Where the files lie and how they are numbered.
    #[serde(default, skip_serializing_if = "Layout::is_coco")]
    pub layout: Layout,
    /// Training images.
    pub images: u32,
    /// Validation images, and as many test images in a layout that has them.
    pub val_images: u32,
    /// Everything drawn is a function of this seed and the image's number.
    pub seed: u64,
    /// Sides of the images in pixels.
    pub sides: RangeInclusive<u32>,
    /// Objects tried in each image; fewer remain where there is no room.
    pub objects: RangeInclusive<u32>,
    /// Share of images without any object, 0 to 1.
    pub empty: f64,
    /// Share of images with a crowd region, 0 to 1.
    pub crowds: f64,
    /// Write this many annotations to the training set's annotation file and no images; `images` and `val_images`
    /// are then ignored.
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
    /// Refuses options that no image can be drawn with.
    pub fn check(&self) -> Result<()> {
        let wrong = |option, value: String, expected| -> Result<()> { Err(Error::Option { option, value, expected }) };
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
