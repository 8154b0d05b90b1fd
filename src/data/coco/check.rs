//! Checks of the masks of a whole set.

use super::Dataset;
use super::Split;
use super::annotations::{self, Context, FOREIGN, Raw, UNKNOWN_SIZE};
use super::lists;
use super::open::{read_header, report_broken};
use super::records::shown_id;
use super::segmentation::Segmentation;
use super::truth::listed_sizes;
use crate::data::findings::{Code, Findings, Place};

/// A box and its mask may be this far apart, in pixels, and in parts of the box's side.
const APART: (f64, f64) = (2.0, 0.05);

impl Dataset {
    /// Reads every mask that is trained on, or in the validation set every mask of a wanted class, and reports those that
    /// are malformed or odd. The annotation file is read again, in parallel.
    pub fn check_masks(&self, findings: &mut Findings) {
        let mut found = findings.none();
        let mut known = findings.none();
        let Some(header) = read_header(&self.source, &self.path, self.split, &self.classes, &mut known) else { return };
        let sizes = listed_sizes(&header, self);
        let context = header.context(&self.path, self.split, &sizes);
        let parse = |_: &str, text: &[u8], offset: u64, row: usize, findings: &mut Findings| -> Option<()> {
            let raw = Raw::read(text).ok()?;
            let used = annotations::row_of(&raw, offset, row, &context, &mut findings.none())?;
            let size = *sizes.get(used.image as usize)?;
            if size == UNKNOWN_SIZE || used.label == FOREIGN || (self.split == Split::Train && !used.is_used) {
                return None;
            }
            check(&raw, row, size, &context, findings);
            None
        };
        if let Err(broken) = lists::read(&self.source, &self.path, &["annotations"], &parse, &mut |_, _| {}, &mut found)
        {
            report_broken(broken, &self.source, &self.path, &mut found);
        }
        // What concerns the file was reported when it was opened.
        [Code::FileKeyRepeated, Code::FileNotUtf8].into_iter().for_each(|code| found.remove(code));
        findings.append(found);
    }
}

fn check(raw: &Raw, row: usize, size: [u32; 2], context: &Context, findings: &mut Findings) {
    let place = || {
        let image = raw.image.as_ref();
        Place::annotation(shown_id(raw.id.as_ref(), row)).of_image(shown_id(image, row))
    };
    let mut add = |code, message: String| findings.add(code, context.path, place, || message);
    let Some((text, _)) = raw.mask else {
        // In a training set that was reported when it was opened.
        if context.split == Split::Val {
            add(Code::MaskMissingEvaluated, "no segmentation".into());
        }
        return;
    };
    let segmentation = match Segmentation::parse_noting(text, &mut add) {
        Ok(segmentation) => segmentation,
        Err(message) => return add(Code::MaskMalformed, message),
    };
    let bounds = match segmentation.bounds(size) {
        Ok(bounds) => bounds,
        Err(message) => return add(Code::MaskMalformed, message),
    };
    let Some([x, y, w, h]) = bounds.filter(|_| !is_empty(&segmentation, size)) else {
        return add(Code::MaskEmpty, "no pixel is set".into());
    };
    let [width, height] = size.map(f64::from);
    if [-x, -y, x + w - width, y + h - height].iter().any(|&over| over > 1.0) {
        add(Code::MaskOutside, format!("its points span {:?} in {width}x{height} pixels", [x, y, w, h]));
    }
    if let Some(bbox) = raw.bbox {
        let [bx, by, bw, bh] = bbox.value;
        // A box around a mask that reaches out of the picture may end at the border.
        let inside =
            |start: f64, length: f64, limit: f64| [start.clamp(0.0, limit), (start + length).clamp(0.0, limit)];
        let pairs =
            [(inside(x, w, width), inside(bx, bw, width), bw), (inside(y, h, height), inside(by, bh, height), bh)];
        let apart = pairs.iter().any(|(mask, own, side)| {
            let tolerance = APART.0.max(APART.1 * side);
            mask.iter().zip(own).any(|(a, b)| (a - b).abs() > tolerance)
        });
        if apart {
            add(Code::MaskBoxDiffers, format!("bbox {:?}, and the mask spans {:?}", bbox.value, [x, y, w, h]));
        }
    }
}

/// Whether no pixel is set. Polygons are only drawn where they are so thin that they may miss every pixel.
fn is_empty(segmentation: &Segmentation, [width, height]: [u32; 2]) -> bool {
    let is_thin = match segmentation {
        Segmentation::Polygons(polygons) => polygons.iter().all(|polygon| enclosed_area(polygon) < 4.0),
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
