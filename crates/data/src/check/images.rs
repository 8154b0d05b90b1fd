//! Compares the image files of a set with its annotation file.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use fnet_common::Error;
use fnet_common::text::printable;
use fnet_config::Pipeline;

use crate::coco::{CocoDataset, Split};
use crate::decode::{DecodedImage, ImageHeader};
use crate::diagnostics::{Code, Diagnostics, Location};
use crate::transform::{Augmentation, Geometry, rescaled_size};

/// Images per task of a thread.
const CHUNK: usize = 16;

/// Reads the header of every image that exists, or if `decode` all of it, in parallel. Diagnostics are in the order of the
/// set.
pub(super) fn check(
    dataset: &CocoDataset,
    pipeline: &Pipeline,
    decode: bool,
    progress: &(dyn Fn(usize) + Sync),
    diagnostics: &mut Diagnostics,
) {
    let done = AtomicUsize::new(0);
    let starts: Vec<usize> = (0..dataset.len()).step_by(CHUNK).collect();
    let none = diagnostics.none();
    let chunks: Vec<Diagnostics> = starts
        .into_par_iter()
        .map(|start| {
            let mut diagnostics = none.none();
            for index in start..dataset.len().min(start + CHUNK) {
                check_image(dataset, index, pipeline, decode, &mut diagnostics);
                progress(done.fetch_add(1, Ordering::Relaxed) + 1);
            }
            diagnostics
        })
        .collect();
    chunks.into_iter().for_each(|chunk| diagnostics.append(chunk));
}

fn check_image(dataset: &CocoDataset, index: usize, pipeline: &Pipeline, decode: bool, diagnostics: &mut Diagnostics) {
    let path = dataset.image_path(index);
    if !path.exists() {
        // Reported with the other missing files.
        return;
    }
    let image = dataset.image(index);
    let mut add = |code, message: String| diagnostics.add(code, &path, || Location::image(image.id), || message);
    let unreadable = |error: Error| {
        let text = error.to_string();
        text.split_once(&format!("{}: ", printable(&path.to_string_lossy())))
            .map_or(text.clone(), |(_, message)| message.to_owned())
    };
    let header = match DecodedImage::header(&path) {
        Ok(header) => header,
        Err(error) => return add(Code::ImageUnreadable, unreadable(error)),
    };
    if decode {
        match DecodedImage::read(&path) {
            Ok(DecodedImage { warning: Some(warning), .. }) => add(Code::ImageDamaged, warning),
            Ok(_) => {}
            Err(error) => return add(Code::ImageUnreadable, unreadable(error)),
        }
    }
    if !header.fits_name(&path) {
        add(Code::ImageExtension, format!("the content is {}", header.format.mime_type()));
    }
    if let Some((code, message)) = size(dataset, index, &header, pipeline) {
        add(code, message);
    }
}

/// Checks that the annotations match the size of the image.
fn size(dataset: &CocoDataset, index: usize, header: &ImageHeader, pipeline: &Pipeline) -> Option<(Code, String)> {
    let image = dataset.image(index);
    let (listed, upright) = ((image.height, image.width), (header.height, header.width));
    let rotated = header.orientation > 1;
    if listed == upright {
        return rotated.then(|| (Code::ImageRotated, "rotated upright according to its EXIF orientation".into()));
    }
    let stored =
        if rotated && (listed.1, listed.0) == upright { ", which is its size before its EXIF rotation" } else { "" };
    let effect = match dataset.split() {
        Split::Train => "",
        Split::Val | Split::Test if dataset.has_masks() => ", so none of its masks can match in evaluation",
        Split::Val | Split::Test => "",
    };
    let message = format!(
        "listed as {}x{}{stored}, but it has {}x{} pixels{effect}",
        image.width, image.height, header.width, header.height
    );
    let unusable = dataset.split() == Split::Train
        && dataset.has_masks()
        && !dataset.objects(index).boxes.is_empty()
        && match pipeline.train.as_slice() {
            [] => pipeline.scales.iter().any(|&scale| {
                let padded = Geometry::new(upright, Augmentation { scale, flip: false }, pipeline.size_divisor).padded;
                let masks = rescaled_size(listed, scale);
                masks.0 > padded.0 || masks.1 > padded.1
            }),
            _ => true,
        };
    Some((if unusable { Code::ImageSizeUnusable } else { Code::ImageSizeDiffers }, message))
}
