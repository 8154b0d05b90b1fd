//! The heads behind the proposals: sampling, classes, boxes and masks (Ren et al., 2015; He et al., 2017).

use tch::{Device, Kind, Tensor};

use super::Parameters;
use super::assign::assign;
use super::bbox_head::{BboxHead, BboxLosses};
use super::boxes::{decode, encode};
use super::detections::Detections;
use super::mask_head::MaskHead;
use super::nms::batched_nms;
use super::ops;
use super::roi_extract::RoiExtractor;
use super::sample::{Choice, sample};
use crate::config;
use crate::data::{ImageMeta, InstanceMask, Target, mask_targets};
use crate::error::Result;

/// The pyramid levels that RoIs are read from.
const ROI_LEVELS: usize = 4;

/// Box head, mask head, and their rules.
#[derive(Debug)]
pub(crate) struct RoiHead {
    pub(crate) bbox_extractor: RoiExtractor,
    pub(crate) mask_extractor: RoiExtractor,
    pub(crate) bbox: BboxHead,
    pub(crate) mask: MaskHead,
    config: config::RoiHead,
    classes: usize,
}

/// The RoIs of a batch that enter the losses, and what they should become.
#[derive(Debug, Default)]
pub(crate) struct RoiSample {
    /// Image index and box, per image the positives first.
    pub(crate) rois: Vec<[f32; 5]>,
    /// Class of each RoI; the number of classes for background.
    pub(crate) labels: Vec<i64>,
    /// Rows of the positives.
    pub(crate) positives: Vec<i64>,
    /// Index of each positive's object within its image.
    pub(crate) objects: Vec<usize>,
    /// Deltas from each positive to its object.
    pub(crate) deltas: Vec<[f32; 4]>,
}

/// Losses of both heads.
pub(crate) struct RoiLosses {
    pub(crate) bbox: BboxLosses,
    pub(crate) mask: Tensor,
}

impl RoiHead {
    pub(crate) fn new(parameters: &mut Parameters, prefix: &str, model: &config::Model) -> Result<Self> {
        let (config, channels) = (&model.roi_head, model.neck.out_channels as i64);
        let strides = &model.rpn.anchor_strides[..ROI_LEVELS.min(model.rpn.anchor_strides.len())];
        Ok(Self {
            bbox_extractor: RoiExtractor::new(config.finest_scale, strides, config.bbox_roi_size),
            mask_extractor: RoiExtractor::new(config.finest_scale, strides, config.mask_roi_size),
            bbox: BboxHead::new(parameters, &format!("{prefix}.bbox_head"), channels, model)?,
            mask: MaskHead::new(parameters, &format!("{prefix}.mask_head"), channels, model)?,
            config: config.clone(),
            classes: model.num_classes,
        })
    }

    fn stds(&self) -> [f32; 4] {
        self.config.bbox_target_stds.map(|std| std as f32)
    }

    /// Chooses the RoIs of the losses among the proposals (`[k, 5]` per image) and the objects. Runs on the CPU; on
    /// CUDA the one copy of all proposals waits for the device.
    pub(crate) fn sample(
        &self,
        proposals: &[Tensor],
        targets: &[Target],
        choice: &mut dyn Choice,
    ) -> Result<RoiSample> {
        let mut all = RoiSample::default();
        let joined = Tensor::f_cat(proposals, 0)?.f_to_device(Device::Cpu)?;
        let values = Vec::<f32>::try_from(joined.f_reshape([-1])?)?;
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
    pub(crate) fn loss(&self, levels: &[Tensor], sample: &RoiSample, targets: &[Target]) -> Result<RoiLosses> {
        let device = levels.first().map_or(Device::Cpu, Tensor::device);
        let rois = rois_tensor(&sample.rois, device)?;
        let labels = ops::upload(&Tensor::f_from_slice(&sample.labels)?, device)?;
        let positives = ops::upload(&Tensor::f_from_slice(&sample.positives)?, device)?;
        let deltas = Tensor::f_from_slice(sample.deltas.as_flattened())?.f_reshape([sample.deltas.len() as i64, 4])?;
        let (scores, predicted) = self.bbox.forward(&self.bbox_extractor.forward(levels, &rois)?)?;
        let bbox = self.bbox.loss(&scores, &predicted, &labels, &positives, &ops::upload(&deltas, device)?)?;
        let features = self.mask_extractor.forward(levels, &rois.f_index_select(0, &positives)?)?;
        let logits = self.mask.forward(&features, &labels.f_index_select(0, &positives)?)?;
        let mask = MaskHead::loss(&logits, &ops::upload(&self.mask_targets(sample, targets)?, device)?)?;
        Ok(RoiLosses { bbox, mask })
    }

    /// `[p, s, s]` of 0 and 1: each positive RoI's part of its object's mask.
    pub(crate) fn mask_targets(&self, sample: &RoiSample, targets: &[Target]) -> Result<Tensor> {
        let size = 2 * self.config.mask_roi_size;
        let rois = sample.positives.iter().map(|&row| sample.rois[row as usize]);
        let (masks, boxes): (Vec<&InstanceMask>, Vec<[f32; 4]>) = rois
            .zip(&sample.objects)
            .map(|([image, x1, y1, x2, y2], &object)| (&targets[image as usize].masks[object], [x1, y1, x2, y2]))
            .unzip();
        let values = mask_targets(&masks, &boxes, size);
        Ok(Tensor::f_from_slice(&values)?.f_reshape([masks.len() as i64, size as i64, size as i64])?)
    }

    /// Detections of every image, from its proposals (`[k, 5]`).
    pub(crate) fn predict(
        &self,
        levels: &[Tensor],
        proposals: &[Tensor],
        metas: &[ImageMeta],
    ) -> Result<Vec<Detections>> {
        let counts = proposals.iter().map(|boxes| Ok(boxes.size2()?.0)).collect::<Result<Vec<_>>>()?;
        let rois = (0_i64..)
            .zip(proposals)
            .map(|(image, boxes)| with_image(image, &boxes.f_narrow(1, 0, 4)?))
            .collect::<Result<Vec<_>>>()?;
        let rois = Tensor::f_cat(&rois, 0)?;
        let (scores, deltas) = self.bbox.forward(&self.bbox_extractor.forward(levels, &rois)?)?;
        let scores = scores.f_softmax(1, Kind::Float)?.f_split_with_sizes(&counts[..], 0)?;
        let deltas = deltas.f_to_kind(Kind::Float)?.f_split_with_sizes(&counts[..], 0)?;
        let rois = rois.f_split_with_sizes(&counts[..], 0)?;
        let mut kept = Vec::with_capacity(metas.len());
        for (image, meta) in metas.iter().enumerate() {
            kept.push(self.best_of_image(&rois[image], &scores[image], &deltas[image], meta)?);
        }
        self.add_masks(levels, kept, metas)
    }

    /// Boxes in the original image, scores and labels of one image, best first. On CUDA this waits for the device where
    /// the scores are compared with the threshold and inside the suppression.
    pub(crate) fn best_of_image(
        &self,
        rois: &Tensor,
        scores: &Tensor,
        deltas: &Tensor,
        meta: &ImageMeta,
    ) -> Result<Best> {
        let classes = self.classes as i64;
        // Row by row, classes in order: the order of equal scores is part of the reference's rule.
        let found = scores.f_narrow(1, 0, classes)?.f_gt(self.config.score_threshold)?.f_nonzero()?;
        let (rows, labels) = (found.f_select(1, 0)?, found.f_select(1, 1)?);
        let pair = |columns: i64| -> Result<Tensor> { Ok(rows.f_mul_scalar(columns)?.f_add(&labels)?) };
        let scores = scores.f_reshape([-1])?.f_index_select(0, &pair(classes + 1)?)?;
        let (count, _) = deltas.size2()?;
        let deltas = deltas.f_reshape([count * classes, 4])?.f_index_select(0, &pair(classes)?)?;
        let sources = rois.f_narrow(1, 1, 4)?.f_index_select(0, &rows)?;
        let (height, width) = (meta.image_size.0 as f32, meta.image_size.1 as f32);
        let limits = ops::upload(&Tensor::f_from_slice(&[width, height, width, height])?, rois.device())?;
        let boxes = decode(&sources, &deltas, Some(&self.config.bbox_target_stds), Some(&limits))?;
        let boxes = boxes.f_div(&scale_of(meta, rois.device())?)?;
        let kept = batched_nms(&boxes, &scores, &labels, self.config.nms_iou)?;
        let kept = kept.f_narrow(0, 0, kept.size1()?.min(self.config.max_per_image as i64))?;
        Ok(Best {
            boxes: boxes.f_index_select(0, &kept)?,
            scores: scores.f_index_select(0, &kept)?,
            labels: labels.f_index_select(0, &kept)?,
        })
    }

    fn add_masks(&self, levels: &[Tensor], kept: Vec<Best>, metas: &[ImageMeta]) -> Result<Vec<Detections>> {
        let mut rois = Vec::with_capacity(kept.len());
        for (image, (best, meta)) in (0_i64..).zip(kept.iter().zip(metas)) {
            rois.push(with_image(image, &best.boxes.f_mul(&scale_of(meta, best.boxes.device())?)?)?);
        }
        let labels: Vec<&Tensor> = kept.iter().map(|best| &best.labels).collect();
        let features = self.mask_extractor.forward(levels, &Tensor::f_cat(&rois, 0)?)?;
        let logits = self.mask.forward(&features, &Tensor::f_cat(&labels, 0)?)?;
        let masks = logits.f_to_kind(Kind::Float)?.f_sigmoid()?.f_to_device(Device::Cpu)?;
        let mut start = 0;
        kept.into_iter()
            .map(|best| {
                let count = best.scores.size1()?;
                let masks = masks.f_narrow(0, start, count)?;
                start += count;
                Ok(Detections {
                    boxes: best.boxes.f_to_device(Device::Cpu)?,
                    scores: best.scores.f_to_device(Device::Cpu)?,
                    labels: best.labels.f_to_device(Device::Cpu)?,
                    masks,
                })
            })
            .collect()
    }
}

/// Detections without masks, on the device.
pub(crate) struct Best {
    pub(crate) boxes: Tensor,
    pub(crate) scores: Tensor,
    pub(crate) labels: Tensor,
}

/// RoIs `[k, 5]` on `device`.
fn rois_tensor(rois: &[[f32; 5]], device: Device) -> Result<Tensor> {
    ops::upload(&Tensor::f_from_slice(rois.as_flattened())?.f_reshape([rois.len() as i64, 5])?, device)
}

/// RoIs of `boxes` (`[k, 4]`) in `image`.
fn with_image(image: i64, boxes: &Tensor) -> Result<Tensor> {
    let column = Tensor::f_full([boxes.size2()?.0, 1], image, (Kind::Float, boxes.device()))?;
    Ok(Tensor::f_cat(&[&column, boxes], 1)?)
}

/// Resized over original size, `[4]`.
fn scale_of(meta: &ImageMeta, device: Device) -> Result<Tensor> {
    ops::upload(&Tensor::f_from_slice(&meta.scale_factor)?, device)
}
