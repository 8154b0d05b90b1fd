//! The whole detector.

use tch::{Device, Kind, Tensor};
use torch_ext::autocast;

use fnet_common::{Error, Result};
use fnet_config::{self as config, Amp};
use fnet_data::{Batch, ImageMeta, Images, Target};

use super::backbones::{self, Backbone};
use super::fpn::Fpn;
use super::layers::{Statistics, SumOverRanks};
use super::losses::Losses;
use super::pack::{Pack, upload};
use super::roi_head::RoiHead;
use super::rpn::Rpn;
use super::sample::StepRandom;
use super::{Detections, Parameters};

/// Mask R-CNN (He et al., 2017) with a backbone and a feature pyramid, or without masks Faster R-CNN (Ren et al., 2015).
pub struct MaskRcnn {
    /// Features of four strides.
    pub backbone: Box<dyn Backbone>,
    /// The feature pyramid.
    pub neck: Fpn,
    /// Region proposals.
    pub rpn: Rpn,
    /// Box head, and mask head if the model has masks.
    pub roi_head: RoiHead,
    /// Proposals of a level that enter suppression at inference.
    pub nms_pre: usize,
    /// The same in training.
    pub train_nms_pre: usize,
    batch_statistics: bool,
    sum_over_ranks: Option<SumOverRanks>,
    device: Device,
}

impl std::fmt::Debug for MaskRcnn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MaskRcnn").field("device", &self.device).finish_non_exhaustive()
    }
}

impl MaskRcnn {
    /// Builds the model on `device` and fills `parameters` with its tensors, whose initial values follow from `seed`
    /// alone. What `parameters` held before is dropped.
    /// Errors: a usage error if the config's parts do not fit together; else if libtorch fails (memory).
    pub fn new(config: &config::Model, parameters: &mut Parameters, device: Device, seed: u64) -> Result<Self> {
        let model = Self::build(config, parameters, device)?;
        parameters.initialize(seed)?;
        Ok(model)
    }

    /// The model with zeros for values, to be filled from a checkpoint.
    pub fn build(config: &config::Model, parameters: &mut Parameters, device: Device) -> Result<Self> {
        check(config)?;
        parameters.reset(device);
        let backbone = backbones::find(&config.backbone.kind)?;
        let channels = (backbone.channels)(&config.backbone);
        let mut model = Self {
            backbone: (backbone.build)(parameters, "backbone", &config.backbone)?,
            neck: Fpn::new(parameters, "neck", &channels, &config.neck)?,
            rpn: Rpn::new(parameters, "rpn_head", config.neck.out_channels as i64, &config.rpn)?,
            roi_head: RoiHead::new(parameters, "roi_head", config)?,
            nms_pre: config.rpn.nms_pre,
            train_nms_pre: config.rpn.train_nms_pre,
            batch_statistics: !config.norm_eval,
            sum_over_ranks: None,
            device,
        };
        if let Ok(stages) = usize::try_from(config.frozen_stages) {
            parameters.freeze(|name| is_frozen(config, name))?;
            model.backbone.freeze(stages)?;
        }
        Ok(model)
    }

    /// Normalizes by all ranks' batches together (`model.sync_bn`): `sum` adds a tensor over the ranks, differentiably.
    pub fn synchronize_batch_norm(&mut self, sum: SumOverRanks) {
        self.sum_over_ranks = Some(sum);
    }

    /// Puts BatchNorm into the convolutions before it, for faster inference; the named parameters stay as they are, and
    /// later changes of theirs no longer reach the model. It cannot be trained afterwards.
    pub fn fuse_conv_bn(&mut self) -> Result<()> {
        self.backbone.fuse()
    }

    /// Automatic mixed precision on this thread: until the guard is dropped, convolutions and matrix products compute as
    /// `amp` says.
    pub fn autocast(&self, amp: Amp) -> Result<Option<autocast::Guard>> {
        let kind = match amp {
            Amp::Off => return Ok(None),
            Amp::Bf16 => Kind::BFloat16,
            Amp::Fp16 => Kind::Half,
        };
        Ok(Some(autocast::Guard::new(self.device, kind)?))
    }

    fn statistics(&self) -> Statistics<'_> {
        match (self.batch_statistics, &self.sum_over_ranks) {
            (false, _) => Statistics::Running,
            (true, Some(sum)) => Statistics::Synchronized(sum),
            (true, None) => Statistics::Batch,
        }
    }

    /// The losses of one step. Every parameter takes part in each, whatever the images hold: without positives a head's
    /// loss is 0 and its gradients are zeros, so that no rank waits for a gradient of another in vain.
    /// Errors: a usage error if the config cannot be trained, a bug if the batch's parts differ in length, else if
    /// libtorch fails (memory).
    pub fn forward_train(&self, batch: &Batch, random: &mut StepRandom) -> Result<Losses> {
        self.backbone.check_trainable()?;
        self.check_batch(&batch.images, batch.metas.len(), Some(&batch.targets))?;
        let (count, size) = batch.images.size()?;
        // What the host knows beforehand: the device gets it in one copy.
        let mut pack = Pack::default();
        let drop_path = pack.list(&self.backbone.draw_factors(&mut random.drop_path, count));
        let sizes = self.backbone.output_sizes(size);
        let anchors = self.rpn.anchors(&self.neck.level_sizes(sizes))?;
        let chosen = self.rpn.sample(&anchors, &batch.metas, &batch.targets, random.choice.as_mut());
        let chosen = self.rpn.tabulate(&anchors, &chosen, self.device, &mut pack);
        let sent = pack.send(self.device)?;

        let levels = self.training_levels(&batch.images, &sent.table(&drop_path)?)?;
        // The loss computes the head anew where it needs gradients.
        let joined = self.rpn.head.joined()?;
        let rpn = tch::no_grad(|| self.rpn.forward_by(&levels, joined.as_ref()))?;
        if rpn.anchors.levels != anchors.levels {
            let message = format!("levels of {:?} in place of {:?}", rpn.anchors.levels, anchors.levels);
            return Err(Error::bug(message));
        }
        let candidates = self.rpn.start_proposals(&rpn, self.train_nms_pre)?;
        // Before the wait for the candidates, so that the device has something to do meanwhile.
        let (rpn_cls, rpn_bbox) = self.rpn.loss_by(&levels, &chosen, joined.as_ref(), &sent)?;
        let proposals = self.rpn.finish_proposals(candidates, &batch.metas)?;
        let sample = self.roi_head.sample(&proposals, &batch.targets, random.choice.as_mut())?;
        let roi = self.roi_head.loss(&levels, &sample, &batch.targets)?;
        let losses = [rpn_cls, rpn_bbox, roi.bbox.cls, roi.bbox.bbox];
        Losses::new(losses, roi.mask, roi.bbox.acc, sample.positives.len(), sample.rois.len())
    }

    /// The proposals that [`MaskRcnn::forward_train`] would choose from with the same `random`: `[k, 5]` (box in pixels
    /// and score, best first, on the host) for each of `images`, without gradient.
    /// Errors: a bug if there is not one meta per image, else if libtorch fails (memory).
    pub fn training_proposals(
        &self,
        images: &Images,
        metas: &[ImageMeta],
        random: &mut StepRandom,
    ) -> Result<Vec<Tensor>> {
        let _guard = tch::no_grad_guard();
        self.check_batch(images, metas.len(), None)?;
        let factors = self.backbone.draw_factors(&mut random.drop_path, metas.len());
        let factors = upload(&Tensor::f_from_slice(&factors)?, self.device)?;
        let rpn = self.rpn.forward(&self.training_levels(images, &factors)?)?;
        self.rpn.proposals(&rpn, metas, self.train_nms_pre)
    }

    /// The pyramid's levels in training.
    fn training_levels(&self, images: &Images, drop_path: &Tensor) -> Result<Vec<Tensor>> {
        let images = images.values(self.device)?;
        let features = self.backbone.forward(&images, self.statistics(), Some(drop_path))?;
        self.neck.forward(&features)
    }

    /// What is found in each of `images`, without gradient and with the running
    /// statistics.
    /// Errors: a bug if there is not one meta per image, else if libtorch fails (memory).
    pub fn predict(&self, images: &Images, metas: &[ImageMeta]) -> Result<Vec<Detections>> {
        let _guard = tch::no_grad_guard();
        let levels = self.levels(images, metas.len())?;
        let rpn = self.rpn.forward(&levels)?;
        let proposals = self.rpn.proposals(&rpn, metas, self.nms_pre)?;
        self.roi_head.predict(&levels, &proposals, metas)
    }

    /// The pyramid's levels at inference.
    pub(super) fn levels(&self, images: &Images, metas: usize) -> Result<Vec<Tensor>> {
        self.check_batch(images, metas, None)?;
        let images = images.values(self.device)?;
        let features = self.backbone.forward(&images, Statistics::Running, None)?;
        self.neck.forward(&features)
    }

    /// Where its tensors are.
    pub(super) fn device(&self) -> Device {
        self.device
    }

    fn check_batch(&self, images: &Images, metas: usize, targets: Option<&[Target]>) -> Result<()> {
        let (count, _) = images.size()?;
        let targets = targets.map_or(count, <[Target]>::len);
        if metas == count && targets == count {
            return Ok(());
        }
        Err(Error::bug(format!("a batch of {count} images came with {metas} metas and {targets} targets")))
    }
}

/// Whether `model.frozen_stages` excludes the tensor `name` from training.
pub fn is_frozen(config: &config::Model, name: &str) -> bool {
    let Ok(kind) = backbones::find(&config.backbone.kind) else { return false };
    let stage = name.strip_prefix("backbone.").and_then(kind.stage_of);
    stage.is_some_and(|stage| stage as i64 <= config.frozen_stages)
}

/// Refuses what would fail inside with a message that names no field.
fn check(config: &config::Model) -> Result<()> {
    let positive = [
        ("num_classes", config.num_classes),
        ("neck.out_channels", config.neck.out_channels),
        ("roi_head.bbox_roi_size", config.roi_head.bbox_roi_size),
        ("roi_head.mask_roi_size", config.roi_head.mask_roi_size),
    ];
    if let Some((field, _)) = positive.iter().find(|(_, value)| *value == 0) {
        return Err(Error::usage(format!("model.{field} is 0: a positive number is expected")));
    }
    (backbones::find(&config.backbone.kind)?.check)(&config.backbone)?;
    if config.rpn.anchor_strides.len() != config.neck.num_outs {
        return Err(Error::usage(format!(
            "model.rpn.anchor_strides has {} entries: {} are expected, one for each level of the pyramid \
             (model.neck.num_outs)",
            config.rpn.anchor_strides.len(),
            config.neck.num_outs
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
