//! `copy_paste`: MMDetection's `CopyPaste` in a `MultiImageMixDataset` ([Simple Copy-Paste](https://arxiv.org/abs/2012.07177)).
//!
//! Another image of the training set is drawn, any of them, and passes the augmentations before this one. Some of its objects
//! are drawn: fewer than `max_num_pasted`, at most all. Their pixels replace those of this image, which loses the covered
//! pixels of its masks; its boxes become those of the masks. An object of this image stays if no side of its box moves by more
//! than `bbox_occluded_thr` pixels, or if more than `mask_occluded_thr` pixels of it are left. If no object is pasted, nothing
//! changes. Both images have one size, that of a `pad` before; the image then is all of it, with black padding, because
//! objects may be pasted beside the old image.

use fnet_common::Result;
use fnet_config::augment::CopyPaste;

use super::frame::{Augment, Draws, Frame};
use super::mask;

/// The other image, and which of its objects are pasted.
pub(crate) struct Choice {
    pub source: Frame,
    pub selected: Vec<usize>,
}

impl Augment for CopyPaste {
    type Choice = Choice;

    fn draw(&self, _: &Frame, draws: &mut Draws<'_>) -> Result<Choice> {
        let mut source = (draws.other)(draws.random)?;
        source.settle_padding();
        let masks = source.target.masks.iter().enumerate();
        let with_mask: Vec<usize> = masks.filter(|(_, mask)| mask.is_some()).map(|(index, _)| index).collect();
        let count = with_mask.len();
        let selected = if self.selected {
            let number = draws.random.below((count + 1).min(self.max_num_pasted));
            draws.random.permutation(count).into_iter().take(number).map(|index| with_mask[index]).collect()
        } else {
            with_mask
        };
        Ok(Choice { source, selected })
    }

    fn apply(&self, Choice { mut source, selected }: Choice, frame: &mut Frame) -> bool {
        if selected.is_empty() {
            return true;
        }
        source.keep(&selected);
        let (height, width) = frame.raster.size();
        let mut pasted = vec![0; height * width];
        source.target.masks.iter().flatten().for_each(|mask| mask.mark(&mut pasted));
        frame.raster.paste(&mut source.raster, &pasted);
        let target = &mut frame.target;
        let mut stay = Vec::new();
        for (index, (bounds, mask)) in target.boxes.iter_mut().zip(&mut target.masks).enumerate() {
            // An object without a mask keeps its box.
            let Some(mask) = mask else {
                stay.push(index);
                continue;
            };
            *mask = mask::uncovered(mask.clone(), &pasted);
            let visible = mask::bounds(mask).unwrap_or_default();
            let moved = bounds.iter().zip(visible).map(|(old, new)| f64::from((new - old).abs()));
            let area = mask.pixels.iter().filter(|&&pixel| pixel == 1).count();
            if moved.fold(0.0, f64::max) <= self.bbox_occluded_thr || area > self.mask_occluded_thr {
                stay.push(index);
            }
            *bounds = visible;
        }
        frame.keep(&stay);
        let target = &mut frame.target;
        target.boxes.append(&mut source.target.boxes);
        target.labels.append(&mut source.target.labels);
        target.masks.append(&mut source.target.masks);
        true
    }
}
