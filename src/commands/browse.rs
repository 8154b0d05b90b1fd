//! `browse`: visualizes training images after augmentation.

use std::collections::HashMap;
use std::sync::Arc;

use hotcoco::Rle;
use image::{Rgb, RgbImage};

use fnet_common::text::count;
use fnet_common::{Context, Error, Result};
use fnet_data::{
    Batch, Dataset, ImageMeta, Images, InstanceMask, Loader, Severity, Split, Target, TestOptions, TrainOptions,
};
use fnet_evaluate::inference::RankResult;
use fnet_evaluate::paint::{Object, Painter, save};
use fnet_protocol::cli;
use fnet_protocol::stop;

use super::stdout::print;
use super::test::painted_paths;

/// Color of the padding, which the model sees as zeros.
const PADDING: Rgb<u8> = Rgb([28, 30, 33]);

/// Draws the first images of a set after resizing, flipping and padding, with the boxes, masks and names that training would
/// use. The pixels are those of the batch, as the model gets them.
/// Errors: if the config, the annotations or an image is wrong, or a file cannot be written.
pub fn browse(
    arguments: &cli::Browse,
    progress: &mut dyn FnMut(usize, usize),
    say: &mut dyn FnMut(&str),
) -> Result<RankResult<()>> {
    let mut config = fnet_data::load_config(&arguments.config, &arguments.set)?.config;
    // One image per batch, so that each has its own padding.
    config.data.samples_per_gpu = 1;
    let split = arguments.split;
    let dataset = Arc::new(Dataset::open(&config.data, split)?);
    dataset.diagnostics().lines(Severity::Warning).iter().for_each(|warning| say(warning));
    let images = dataset.first_samples();
    let indices = &images[..arguments.max.min(images.len())];
    let mut loader = if split == Split::Train && !arguments.no_augment {
        let options = TrainOptions { seed: config.train.seed, epoch: arguments.epoch - 1, ..TrainOptions::default() };
        Loader::train(Arc::clone(&dataset), &config.data, indices, &options)?
    } else {
        Loader::test(Arc::clone(&dataset), &config.data, indices, &TestOptions { with_targets: true })?
    };
    let paths = painted_paths(&dataset, &arguments.out);
    let places: HashMap<i64, usize> = dataset.image_ids().into_iter().zip(0..).collect();
    let names: Vec<&str> = dataset.categories().iter().map(|category| category.name.as_str()).collect();
    let painter = Painter::new()?;
    let (mut drawn, mut objects) = (0, 0);
    while let Some(batch) = loader.next() {
        if let Some(reason) = stop::requested() {
            return Ok(RankResult::Stopped(reason));
        }
        let batch = batch?;
        let (Some(meta), Some(target)) = (batch.metas.first(), batch.targets.first()) else { continue };
        let path = places.get(&meta.image_id).and_then(|&place| paths.get(place));
        let path = path.ok_or_else(|| Error::bug(format!("image {} is not in the set", meta.image_id)))?;
        let shown = to_paint(target, &names)?;
        let image = pixels(&batch, meta)?;
        let title = title(meta, split == Split::Train && !config.data.pipeline.train.is_empty());
        let painted = painter.panels(&image, &[(&shown, &title)])?;
        save(&painted, path).with_context(|| format!("drawing {}", meta.file_name))?;
        (drawn, objects) = (drawn + 1, objects + shown.len());
        progress(indices.len() - loader.remaining(), indices.len());
    }
    loader.take_warnings().iter().for_each(|warning| say(warning));
    for skipped in loader.take_skipped() {
        say(&format!("skipped: {} (image {}): {}", skipped.file, skipped.image_id, skipped.reason));
    }
    print(&format!(
        "{drawn} of the {} of data.{} with {} are in {}",
        count(images.len(), "image"),
        split.name(),
        count(objects, "object"),
        arguments.out.display()
    ))?;
    Ok(RankResult::Here(()))
}

/// The transform of an image: `640x427 resized to 1199x800, mirrored: cat.jpg`; sizes are width x height. The augmentations of
/// data.pipeline.train do more than to resize.
fn title(meta: &ImageMeta, augmented: bool) -> String {
    let size = |(height, width): (usize, usize)| format!("{width}x{height}");
    let became = if augmented { "augmented" } else { "resized" };
    let mirrored = if meta.flipped { ", mirrored" } else { "" };
    format!("{} {became} to {}{mirrored}: {}", size(meta.original_size), size(meta.image_size), meta.file_name)
}

/// The image of a batch of one, with dark padding.
fn pixels(batch: &Batch, meta: &ImageMeta) -> Result<RgbImage> {
    let (_, (height, width)) = batch.images.size()?;
    let frame = match &batch.images {
        Images::Pixels(pixels) => pixels.frame(0),
        Images::Values(_) => None,
    };
    let image = frame.and_then(|frame| RgbImage::from_raw(width as u32, height as u32, frame.to_vec()));
    let mut image = image.ok_or_else(|| Error::bug("a batch has fewer pixels than its size says"))?;
    let (bottom, right) = meta.image_size;
    for (x, y, pixel) in image.enumerate_pixels_mut() {
        if x as usize >= right || y as usize >= bottom {
            *pixel = PADDING;
        }
    }
    Ok(image)
}

fn to_paint(target: &Target, names: &[&str]) -> Result<Vec<Object>> {
    let mut objects = Vec::with_capacity(target.boxes.len());
    for (index, (&bbox, &label)) in target.boxes.iter().zip(&target.labels).enumerate() {
        let label = usize::try_from(label).map_err(|_| Error::bug(format!("label {label} of a target")))?;
        objects.push(Object {
            label,
            name: names.get(label).copied().unwrap_or_default().to_owned(),
            score: None,
            bbox,
            mask: target.masks.get(index).and_then(Option::as_ref).map(run_lengths).transpose()?,
            crowd: false,
        });
    }
    Ok(objects)
}

/// A mask in the frame of the whole image, as run lengths.
fn run_lengths(mask: &InstanceMask) -> Result<Rle> {
    let (height, width) = mask.frame;
    let mut columns = vec![0_u8; height * width];
    for y in 0..mask.height {
        for x in 0..mask.width {
            columns[(mask.x + x) * height + mask.y + y] = mask.pixels[y * mask.width + x];
        }
    }
    hotcoco::mask::encode(&columns, height as u32, width as u32)
        .map_err(|error| Error::data(format!("a mask of {width}x{height} pixels: {error}")))
}

#[cfg(test)]
mod tests {
    use fnet_config::Pipeline;
    use fnet_data::Pixels;

    use super::*;

    #[test]
    fn the_pixels_of_a_batch_are_unchanged_and_its_padding_is_dark() {
        let rgb = [[3_u8, 200, 77], [0, 255, 128]];
        let mut pixels = Pixels::black((2, 2), vec![(1, 2)], &Pipeline::default());
        pixels.frames_mut().for_each(|frame| frame[..6].copy_from_slice(rgb.as_flattened()));
        let meta = ImageMeta { padded_size: (2, 2), flipped: true, ..ImageMeta::plain(1, "a.jpg", (1, 2)) };
        let batch = Batch { images: pixels.into(), metas: vec![meta.clone()], targets: vec![Target::default()] };
        let image = super::pixels(&batch, &meta).unwrap();
        let expected = [Rgb(rgb[0]), Rgb(rgb[1]), PADDING, PADDING];
        assert_eq!(image.pixels().copied().collect::<Vec<_>>(), expected);
        assert_eq!(title(&meta, false), "2x1 resized to 2x1, mirrored: a.jpg");
    }

    #[test]
    fn a_mask_window_is_placed_correctly() {
        let mask = InstanceMask { frame: (3, 4), x: 1, y: 1, width: 2, height: 2, pixels: [1, 0, 1, 1].into() };
        let rle = run_lengths(&mask).unwrap();
        assert_eq!((rle.h, rle.w, rle.counts), (3, 4, vec![4, 2, 2, 1, 3]));
    }
}
