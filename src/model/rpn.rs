//! The region proposal network (Ren et al., 2015): which anchors hold an object, and where exactly.

mod chosen;

use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use super::Parameters;
use super::anchors::{AnchorCache, AnchorGenerator, Anchors, Size};
use super::assign::{Assigned, assign};
use super::boxes::{BoxColumns, decode, encode};
use super::init::Init;
use super::layers::{Conv2d, ConvShape};
use super::losses;
use super::nms::batched_nms;
use super::ops;
use super::sample::{Choice, Sampled, sample};
use crate::config;
use crate::data::{ImageMeta, Target};
use crate::error::{Error, Result};
use chosen::Chosen;

/// Normal with this deviation is where the head's convolutions start.
const INIT: Init = Init::Normal(0.01);

/// The head and its rules.
#[derive(Debug)]
pub(crate) struct Rpn {
    conv: Conv2d,
    cls: Conv2d,
    reg: Conv2d,
    config: config::Rpn,
    generator: AnchorGenerator,
    cache: Mutex<AnchorCache>,
}

/// What the head says of every anchor, in the order of [`AnchorGenerator::boxes`].
#[derive(Debug)]
pub(crate) struct RpnOutput {
    /// Per level, `[images, anchors]`: logit of holding an object.
    pub(crate) logits: Vec<Tensor>,
    /// Per level, `[images, anchors, 4]`: deltas from the anchor to the object.
    pub(crate) deltas: Vec<Tensor>,
    /// The anchors.
    pub(crate) anchors: Arc<Anchors>,
}

/// The anchors of one image that enter the loss.
#[derive(Debug)]
pub(crate) struct ImageSample {
    /// Indices among all anchors.
    pub(crate) sampled: Sampled,
    /// Deltas from each positive anchor to its object.
    pub(crate) deltas: Vec<[f32; 4]>,
}

impl Rpn {
    pub(crate) fn new(parameters: &mut Parameters, prefix: &str, inputs: i64, config: &config::Rpn) -> Result<Self> {
        let generator = AnchorGenerator::new(config);
        let (width, anchors) = (config.feat_channels as i64, generator.per_place() as i64);
        let mut conv = |name: &str, shape| Conv2d::new(parameters, &format!("{prefix}.{name}"), shape, INIT);
        Ok(Self {
            conv: conv("rpn_conv", ConvShape::same(inputs, width, 3, true))?,
            cls: conv("rpn_cls", ConvShape::same(width, anchors, 1, true))?,
            reg: conv("rpn_reg", ConvShape::same(width, 4 * anchors, 1, true))?,
            config: config.clone(),
            generator,
            cache: Mutex::default(),
        })
    }

    /// `levels`: `[n, c, h, w]` of each pyramid level.
    pub(crate) fn forward(&self, levels: &[Tensor]) -> Result<RpnOutput> {
        let mut logits = Vec::with_capacity(levels.len());
        let mut deltas = Vec::with_capacity(levels.len());
        let mut sizes = Vec::with_capacity(levels.len());
        for level in levels {
            let (images, _, height, width) = level.size4()?;
            let hidden = self.conv.forward(level)?.f_relu_()?;
            // Channels-last memory already has the order (row, column, anchor): no values move.
            let last = |x: Tensor| -> Result<Tensor> { Ok(x.f_permute([0, 2, 3, 1])?) };
            let anchors = height * width * self.generator.per_place() as i64;
            logits.push(last(self.cls.forward(&hidden)?)?.f_reshape([images, anchors])?);
            deltas.push(last(self.reg.forward(&hidden)?)?.f_reshape([images, anchors, 4])?);
            sizes.push((height as usize, width as usize));
        }
        Ok(RpnOutput { logits, deltas, anchors: self.anchors(&sizes)? })
    }

    pub(crate) fn anchors(&self, sizes: &[Size]) -> Result<Arc<Anchors>> {
        if sizes.len() != self.config.anchor_strides.len() {
            return Err(Error::usage(format!(
                "model.rpn.anchor_strides has {} entries: {} are expected, one for each level of the pyramid \
                 (model.neck.num_outs)",
                self.config.anchor_strides.len(),
                sizes.len()
            )));
        }
        // The cache holds complete sets only, whatever a panicking thread was doing.
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(cache.get(&self.generator, sizes))
    }

    /// Indices of the anchors that lie in an image of `padded` pixels.
    #[cfg(test)]
    pub(crate) fn valid(&self, anchors: &Anchors, padded: Size) -> Vec<u32> {
        self.generator.valid(&anchors.levels, padded)
    }

    /// Chooses the anchors that enter the loss. Runs on the CPU: a few values per anchor and object.
    pub(crate) fn sample(
        &self,
        anchors: &Anchors,
        metas: &[ImageMeta],
        targets: &[Target],
        choice: &mut dyn Choice,
    ) -> Vec<ImageSample> {
        let (generator, rule) = (&self.generator, &self.config.assigner);
        let assigned: Vec<(Option<Vec<u32>>, Vec<Assigned>)> = metas
            .par_iter()
            .zip(targets)
            .map(|(meta, target)| assign_image(anchors, generator, rule, meta.padded_size, &target.boxes))
            .collect();
        // One image after the other: the order of the draws is part of the reference's rule.
        let samples = assigned.iter().zip(targets);
        samples
            .map(|((valid, assigned), target)| self.sample_image(anchors, valid.as_deref(), assigned, target, choice))
            .collect()
    }

    fn sample_image(
        &self,
        anchors: &Anchors,
        valid: Option<&[u32]>,
        assigned: &[Assigned],
        target: &Target,
        choice: &mut dyn Choice,
    ) -> ImageSample {
        let mut sampled = sample(assigned, &self.config.sampler, choice);
        let objects: Vec<usize> = sampled.positive.iter().map(|&index| (assigned[index] - 1) as usize).collect();
        if let Some(valid) = valid {
            for index in sampled.positive.iter_mut().chain(&mut sampled.negative) {
                *index = valid[*index] as usize;
            }
        }
        let deltas = sampled
            .positive
            .iter()
            .zip(&objects)
            .map(|(&anchor, &object)| encode(&anchors.boxes[anchor], &target.boxes[object], &[1.0; 4]))
            .collect();
        ImageSample { sampled, deltas }
    }

    /// Objectness and box loss, from the levels of the pyramid. Anchors that were not chosen have weight 0 in the
    /// reference's sums; here the head is computed at the chosen ones, which gives the same sums.
    pub(crate) fn loss(
        &self,
        levels: &[Tensor],
        anchors: &Anchors,
        samples: &[ImageSample],
    ) -> Result<(Tensor, Tensor)> {
        let (mut chosen, mut positive, mut objectness, mut deltas) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut count = 0;
        for (image, ImageSample { sampled, deltas: image_deltas }) in samples.iter().enumerate() {
            let first = chosen.len() as i64;
            positive.extend(first..first + sampled.positive.len() as i64);
            let all = sampled.positive.iter().chain(&sampled.negative);
            chosen.extend(all.map(|&anchor| Chosen { image, anchor }));
            objectness.extend(std::iter::repeat_n(1.0_f32, sampled.positive.len()));
            objectness.extend(std::iter::repeat_n(0.0_f32, sampled.negative.len()));
            deltas.extend(image_deltas.iter().flatten().copied());
            count += sampled.positive.len().max(1) + sampled.negative.len().max(1);
        }
        let answers = self.at(levels, anchors, &chosen)?;
        let device = answers.logits.device();
        let positive = ops::upload(&Tensor::f_from_slice(&positive)?, device)?;
        let objectness = ops::upload(&Tensor::f_from_slice(&objectness)?, device)?;
        let deltas = Tensor::f_from_slice(&deltas)?.f_reshape([positive.size1()?, 4])?;
        let deltas = ops::upload(&deltas, device)?;
        Ok((
            losses::binary_cross_entropy(&answers.logits, &objectness, count)?,
            losses::l1(&answers.deltas.f_index_select(0, &positive)?, &deltas, count)?,
        ))
    }

    /// The best boxes of every image as `[k, 5]` (box and score, best first), without gradient. `nms_pre` is the number
    /// of anchors of each level that may become a proposal. On CUDA this waits for the device twice per image: where
    /// boxes without extent are dropped, and inside the suppression.
    pub(crate) fn proposals(&self, output: &RpnOutput, metas: &[ImageMeta], nms_pre: usize) -> Result<Vec<Tensor>> {
        let _guard = tch::no_grad_guard();
        let on_host = output.logits.first().is_none_or(|logits| logits.device() == Device::Cpu);
        // Sorting all anchors of a level to keep a few of them takes longer on a CPU than the whole rest of this stage.
        let best_of_rows = if on_host { best_by_selection } else { best_by_sort };
        let candidates = self.candidates(output, metas, nms_pre, best_of_rows)?;
        (0..metas.len() as i64)
            .map(|image| {
                let boxes = candidates.boxes.f_select(0, image)?;
                let scores = candidates.scores.f_select(0, image)?;
                self.suppress(&boxes, &scores, &candidates.levels)
            })
            .collect()
    }

    /// The best anchors of every level, refined and clipped.
    fn candidates(
        &self,
        output: &RpnOutput,
        metas: &[ImageMeta],
        nms_pre: usize,
        best_of_rows: BestOfRows,
    ) -> Result<Candidates> {
        let (mut scores, mut deltas, mut sources, mut levels) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let device = output.logits.first().map_or(Device::Cpu, Tensor::device);
        let images = metas.len() as i64;
        let all = Tensor::f_from_slice(output.anchors.boxes.as_flattened())?.f_reshape([-1, 4])?;
        let all = ops::upload(&all, device)?;
        let mut start = 0;
        for (level, (logits, level_deltas)) in (0_i64..).zip(output.logits.iter().zip(&output.deltas)) {
            let (_, count) = logits.size2()?;
            let anchors = all.f_narrow(0, start, count)?;
            start += count;
            let level_scores = logits.f_detach()?.f_to_kind(Kind::Float)?.f_sigmoid()?;
            let level_deltas = level_deltas.f_detach()?.f_to_kind(Kind::Float)?;
            let kept = count.min(nms_pre as i64);
            if kept < count {
                let (best, order) = best_of_rows(&level_scores, kept)?;
                let places = order.f_unsqueeze(-1)?.f_expand([images, kept, 4], false)?;
                deltas.push(level_deltas.f_gather(1, &places, false)?);
                sources.push(anchors.f_index_select(0, &order.f_reshape([-1])?)?.f_reshape([images, kept, 4])?);
                scores.push(best);
            } else {
                deltas.push(level_deltas);
                sources.push(anchors.f_unsqueeze(0)?.f_expand([images, count, 4], false)?);
                scores.push(level_scores);
            }
            levels.push(Tensor::f_full([kept], level, (Kind::Int64, device))?);
        }
        let limits: Vec<f32> = metas
            .iter()
            .flat_map(|meta| {
                let (height, width) = (meta.image_size.0 as f32, meta.image_size.1 as f32);
                [width, height, width, height]
            })
            .collect();
        let limits = ops::upload(&Tensor::f_from_slice(&limits)?.f_reshape([images, 1, 4])?, device)?;
        let boxes = decode(&Tensor::f_cat(&sources, 1)?, &Tensor::f_cat(&deltas, 1)?, None, Some(&limits))?;
        Ok(Candidates { boxes, scores: Tensor::f_cat(&scores, 1)?, levels: Tensor::f_cat(&levels, 0)? })
    }

    fn suppress(&self, boxes: &Tensor, scores: &Tensor, levels: &Tensor) -> Result<Tensor> {
        let extent = boxes.f_narrow(1, 2, 2)?.f_sub(&boxes.f_narrow(1, 0, 2)?)?;
        let sound = extent.f_gt(self.config.min_box_size)?.f_all_dim(1, false)?.f_nonzero()?.f_reshape([-1])?;
        let pick = |x: &Tensor| x.f_index_select(0, &sound);
        let (boxes, scores, levels) = (pick(boxes)?, pick(scores)?, pick(levels)?);
        let kept = batched_nms(&boxes, &scores, &levels, self.config.nms_iou)?;
        let count = kept.size1()?.min(self.config.max_per_image as i64);
        let kept = kept.f_narrow(0, 0, count)?;
        let scores = scores.f_index_select(0, &kept)?.f_unsqueeze(1)?;
        Ok(Tensor::f_cat(&[boxes.f_index_select(0, &kept)?, scores], 1)?)
    }
}

/// The valid anchors (all, if `None`) and what each stands for.
fn assign_image(
    anchors: &Anchors,
    generator: &AnchorGenerator,
    rule: &config::Assigner,
    padded: Size,
    objects: &[[f32; 4]],
) -> (Option<Vec<u32>>, Vec<Assigned>) {
    let valid = generator.valid(&anchors.levels, padded);
    if valid.len() == anchors.boxes.len() {
        return (None, assign(&anchors.columns, objects, rule));
    }
    let columns: BoxColumns = valid.iter().map(|&index| &anchors.boxes[index as usize]).collect();
    let assigned = assign(&columns, objects, rule);
    (Some(valid), assigned)
}

/// What may become a proposal, for all images.
struct Candidates {
    /// `[images, n, 4]`.
    boxes: Tensor,
    /// `[images, n]`.
    scores: Tensor,
    /// `[n]`: the pyramid level.
    levels: Tensor,
}

/// The maximum `count` values of every row in descending order, and their places; equal values keep their order. Neither
/// result need be contiguous.
type BestOfRows = fn(values: &Tensor, count: i64) -> Result<(Tensor, Tensor)>;

/// [`BestOfRows`] without a wait for the device.
fn best_by_sort(values: &Tensor, count: i64) -> Result<(Tensor, Tensor)> {
    let (values, places) = values.f_sort_stable(true, 1, true)?;
    Ok((values.f_narrow(1, 0, count)?, places.f_narrow(1, 0, count)?))
}

/// [`BestOfRows`] on the CPU, without a sort of the whole row.
fn best_by_selection(values: &Tensor, count: i64) -> Result<(Tensor, Tensor)> {
    let (rows, columns) = values.size2()?;
    let flat = Vec::<f32>::try_from(values.f_reshape([-1])?)?;
    let kept = count as usize;
    let places: Vec<Vec<i64>> = flat.par_chunks(columns.max(1) as usize).map(|row| best_places(row, kept)).collect();
    let places = Tensor::f_from_slice(&places.concat())?.f_reshape([rows, count])?;
    Ok((values.f_gather(1, &places, false)?, places))
}

fn best_places(row: &[f32], count: usize) -> Vec<i64> {
    let falling = |&a: &u32, &b: &u32| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b));
    let mut places: Vec<u32> = (0..row.len() as u32).collect();
    if count < places.len() {
        places.select_nth_unstable_by(count, falling);
        places.truncate(count);
    }
    places.sort_unstable_by(falling);
    places.into_iter().map(i64::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::sample::First;
    use proptest::prelude::*;

    /// The same values with a gap after each one.
    fn strided(tensor: &Tensor) -> Tensor {
        let wide: Vec<i64> = tensor.size().iter().map(|size| 2 * size).collect();
        let mut apart = Tensor::full(&wide, 7, (tensor.kind(), tensor.device()));
        for dimension in 0..tensor.dim() as i64 {
            apart = apart.slice(dimension, None, None, 2);
        }
        apart.copy_(tensor);
        assert!(!apart.is_contiguous());
        apart
    }

    #[test]
    fn several_images_get_the_same_proposals_from_strided_tensors_and_by_either_search() {
        let config = config::Rpn { feat_channels: 8, anchor_strides: vec![4, 8], ..config::Rpn::default() };
        let mut parameters = Parameters::new();
        let rpn = Rpn::new(&mut parameters, "rpn_head", 6, &config).unwrap();
        parameters.initialise(3).unwrap();
        let levels = [(16, 24), (8, 12)].map(|(h, w)| Tensor::randn([3, 6, h, w], (Kind::Float, Device::Cpu)));
        let mut dense = rpn.forward(&levels).unwrap();
        // So far from each other that no way of rounding changes their order.
        for logits in &mut dense.logits {
            let count = logits.numel() as i64;
            *logits = Tensor::randperm(count, (Kind::Float, Device::Cpu)).reshape(logits.size()) * 0.002 - 3.0;
        }
        let apart = RpnOutput {
            logits: dense.logits.iter().map(strided).collect(),
            deltas: dense.deltas.iter().map(strided).collect(),
            anchors: Arc::clone(&dense.anchors),
        };
        let meta = ImageMeta {
            image_id: 1,
            file_name: String::new(),
            original_size: (64, 96),
            image_size: (64, 96),
            padded_size: (64, 96),
            scale_factor: [1.0; 4],
            flipped: false,
        };
        let metas = [meta.clone(), meta.clone(), meta];
        let expected = rpn.candidates(&dense, &metas, 50, best_by_selection).unwrap();
        for output in [&dense, &apart] {
            for best_of_rows in [best_by_selection, best_by_sort] {
                let found = rpn.candidates(output, &metas, 50, best_of_rows).unwrap();
                assert_eq!(found.boxes, expected.boxes);
                // The sigmoid of strided values rounds in another way.
                assert!(found.scores.allclose(&expected.scores, 1e-6, 0.0, false));
                for image in 0..3 {
                    let (boxes, scores) = (found.boxes.select(0, image), found.scores.select(0, image));
                    let proposals = rpn.suppress(&boxes, &scores, &found.levels).unwrap();
                    let apart = rpn.suppress(&strided(&boxes), &strided(&scores), &strided(&found.levels)).unwrap();
                    assert!(proposals.size()[0] > 1 && proposals == apart);
                }
            }
        }
        // The loss takes the levels in any layout too.
        let target = Target { boxes: vec![[8.0, 8.0, 40.0, 40.0]], labels: vec![0], masks: Vec::new() };
        let samples = rpn.sample(&dense.anchors, &metas, &vec![target; 3], &mut First);
        let (cls, boxes) = rpn.loss(&levels, &dense.anchors, &samples).unwrap();
        let (strided_cls, strided_boxes) = rpn.loss(&levels.each_ref().map(strided), &dense.anchors, &samples).unwrap();
        assert_eq!((cls, boxes), (strided_cls, strided_boxes));
    }

    proptest! {
        #[test]
        fn the_best_of_a_row_are_those_of_a_stable_sort(
            row in prop::collection::vec((0u8..20).prop_map(|v| f32::from(v) / 20.0), 1..200),
            share in 0.0..1.0f64,
        ) {
            let count = (row.len() as f64 * share) as usize;
            let (_, order) = Tensor::from_slice(&row).sort_stable(true, 0, true);
            prop_assert_eq!(best_places(&row, count), &Vec::<i64>::try_from(order).unwrap()[..count]);
        }
    }
}
