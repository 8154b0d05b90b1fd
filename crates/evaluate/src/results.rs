//! Detections of images, their exchange between ranks, and COCO results files.

use std::io::Write;
use std::path::{Path, PathBuf};

use hotcoco::Rle;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use fnet_common::atomic;
use fnet_common::text::count;
use fnet_common::{Error, Result};
use fnet_data::Dataset;

/// One detected object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Detection {
    /// Class, from 0.
    pub label: u32,
    /// Confidence, 0 to 1.
    pub score: f32,
    /// `[x1, y1, x2, y2]` in pixels of the original image.
    pub bbox: [f32; 4],
    /// COCO's compressed run lengths of the mask, in the frame of the whole image; `None` if the model has no masks.
    pub counts: Option<String>,
}

/// The detections of one image, ordered by class, then by falling score, as in MMDetection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageResult {
    /// The [`image_id`](fnet_data::Dataset::image_id) of the image.
    pub image_id: i64,
    /// Height of the original image in pixels.
    pub height: u32,
    /// Width of the original image in pixels.
    pub width: u32,
    /// Its detections.
    pub detections: Vec<Detection>,
}

impl ImageResult {
    /// Sorts detections in order of falling score into MMDetection's order.
    ///
    /// `masks`, if the model has them, are in the frame of the whole image of `size` (height, width).
    pub fn new(
        image_id: i64,
        size: (usize, usize),
        boxes: &[[f32; 4]],
        scores: &[f32],
        labels: &[i64],
        masks: Option<&[Rle]>,
    ) -> Result<Self> {
        let count = masks.map_or(boxes.len(), <[Rle]>::len);
        if boxes.len() != scores.len() || boxes.len() != labels.len() || boxes.len() != count {
            return Err(Error::bug(format!(
                "{} boxes, {} scores, {} labels and {count} masks of image {image_id}",
                boxes.len(),
                scores.len(),
                labels.len(),
            )));
        }
        let mut detections = Vec::with_capacity(boxes.len());
        for index in 0..boxes.len() {
            detections.push(Detection {
                label: u32::try_from(labels[index])
                    .map_err(|_| Error::bug(format!("label {} of image {image_id}", labels[index])))?,
                score: scores[index],
                bbox: boxes[index],
                counts: masks.map(|masks| hotcoco::mask::rle_to_string(&masks[index])),
            });
        }
        detections.sort_by_key(|detection| detection.label);
        Ok(Self { image_id, height: size.0 as u32, width: size.1 as u32, detections })
    }

    /// The mask of one detection, if it has one.
    /// Errors: its run lengths do not match the image.
    pub fn mask(&self, detection: &Detection) -> Result<Option<Rle>> {
        let read = |counts: &String| {
            hotcoco::mask::rle_from_string(counts, self.height, self.width)
                .map_err(|error| Error::data(format!("mask of image {}: {error}", self.image_id)))
        };
        detection.counts.as_ref().map(read).transpose()
    }

    /// The mask of one detection in a COCO results file, if it has one.
    pub fn segmentation(&self, detection: &Detection) -> Option<Value> {
        let counts = detection.counts.as_ref()?;
        Some(json!({ "size": [self.height, self.width], "counts": counts }))
    }
}

/// `[x, y, width, height]`, computed as in MMDetection: each float32 is widened, then subtracted.
pub fn xywh(bbox: [f32; 4]) -> [f64; 4] {
    let [x1, y1, x2, y2] = bbox.map(f64::from);
    [x1, y1, x2 - x1, y2 - y1]
}

/// The ids in results, written as in the annotation file.
pub struct WrittenIds<'i> {
    /// The id of an image.
    pub image: Box<dyn Fn(i64) -> Value + 'i>,
    /// The `category_id` of each label.
    pub categories: Vec<Value>,
}

impl<'i> WrittenIds<'i> {
    /// Those of a data set.
    pub fn of(dataset: &'i Dataset) -> Self {
        let categories = dataset.categories().iter().map(|category| dataset.written_category_id(category.id)).collect();
        Self { image: Box::new(|id| dataset.written_image_id(id)), categories }
    }
}

/// Writes COCO results: `PREFIX.bbox.json`, and if there are masks `PREFIX.segm.json` with them. Returns the paths.
///
/// The order of the images is that of `results`.
pub fn write_files(
    results: &[ImageResult],
    ids: &WrittenIds<'_>,
    prefix: &Path,
    with_masks: bool,
) -> Result<Vec<PathBuf>> {
    let named = |suffix: &str| {
        let mut name = prefix.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let mut paths = vec![named(".bbox.json")];
    paths.extend(with_masks.then(|| named(".segm.json")));
    for (path, with_mask) in paths.iter().zip([false, true]) {
        write_file(results, ids, path, with_mask)?;
    }
    Ok(paths)
}

/// Writes one file of COCO results, with masks or without.
pub fn write_file(results: &[ImageResult], ids: &WrittenIds<'_>, path: &Path, with_masks: bool) -> Result<()> {
    atomic::create(path, |out| write_entries(results, ids, with_masks, out))
}

fn write_entries(results: &[ImageResult], ids: &WrittenIds<'_>, masks: bool, out: &mut dyn Write) -> Result<()> {
    let mut separator = "[";
    for image in results {
        for detection in &image.detections {
            let mut entry = json!({
                "image_id": (ids.image)(image.image_id),
                "bbox": xywh(detection.bbox),
                "score": f64::from(detection.score),
                "category_id": category_id(&ids.categories, detection.label)?,
            });
            if let Some(segmentation) = image.segmentation(detection).filter(|_| masks) {
                entry["segmentation"] = segmentation;
            }
            let text = entry.to_string();
            out.write_all(separator.as_bytes()).and_then(|()| out.write_all(text.as_bytes())).map_err(disk)?;
            separator = ",\n";
        }
    }
    let end = if separator == "[" { "[]\n" } else { "]\n" };
    out.write_all(end.as_bytes()).map_err(disk)
}

/// The `category_id` of a label.
pub(crate) fn category_id<T>(category_ids: &[T], label: u32) -> Result<&T> {
    category_ids.get(label as usize).ok_or_else(|| {
        Error::data(format!(
            "the model detected class number {label}, but the data set has {}: use the config that the model was \
             trained with, and an annotation file with the same classes",
            count(category_ids.len(), "class")
        ))
    })
}

fn disk(error: std::io::Error) -> Error {
    Error::environment(format!("writing failed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(categories: &[i64]) -> WrittenIds<'static> {
        WrittenIds { image: Box::new(Value::from), categories: categories.iter().map(|&id| id.into()).collect() }
    }

    fn example() -> Vec<ImageResult> {
        let masks = vec![Rle { h: 2, w: 3, counts: vec![1, 2, 3] }, Rle { h: 2, w: 3, counts: vec![0, 6] }];
        let boxes = [[0.5, 1.0, 3.0, 2.0], [0.1, 0.0, 3.0, 2.0]];
        let first = ImageResult::new(7, (2, 3), &boxes, &[0.9, 0.3], &[1, 0], Some(&masks)).unwrap();
        vec![first, ImageResult { image_id: 8, height: 4, width: 4, detections: vec![] }]
    }

    #[test]
    fn detections_are_ordered_by_class_and_then_by_score() {
        let image = &example()[0];
        assert_eq!(image.detections.iter().map(|d| (d.label, d.score)).collect::<Vec<_>>(), [(0, 0.3), (1, 0.9)]);
        assert_eq!(image.mask(&image.detections[1]).unwrap().unwrap().counts, [1, 2, 3]);
    }

    #[test]
    fn files_have_one_entry_per_detection_with_widened_floats() {
        let folder = tempfile::tempdir().unwrap();
        let prefix = folder.path().join("deep/results");
        let paths = write_files(&example(), &ids(&[10, 20]), &prefix, true).unwrap();
        let read =
            |path: &Path| -> serde_json::Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
        let (bbox, segm) = (read(&paths[0]), read(&paths[1]));
        assert!(paths[1].ends_with("deep/results.segm.json"));
        assert_eq!(bbox.as_array().unwrap().len(), 2);
        assert_eq!(bbox[0]["category_id"], 10);
        assert_eq!(bbox[0]["bbox"][0], f64::from(0.1_f32));
        assert_eq!(bbox[1]["bbox"], json!([0.5, 1.0, 2.5, 1.0]));
        assert!(bbox[0].get("segmentation").is_none());
        assert_eq!(segm[0]["segmentation"]["size"], json!([2, 3]));
    }

    #[test]
    fn no_detections_give_an_empty_list() {
        let folder = tempfile::tempdir().unwrap();
        let paths = write_files(&example()[1..], &ids(&[10, 20]), &folder.path().join("r"), false).unwrap();
        assert_eq!(paths.len(), 1);
        assert_eq!(std::fs::read_to_string(&paths[0]).unwrap(), "[]\n");
    }

    #[test]
    fn a_class_that_is_not_in_the_data_set_is_a_data_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = write_files(&example(), &ids(&[10]), &folder.path().join("r"), true).unwrap_err();
        assert_eq!(error.kind(), fnet_common::ErrorKind::Data);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
