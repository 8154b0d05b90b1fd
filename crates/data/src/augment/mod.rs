//! The augmentations of `data.pipeline.train`: one file for each, with the rule of MMDetection 2.25 that it follows.
//!
//! Each draws its random choices first ([`Augment::draw`]) and then applies them ([`Augment::apply`]) to pixels, boxes and
//! masks of a [`Frame`]. The choices depend only on seed, epoch and image: all come from the generator of the sample, in the
//! order of the list. Boxes of crowds are no objects of a training image and are not followed.

mod color_jitter;
mod copy_paste;
mod flip;
mod mask;
mod pad;
mod random_crop;
mod raster;
mod resize;

pub(crate) use raster::{Raster, Size, Values};

use fnet_common::Result;
use fnet_common::random::Generator;
use fnet_config::augment::Augmentation;

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
    fn settle_padding(&mut self) {
        if let Some(size) = self.padding.take() {
            self.raster.pad(size);
            self.target.masks.iter_mut().flatten().for_each(|mask| mask.frame = size);
        }
    }

    /// Keeps the objects of these numbers, in this order.
    fn keep(&mut self, numbers: &[usize]) {
        let Target { boxes, labels, masks } = &mut self.target;
        *boxes = numbers.iter().map(|&number| boxes[number]).collect();
        *labels = numbers.iter().map(|&number| labels[number]).collect();
        if !masks.is_empty() {
            *masks = numbers.iter().map(|&number| masks[number].clone()).collect();
        }
    }
}

/// Applies `list` to `frame`. False if the image must not be used; then the rest of the list was not applied.
pub(crate) fn run(list: &[Augmentation], frame: &mut Frame, mut draws: Draws<'_>) -> Result<bool> {
    for augmentation in list {
        frame.settle_padding();
        let used = match augmentation {
            Augmentation::Resize(resize) => step(resize, frame, &mut draws),
            Augmentation::Flip(flip) => step(flip, frame, &mut draws),
            Augmentation::RandomCrop(crop) => step(crop, frame, &mut draws),
            Augmentation::Pad(pad) => step(pad, frame, &mut draws),
            Augmentation::ColorJitter(jitter) => step(jitter, frame, &mut draws),
            Augmentation::CopyPaste(paste) => step(paste, frame, &mut draws),
        };
        if !used? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn step<A: Augment>(augmentation: &A, frame: &mut Frame, draws: &mut Draws<'_>) -> Result<bool> {
    let choice = augmentation.draw(frame, draws)?;
    Ok(augmentation.apply(choice, frame))
}

/// Whether `list` needs the masks of objects, not only their boxes.
pub(crate) fn need_masks(list: &[Augmentation]) -> bool {
    list.iter().any(|augmentation| match augmentation {
        Augmentation::CopyPaste(_) => true,
        Augmentation::RandomCrop(crop) => crop.recompute_bbox,
        _ => false,
    })
}

/// A number drawn uniformly from a range.
fn between(random: &mut Generator, [low, high]: [f64; 2]) -> f64 {
    low + (high - low) * random.uniform()
}

#[cfg(test)]
mod tests;
