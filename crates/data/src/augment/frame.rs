//! What an augmentation works on, and what it is.

use fnet_common::Result;
use fnet_common::random::Generator;

use super::raster::{Raster, Size, Values};
use crate::batch::Target;

/// A training image with its objects on its way through the augmentations.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub raster: Raster,
    /// Size of the decoded image.
    pub original: Size,
    /// The objects. Masks are in frames of the image's size; there are none where they are not needed.
    pub target: Target,
    /// The size that the image is padded to. What follows in the list sees the padded image.
    pub padding: Option<Size>,
    /// Products of all resizing, `[w, h, w, h]`.
    pub scale_factor: [f32; 4],
    /// Whether left and right have changed places.
    pub flipped: bool,
}

/// Where random choices come from.
pub(crate) struct Draws<'a> {
    pub random: &'a mut Generator,
    /// Makes another training image with the augmentations before the current one.
    pub other: &'a mut dyn FnMut(&mut Generator) -> Result<Frame>,
}

pub(crate) trait Augment {
    /// The random choices for one image.
    type Choice;

    /// Draws the choices for `frame`.
    /// Errors: if another image is needed and cannot be read.
    fn draw(&self, frame: &Frame, draws: &mut Draws<'_>) -> Result<Self::Choice>;

    /// Applies the choices. False if the image must not be used.
    fn apply(&self, choice: Self::Choice, frame: &mut Frame) -> bool;
}

impl Frame {
    /// A decoded image with its objects, in its own size.
    pub fn new(rgb: Vec<u8>, size: Size, target: Target) -> Self {
        let raster = Raster::new(Values::Bytes(rgb), size);
        Self { raster, original: size, target, padding: None, scale_factor: [1.0; 4], flipped: false }
    }

    /// Pads the pixels and the frames of the masks.
    pub fn settle_padding(&mut self) {
        if let Some(size) = self.padding.take() {
            self.raster.pad(size);
            self.target.masks.iter_mut().flatten().for_each(|mask| mask.frame = size);
        }
    }

    /// Keeps the objects of these numbers, in this order.
    pub fn keep(&mut self, numbers: &[usize]) {
        let Target { boxes, labels, masks } = &mut self.target;
        *boxes = numbers.iter().map(|&number| boxes[number]).collect();
        *labels = numbers.iter().map(|&number| labels[number]).collect();
        if !masks.is_empty() {
            *masks = numbers.iter().map(|&number| masks[number].clone()).collect();
        }
    }
}

/// A number drawn uniformly from a range.
pub(super) fn between(random: &mut Generator, [low, high]: [f64; 2]) -> f64 {
    low + (high - low) * random.uniform()
}
