//! The augmentations of `data.pipeline.train`: one file for each, with the rule of MMDetection 2.25 that it follows.
//!
//! Each draws its random choices first ([`Augment::draw`]) and then applies them ([`Augment::apply`]) to pixels, boxes and
//! masks of a [`Frame`]. The choices depend only on seed, epoch and image: all come from the generator of the sample, in the
//! order of the list. Boxes of crowds are no objects of a training image and are not followed.

mod color_jitter;
mod copy_paste;
mod flip;
mod frame;
mod mask;
mod pad;
mod random_crop;
mod raster;
mod resize;

pub(crate) use frame::{Draws, Frame};
pub(crate) use raster::Values;

use fnet_common::Result;
use fnet_config::augment::Augmentation;

use frame::Augment;

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

#[cfg(test)]
mod tests;
