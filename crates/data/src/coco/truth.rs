//! The ground truth of a set for metrics: all annotations, with the same repairs.

use std::collections::HashMap;

use hotcoco::types::Segmentation as Mask;

use fnet_common::Result;

use super::annotations::{Context, OTHER_CLASS, Raw, UNKNOWN_SIZE};
use super::header::{Header, number};
use super::lists;
use super::open::{read_header, report_broken};
use super::segmentation::Segmentation;
use super::values::RawId;
use super::{CocoDataset, Split};
use crate::diagnostics::{Code, Diagnostics, Location};

/// One annotation of a selected class.
#[derive(Debug, Clone)]
pub struct TrueObject {
    /// Id of its image, as in [`crate::Dataset::image_ids`].
    pub image_id: i64,
    /// Its class: an index into [`crate::Dataset::categories`].
    pub label: usize,
    /// `[x, y, width, height]` in pixels.
    pub bbox: [f64; 4],
    /// Area in pixels, which determines the size range (small, medium or large).
    pub area: f64,
    /// Whether it is a crowd region.
    pub is_crowd: bool,
    /// Run lengths in the frame of the image. `None` without a mask.
    pub mask: Option<Mask>,
}

/// The image sizes: from the annotation file, or else as the set has read them from the image files.
pub(super) fn listed_sizes(header: &Header, dataset: &CocoDataset) -> Vec<[u32; 2]> {
    let mut by_name: HashMap<&str, [u32; 2]> = HashMap::new();
    if header.images.iter().any(|image| image.size.is_err()) {
        by_name.extend((0..dataset.len()).map(|index| {
            let image = dataset.image(index);
            (image.file_name, [image.width as u32, image.height as u32])
        }));
    }
    let size = |name: &str| by_name.get(name).copied().unwrap_or(UNKNOWN_SIZE);
    header.images.iter().map(|image| image.size.clone().unwrap_or_else(|_| size(&image.file_name))).collect()
}

impl CocoDataset {
    /// All annotations of selected classes, including crowds and small objects, as in pycocotools: in the order of the
    /// file, the last one of equal ids in place of all. A part of a file has those of its images.
    /// Errors: a data error that describes the problem in the annotation file.
    pub fn true_objects(&self) -> Result<Vec<TrueObject>> {
        let mut diagnostics = Diagnostics::default();
        let header = read_header(&self.source, &self.path, self.split, &self.classes, &mut diagnostics);
        let mut objects = Vec::new();
        if let Some(header) = header {
            let sizes = listed_sizes(&header, self);
            let mut names = header.names.clone();
            let ids: Vec<i64> = header.images.iter().map(|image| number(&image.id.value, &mut names)).collect();
            let context = header.context(&self.path, Split::Val, &sizes, self.masks);
            let side = self.side.as_deref();
            let parse = |_: &str, text: &[u8], _: u64, row: usize, diagnostics: &mut Diagnostics| {
                object(text, row, (&ids, side), &context, diagnostics)
            };
            let mut read = Vec::new();
            let mut take = |_: &str, object: Option<Identified>| match object {
                Some(object) => read.push(object),
                None => read.clear(),
            };
            match lists::read(&self.source, &self.path, &["annotations"], &parse, &mut take, &mut diagnostics) {
                Ok(_) => objects = last_of_equal_ids(read),
                Err(broken) => report_broken(broken, &self.source, &self.path, &mut diagnostics),
            }
        }
        diagnostics.refuse_errors()?;
        Ok(objects)
    }
}

/// An annotation with its own id, if it has one.
type Identified = (Option<RawId>, TrueObject);

fn last_of_equal_ids(objects: Vec<Identified>) -> Vec<TrueObject> {
    let mut last: HashMap<&RawId, usize> = HashMap::with_capacity(objects.len());
    for (index, (id, _)) in objects.iter().enumerate() {
        if let Some(id) = id {
            last.insert(id, index);
        }
    }
    let stands = |(index, (id, object)): (usize, &Identified)| {
        let other = id.as_ref().and_then(|id| last.get(id)).copied().unwrap_or(index);
        TrueObject { image_id: object.image_id, ..objects[other].1.clone() }
    };
    if last.len() == objects.len() {
        return objects.into_iter().map(|(_, object)| object).collect();
    }
    objects.iter().enumerate().map(stands).collect()
}

fn object(
    text: &[u8],
    row: usize,
    (ids, side): (&[i64], Option<&[bool]>),
    context: &Context,
    diagnostics: &mut Diagnostics,
) -> Option<Identified> {
    // Malformed annotations were reported when the set was opened.
    let raw = Raw::read(text).ok()?;
    let image = *context.images.get(&raw.image.as_ref()?.value)?;
    if side.is_some_and(|side| side.get(image as usize) != Some(&true)) {
        return None;
    }
    let label = match &raw.category {
        Some(id) => context.labels.get(&id.value).copied(),
        None => context.labels.values().next().copied(),
    };
    let label = label.filter(|&label| label != OTHER_CLASS)?;
    let size = context.sizes[image as usize];
    let mut wrong = |message: String| {
        let id = super::records::shown_id(raw.id.as_ref(), row);
        diagnostics.add(Code::MaskMalformed, context.path, || Location::annotation(id), || message);
    };
    let uses_masks = context.masks.is_some();
    // Otherwise they only give the box and the area.
    let text = raw.mask.map(|(text, _)| text).filter(|_| uses_masks || raw.bbox.is_none() || raw.area.is_none());
    let mask = match text.map(|text| Segmentation::parse(text).map(|mask| (mask, text))).transpose() {
        // Without a mask if pycocotools raises an exception.
        Ok(mask) => mask.filter(|(mask, text)| mask.refusal(text).is_none()).map(|(mask, _)| mask),
        Err(_) if !uses_masks => None,
        Err(message) => {
            wrong(message);
            return None;
        }
    };
    let bbox = match (raw.bbox, &mask) {
        (Some(bbox), _) => bbox.value,
        (None, Some(mask)) => mask.bounds(size).ok().flatten()?,
        (None, None) => return None,
    };
    let frame = (size[1] as usize, size[0] as usize);
    let rle = match mask.map(|mask| mask.to_rle(frame)).transpose() {
        Ok(rle) => rle,
        Err(_) if !uses_masks => None,
        Err(message) => {
            wrong(message);
            return None;
        }
    };
    let area = raw
        .area
        .map(|area| area.value)
        .unwrap_or_else(|| rle.as_ref().map_or(bbox[2] * bbox[3], |rle| hotcoco::mask::area(rle) as f64));
    let object = TrueObject {
        image_id: ids[image as usize],
        label: usize::from(label),
        bbox,
        area,
        is_crowd: raw.crowd.unwrap_or(false),
        mask: rle.map(|rle| Mask::UncompressedRle { size: [rle.h, rle.w], counts: rle.counts }),
    };
    Some((raw.id.map(|id| id.value), object))
}
