//! MMDetection's choice of anchors and RoIs, converted to the model's types and compared with the model's choice.

use tch::Tensor;

use fnet_common::random::Generator;
use fnet_config as config;
use fnet_data::Batch;
use fnet_model::MaskRcnn;
use fnet_model::anchors::Anchors;
use fnet_model::assign::assign;
use fnet_model::boxes::{BoxColumns, encode};
use fnet_model::roi_head::RoiSample;
use fnet_model::rpn::{ImageSample, RpnOutput};
use fnet_model::sample::{Choice, Sampled};

use super::compare::{STAGE, floats, rows_of_four, scalar};
use super::fixtures::Tensors;
use super::report::Comparison;

/// Evenly spaced choices.
pub(super) struct Even;

impl Choice for Even {
    fn choose(&mut self, count: usize, of: usize) -> Vec<usize> {
        (0..count).map(|index| index * of / count).collect()
    }
}

/// The choices of `torch.randperm` after `torch.manual_seed`.
pub(super) struct Torch {
    generator: Generator,
    /// For each draw, how many numbers were permuted, and the first five.
    pub(super) calls: Vec<(usize, Vec<usize>)>,
}

impl Torch {
    pub(super) fn new(generator: Generator) -> Self {
        Self { generator, calls: Vec::new() }
    }
}

impl Choice for Torch {
    fn choose(&mut self, count: usize, of: usize) -> Vec<usize> {
        let all = self.generator.permutation(of);
        self.calls.push((of, all.iter().take(5).copied().collect()));
        all[..count].to_vec()
    }
}

/// Indices among all anchors. MMDetection's are among the valid anchors of an image.
fn chosen(model: &MaskRcnn, anchors: &Anchors, batch: &Batch, stored: &Tensors, image: usize) -> Sampled {
    let valid = model.rpn.valid(anchors, batch.metas[image].padded_size);
    let of = |sign: &str| {
        let indices = stored.integers(&format!("rpn.{sign}_inds.{image}"));
        indices.into_iter().map(|index| valid[index as usize] as usize).collect()
    };
    Sampled { positive: of("pos"), negative: of("neg") }
}

/// The stored anchors of the loss.
pub(super) fn anchors(model: &MaskRcnn, anchors: &Anchors, batch: &Batch, stored: &Tensors) -> Vec<ImageSample> {
    let of_image = |(image, target): (usize, &fnet_data::Target)| {
        let sampled = chosen(model, anchors, batch, stored, image);
        let objects = stored.integers(&format!("rpn.pos_assigned_gt_inds.{image}"));
        assert_eq!(objects.len(), sampled.positive.len());
        let deltas = sampled.positive.iter().zip(objects);
        let deltas =
            deltas.map(|(&anchor, object)| encode(&anchors.boxes[anchor], &target.boxes[object as usize], &[1.0; 4]));
        ImageSample { deltas: deltas.collect(), sampled }
    };
    batch.targets.iter().enumerate().map(of_image).collect()
}

/// The stored RoIs of the losses.
pub(super) fn rois(stored: &Tensors, images: usize, classes: i64) -> RoiSample {
    let labels = stored.integers("rcnn.labels");
    let positives: Vec<i64> = (0..).zip(&labels).filter(|(_, label)| **label < classes).map(|(row, _)| row).collect();
    let objects = (0..images).flat_map(|image| stored.integers(&format!("rcnn.pos_assigned_gt_inds.{image}")));
    let objects: Vec<usize> = objects.map(|object| object as usize).collect();
    assert_eq!(objects.len(), positives.len(), "positives among the stored RoIs");
    let deltas = stored.get("rcnn.bbox_targets").index_select(0, &Tensor::from_slice(&positives));
    RoiSample {
        rois: floats(&stored.get("rcnn.rois")).as_chunks().0.to_vec(),
        labels,
        positives,
        objects,
        deltas: rows_of_four(&deltas),
    }
}

/// The RoIs `[image, x1, y1, x2, y2]` at the stored indices into objects and proposals.
pub(super) fn chosen_rois(proposals: &[Tensor], batch: &Batch, stored: &Tensors) -> Vec<[f32; 5]> {
    let mut rois = Vec::new();
    for (image, (proposals, target)) in proposals.iter().zip(&batch.targets).enumerate() {
        let boxes: Vec<[f32; 4]> = [target.boxes.clone(), rows_of_four(&proposals.narrow(1, 0, 4))].concat();
        for sign in ["pos", "neg"] {
            for index in stored.integers(&format!("rcnn.{sign}_inds.{image}")) {
                let [x1, y1, x2, y2] = boxes[index as usize];
                rois.push([image as f32, x1, y1, x2, y2]);
            }
        }
    }
    rois
}

/// `[n, 4]`
fn rows(deltas: &[[f32; 4]]) -> Tensor {
    Tensor::from_slice(deltas.as_flattened()).reshape([-1, 4])
}

/// Compares the chosen anchors.
pub(super) fn check_chosen_anchors(
    compare: &Comparison<'_>,
    model: &MaskRcnn,
    all: &Anchors,
    batch: &Batch,
    actual: &[ImageSample],
    stored: &Tensors,
) {
    assert_eq!(actual.len(), batch.metas.len());
    for (image, actual) in actual.iter().enumerate() {
        let expected = chosen(model, all, batch, stored, image);
        compare.equal("positive anchors", &actual.sampled.positive, &expected.positive);
        compare.equal("negative anchors", &actual.sampled.negative, &expected.negative);
    }
}

/// Compares the chosen anchors and their targets.
pub(super) fn check_anchors(
    compare: &Comparison<'_>,
    model: &MaskRcnn,
    all: &Anchors,
    batch: &Batch,
    actual: &[ImageSample],
    stored: &Tensors,
) {
    check_chosen_anchors(compare, model, all, batch, actual, stored);
    let expected = anchors(model, all, batch, stored);
    for (image, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        compare.tensor("deltas to the assigned objects", &rows(&actual.deltas), &rows(&expected.deltas), STAGE);
        // The stored rows were selected from the targets of all anchors by indices among the valid ones.
        let mut targets = vec![[0.0; 4]; all.boxes.len()];
        for (&anchor, &delta) in actual.sampled.positive.iter().zip(&actual.deltas) {
            targets[anchor] = delta;
        }
        let picked = stored.integers(&format!("rpn.pos_inds.{image}"));
        let picked: Vec<[f32; 4]> = picked.into_iter().map(|index| targets[index as usize]).collect();
        compare.tensor("anchor deltas", &rows(&picked), &stored.get(&format!("rpn.pos_bbox_targets.{image}")), STAGE);
    }
}

/// Compares the assignment of proposals to objects.
pub(super) fn check_assignment(
    compare: &Comparison<'_>,
    config: &config::Model,
    proposals: &[Tensor],
    batch: &Batch,
    stored: &Tensors,
) {
    for (image, (proposals, target)) in proposals.iter().zip(&batch.targets).enumerate() {
        let boxes = rows_of_four(&proposals.narrow(1, 0, 4));
        let assigned = assign(&boxes.iter().collect(), &target.boxes, &config.roi_head.assigner);
        let assigned: Vec<i64> = assigned.into_iter().map(i64::from).collect();
        let expected = stored.integers(&format!("rcnn.assigned_gt_inds.{image}"));
        compare.equal("objects of proposals", &assigned, &expected);
        let (columns, mut most, mut row) = (boxes.iter().collect::<BoxColumns>(), vec![0.0; boxes.len()], Vec::new());
        for object in &target.boxes {
            columns.overlaps(object, &mut row);
            most.iter_mut().zip(&row).for_each(|(most, &overlap)| *most = f32::max(*most, overlap));
        }
        let expected = stored.get(&format!("rcnn.max_overlaps.{image}"));
        compare.tensor("maximum IoU of proposals", &Tensor::from_slice(&most), &expected, STAGE);
    }
}

/// Compares the chosen RoIs and their targets.
pub(super) fn check_rois(compare: &Comparison<'_>, actual: &RoiSample, expected: &RoiSample) {
    compare.equal("RoIs", &actual.rois, &expected.rois);
    compare.equal("labels of RoIs", &actual.labels, &expected.labels);
    compare.equal("positive RoIs", &actual.positives, &expected.positives);
    compare.equal("objects of positive RoIs", &actual.objects, &expected.objects);
    compare.tensor("RoI deltas", &rows(&actual.deltas), &rows(&expected.deltas), STAGE);
}

/// Objectness and box loss of each pyramid level: the losses of its anchors, divided by the number of all anchors.
pub(super) fn losses_by_level(
    model: &MaskRcnn,
    levels: &[Tensor],
    rpn: &RpnOutput,
    anchors: &[ImageSample],
) -> Vec<(usize, (f64, f64))> {
    let count = |samples: &[ImageSample]| {
        let of_image = |one: &ImageSample| one.sampled.positive.len().max(1) + one.sampled.negative.len().max(1);
        samples.iter().map(of_image).sum::<usize>() as f64
    };
    let (mut start, mut losses) = (0, Vec::new());
    for (level, logits) in rpn.logits.iter().enumerate() {
        let range = start..start + logits.size()[1] as usize;
        start = range.end;
        let of_level = |sample: &ImageSample| {
            let inside = |indices: &[usize]| indices.iter().copied().filter(|index| range.contains(index)).collect();
            let Sampled { positive, negative } = &sample.sampled;
            let deltas = positive.iter().zip(&sample.deltas).filter(|(index, _)| range.contains(index));
            ImageSample {
                deltas: deltas.map(|(_, &delta)| delta).collect(),
                sampled: Sampled { positive: inside(positive), negative: inside(negative) },
            }
        };
        let of_level: Vec<ImageSample> = anchors.iter().map(of_level).collect();
        let (cls, bbox) = tch::no_grad(|| model.rpn.loss(levels, &rpn.anchors, &of_level)).unwrap();
        let share = count(&of_level) / count(anchors);
        losses.push((level, (scalar(&cls.value) * share, scalar(&bbox.value) * share)));
    }
    losses
}
