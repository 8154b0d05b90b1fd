//! Runs the detector on a data set, on one or more ranks.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use fnet_common::text::{count, quoted};
use fnet_common::{Context, Error, Result};
use fnet_config::{Config, Metric, Tta};
use fnet_data::{Batch, Dataset, ImageMeta, Loader, TestOptions, evaluation_indices};
use fnet_distributed::Communicator;
use fnet_model::{Detections, MaskRcnn};
use fnet_protocol::message::StopReason;
use fnet_protocol::stop;

use super::metrics::{GroundTruth, Metrics};
use super::paste::{Probabilities, paste_all};
use super::results::ImageResult;

/// One finished image on this rank.
#[derive(Debug, Clone, Copy)]
pub struct Done<'a> {
    /// Images done on this rank, including this one.
    pub done: usize,
    /// Images of this rank.
    pub total: usize,
    /// Index of the image in the data set.
    pub index: usize,
    /// The detections of the image.
    pub result: &'a ImageResult,
}

/// Called after every image.
pub type OnImage<'a> = dyn FnMut(Done<'_>) -> Result<()> + 'a;

/// The result of collective work on one rank.
#[derive(Debug, Clone, PartialEq)]
pub enum RankResult<T> {
    /// This is rank 0, which has the result.
    Here(T),
    /// Rank 0 has the result.
    Elsewhere,
    /// A rank was asked to stop, so all have stopped.
    Stopped(StopReason),
}

impl<T> RankResult<T> {
    /// Continues with the result on rank 0.
    pub fn and_then<U>(self, next: impl FnOnce(T) -> Result<U>) -> Result<RankResult<U>> {
        Ok(match self {
            RankResult::Here(result) => RankResult::Here(next(result)?),
            RankResult::Elsewhere => RankResult::Elsewhere,
            RankResult::Stopped(reason) => RankResult::Stopped(reason),
        })
    }
}

/// The detections of a whole data set.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// One per image that could be read, in the order of the data set.
    pub results: Vec<ImageResult>,
    /// Images that could not be read, if the config skips them.
    pub skipped: Vec<String>,
}

/// The result of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// The numbers.
    pub metrics: Metrics,
    /// The detections.
    pub found: Found,
}

/// Runs the detector on `dataset`, each image on one rank, and compares with the annotations. The result is on rank 0.
/// Stop requests are checked after each image.
///
/// All ranks must call this, with the same weights and running statistics.
/// Errors: an image or the annotation file cannot be read, a rank was lost, or memory ran out.
pub fn evaluate(
    model: &MaskRcnn,
    dataset: &Arc<Dataset>,
    config: &Config,
    kinds: &[Metric],
    ranks: &Communicator,
    on_image: &mut OnImage<'_>,
) -> Result<RankResult<Evaluation>> {
    detect_all(model, dataset, config, ranks, on_image)?.and_then(|found| {
        let truth = GroundTruth::of(dataset)?;
        let mut metrics = Metrics::compute(&truth, &found.results, kinds, &config.evaluation)?;
        if let Some(first) = found.skipped.first() {
            metrics.notes.push(format!(
                "{} could not be read and were evaluated without detections; the first: {first}",
                count(found.skipped.len(), "image")
            ));
        }
        metrics.notes.extend(other_sizes(dataset, &found.results, kinds));
        Ok(Evaluation { metrics, found })
    })
}

/// A note if the annotation file lists other sizes than the images have, because pycocotools never matches masks of
/// different sizes.
fn other_sizes(dataset: &Dataset, results: &[ImageResult], kinds: &[Metric]) -> Option<String> {
    let places: HashMap<i64, usize> = dataset.image_ids().into_iter().zip(0..).collect();
    let differs = |result: &&ImageResult| {
        let image = dataset.record(*places.get(&result.image_id)?);
        let (file, image) = (image.annotation_file(), image.image);
        let is_other = (image.width, image.height) != (result.width as usize, result.height as usize);
        is_other.then_some((file, image, (result.width, result.height)))
    };
    let other: Vec<_> = results.iter().filter_map(|result| differs(&result)).collect();
    let (file, image, (width, height)) = other.first()?;
    let effect = match kinds.contains(&Metric::Segm) {
        true => "no mask in such an image can match, so the mask AP counts all of its objects as not found",
        false => "its boxes may refer to the listed size",
    };
    Some(format!(
        "image-size-differs: data.{}: {} of {} {} a different size than listed in {}, the first {} ({}x{}, listed as {}x{}): \
         {effect}; correct width and height in the annotation file (`fnet-launch check-data` lists all)",
        dataset.split().name(),
        other.len(),
        count(results.len(), "image"),
        if other.len() == 1 { "has" } else { "have" },
        file.display(),
        quoted(image.file_name),
        width,
        height,
        image.width,
        image.height
    ))
}

/// Runs the detector on `dataset`, each image on one rank. The result is on rank 0.
///
/// Masks are encoded as run lengths image by image to save memory.
pub fn detect_all(
    model: &MaskRcnn,
    dataset: &Arc<Dataset>,
    config: &Config,
    ranks: &Communicator,
    on_image: &mut OnImage<'_>,
) -> Result<RankResult<Found>> {
    let indices = evaluation_indices(dataset.len(), ranks.rank(), ranks.world_size());
    let mut loader = Loader::test(Arc::clone(dataset), &config.data, &indices, &TestOptions::default())?;
    let places: HashMap<i64, usize> = dataset.image_ids().into_iter().zip(0..).collect();
    let mut share = Share::default();
    while let (None, Some(batch)) = (stop::requested(), loader.next()) {
        let batch = batch?;
        for result in detect(model, &batch, config)? {
            share.results.push(result);
            let (done, total) = (indices.len() - loader.remaining(), indices.len());
            if let Some(result) = share.results.last() {
                let index = place(&places, result.image_id)?;
                on_image(Done { done, total, index, result })?;
            }
        }
    }
    loader.take_warnings().iter().for_each(|warning| log::warn!("{warning}"));
    share.skipped = loader.take_skipped().iter().map(ToString::to_string).collect();
    gather(share, &places, ranks)
}

/// Detects the objects of one batch with the type of `evaluation.amp` and the views of `evaluation.tta`.
/// Errors: if libtorch fails (memory), or an image is too large for run lengths.
pub fn detect(model: &MaskRcnn, batch: &Batch, config: &Config) -> Result<Vec<ImageResult>> {
    let found = {
        let _autocast = model.autocast(config.evaluation.amp)?;
        match config.evaluation.tta {
            Tta::Off => model.predict(&batch.images, &batch.metas)?,
            Tta::Flip => model.predict_with_flip(&batch.images, &batch.metas)?,
        }
    };
    let threshold = config.model.roi_head.mask_threshold;
    let encoded = batch.metas.iter().zip(&found).map(|(meta, found)| match config.evaluation.tta {
        Tta::Off => encode(meta, found, threshold),
        // Boxes of several views are those of the original image from the start.
        Tta::Flip => encode(&ImageMeta { scale_factor: [1.0; 4], ..meta.clone() }, found, threshold),
    });
    encoded.collect()
}

/// Converts the detections of one image to results: pastes and encodes the masks, if there are any.
pub fn encode(meta: &ImageMeta, found: &Detections, mask_threshold: f64) -> Result<ImageResult> {
    let boxes: Vec<[f32; 4]> = floats(&found.boxes)?.as_chunks().0.to_vec();
    let labels = Vec::<i64>::try_from(&found.labels.f_to_device(Device::Cpu)?)?;
    let scores = floats(&found.scores)?;
    let Some(masks) = &found.masks else {
        return ImageResult::new(meta.image_id, meta.original_size, &boxes, &scores, &labels, None);
    };
    let side = masks.size().last().map_or(0, |&side| side as usize);
    let probabilities = floats(masks)?;
    // MMDetection scales each box to the network's input size and back before pasting, which affects rounding.
    let back_and_forth =
        |bounds: [f32; 4]| std::array::from_fn(|i| bounds[i] * meta.scale_factor[i] / meta.scale_factor[i]);
    let windows: Vec<[f32; 4]> = boxes.iter().map(|&bounds| back_and_forth(bounds)).collect();
    let probabilities = Probabilities { values: &probabilities, side };
    let masks = paste_all(probabilities, &windows, meta.original_size, mask_threshold as f32)
        .with_context(|| format!("masks of image {} ({})", meta.image_id, meta.file_name))?;
    ImageResult::new(meta.image_id, meta.original_size, &boxes, &scores, &labels, Some(&masks))
}

fn floats(tensor: &Tensor) -> Result<Vec<f32>> {
    let flat = tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_reshape([-1])?;
    Ok(Vec::<f32>::try_from(flat)?)
}

/// The results that one rank sends to the others.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Share {
    /// The detections in its images.
    pub results: Vec<ImageResult>,
    /// Images that could not be read, and why.
    pub skipped: Vec<String>,
}

/// Combines the shares of all ranks on rank 0, in the order of `places` (image id -> index).
///
/// The message begins with a byte that says whether the rank was asked to stop.
/// Errors: a lost rank, or an image that is not in `places`.
pub fn gather(share: Share, places: &HashMap<i64, usize>, ranks: &Communicator) -> Result<RankResult<Found>> {
    let stopped = stop_byte(stop::requested());
    if ranks.world_size() == 1 {
        return match stop_reason(stopped) {
            Some(reason) => Ok(RankResult::Stopped(reason)),
            None => in_order(vec![share], places).map(RankResult::Here),
        };
    }
    let packed = pack(&share, stopped)?;
    drop(share);
    combine(ranks.all_gather_bytes(&packed).context("gathering the detections of all ranks")?, ranks.rank(), places)
}

/// The result on `rank` of what all ranks have packed.
fn combine(packed: Vec<Vec<u8>>, rank: usize, places: &HashMap<i64, usize>) -> Result<RankResult<Found>> {
    let stopped = packed.iter().filter_map(|bytes| bytes.first().copied()).max().unwrap_or(0);
    if let Some(reason) = stop_reason(stopped) {
        return Ok(RankResult::Stopped(reason));
    }
    if rank != 0 {
        return Ok(RankResult::Elsewhere);
    }
    let unpack = |(rank, bytes): (usize, Vec<u8>)| {
        postcard::from_bytes(bytes.get(1..).unwrap_or_default())
            .map_err(|error| Error::bug(format!("unpacking results of rank {rank}: {error}")))
    };
    in_order(packed.into_iter().enumerate().map(unpack).collect::<Result<_>>()?, places).map(RankResult::Here)
}

fn in_order(shares: Vec<Share>, places: &HashMap<i64, usize>) -> Result<Found> {
    let (mut keyed, mut skipped) = (Vec::new(), Vec::new());
    for share in shares {
        for result in share.results {
            keyed.push((place(places, result.image_id)?, result));
        }
        skipped.extend(share.skipped);
    }
    keyed.sort_by_key(|&(index, _)| index);
    Ok(Found { results: keyed.into_iter().map(|(_, result)| result).collect(), skipped })
}

fn pack(share: &Share, stopped: u8) -> Result<Vec<u8>> {
    postcard::to_extend(share, vec![stopped]).map_err(|error| Error::bug(format!("packing results: {error}")))
}

/// Ctrl-C has priority, because a person pressed it.
fn stop_byte(reason: Option<StopReason>) -> u8 {
    match reason {
        None => 0,
        Some(StopReason::Terminated) => 1,
        Some(StopReason::Interrupted) => 2,
    }
}

fn stop_reason(byte: u8) -> Option<StopReason> {
    match byte {
        0 => None,
        1 => Some(StopReason::Terminated),
        _ => Some(StopReason::Interrupted),
    }
}

fn place(places: &HashMap<i64, usize>, image_id: i64) -> Result<usize> {
    places.get(&image_id).copied().ok_or_else(|| Error::bug(format!("image {image_id} is not in the data set")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Detection;

    fn result(image_id: i64) -> ImageResult {
        let detection = Detection { label: 1, score: 0.5, bbox: [1.0, 2.0, 3.0, 4.0], counts: Some("13".into()) };
        ImageResult { image_id, height: 2, width: 2, detections: vec![detection] }
    }

    #[test]
    fn sizes_that_no_mask_can_match_are_noted_with_the_metrics() {
        let small = fnet_test_support::SmallSet::new(&[(64, 48), (64, 48), (64, 48)]);
        let dataset = Dataset::open(&small.config, fnet_data::Split::Val).unwrap();
        let of = |image_id, height| ImageResult { image_id, height, width: 64, detections: Vec::new() };
        let note = |heights: [u32; 3], kinds: &[Metric]| {
            let results: Vec<_> = (100..).zip(heights).map(|(id, height)| of(id, height)).collect();
            other_sizes(&dataset, &results, kinds)
        };
        assert_eq!(note([48, 48, 48], &[Metric::Segm]), None);
        let text = note([48, 47, 48], &[Metric::Bbox, Metric::Segm]).unwrap();
        for part in ["image-size-differs", "data.val", "1 of 3 images has", "\"1.png\"", "64x47", "64x48", "no mask"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!note([47, 47, 48], &[Metric::Bbox]).unwrap().contains("no mask"));
    }

    fn share_of(ids: &[i64]) -> Share {
        Share { results: ids.iter().map(|&id| result(id)).collect(), skipped: vec![format!("after {ids:?}")] }
    }

    #[test]
    fn results_are_in_data_set_order_for_any_number_of_ranks() {
        let ids: Vec<i64> = (0..21).map(|i| (i * 8) % 21 + 100).collect();
        let places: HashMap<i64, usize> = ids.iter().zip(0..).map(|(&id, index)| (id, index)).collect();
        for world_size in [1, 2, 4, 8, 30] {
            let of_rank =
                |rank| -> Vec<i64> { evaluation_indices(21, rank, world_size).iter().map(|&i| ids[i]).collect() };
            let shares: Vec<Vec<u8>> =
                (0..world_size).map(|rank| pack(&share_of(&of_rank(rank)), 0).unwrap()).collect();
            for rank in 0..world_size {
                let found = combine(shares.clone(), rank, &places).unwrap();
                if rank == 0 {
                    let RankResult::Here(found) = found else { panic!("rank 0 has no result") };
                    assert_eq!(found.results.iter().map(|r| r.image_id).collect::<Vec<_>>(), ids, "{world_size} ranks");
                    assert_eq!(found.skipped.len(), world_size);
                } else {
                    assert_eq!(found, RankResult::Elsewhere);
                }
            }
        }
    }

    #[test]
    fn invalid_bytes_from_a_rank_are_an_error_that_names_it() {
        let shares = vec![pack(&share_of(&[]), 0).unwrap(), [[0].as_slice(), &[0xff; 9]].concat()];
        let error = combine(shares, 0, &HashMap::new()).unwrap_err();
        assert!(error.to_string().contains("rank 1"), "{error}");
    }

    #[test]
    fn a_stop_request_on_one_rank_stops_all() {
        let shares = vec![pack(&share_of(&[]), 0).unwrap(), pack(&share_of(&[]), 1).unwrap()];
        let stopped = combine(shares, 0, &HashMap::new()).unwrap();
        assert_eq!(stopped, RankResult::Stopped(StopReason::Terminated));
        assert_eq!(stop_reason(stop_byte(Some(StopReason::Interrupted))), Some(StopReason::Interrupted));
    }

    #[test]
    fn results_are_in_coordinates_of_the_original_image() {
        let meta = ImageMeta {
            image_id: 5,
            file_name: "a.jpg".into(),
            original_size: (60, 80),
            image_size: (120, 160),
            padded_size: (128, 160),
            scale_factor: [2.0; 4],
            flipped: false,
        };
        let found = Detections {
            boxes: Tensor::from_slice(&[10.0f32, 10.0, 30.0, 20.0, 40.0, 5.0, 60.0, 25.0]).reshape([2, 4]),
            scores: Tensor::from_slice(&[0.9f32, 0.4]),
            labels: Tensor::from_slice(&[3i64, 1]),
            masks: Some(Tensor::ones([2, 28, 28], (Kind::Float, Device::Cpu))),
        };
        let image = encode(&meta, &found, 0.5).unwrap();
        let labels: Vec<u32> = image.detections.iter().map(|d| d.label).collect();
        assert_eq!((image.image_id, image.height, image.width, labels), (5, 60, 80, vec![1, 3]));
        let area = |d| hotcoco::mask::area(&image.mask(d).unwrap().unwrap());
        assert_eq!(image.detections.iter().map(area).collect::<Vec<u64>>(), [400, 200]);

        let boxes_only = encode(&meta, &Detections { masks: None, ..found }, 0.5).unwrap();
        for (alone, with_mask) in boxes_only.detections.iter().zip(&image.detections) {
            assert_eq!(*alone, Detection { counts: None, ..with_mask.clone() });
        }
    }

    #[test]
    fn an_image_without_objects_has_an_empty_result() {
        let meta = ImageMeta::plain(6, "b.jpg", (6, 8));
        assert_eq!(encode(&meta, &Detections::none(28).unwrap(), 0.5).unwrap().detections, []);
    }
}
