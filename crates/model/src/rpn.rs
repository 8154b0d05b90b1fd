//! The region proposal network (Ren et al., 2015): which anchors hold an object, and where exactly.

mod chosen;
mod head;

use std::sync::{Arc, Mutex, PoisonError};

use chosen::{Chosen, ChosenTables};
use head::{Head, HeadOutput, JoinedHead};
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};
use torch_ext::cuda::Download;
use torch_ext::ops::nms_of_values;

use fnet_common::{Error, Result};
use fnet_config as config;
use fnet_data::{ImageMeta, Target};

use super::Parameters;
use super::anchors::{AnchorCache, AnchorGenerator, Anchors, Size};
use super::assign::{Assigned, assign};
use super::boxes::{BoxColumns, decode, encode};
use super::losses::{self, Loss};
use super::pack::{Pack, Sent, Table};
use super::sample::{Choice, Sampled, sample};

/// The head and its rules.
#[derive(Debug)]
pub struct Rpn {
    pub(super) head: Head,
    pub(super) config: config::Rpn,
    generator: AnchorGenerator,
    cache: Mutex<AnchorCache>,
}

/// What the head says of every anchor, in the order of [`AnchorGenerator::boxes`].
#[derive(Debug)]
pub struct RpnOutput {
    /// Per level, `[images, anchors]`: logit of holding an object.
    pub logits: Vec<Tensor>,
    /// Per level, `[images, anchors, 4]`: deltas from the anchor to the object.
    pub deltas: Vec<Tensor>,
    /// The anchors.
    pub anchors: Arc<Anchors>,
    /// `[images, anchors]`: the logits of all levels, where they lie in one.
    pub joined: Option<Tensor>,
}

/// The anchors of one image that enter the loss.
#[derive(Debug)]
pub struct ImageSample {
    /// Indices among all anchors.
    pub sampled: Sampled,
    /// Deltas from each positive anchor to its object.
    pub deltas: Vec<[f32; 4]>,
}

/// What the loss needs to know of the chosen anchors, on its way to the device.
pub(super) struct LossTables {
    chosen: ChosenTables,
    objectness: Table,
    deltas: Table,
    count: usize,
}

/// The best anchors of every level, on their way to the host.
pub struct Candidates {
    /// `[images, n]` of 32-bit words: for each level its scores, its deltas and, unless all its anchors are there in their
    /// order, the places of the anchors in the level, as 64-bit numbers.
    rows: Download,
    levels: Vec<LevelCandidates>,
    anchors: Arc<Anchors>,
}

#[derive(Debug, Clone, Copy)]
struct LevelCandidates {
    /// Number of anchors of the finer levels.
    start: usize,
    kept: usize,
    has_places: bool,
}

impl Rpn {
    /// Adds its tensors to `parameters` below `prefix`; `inputs` are the channels of the levels.
    pub fn new(parameters: &mut Parameters, prefix: &str, inputs: i64, config: &config::Rpn) -> Result<Self> {
        let generator = AnchorGenerator::new(config);
        let shapes = (inputs, config.feat_channels as i64, generator.per_place());
        Ok(Self {
            head: Head::new(parameters, prefix, shapes)?,
            config: config.clone(),
            generator,
            cache: Mutex::default(),
        })
    }

    /// `levels`: `[n, c, h, w]` of each pyramid level.
    pub fn forward(&self, levels: &[Tensor]) -> Result<RpnOutput> {
        self.forward_by(levels, self.head.joined()?.as_ref())
    }

    /// The same with the [`Head::joined`].
    pub(super) fn forward_by(&self, levels: &[Tensor], joined: Option<&JoinedHead>) -> Result<RpnOutput> {
        let HeadOutput { logits, deltas, sizes, joined } = match joined {
            Some(joined) => self.head.forward_joined(levels, joined)?,
            None => self.head.forward(levels)?,
        };
        Ok(RpnOutput { logits, deltas, anchors: self.anchors(&sizes)?, joined })
    }

    /// The anchors of levels of these sizes (height, width).
    pub fn anchors(&self, sizes: &[Size]) -> Result<Arc<Anchors>> {
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
    pub fn valid(&self, anchors: &Anchors, padded: Size) -> Vec<u32> {
        self.generator.valid(&anchors.levels, padded)
    }

    /// Chooses the anchors that enter the loss. Runs on the CPU: a few values per anchor and object.
    pub fn sample(
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
        // One image after the other: the order of the draws is part of MMDetection's rule.
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

    /// Objectness and box loss, from the levels of the pyramid. Anchors that were not chosen have weight 0 in
    /// MMDetection's sums; here the head is computed at the chosen ones, which gives the same sums.
    pub fn loss(&self, levels: &[Tensor], anchors: &Anchors, samples: &[ImageSample]) -> Result<(Loss, Loss)> {
        let (device, mut pack) = (levels.first().map_or(Device::Cpu, Tensor::device), Pack::default());
        let tables = self.tabulate(anchors, samples, device, &mut pack);
        self.loss_by(levels, &tables, self.head.joined()?.as_ref(), &pack.send(device)?)
    }

    /// Adds to `pack` what [`Rpn::loss_by`] needs to know of the chosen anchors.
    pub(super) fn tabulate(
        &self,
        anchors: &Anchors,
        samples: &[ImageSample],
        device: Device,
        pack: &mut Pack,
    ) -> LossTables {
        let (mut chosen, mut positive, mut objectness, mut deltas) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut count = 0;
        for (image, ImageSample { sampled, deltas: image_deltas }) in samples.iter().enumerate() {
            positive.extend(chosen.len()..chosen.len() + sampled.positive.len());
            let all = sampled.positive.iter().chain(&sampled.negative);
            chosen.extend(all.map(|&anchor| Chosen { image, anchor }));
            objectness.extend(std::iter::repeat_n(1, sampled.positive.len()));
            objectness.extend(std::iter::repeat_n(0, sampled.negative.len()));
            deltas.extend(image_deltas.iter().flatten().copied());
            count += sampled.positive.len().max(1) + sampled.negative.len().max(1);
        }
        LossTables {
            chosen: self.head.tabulate_chosen((samples.len(), &anchors.levels), &chosen, &positive, device, pack),
            objectness: losses::binary_targets(&objectness, &[objectness.len() as i64], device, pack),
            deltas: pack.add(&deltas, &[positive.len() as i64, 4]),
            count,
        }
    }

    /// Objectness and box loss, from the levels of the pyramid. Anchors that were not chosen have weight 0 in
    /// MMDetection's sums; here the head is computed at the chosen ones, which gives the same sums.
    pub(super) fn loss_by(
        &self,
        levels: &[Tensor],
        tables: &LossTables,
        joined: Option<&JoinedHead>,
        sent: &Sent,
    ) -> Result<(Loss, Loss)> {
        let answers = self.head.at(levels, &tables.chosen, joined, sent)?;
        Ok((
            losses::binary_cross_entropy(&answers.logits, &sent.table(&tables.objectness)?, tables.count)?,
            losses::l1(&answers.deltas, &sent.table(&tables.deltas)?, tables.count)?,
        ))
    }

    /// The best boxes of every image as `[k, 5]` on the host (box and score, best first), without gradient. `nms_pre` is the
    /// number of anchors of each level that may become a proposal.
    pub fn proposals(&self, output: &RpnOutput, metas: &[ImageMeta], nms_pre: usize) -> Result<Vec<Tensor>> {
        self.finish_proposals(self.start_proposals(output, nms_pre)?, metas)
    }

    /// Finds the best anchors of every level and sends them to the host.
    pub fn start_proposals(&self, output: &RpnOutput, nms_pre: usize) -> Result<Candidates> {
        let on_host = output.logits.first().is_none_or(|logits| logits.device() == Device::Cpu);
        // Sorting all anchors of a level to keep a few of them takes longer on a CPU than the whole rest of this stage.
        let best_of_rows = if on_host { best_by_selection } else { best_by_sort };
        candidates(output, nms_pre, best_of_rows)
    }

    /// Waits for the candidates, and makes proposals of them on the host, which needs them there: refined, clipped,
    /// without those of no extent, and without those that overlap a better one of their level. What the device was given
    /// after [`Rpn::start_proposals`] keeps it busy meanwhile.
    pub fn finish_proposals(&self, candidates: Candidates, metas: &[ImageMeta]) -> Result<Vec<Tensor>> {
        let _guard = tch::no_grad_guard();
        let Candidates { rows, levels, anchors } = candidates;
        let rows = rows.finish()?;
        let (images, width) = rows.size2()?;
        let kept: usize = levels.iter().map(|level| level.kept).sum();
        let words = Vec::<i32>::try_from(rows.f_reshape([-1])?)?;
        let (mut scores, mut deltas, mut sources) = (Vec::new(), Vec::new(), Vec::new());
        for mut row in words.chunks_exact(width.max(1) as usize) {
            let mut take = |count: usize| row.split_off(..count).unwrap_or_default();
            for level in &levels {
                let float = |&word: &i32| f32::from_bits(word.cast_unsigned());
                scores.extend(take(level.kept).iter().map(float));
                deltas.extend(take(4 * level.kept).iter().map(float));
                let boxes = &anchors.boxes[level.start..];
                if level.has_places {
                    let (places, _) = take(2 * level.kept).as_chunks::<2>();
                    // Places are small: the other half of each is zero.
                    let first = usize::from(cfg!(target_endian = "big"));
                    sources.extend(places.iter().map(|place| boxes[place[first] as usize]));
                } else {
                    sources.extend_from_slice(&boxes[..level.kept]);
                }
            }
        }
        let limits: Vec<[f32; 4]> = metas
            .iter()
            .map(|meta| {
                let (height, width) = (meta.image_size.0 as f32, meta.image_size.1 as f32);
                [width, height, width, height]
            })
            .collect();
        let table = |values: &[f32], rows: i64| Tensor::f_from_slice(values)?.f_reshape([images, rows, 4]);
        let (sources, deltas) = (table(sources.as_flattened(), kept as i64)?, table(&deltas, kept as i64)?);
        let boxes = decode(&sources, &deltas, None, Some(&table(limits.as_flattened(), 1)?))?;
        let boxes = Vec::<f32>::try_from(boxes.f_reshape([-1])?)?;
        let of_level: Vec<usize> =
            levels.iter().enumerate().flat_map(|(level, part)| std::iter::repeat_n(level, part.kept)).collect();
        let config = &self.config;
        let found: Vec<Vec<[f32; 5]>> = boxes
            .as_chunks::<4>()
            .0
            .par_chunks(kept.max(1))
            .zip(scores.par_chunks(kept.max(1)))
            .map(|(boxes, scores)| suppress(config, boxes, scores, &of_level))
            .collect::<Result<_>>()?;
        let none = metas.len() - found.len().min(metas.len());
        let found = found.into_iter().chain(std::iter::repeat_n(Vec::new(), none));
        found.map(|rows| Ok(Tensor::f_from_slice(rows.as_flattened())?.f_reshape([rows.len() as i64, 5])?)).collect()
    }
}

/// The best anchors of every level.
fn candidates(output: &RpnOutput, nms_pre: usize, best_of_rows: BestOfRows) -> Result<Candidates> {
    let _guard = tch::no_grad_guard();
    let logits = match &output.joined {
        Some(logits) => logits.shallow_clone(),
        None => Tensor::f_cat(&output.logits, 1)?,
    };
    let scores = logits.f_to_kind(Kind::Float)?.f_sigmoid()?;
    let (images, _) = scores.size2()?;
    let (mut parts, mut levels, mut start) = (Vec::new(), Vec::new(), 0);
    for (logits, deltas) in output.logits.iter().zip(&output.deltas) {
        let (_, count) = logits.size2()?;
        let level_scores = scores.f_narrow(1, start, count)?;
        let deltas = deltas.f_to_kind(Kind::Float)?;
        let kept = count.min(nms_pre as i64);
        if kept < count {
            let (best, order) = best_of_rows(&level_scores, kept)?;
            let places = order.f_unsqueeze(-1)?.f_expand([images, kept, 4], false)?;
            let deltas = deltas.f_gather(1, &places, false)?.f_reshape([images, 4 * kept])?;
            parts.extend([words(&best)?, words(&deltas)?, words(&order)?]);
        } else {
            parts.extend([words(&level_scores)?, words(&deltas.f_reshape([images, 4 * count])?)?]);
        }
        levels.push(LevelCandidates { start: start as usize, kept: kept as usize, has_places: kept < count });
        start += count;
    }
    let rows = Download::start(&Tensor::f_cat(&parts, 1)?)?;
    Ok(Candidates { rows, levels, anchors: Arc::clone(&output.anchors) })
}

/// Rows of values as rows of 32-bit words.
fn words(rows: &Tensor) -> Result<Tensor> {
    let in_a_row = rows.stride().last().is_none_or(|&stride| stride == 1);
    let rows = if in_a_row { rows.shallow_clone() } else { rows.f_contiguous()? };
    Ok(rows.f_view_dtype(Kind::Int)?)
}

/// The proposals of one image among its candidates. `levels` rises.
///
/// Every level is moved away from the others by an offset made of the maximum coordinate, in float32: overlaps are
/// computed on the moved boxes, so that they round as in MMDetection, which suppresses all levels in one pass.
fn suppress(config: &config::Rpn, boxes: &[[f32; 4]], scores: &[f32], levels: &[usize]) -> Result<Vec<[f32; 5]>> {
    let least = config.min_box_size as f32;
    let is_sound = |&index: &usize| {
        let [x1, y1, x2, y2] = boxes[index];
        x2 - x1 > least && y2 - y1 > least
    };
    let sound: Vec<usize> = (0..boxes.len()).filter(is_sound).collect();
    let maximum = sound.iter().flat_map(|&index| boxes[index]).fold(f32::NEG_INFINITY, f32::max);
    let step = maximum + 1.0;
    let groups: Vec<&[usize]> = sound.chunk_by(|&a, &b| levels[a] == levels[b]).collect();
    let kept = groups.into_par_iter().map(|group| {
        let offset = levels[group[0]] as f32 * step;
        let moved: Vec<[f32; 4]> = group.iter().map(|&index| boxes[index].map(|value| value + offset)).collect();
        let own: Vec<f32> = group.iter().map(|&index| scores[index]).collect();
        let kept = nms_of_values(&moved, &own, config.nms_iou)?;
        Ok(kept.into_iter().map(|place| group[place]).collect())
    });
    let mut kept: Vec<usize> = kept.collect::<Result<Vec<Vec<usize>>>>()?.concat();
    // Best first, equal scores in the order of the candidates; what is no number comes first, as libtorch sorts.
    kept.sort_unstable();
    kept.sort_by(|&a, &b| {
        let (a, b) = (scores[a], scores[b]);
        b.partial_cmp(&a).unwrap_or_else(|| b.is_nan().cmp(&a.is_nan()))
    });
    kept.truncate(config.max_per_image);
    let row = |index: usize| {
        let [x1, y1, x2, y2] = boxes[index];
        [x1, y1, x2, y2, scores[index]]
    };
    Ok(kept.into_iter().map(row).collect())
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
    use proptest::prelude::*;

    use super::*;
    use crate::nms::batched_nms;
    use crate::sample::First;

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
        parameters.initialize(3).unwrap();
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
            joined: None,
        };
        let meta = ImageMeta::plain(1, "", (64, 96));
        let metas = [meta.clone(), meta.clone(), meta];
        let expected = rpn.proposals(&dense, &metas, 50).unwrap();
        assert!(expected.iter().all(|proposals| proposals.size()[0] > 1));
        for output in [&dense, &apart] {
            for best_of_rows in [best_by_selection, best_by_sort] {
                let found = candidates(output, 50, best_of_rows).unwrap();
                assert_eq!(rpn.finish_proposals(found, &metas).unwrap(), expected);
            }
        }
        // The loss takes the levels in any layout too.
        let target = Target { boxes: vec![[8.0, 8.0, 40.0, 40.0]], labels: vec![0], masks: Vec::new() };
        let samples = rpn.sample(&dense.anchors, &metas, &vec![target; 3], &mut First);
        let (cls, boxes) = rpn.loss(&levels, &dense.anchors, &samples).unwrap();
        let (strided_cls, strided_boxes) = rpn.loss(&levels.each_ref().map(strided), &dense.anchors, &samples).unwrap();
        assert_eq!((cls.value, boxes.value), (strided_cls.value, strided_boxes.value));
    }

    #[test]
    fn the_head_in_fewer_calls_says_the_same() {
        let config = config::Rpn { feat_channels: 8, anchor_strides: vec![4, 8], ..config::Rpn::default() };
        let mut parameters = Parameters::new();
        let rpn = Rpn::new(&mut parameters, "rpn_head", 6, &config).unwrap();
        parameters.initialize(3).unwrap();
        let levels = [(16, 24), (8, 12)].map(|(h, w)| {
            torch_ext::memory::channels_last(&Tensor::randn([3, 6, h, w], (Kind::Float, Device::Cpu))).unwrap()
        });
        let expected = tch::no_grad(|| rpn.forward(&levels)).unwrap();
        let joined = rpn.head.join().unwrap();
        let found = rpn.forward_by(&levels, Some(&joined)).unwrap();
        let close = |a: &[Tensor], b: &[Tensor]| a.iter().zip(b).all(|(a, b)| a.allclose(b, 1e-5, 1e-7, false));
        assert!(close(&found.logits, &expected.logits) && close(&found.deltas, &expected.deltas));
        assert_eq!(found.joined.as_ref().unwrap(), &Tensor::cat(&found.logits, 1));
        let alone = RpnOutput { joined: None, ..rpn.forward_by(&levels, Some(&joined)).unwrap() };
        let rows = |output| candidates(output, 50, best_by_sort).unwrap().rows.finish().unwrap();
        assert_eq!(rows(&found), rows(&alone));
    }

    /// The rule by tensors, all levels in one pass.
    fn suppressed_in_one_pass(config: &config::Rpn, boxes: &Tensor, scores: &Tensor, levels: &Tensor) -> Tensor {
        let extent = boxes.narrow(1, 2, 2) - boxes.narrow(1, 0, 2);
        let sound = extent.gt(config.min_box_size).all_dim(1, false).nonzero().reshape([-1]);
        let [boxes, scores, levels] = [boxes, scores, levels].map(|tensor| tensor.index_select(0, &sound));
        let kept = batched_nms(&boxes, &scores, &levels, config.nms_iou).unwrap();
        let kept = kept.narrow(0, 0, kept.size()[0].min(config.max_per_image as i64));
        Tensor::cat(&[boxes.index_select(0, &kept), scores.index_select(0, &kept).unsqueeze(1)], 1)
    }

    proptest! {
        #[test]
        fn boxes_of_every_level_are_suppressed_as_in_one_pass_over_all(
            rows in prop::collection::vec((0usize..4, 0u8..40, 0u8..40, 0u8..30, 0u8..30, 0u8..12), 0..120),
            max_per_image in 1usize..60,
        ) {
            let mut rows = rows;
            rows.sort_by_key(|row| row.0);
            let config = config::Rpn { max_per_image, anchor_strides: vec![4, 8, 16, 32], ..config::Rpn::default() };
            let levels: Vec<usize> = rows.iter().map(|row| row.0).collect();
            let boxes: Vec<[f32; 4]> = rows
                .iter()
                .map(|&(_, x, y, w, h, _)| [x, y, x + w, y + h].map(|value| f32::from(value) * 1.37))
                .collect();
            let score = |&(.., score): &(usize, u8, u8, u8, u8, u8)| {
                if score == 0 { f32::NAN } else { f32::from(score) / 12.0 }
            };
            let scores: Vec<f32> = rows.iter().map(score).collect();
            let found = suppress(&config, &boxes, &scores, &levels).unwrap();
            let of_level: Vec<i64> = levels.iter().map(|&level| level as i64).collect();
            let expected = suppressed_in_one_pass(
                &config,
                &Tensor::from_slice(boxes.as_flattened()).reshape([-1, 4]),
                &Tensor::from_slice(&scores),
                &Tensor::from_slice(&of_level),
            );
            let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            prop_assert_eq!(bits(found.concat()), bits(Vec::try_from(expected.reshape([-1])).unwrap()));
        }

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
