//! Checks of the masks and the image files of a whole set.

use fnet_common::text::{count, list, quoted};
use fnet_config::WithoutMask;

use super::CocoDataset;
use super::Split;
use super::annotations::{self, Context, OTHER_CLASS, Raw, UNKNOWN_SIZE, Usage, no_mask};
use super::files::Found;
use super::lists;
use super::open::{read_header, report_broken};
use super::records::shown_id;
use super::segmentation::Segmentation;
use super::truth::listed_sizes;
use super::values::shown;
use crate::diagnostics::{Code, Diagnostics, Location, Severity};

/// Tolerance between a box and its mask, in pixels and as a fraction of the box's side.
const APART: (f64, f64) = (2.0, 0.05);

impl CocoDataset {
    /// Reads every mask that is trained on, or in the validation set every mask of a selected class. Reports malformed
    /// and unusual masks, and a training set whose masks are all empty. The annotation file is read again, in parallel, unless
    /// masks are not used.
    pub fn check_masks(&self, diagnostics: &mut Diagnostics) {
        if !self.has_masks() {
            return;
        }
        let mut found = diagnostics.none();
        let mut known = diagnostics.none();
        let Some(header) = read_header(&self.source, &self.path, self.split, &self.classes, &mut known) else { return };
        let sizes = listed_sizes(&header, self);
        let context = header.context(&self.path, self.split, &sizes, self.masks);
        let parse = |_: &str, text: &[u8], offset: u64, row: usize, diagnostics: &mut Diagnostics| -> Option<bool> {
            let raw = Raw::read(text).ok()?;
            let used = annotations::row_of(&raw, offset, row, &context, &mut diagnostics.none())?;
            let size = *sizes.get(used.image as usize)?;
            if self.side.as_ref().is_some_and(|side| side.get(used.image as usize) != Some(&true))
                || size == UNKNOWN_SIZE
                || used.label == OTHER_CLASS
                || (self.split == Split::Train && used.usage != Usage::Trained)
            {
                return None;
            }
            Some(check(&raw, row, size, &context, diagnostics))
        };
        let (mut masks, mut empty) = (0, 0);
        let mut take = |_: &str, is_usable: Option<bool>| {
            masks += usize::from(is_usable.is_some());
            empty += usize::from(is_usable == Some(false));
        };
        if let Err(broken) = lists::read(&self.source, &self.path, &["annotations"], &parse, &mut take, &mut found) {
            report_broken(broken, &self.source, &self.path, &mut found);
        }
        if self.split == Split::Train && empty > 0 && empty == masks && found.number_of(Severity::Error) == 0 {
            found.add(Code::FileNothing, &self.path, Location::file, || {
                format!("{}, all with empty masks", count(masks, "object"))
            });
        }
        // These were reported when the file was opened.
        [Code::FileKeyRepeated, Code::FileNotUtf8].into_iter().for_each(|code| found.remove(code));
        diagnostics.append(found);
    }

    /// Checks that every image has a file.
    pub fn check_files(&self, diagnostics: &mut Diagnostics) {
        // A name with a folder part is looked up in that folder.
        for index in 0..self.len() {
            let image = self.image(index);
            if self.folders.has(&self.folder, image.file_name) {
                continue;
            }
            let place = || Location::image(self.written_image_id(image.id).to_string().trim_matches('"'));
            match self.folders.find(&self.folder, image.file_name) {
                Found::Named(_) => {}
                Found::Meant(path, how) => diagnostics.add(Code::ImageNameMeant, &self.path, place, || {
                    format!("no file {:?}; using {}, {how}", image.file_name, path.display())
                }),
                Found::Unclear { named, others } => diagnostics.add(Code::ImageNameUnclear, &named, place, || {
                    format!(
                        "no such file, but several similar ones: {}",
                        list(others.iter().map(|name| quoted(name)), 4)
                    )
                }),
                Found::Missing(path) => diagnostics.add(Code::ImageMissing, &path, place, || {
                    let what = match path.parent() {
                        Some(parent) if !parent.is_dir() => format!("no folder {}", parent.display()),
                        _ if path.is_symlink() => "dangling link".into(),
                        _ if path.exists() => "it is not a regular file".into(),
                        _ => "no such file".into(),
                    };
                    match self.folders.offer(image.file_name, &self.folder, &self.root, &self.field) {
                        Some(offer) => format!("{what}; {offer}"),
                        None => what,
                    }
                }),
            }
        }
    }
}

/// Reports problems with the mask of an annotation, and returns whether the mask has a pixel or none is needed.
fn check(raw: &Raw, row: usize, size: [u32; 2], context: &Context, diagnostics: &mut Diagnostics) -> bool {
    let place = || {
        let image = raw.image.as_ref();
        Location::annotation(shown_id(raw.id.as_ref(), row)).of_image(shown_id(image, row))
    };
    let mut add = |code, message: String| diagnostics.add(code, context.path, place, || message);
    let is_box = context.masks == Some(WithoutMask::Box);
    let missing = match context.split {
        Split::Train if is_box => Code::MaskMissingBox,
        Split::Train => Code::MaskMissing,
        Split::Val | Split::Test => Code::MaskMissingEvaluated,
    };
    let Some((text, _)) = raw.mask else {
        // For a training set, this was reported when it was opened.
        if context.split != Split::Train {
            add(missing, no_mask(raw));
        }
        return is_box;
    };
    let mut odd = Vec::new();
    let segmentation = match Segmentation::parse_noting(text, &mut |code, message| odd.push((code, message))) {
        Ok(segmentation) => segmentation,
        Err(message) => {
            add(Code::MaskMalformed, message);
            return false;
        }
    };
    if let Some(message) = segmentation.refusal(text) {
        add(missing, message);
        return is_box;
    }
    odd.into_iter().for_each(|(code, message)| add(code, message));
    let bounds = match segmentation.bounds(size) {
        Ok(bounds) => bounds,
        Err(message) => {
            add(Code::MaskMalformed, message);
            return false;
        }
    };
    let Some([x, y, w, h]) = bounds.filter(|_| !is_empty(&segmentation, size)) else {
        let [width, height] = size;
        add(Code::MaskEmpty, format!("no pixel of {width}x{height} is covered by {}", shown(text)));
        return false;
    };
    let [width, height] = size.map(f64::from);
    if [-x, -y, x + w - width, y + h - height].iter().any(|&over| over > 1.0) {
        add(Code::MaskOutside, format!("its points span {:?} in {width}x{height} pixels", [x, y, w, h]));
    }
    if let Some(bbox) = raw.bbox {
        let [bx, by, bw, bh] = bbox.value;
        // A box around a mask that extends beyond the image may end at the border.
        let inside =
            |start: f64, length: f64, limit: f64| [start.clamp(0.0, limit), (start + length).clamp(0.0, limit)];
        let pairs =
            [(inside(x, w, width), inside(bx, bw, width), bw), (inside(y, h, height), inside(by, bh, height), bh)];
        let apart = pairs.iter().any(|(mask, own, side)| {
            let tolerance = APART.0.max(APART.1 * side);
            mask.iter().zip(own).any(|(a, b)| (a - b).abs() > tolerance)
        });
        if apart {
            add(Code::MaskBoxDiffers, format!("bbox is {:?}, but the mask spans {:?}", bbox.value, [x, y, w, h]));
        }
    }
    true
}

/// Whether no pixel is set. Polygons are drawn only if they may miss every pixel because they are thin, or lie at the
/// border of the image or outside.
fn is_empty(segmentation: &Segmentation, [width, height]: [u32; 2]) -> bool {
    let (right, bottom) = (f64::from(width), f64::from(height));
    let is_inside = |point: &[f64]| (0.0..=right).contains(&point[0]) && (0.0..=bottom).contains(&point[1]);
    let is_thin = match segmentation {
        Segmentation::Polygons(polygons) => {
            polygons.iter().all(|polygon| enclosed_area(polygon) < 4.0 || !polygon.chunks_exact(2).all(is_inside))
        }
        Segmentation::RunLengths(_) => true,
    };
    let frame = (height as usize, width as usize);
    is_thin && segmentation.to_rle(frame).is_ok_and(|rle| hotcoco::mask::area(&rle) == 0)
}

/// The area that a polygon encloses, by the shoelace formula.
fn enclosed_area(polygon: &[f64]) -> f64 {
    let points: Vec<&[f64]> = polygon.chunks_exact(2).collect();
    let next = points.iter().cycle().skip(1);
    let doubled: f64 = points.iter().zip(next).map(|(a, b)| a[0] * b[1] - b[0] * a[1]).sum();
    doubled.abs() / 2.0
}
