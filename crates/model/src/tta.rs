//! Test-time augmentation: one result for several views of an image.
//!
//! A view is the image at a scale, mirrored or not. The rule is that of `MaskRCNN.aug_test` in MMDetection 2.25:
//!
//! 1. Proposals (`merge_aug_proposals`): those of all views, in the original image, without those that overlap a better one by
//!    more than `model.rpn.nms_iou`, whatever their levels. The best `model.rpn.max_per_image` are kept.
//! 2. Boxes (`merge_aug_bboxes`): every view refines and scores all of these proposals for every class. Boxes are clipped to
//!    the view and mapped to the original image; then boxes and scores are averaged over the views. Score threshold, NMS of each
//!    class and the maximum number follow as without views.
//! 3. Masks (`merge_aug_masks`): the probabilities that the views give for these boxes, mirrored back and averaged.

use tch::{Kind, Tensor};

use fnet_common::{Error, Result};
use fnet_data::{ImageMeta, Images};

use super::boxes::{from_view, to_view};
use super::{Detections, MaskRcnn};

/// The images of a batch in one view.
#[derive(Debug)]
pub struct View {
    /// The images as the network gets them.
    pub images: Images,
    /// One per image.
    pub metas: Vec<ImageMeta>,
}

impl MaskRcnn {
    /// What is found in each of `images` and its mirror image together.
    pub fn predict_with_flip(&self, images: &Images, metas: &[ImageMeta]) -> Result<Vec<Detections>> {
        let _guard = tch::no_grad_guard();
        let values = images.values(self.device())?;
        let mirrored = mirrored_images(&values, metas)?;
        let flipped = metas.iter().map(|meta| ImageMeta { flipped: !meta.flipped, ..meta.clone() });
        self.predict_views(&[
            View { images: values.into(), metas: metas.to_vec() },
            View { images: mirrored.into(), metas: flipped.collect() },
        ])
    }

    /// What is found in each image of a batch, from several views of all of them. Boxes are pasted as they are: MMDetection
    /// does not scale them to the network's input and back here.
    /// Errors: a bug if the views differ in their number of images, or there is none; else if libtorch fails (memory).
    pub fn predict_views(&self, views: &[View]) -> Result<Vec<Detections>> {
        let _guard = tch::no_grad_guard();
        let count = views.first().map_or(0, |view| view.metas.len());
        if views.is_empty() || views.iter().any(|view| view.metas.len() != count) {
            return Err(Error::bug(format!("{} views of a batch differ in their number of images", views.len())));
        }
        let levels = views.iter().map(|view| self.levels(&view.images, view.metas.len()));
        let levels = levels.collect::<Result<Vec<_>>>()?;
        let proposals = levels
            .iter()
            .zip(views)
            .map(|(levels, view)| self.rpn.proposals(&self.rpn.forward(levels)?, &view.metas, self.nms_pre));
        let proposals = proposals.collect::<Result<Vec<_>>>()?;
        let limits = (self.rpn.config.nms_iou, self.rpn.config.max_per_image);
        let merged = (0..count).map(|image| {
            let of_views = proposals.iter().zip(views).map(|(of_view, view)| (&of_view[image], &view.metas[image]));
            merge_proposals(of_views, limits)
        });
        let merged = merged.collect::<Result<Vec<_>>>()?;

        let head = &self.roi_head;
        let answers = levels.iter().zip(views).map(|(levels, view)| {
            let proposals = merged.iter().zip(&view.metas).map(|(boxes, meta)| to_view(boxes, meta));
            head.answers(levels, &proposals.collect::<Result<Vec<_>>>()?)
        });
        let answers = answers.collect::<Result<Vec<_>>>()?;
        let kept = (0..count).map(|image| {
            let boxes = answers.iter().zip(views).map(|(of_view, view)| {
                let meta = &view.metas[image];
                from_view(&head.boxes_of_all_classes(&of_view[image], meta)?, meta)
            });
            let boxes = mean(boxes.collect::<Result<_>>()?)?;
            let scores = mean(answers.iter().map(|of_view| of_view[image].scores.shallow_clone()).collect())?;
            head.best_of_all_classes(&boxes, &scores)
        });
        let kept = kept.collect::<Result<Vec<_>>>()?;
        let masks = levels.iter().zip(views).map(|(levels, view)| {
            let Some(masks) = head.mask_probabilities(levels, &kept, &view.metas)? else { return Ok(None) };
            let is_flipped = view.metas.first().is_some_and(|meta| meta.flipped);
            Ok(Some(if is_flipped { masks.f_flip([2])? } else { masks }))
        });
        let masks: Option<Vec<_>> = masks.collect::<Result<Vec<_>>>()?.into_iter().collect();
        let masks = masks.map(mean).transpose()?;
        head.with_masks(kept, masks.as_ref())
    }
}

/// `[images, 3, height, width]` with each image mirrored within its own width; the padding stays at the right.
fn mirrored_images(values: &Tensor, metas: &[ImageMeta]) -> Result<Tensor> {
    let mirrored = values.f_zeros_like()?;
    for (image, meta) in (0_i64..).zip(metas) {
        let own = |of: &Tensor| of.f_select(0, image)?.f_narrow(2, 0, meta.image_size.1 as i64);
        own(&mirrored)?.f_copy_(&own(values)?.f_flip([2])?)?;
    }
    Ok(mirrored)
}

/// The proposals (`[k, 5]`, box and score) of the views of one image as boxes `[k, 4]` of the original image, best first.
/// `limits` are the IoU of NMS and the maximum number.
fn merge_proposals<'p>(
    of_views: impl Iterator<Item = (&'p Tensor, &'p ImageMeta)>,
    limits: (f64, usize),
) -> Result<Tensor> {
    let parts = of_views.map(|(proposals, meta)| {
        let boxes = from_view(&proposals.f_narrow(1, 0, 4)?, meta)?;
        Ok((boxes, proposals.f_select(1, 4)?))
    });
    let (boxes, scores): (Vec<_>, Vec<_>) = parts.collect::<Result<Vec<_>>>()?.into_iter().unzip();
    let (boxes, scores) = (Tensor::f_cat(&boxes, 0)?, Tensor::f_cat(&scores, 0)?);
    if scores.size1()? == 0 {
        return Ok(boxes);
    }
    let kept = torch_ext::ops::nms(&boxes.f_contiguous()?, &scores.f_contiguous()?, limits.0)?;
    let kept = kept.f_narrow(0, 0, kept.size1()?.min(limits.1 as i64))?;
    Ok(boxes.f_index_select(0, &kept)?)
}

/// The mean of what the views say.
fn mean(of_views: Vec<Tensor>) -> Result<Tensor> {
    Ok(Tensor::f_stack(&of_views, 0)?.f_mean_dim(0_i64, false, Kind::Float)?)
}

#[cfg(test)]
mod tests {
    use fnet_config as config;
    use tch::Device;

    use super::*;
    use crate::Parameters;
    use crate::boxes::decode;

    type Box4 = [f32; 4];

    fn meta(flipped: bool) -> ImageMeta {
        ImageMeta {
            image_id: 1,
            file_name: "a.jpg".into(),
            original_size: (45, 75),
            image_size: (60, 100),
            padded_size: (64, 128),
            scale_factor: [100.0 / 75.0, 60.0 / 45.0, 100.0 / 75.0, 60.0 / 45.0],
            flipped,
        }
    }

    fn model() -> MaskRcnn {
        let mut model = config::Model { num_classes: 3, ..Default::default() };
        (model.backbone.embed_dim, model.backbone.depths) = (8, [1, 1, 1, 1]);
        (model.neck.out_channels, model.rpn.feat_channels) = (8, 8);
        (model.rpn.nms_pre, model.rpn.max_per_image) = (60, 40);
        (model.roi_head.bbox_fc_channels, model.roi_head.mask_channels, model.roi_head.mask_convs) = (16, 8, 1);
        (model.roi_head.score_threshold, model.roi_head.max_per_image) = (0.2, 20);
        let mut parameters = Parameters::new();
        let detector = MaskRcnn::new(&model, &mut parameters, Device::Cpu, 3).unwrap();
        tch::manual_seed(5);
        // The heads start near zero: everything would look alike.
        tch::no_grad(|| {
            for (name, tensor) in parameters.trainable() {
                if name.contains("rpn_cls.w") || name.contains("rpn_reg.w") || name.contains("fc_") {
                    let _ = tensor.shallow_clone().normal_(0.0, 0.3);
                }
            }
        });
        detector
    }

    /// A normalized image of 60x100 in its padding.
    fn image() -> Tensor {
        tch::manual_seed(7);
        let image = Tensor::zeros([1, 3, 64, 128], (Kind::Float, Device::Cpu));
        let _ = image.narrow(2, 0, 60).narrow(3, 0, 100).normal_(0.0, 1.0);
        image
    }

    fn view(images: &Tensor, flipped: bool) -> View {
        View { images: images.shallow_clone().into(), metas: vec![meta(flipped)] }
    }

    fn rows(tensor: &Tensor) -> Vec<Box4> {
        Vec::<f32>::try_from(tensor.reshape([-1])).unwrap().as_chunks().0.to_vec()
    }

    fn floats(tensor: &Tensor) -> Vec<f32> {
        Vec::<f32>::try_from(tensor.reshape([-1])).unwrap()
    }

    /// Mirrored in an image of this width.
    fn flip([x1, y1, x2, y2]: Box4, width: f32) -> Box4 {
        [width - x2, y1, width - x1, y2]
    }

    fn iou(a: Box4, b: Box4) -> f32 {
        let side = |low: usize| (a[low + 2].min(b[low + 2]) - a[low].max(b[low])).max(0.0);
        let area = |c: Box4| (c[2] - c[0]) * (c[3] - c[1]);
        let both = side(0) * side(1);
        both / (area(a) + area(b) - both)
    }

    /// Indices of the best boxes, without those that overlap a better one.
    fn nms(boxes: &[Box4], scores: &[f32], most: f32) -> Vec<usize> {
        let mut order: Vec<usize> = (0..boxes.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let mut kept: Vec<usize> = Vec::new();
        for index in order {
            if kept.iter().all(|&better| iou(boxes[better], boxes[index]) <= most) {
                kept.push(index);
            }
        }
        kept
    }

    fn assert_close(actual: &[f32], expected: &[f32], tolerance: f32) {
        assert_eq!(actual.len(), expected.len());
        for (actual, expected) in actual.iter().zip(expected) {
            assert!((actual - expected).abs() <= tolerance, "{actual} {expected}");
        }
    }

    #[test]
    fn each_merge_is_what_its_definition_says() {
        let (model, image) = (model(), image());
        let mirror = mirrored_images(&image, &[meta(false)]).unwrap();
        assert_eq!(mirror.double_value(&[0, 1, 7, 99]), image.double_value(&[0, 1, 7, 0]));
        assert_eq!(mirror.double_value(&[0, 1, 7, 100]), 0.0);
        let views = [view(&image, false), view(&mirror, true)];
        let found = model.predict_views(&views).unwrap().remove(0);

        let _guard = tch::no_grad_guard();
        let factor = 100.0_f32 / 75.0;
        let back = |one: Box4, flipped: bool| (if flipped { flip(one, 100.0) } else { one }).map(|x| x / factor);
        let there = |one: Box4, flipped: bool| {
            let scaled = one.map(|x| x * factor);
            if flipped { flip(scaled, 100.0) } else { scaled }
        };
        let levels = views.each_ref().map(|view| model.levels(&view.images, 1).unwrap());
        let (mut boxes, mut scores) = (Vec::new(), Vec::new());
        for (levels, view) in levels.iter().zip(&views) {
            let output = model.rpn.forward(levels).unwrap();
            let proposals = model.rpn.proposals(&output, &view.metas, model.nms_pre).unwrap().remove(0);
            boxes.extend(rows(&proposals.narrow(1, 0, 4)).into_iter().map(|one| back(one, view.metas[0].flipped)));
            scores.extend(floats(&proposals.select(1, 4)));
        }
        let mut proposals: Vec<Box4> = nms(&boxes, &scores, 0.7).into_iter().map(|index| boxes[index]).collect();
        assert!(proposals.len() > 40 && boxes.len() > proposals.len(), "both limits count");
        proposals.truncate(40);

        let (mut mean_boxes, mut mean_scores) = (vec![[0.0; 4]; 40 * 3], vec![0.0; 40 * 4]);
        for (levels, view) in levels.iter().zip(&views) {
            let flipped = view.metas[0].flipped;
            let rois: Vec<Box4> = proposals.iter().map(|&one| there(one, flipped)).collect();
            let rois = Tensor::from_slice(rois.as_flattened()).reshape([40, 4]);
            let with_image =
                Tensor::cat(&[Tensor::zeros([40, 1], (Kind::Float, Device::Cpu)), rois.shallow_clone()], 1);
            let features = model.roi_head.bbox_extractor.forward(levels, &with_image).unwrap();
            let (logits, deltas) = model.roi_head.bbox.forward(&features).unwrap();
            for (sum, score) in mean_scores.iter_mut().zip(floats(&logits.softmax(1, Kind::Float))) {
                *sum += score / 2.0;
            }
            let limits = Tensor::from_slice(&[100.0_f32, 60.0, 100.0, 60.0]);
            for class in 0..3 {
                let own = deltas.narrow(1, 4 * class, 4);
                let refined = decode(&rois, &own, Some(&[0.1, 0.1, 0.2, 0.2]), Some(&limits)).unwrap();
                for (row, refined) in rows(&refined).into_iter().enumerate() {
                    let sum = &mut mean_boxes[row * 3 + class as usize];
                    let mapped = back(refined, flipped);
                    (0..4).for_each(|side| sum[side] += mapped[side] / 2.0);
                }
            }
        }
        let mut expected: Vec<(f32, usize, Box4)> = Vec::new();
        for class in 0..3 {
            let above: Vec<usize> = (0..40).filter(|row| mean_scores[row * 4 + class] > 0.2).collect();
            let boxes: Vec<Box4> = above.iter().map(|row| mean_boxes[row * 3 + class]).collect();
            let scores: Vec<f32> = above.iter().map(|row| mean_scores[row * 4 + class]).collect();
            expected.extend(nms(&boxes, &scores, 0.5).into_iter().map(|index| (scores[index], class, boxes[index])));
        }
        expected.sort_by(|a, b| b.0.total_cmp(&a.0));
        assert!(expected.len() > 20, "{} are too few for the limit", expected.len());
        expected.truncate(20);
        let labels: Vec<i64> = expected.iter().map(|(_, class, _)| *class as i64).collect();
        assert_eq!(Vec::<i64>::try_from(&found.labels).unwrap(), labels);
        let (scores, boxes): (Vec<f32>, Vec<Box4>) = expected.iter().map(|(score, _, one)| (*score, *one)).unzip();
        assert_close(&floats(&found.scores), &scores, 1e-5);
        assert_close(&floats(&found.boxes), boxes.as_flattened(), 1e-3);

        let mut masks = vec![0.0; 20 * 28 * 28];
        for (levels, view) in levels.iter().zip(&views) {
            let flipped = view.metas[0].flipped;
            let rois: Vec<f32> = boxes.iter().flat_map(|&one| [&[0.0], &there(one, flipped)[..]].concat()).collect();
            let features =
                model.roi_head.mask_extractor.forward(levels, &Tensor::from_slice(&rois).reshape([20, 5])).unwrap();
            let logits =
                model.roi_head.mask.as_ref().unwrap().forward(&features, &Tensor::from_slice(&labels)).unwrap();
            for (index, probability) in floats(&logits.sigmoid()).into_iter().enumerate() {
                let (row, column) = (index / 28, index % 28);
                masks[row * 28 + if flipped { 27 - column } else { column }] += probability / 2.0;
            }
        }
        assert_close(&floats(found.masks.as_ref().unwrap()), &masks, 1e-4);
    }

    #[test]
    fn equal_views_say_what_one_of_them_says() {
        let (model, image) = (model(), image());
        let one = model.predict_views(&[view(&image, false)]).unwrap().remove(0);
        let three = model.predict_views(&[0; 3].map(|_| view(&image, false))).unwrap().remove(0);
        assert!(!one.is_empty());
        assert_eq!(Vec::<i64>::try_from(&one.labels).unwrap(), Vec::<i64>::try_from(&three.labels).unwrap());
        assert_close(&floats(&one.scores), &floats(&three.scores), 1e-6);
        assert_close(&floats(&one.boxes), &floats(&three.boxes), 1e-4);
        assert_close(&floats(one.masks.as_ref().unwrap()), &floats(three.masks.as_ref().unwrap()), 1e-6);
    }

    /// An image and its mirror image have the same views, so one that is its own mirror image has a symmetric result.
    #[test]
    fn the_result_of_a_mirrored_image_is_mirrored() {
        let (model, image) = (model(), image());
        let mirror = mirrored_images(&image, &[meta(false)]).unwrap();
        let found =
            |image: &Tensor| model.predict_with_flip(&image.shallow_clone().into(), &[meta(false)]).unwrap().remove(0);
        let (plain, mirrored) = (found(&image), found(&mirror));
        assert!(!plain.is_empty());
        assert_eq!(Vec::<i64>::try_from(&plain.labels).unwrap(), Vec::<i64>::try_from(&mirrored.labels).unwrap());
        assert_close(&floats(&plain.scores), &floats(&mirrored.scores), 1e-4);
        let expected: Vec<Box4> = rows(&plain.boxes).into_iter().map(|one| flip(one, 75.0)).collect();
        assert_close(&floats(&mirrored.boxes), expected.as_flattened(), 1e-2);
        assert_close(
            &floats(&mirrored.masks.as_ref().unwrap().flip([2])),
            &floats(plain.masks.as_ref().unwrap()),
            1e-3,
        );
        let alone = model.predict(&image.shallow_clone().into(), &[meta(false)]).unwrap().remove(0);
        assert_ne!(floats(&alone.scores), floats(&plain.scores), "the mirror image counts");
    }

    #[test]
    fn views_without_proposals_find_nothing() {
        let none = Tensor::zeros([0, 5], (Kind::Float, Device::Cpu));
        let of_views = [(&none, &meta(false)), (&none, &meta(true))];
        assert_eq!(merge_proposals(of_views.into_iter(), (0.7, 10)).unwrap().size(), [0, 4]);
        assert!(model().predict_views(&[]).is_err());
    }
}
