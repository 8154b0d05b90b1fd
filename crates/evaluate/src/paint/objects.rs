//! The objects of annotations and of detections, for drawing.

use fnet_common::{Error, Result};
use fnet_data::{Dataset, DecodedImage};

use super::Object;
use crate::results::{Detection, ImageResult};

/// The annotated objects of an image, without crowd regions.
/// Errors: the annotation file cannot be read.
pub fn of_truth(dataset: &Dataset, index: usize) -> Result<Vec<Object>> {
    let record = dataset.record(index);
    let (image, objects) = (record.image, record.objects);
    let mut painted = Vec::with_capacity(objects.boxes.len());
    let segmentations = match dataset.has_masks() {
        true => record.segmentations()?,
        false => vec![None; objects.boxes.len()],
    };
    for (place, segmentation) in segmentations.iter().enumerate() {
        let label = usize::from(objects.labels[place]);
        // Such a mask may still be evaluated; only its box is drawn.
        let mask = segmentation.as_ref().map(|mask| mask.to_rle((image.height, image.width)));
        if let Some(Err(message)) = &mask {
            let (file, id) = (record.annotation_file().display(), objects.ids[place]);
            log::warn!("{file}: annotation {id} is drawn without its mask: segmentation: {message}");
        }
        painted.push(Object {
            label,
            name: dataset.categories().get(label).map(|category| category.name.clone()).unwrap_or_default(),
            score: None,
            bbox: objects.boxes[place],
            mask: mask.and_then(Result::ok),
            crowd: false,
        });
    }
    Ok(painted)
}

/// The detections with a score of at least `least`.
/// Errors: a mask does not match the image.
pub fn of_result(result: &ImageResult, classes: &[String], least: f64) -> Result<Vec<Object>> {
    let shown = result.detections.iter().filter(|detection| f64::from(detection.score) >= least);
    shown
        .map(|detection| {
            Ok(Object {
                label: detection.label as usize,
                name: name_of(detection, classes),
                score: Some(detection.score),
                bbox: detection.bbox,
                mask: result.mask(detection)?,
                crowd: false,
            })
        })
        .collect()
}

/// The name of the class of a detection.
pub fn name_of(detection: &Detection, classes: &[String]) -> String {
    let label = detection.label as usize;
    classes.get(label).cloned().unwrap_or_else(|| format!("class {label}"))
}

/// A decoded image for drawing.
/// Errors: a bug: it has fewer pixels than its size says.
pub fn into_image(image: DecodedImage) -> Result<image::RgbImage> {
    image::RgbImage::from_raw(image.width as u32, image.height as u32, image.rgb)
        .ok_or_else(|| Error::bug("an image with fewer pixels than its size says"))
}
