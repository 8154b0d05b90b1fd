//! The heads behind the proposals: sampling, classes, boxes and masks (Ren et al., 2015; He et al., 2017).

use std::collections::HashMap;

use tch::{Device, Kind, Tensor};
use torch_ext::cuda::Download;
use torch_ext::levels::twice;

use fnet_common::Result;
use fnet_config as config;
use fnet_data::{ImageMeta, InstanceMask, Target, mask_targets};

use super::Parameters;
use super::assign::assign;
use super::bbox_head::{BboxHead, BboxLosses};
use super::boxes::{decode, encode, to_view};
use super::detections::Detections;
use super::losses::{self, Loss};
use super::mask_head::MaskHead;
use super::nms::batched_nms;
use super::pack::{Pack, upload};
use super::roi_extract::RoiExtractor;
use super::sample::{Choice, sample};

/// The pyramid levels that RoIs are read from.
const ROI_LEVELS: usize = 4;

/// Box head, mask head (unless the model finds only boxes), and their rules.
#[derive(Debug)]
pub struct RoiHead {
    /// Reads the features of the box head.
    pub bbox_extractor: RoiExtractor,
    /// Reads the features of the mask head.
    pub mask_extractor: RoiExtractor,
    /// Class and box of each RoI.
    pub bbox: BboxHead,
    /// Mask of each RoI, if the model has masks.
    pub mask: Option<MaskHead>,
    config: config::RoiHead,
    classes: usize,
}

/// The RoIs of a batch that enter the losses, and what they should become.
#[derive(Debug, Default, PartialEq)]
pub struct RoiSample {
    /// Image index and box, per image the positives first.
    pub rois: Vec<[f32; 5]>,
    /// Class of each RoI; the number of classes for background.
    pub labels: Vec<i64>,
    /// Rows of the positives.
    pub positives: Vec<i64>,
    /// Index of each positive's object within its image.
    pub objects: Vec<usize>,
    /// Deltas from each positive to its object.
    pub deltas: Vec<[f32; 4]>,
}

impl RoiSample {
    /// The positives whose objects have masks.
    fn with_masks<'t>(&self, targets: &'t [Target]) -> MaskedRois<'t> {
        let mut masked = MaskedRois::default();
        for (&row, &object) in self.positives.iter().zip(&self.objects) {
            let (roi, label) = (self.rois[row as usize], self.labels[row as usize]);
            if let Some(Some(mask)) = targets[roi[0] as usize].masks.get(object) {
                masked.rois.push(roi);
                masked.labels.push(label);
                masked.masks.push(mask);
            }
        }
        masked
    }

    /// The same with its RoIs in another order.
    fn in_order(&self, order: &[usize]) -> Self {
        let place_of: HashMap<usize, usize> =
            self.positives.iter().enumerate().map(|(place, &row)| (row as usize, place)).collect();
        let found: Vec<(i64, usize)> =
            (0..).zip(order).filter_map(|(row, then)| Some((row, *place_of.get(then)?))).collect();
        Self {
            rois: order.iter().map(|&row| self.rois[row]).collect(),
            labels: order.iter().map(|&row| self.labels[row]).collect(),
            positives: found.iter().map(|&(row, _)| row).collect(),
            objects: found.iter().map(|&(_, place)| self.objects[place]).collect(),
            deltas: found.iter().map(|&(_, place)| self.deltas[place]).collect(),
        }
    }
}

/// The RoIs of the mask loss.
#[derive(Default)]
struct MaskedRois<'t> {
    rois: Vec<[f32; 5]>,
    labels: Vec<i64>,
    masks: Vec<&'t InstanceMask>,
}

impl MaskedRois<'_> {
    /// Each RoI's part of its object's mask.
    fn mask_targets(&self, side: usize) -> Vec<u8> {
        let boxes: Vec<[f32; 4]> = self.rois.iter().map(|&[_, x1, y1, x2, y2]| [x1, y1, x2, y2]).collect();
        mask_targets(&self.masks, &boxes, side)
    }
}

/// Losses of the heads.
pub struct RoiLosses {
    /// Those of the box head.
    pub bbox: BboxLosses,
    /// That of the mask head, if there is one.
    pub mask: Option<Loss>,
}

impl RoiHead {
    /// Adds its tensors to `parameters` below `prefix`.
    pub fn new(parameters: &mut Parameters, prefix: &str, model: &config::Model) -> Result<Self> {
        let (config, channels) = (&model.roi_head, model.neck.out_channels as i64);
        let strides = &model.rpn.anchor_strides[..ROI_LEVELS.min(model.rpn.anchor_strides.len())];
        Ok(Self {
            bbox_extractor: RoiExtractor::new(config.finest_scale, strides, config.bbox_roi_size),
            mask_extractor: RoiExtractor::new(config.finest_scale, strides, config.mask_roi_size),
            bbox: BboxHead::new(parameters, &format!("{prefix}.bbox_head"), channels, model)?,
            mask: match model.mask {
                true => Some(MaskHead::new(parameters, &format!("{prefix}.mask_head"), channels, model)?),
                false => None,
            },
            config: config.clone(),
            classes: model.num_classes,
        })
    }

    fn stds(&self) -> [f32; 4] {
        self.config.bbox_target_stds.map(|std| std as f32)
    }

    /// Chooses the RoIs of the losses among the proposals (`[k, 5]` per image, on the host) and the objects.
    pub fn sample(&self, proposals: &[Tensor], targets: &[Target], choice: &mut dyn Choice) -> Result<RoiSample> {
        let mut all = RoiSample::default();
        let values = Vec::<f32>::try_from(Tensor::f_cat(proposals, 0)?.f_reshape([-1])?)?;
        let mut rows = values.chunks_exact(5).map(|row| [row[0], row[1], row[2], row[3]]);
        for (image, (proposals, target)) in proposals.iter().zip(targets).enumerate() {
            let boxes: Vec<[f32; 4]> = rows.by_ref().take(proposals.size2()?.0 as usize).collect();
            self.sample_image(image, boxes, target, choice, &mut all);
        }
        Ok(all)
    }

    fn sample_image(
        &self,
        image: usize,
        mut boxes: Vec<[f32; 4]>,
        target: &Target,
        choice: &mut dyn Choice,
        all: &mut RoiSample,
    ) {
        let mut assigned = assign(&boxes.iter().collect(), &target.boxes, &self.config.assigner);
        if self.config.sampler.add_ground_truth {
            boxes.splice(0..0, target.boxes.iter().copied());
            assigned.splice(0..0, (1..).take(target.boxes.len()));
        }
        let sampled = sample(&assigned, &self.config.sampler, choice);
        let roi = |index: usize| {
            let [x1, y1, x2, y2] = boxes[index];
            [image as f32, x1, y1, x2, y2]
        };
        for &index in &sampled.positive {
            let object = (assigned[index] - 1) as usize;
            all.positives.push(all.rois.len() as i64);
            all.objects.push(object);
            all.deltas.push(encode(&boxes[index], &target.boxes[object], &self.stds()));
            all.labels.push(target.labels[object]);
            all.rois.push(roi(index));
        }
        all.rois.extend(sampled.negative.iter().map(|&index| roi(index)));
        all.labels.extend(sampled.negative.iter().map(|_| self.classes as i64));
    }

    /// The losses of both heads for the chosen RoIs.
    pub fn loss(&self, levels: &[Tensor], sample: &RoiSample, targets: &[Target]) -> Result<RoiLosses> {
        let (device, mut pack) = (levels.first().map_or(Device::Cpu, Tensor::device), Pack::default());
        // A GPU reads RoIs level by level: in that order from the start they need none of their own.
        let sorted = match device {
            Device::Cpu => None,
            _ => Some(sample.in_order(&self.bbox_extractor.level_order(&sample.rois)?)),
        };
        let sample = sorted.as_ref().unwrap_or(sample);
        let own = |&row: &i64| self.bbox.own_deltas(row, sample.labels[row as usize]);
        let own: Vec<i64> = sample.positives.iter().map(own).collect();

        let rois = self.bbox_extractor.place(&sample.rois, device, &mut pack)?;
        let labels = pack.list(&sample.labels);
        let own = pack.list(&own);
        let deltas = pack.add(sample.deltas.as_flattened(), &[sample.deltas.len() as i64, 4]);
        let mut of_mask_head = None;
        if let Some(head) = &self.mask {
            let masked = sample.with_masks(targets);
            let side = 2 * self.config.mask_roi_size as i64;
            let shape = [masked.rois.len() as i64, side, side];
            let rois = self.mask_extractor.place(&masked.rois, device, &mut pack)?;
            let labels = pack.list(&masked.labels);
            let masks = losses::binary_targets(&masked.mask_targets(side as usize), &shape, device, &mut pack);
            of_mask_head = Some((head, rois, labels, masks));
        }
        let sent = pack.send(device)?;

        // Where calls count, the gradients that both heads give the levels are added in one.
        let levels = &levels[..ROI_LEVELS.min(levels.len())];
        let is_shared = device != Device::Cpu && of_mask_head.is_some();
        let shared = if is_shared { Some(twice(levels)?) } else { None };
        let (of_boxes, of_masks) =
            shared.as_ref().map_or((levels, levels), |[first, second]| (first.as_slice(), second.as_slice()));
        let (scores, predicted) = self.bbox.forward(&self.bbox_extractor.read(of_boxes, &rois, &sent)?)?;
        let bbox =
            self.bbox.loss(&scores, &predicted, &sent.table(&labels)?, &sent.table(&own)?, &sent.table(&deltas)?)?;
        let mask = match of_mask_head {
            Some((head, rois, labels, masks)) => {
                let features = self.mask_extractor.read(of_masks, &rois, &sent)?;
                Some(head.loss_of(&features, &sent.table(&labels)?, &sent.table(&masks)?)?)
            }
            None => None,
        };
        Ok(RoiLosses { bbox, mask })
    }

    /// 0 or 1 for each of `[p, s, s]`: for each positive RoI whose object has a mask, its part of that mask.
    pub fn mask_targets(&self, sample: &RoiSample, targets: &[Target]) -> Vec<u8> {
        sample.with_masks(targets).mask_targets(2 * self.config.mask_roi_size)
    }

    /// Detections of every image, from its proposals (`[k, 5]` on the host). On CUDA this waits for the device where scores
    /// and deltas come to the host, which decides on them, and where the masks do.
    pub fn predict(&self, levels: &[Tensor], proposals: &[Tensor], metas: &[ImageMeta]) -> Result<Vec<Detections>> {
        let answers = self.answers(levels, proposals)?;
        let kept = answers.iter().zip(metas);
        let kept = kept.map(|(of, meta)| self.best_of_image(&of.rois, &of.scores, &of.deltas, meta));
        let kept = kept.collect::<Result<Vec<_>>>()?;
        let masks = self.mask_probabilities(levels, &kept, metas)?;
        self.with_masks(kept, masks.as_ref())
    }

    /// What the box head says of the proposals of every image (`[k, 4 or 5]`).
    pub(super) fn answers(&self, levels: &[Tensor], proposals: &[Tensor]) -> Result<Vec<Answers>> {
        let counts = proposals.iter().map(|boxes| Ok(boxes.size2()?.0)).collect::<Result<Vec<_>>>()?;
        let rois = (0_i64..)
            .zip(proposals)
            .map(|(image, boxes)| with_image(image, &boxes.f_narrow(1, 0, 4)?))
            .collect::<Result<Vec<_>>>()?;
        let rois = Tensor::f_cat(&rois, 0)?;
        let (scores, deltas) = self.bbox.forward(&self.bbox_extractor.forward(levels, &rois)?)?;
        let scores = Download::start(&scores.f_softmax(1, Kind::Float)?)?;
        let deltas = Download::start(&deltas.f_to_kind(Kind::Float)?)?;
        let scores = scores.finish()?.f_split_with_sizes(&counts[..], 0)?;
        let deltas = deltas.finish()?.f_split_with_sizes(&counts[..], 0)?;
        let rois = rois.f_split_with_sizes(&counts[..], 0)?;
        let answers = rois.into_iter().zip(scores).zip(deltas);
        Ok(answers.map(|((rois, scores), deltas)| Answers { rois, scores, deltas }).collect())
    }

    /// Boxes in the original image, scores and labels of one image, best first; all on the host.
    pub fn best_of_image(&self, rois: &Tensor, scores: &Tensor, deltas: &Tensor, meta: &ImageMeta) -> Result<Best> {
        let classes = self.classes as i64;
        // Row by row, classes in order: the order of equal scores is part of MMDetection's rule.
        let found = scores.f_narrow(1, 0, classes)?.f_gt(self.config.score_threshold)?.f_nonzero()?;
        let (rows, labels) = (found.f_select(1, 0)?, found.f_select(1, 1)?);
        let pair = |columns: i64| -> Result<Tensor> { Ok(rows.f_mul_scalar(columns)?.f_add(&labels)?) };
        let scores = scores.f_reshape([-1])?.f_index_select(0, &pair(classes + 1)?)?;
        let (count, _) = deltas.size2()?;
        let deltas = deltas.f_reshape([count * classes, 4])?.f_index_select(0, &pair(classes)?)?;
        let sources = rois.f_narrow(1, 1, 4)?.f_index_select(0, &rows)?;
        let (height, width) = (meta.image_size.0 as f32, meta.image_size.1 as f32);
        let limits = Tensor::f_from_slice(&[width, height, width, height])?;
        let boxes = decode(&sources, &deltas, Some(&self.config.bbox_target_stds), Some(&limits))?;
        let boxes = boxes.f_div(&Tensor::f_from_slice(&meta.scale_factor)?)?;
        self.best(&boxes, &scores, &labels)
    }

    /// The boxes (`[k, classes, 4]`) of every class that the proposals of one image become, in pixels of the network's image.
    pub(super) fn boxes_of_all_classes(&self, answers: &Answers, meta: &ImageMeta) -> Result<Tensor> {
        let (count, _) = answers.deltas.size2()?;
        let deltas = answers.deltas.f_reshape([count, self.classes as i64, 4])?;
        let (height, width) = (meta.image_size.0 as f32, meta.image_size.1 as f32);
        let limits = Tensor::f_from_slice(&[width, height, width, height])?;
        let sources = answers.rois.f_narrow(1, 1, 4)?.f_unsqueeze(1)?;
        decode(&sources, &deltas, Some(&self.config.bbox_target_stds), Some(&limits))
    }

    /// [`RoiHead::best_of_image`] of boxes (`[k, classes, 4]`) in the original image and scores (`[k, classes + 1]`).
    pub(super) fn best_of_all_classes(&self, boxes: &Tensor, scores: &Tensor) -> Result<Best> {
        let classes = self.classes as i64;
        let found = scores.f_narrow(1, 0, classes)?.f_gt(self.config.score_threshold)?.f_nonzero()?;
        let (rows, labels) = (found.f_select(1, 0)?, found.f_select(1, 1)?);
        let own = |of: &Tensor, columns: i64| {
            let places = rows.f_mul_scalar(columns)?.f_add(&labels)?;
            of.f_flatten(0, 1)?.f_index_select(0, &places)
        };
        self.best(&own(boxes, classes)?, &own(scores, classes + 1)?, &labels)
    }

    /// The best boxes that do not overlap a better one of their class, best first.
    fn best(&self, boxes: &Tensor, scores: &Tensor, labels: &Tensor) -> Result<Best> {
        let kept = batched_nms(boxes, scores, labels, self.config.nms_iou)?;
        let kept = kept.f_narrow(0, 0, kept.size1()?.min(self.config.max_per_image as i64))?;
        Ok(Best {
            boxes: boxes.f_index_select(0, &kept)?,
            scores: scores.f_index_select(0, &kept)?,
            labels: labels.f_index_select(0, &kept)?,
        })
    }

    /// `[k, s, s]` on the host: the mask probabilities of the detections of all images, one image after the other, in the
    /// images that `metas` describe. `None` without a mask head.
    pub(super) fn mask_probabilities(
        &self,
        levels: &[Tensor],
        kept: &[Best],
        metas: &[ImageMeta],
    ) -> Result<Option<Tensor>> {
        let Some(head) = &self.mask else { return Ok(None) };
        let device = levels.first().map_or(Device::Cpu, Tensor::device);
        let mut rois = Vec::with_capacity(kept.len());
        for (image, (best, meta)) in (0_i64..).zip(kept.iter().zip(metas)) {
            rois.push(with_image(image, &to_view(&best.boxes, meta)?)?);
        }
        let labels: Vec<&Tensor> = kept.iter().map(|best| &best.labels).collect();
        let labels = upload(&Tensor::f_cat(&labels, 0)?, device)?;
        let features = self.mask_extractor.forward(levels, &Tensor::f_cat(&rois, 0)?)?;
        let logits = head.forward(&features, &labels)?;
        Ok(Some(Download::start(&logits.f_to_kind(Kind::Float)?.f_sigmoid()?)?.finish()?))
    }

    /// Each image's detections with their part of `masks`.
    pub(super) fn with_masks(&self, kept: Vec<Best>, masks: Option<&Tensor>) -> Result<Vec<Detections>> {
        let mut start = 0;
        kept.into_iter()
            .map(|Best { boxes, scores, labels }| {
                let count = scores.size1()?;
                let masks = masks.map(|masks| masks.f_narrow(0, start, count)).transpose()?;
                start += count;
                Ok(Detections { boxes, scores, labels, masks })
            })
            .collect()
    }
}

/// What the box head says of the proposals of one image, on the host.
pub(super) struct Answers {
    /// `[k, 5]`: image index and box.
    pub rois: Tensor,
    /// `[k, classes + 1]`: probabilities, background last.
    pub scores: Tensor,
    /// `[k, 4 * classes]`.
    pub deltas: Tensor,
}

/// Detections without masks.
pub struct Best {
    /// `[k, 4]`, in pixels of the network's image.
    pub boxes: Tensor,
    /// `[k]`, best first.
    pub scores: Tensor,
    /// `[k]`, class of each.
    pub labels: Tensor,
}

/// RoIs of `boxes` (`[k, 4]`) in `image`.
fn with_image(image: i64, boxes: &Tensor) -> Result<Tensor> {
    let column = Tensor::f_full([boxes.size2()?.0, 1], image, (Kind::Float, boxes.device()))?;
    Ok(Tensor::f_cat(&[&column, boxes], 1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_in_another_order_says_the_same_of_each_roi() {
        let roi = |row: usize| [row as f32; 5];
        let sample = RoiSample {
            rois: (0..5).map(roi).collect(),
            labels: vec![7, 2, 9, 9, 5],
            positives: vec![0, 1, 4],
            objects: vec![3, 0, 1],
            deltas: vec![[0.0; 4], [1.0; 4], [4.0; 4]],
        };
        let expected = RoiSample {
            rois: [4, 2, 0, 3, 1].map(roi).to_vec(),
            labels: vec![5, 9, 7, 9, 2],
            positives: vec![0, 2, 4],
            objects: vec![1, 3, 0],
            deltas: vec![[4.0; 4], [0.0; 4], [1.0; 4]],
        };
        assert_eq!(sample.in_order(&[4, 2, 0, 3, 1]), expected);
        assert_eq!(expected.in_order(&[2, 4, 1, 3, 0]), sample);
    }
}
