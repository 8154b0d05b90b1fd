//! Boxes as `[x1, y1, x2, y2]` in pixels: overlap, and encoding relative to anchors and proposals.

use tch::Tensor;

use fnet_common::Result;
use fnet_data::ImageMeta;

use super::pack::upload;

/// Maximum absolute logarithm of a size ratio in decoding: `|ln(16 / 1000)|`.
const MAX_LOG_RATIO: f64 = 4.135_166_556_742_356;
/// Minimum union of two boxes, against division by zero.
const LEAST_UNION: f32 = 1e-6;

/// Boxes stored by coordinate, with their areas, so that the compiler vectorizes loops.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BoxColumns {
    x1: Vec<f32>,
    y1: Vec<f32>,
    x2: Vec<f32>,
    y2: Vec<f32>,
    area: Vec<f32>,
}

impl BoxColumns {
    /// Number of boxes.
    pub fn len(&self) -> usize {
        self.x1.len()
    }

    /// Whether there is no box.
    pub fn is_empty(&self) -> bool {
        self.x1.is_empty()
    }

    /// Writes the IoU of `other` with every box to `out`, in float32 and in MMDetection's order of operations.
    pub fn overlaps(&self, other: &[f32; 4], out: &mut Vec<f32>) {
        let [gx1, gy1, gx2, gy2] = *other;
        let object_area = area(other);
        let positions = self.x1.iter().zip(&self.y1).zip(self.x2.iter().zip(&self.y2));
        out.clear();
        out.extend(positions.zip(&self.area).map(|(((&x1, &y1), (&x2, &y2)), &area)| {
            let width = (smaller(gx2, x2) - larger(gx1, x1)).max(0.0);
            let height = (smaller(gy2, y2) - larger(gy1, y1)).max(0.0);
            let overlap = width * height;
            overlap / larger(object_area + area - overlap, LEAST_UNION)
        }));
    }
}

impl<'a> FromIterator<&'a [f32; 4]> for BoxColumns {
    fn from_iter<I: IntoIterator<Item = &'a [f32; 4]>>(boxes: I) -> Self {
        let mut columns = Self::default();
        for one in boxes {
            columns.x1.push(one[0]);
            columns.y1.push(one[1]);
            columns.x2.push(one[2]);
            columns.y2.push(one[3]);
            columns.area.push(area(one));
        }
        columns
    }
}

/// Width times height.
fn area(one: &[f32; 4]) -> f32 {
    (one[2] - one[0]) * (one[3] - one[1])
}

// The NaN handling of `f32::min` and `f32::max` prevents vectorization.
fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The deltas `[dx, dy, dw, dh]` from `source` to `target`, divided by `stds` (Girshick et al., 2014).
pub fn encode(source: &[f32; 4], target: &[f32; 4], stds: &[f32; 4]) -> [f32; 4] {
    let center = |one: &[f32; 4], axis: usize| (one[axis] + one[axis + 2]) * 0.5;
    let size = |one: &[f32; 4], axis: usize| one[axis + 2] - one[axis];
    let shift = |axis: usize| (center(target, axis) - center(source, axis)) / size(source, axis) / stds[axis];
    let growth = |axis: usize| (size(target, axis) / size(source, axis)).ln() / stds[axis + 2];
    [shift(0), shift(1), growth(0), growth(1)]
}

/// Applies `deltas` to `sources`; both are `[.., 4]`. If given, `stds` multiplies the deltas, and `limits`, a tensor
/// `[.., 4]` of width, height, width, height, clips the result to the image.
pub fn decode(sources: &Tensor, deltas: &Tensor, stds: Option<&[f64; 4]>, limits: Option<&Tensor>) -> Result<Tensor> {
    let scaled = match stds {
        Some(stds) => {
            let stds = upload(&Tensor::f_from_slice(&stds.map(|std| std as f32))?, deltas.device())?;
            deltas.f_mul(&stds)?
        }
        None => deltas.shallow_clone(),
    };
    let (shift, growth) = (scaled.f_narrow(-1, 0, 2)?, scaled.f_narrow(-1, 2, 2)?);
    let (upper_left, lower_right) = (sources.f_narrow(-1, 0, 2)?, sources.f_narrow(-1, 2, 2)?);
    let center = upper_left.f_add(&lower_right)?.f_mul_scalar(0.5)?;
    let size = lower_right.f_sub(&upper_left)?;
    let center = center.f_add(&size.f_mul(&shift)?)?;
    let half = size.f_mul(&growth.f_clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)?.f_exp()?)?.f_mul_scalar(0.5)?;
    let boxes = Tensor::f_cat(&[center.f_sub(&half)?, center.f_add(&half)?], -1)?;
    match limits {
        Some(limits) => Ok(boxes.f_clamp_min(0.0)?.f_minimum(limits)?),
        None => Ok(boxes),
    }
}

/// Boxes (`[.., 4]`) of the original image in a view.
pub(super) fn to_view(boxes: &Tensor, meta: &ImageMeta) -> Result<Tensor> {
    let boxes = boxes.f_mul(&Tensor::f_from_slice(&meta.scale_factor)?)?;
    if meta.flipped { mirrored(&boxes, meta) } else { Ok(boxes) }
}

/// Boxes (`[.., 4]`) of a view in the original image.
pub(super) fn from_view(boxes: &Tensor, meta: &ImageMeta) -> Result<Tensor> {
    let boxes = if meta.flipped { mirrored(boxes, meta)? } else { boxes.shallow_clone() };
    Ok(boxes.f_div(&Tensor::f_from_slice(&meta.scale_factor)?)?)
}

fn mirrored(boxes: &Tensor, meta: &ImageMeta) -> Result<Tensor> {
    let column = |index| boxes.f_narrow(-1, index, 1);
    let from_right = |index| column(index)?.f_neg()?.f_add_scalar(meta.image_size.1 as f64);
    Ok(Tensor::f_cat(&[from_right(2)?, column(1)?, from_right(0)?, column(3)?], -1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_is_intersection_over_union() {
        let boxes: BoxColumns =
            [[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0], [20.0, 20.0, 30.0, 30.0]].iter().collect();
        let mut row = Vec::new();
        boxes.overlaps(&[0.0, 0.0, 10.0, 10.0], &mut row);
        assert_eq!(row, [1.0, 50.0 / 150.0, 0.0]);
        boxes.overlaps(&[4.0, 4.0, 4.0, 4.0], &mut row);
        assert_eq!(row, [0.0; 3], "a box without area overlaps nothing");
    }

    #[test]
    fn decoding_undoes_encoding() {
        let stds = [0.1, 0.1, 0.2, 0.2];
        let (source, target) = ([3.0, 4.0, 23.0, 34.0], [5.5, 1.0, 21.0, 60.0]);
        let deltas = encode(&source, &target, &stds);
        let decoded =
            decode(&Tensor::from_slice(&source), &Tensor::from_slice(&deltas), Some(&[0.1, 0.1, 0.2, 0.2]), None)
                .unwrap();
        for (a, b) in Vec::<f32>::try_from(&decoded).unwrap().iter().zip(target) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
    }

    #[test]
    fn decoded_boxes_are_clipped_to_the_image() {
        let source = Tensor::from_slice(&[0.0f32, 0.0, 10.0, 10.0]);
        let deltas = Tensor::from_slice(&[0.0f32, 0.0, 9.0, 1.0]);
        let limits = Tensor::from_slice(&[12.0f32, 11.0, 12.0, 11.0]);
        let boxes = Vec::<f32>::try_from(decode(&source, &deltas, None, Some(&limits)).unwrap()).unwrap();
        assert_eq!(boxes, [0.0, 0.0, 12.0, 11.0]);
    }
}
