//! The entries of a COCO annotation file.

use hotcoco::mask as coco_mask;
use hotcoco::types::Rle;
use serde::Serialize;

use crate::contour::{Mask, simplify};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::shape::Class;

#[derive(Debug, Clone, Serialize)]
pub(crate) struct ImageRecord {
    pub(crate) id: u64,
    pub(crate) file_name: String,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) license: u32,
}

/// A mask in one of COCO's three formats.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Segmentation {
    /// Polygons `[x, y, x, y, ...]` whose union is the mask.
    Polygons(Vec<Vec<f64>>),
    /// Column-major run lengths as a string, the format of COCO's tools.
    Text { size: [u32; 2], counts: String },
    /// Run lengths as numbers, the format of COCO's crowd regions.
    Numbers { size: [u32; 2], counts: Vec<u32> },
}

/// An object or a crowd region.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct AnnotationRecord {
    pub(crate) segmentation: Segmentation,
    pub(crate) area: u64,
    pub(crate) iscrowd: u8,
    pub(crate) image_id: u64,
    /// Left, top, width, height.
    pub(crate) bbox: [f64; 4],
    pub(crate) category_id: u32,
    pub(crate) id: u64,
}

/// Maximum distance in pixels between a polygon and its outline.
const TOLERANCE: f64 = 0.6;
/// Parts and holes of fewer pixels than this are left out of polygons, as by human annotators.
const SMALLEST_PART: usize = 6;

/// Rounds to hundredths of a pixel, as in COCO's files.
pub(crate) fn hundredths(x: f64) -> f64 {
    (x * 100.0).round() / 100.0
}

/// The owner of a mask.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    /// Number of the image.
    pub(crate) image: u64,
    /// Its width and height.
    pub(crate) size: (u32, u32),
    /// The object's class.
    pub(crate) class: Class,
    /// Whether it is a crowd region.
    pub(crate) crowd: bool,
    /// The layout, which determines category ids.
    pub(crate) layout: Layout,
}

/// Describes a visible mask with polygons, or with run lengths for a crowd or a mask with holes. Area and box are those
/// of the segmentation as rasterized by pycocotools. `None` if the rasterized mask is empty.
pub(crate) fn describe(mask: &Mask, owner: Owner) -> Result<Option<AnnotationRecord>> {
    if owner.crowd {
        return Ok(finish(Spelling::Numbers(exact(mask, owner)?), owner));
    }
    if mask.holes().area() >= SMALLEST_PART {
        return Ok(finish(Spelling::Text(exact(mask, owner)?), owner));
    }
    let polygons: Vec<Vec<f64>> = mask
        .components()
        .iter()
        .filter(|part| part.area() >= SMALLEST_PART)
        .map(|part| {
            simplify(&part.outline(), TOLERANCE).iter().flat_map(|&(x, y)| [hundredths(x), hundredths(y)]).collect()
        })
        .collect();
    describe_polygons(polygons, owner)
}

/// Describes polygons in pixels. `None` if they cover no pixel.
pub(crate) fn describe_polygons(polygons: Vec<Vec<f64>>, owner: Owner) -> Result<Option<AnnotationRecord>> {
    let rle = rasterize(&polygons, owner)?;
    Ok(finish(Spelling::Polygons(polygons, rle), owner))
}

/// Describes the pixels in exactly one of two sets of polygons: a shape and its holes.
pub(crate) fn describe_difference(
    outer: &[Vec<f64>],
    holes: &[Vec<f64>],
    owner: Owner,
) -> Result<Option<AnnotationRecord>> {
    let rle = exclusive(&rasterize(outer, owner)?, &rasterize(holes, owner)?, owner)?;
    Ok(finish(if owner.crowd { Spelling::Numbers(rle) } else { Spelling::Text(rle) }, owner))
}

/// A mask and its output format.
enum Spelling {
    Polygons(Vec<Vec<f64>>, Rle),
    Text(Rle),
    Numbers(Rle),
}

fn finish(spelling: Spelling, owner: Owner) -> Option<AnnotationRecord> {
    let (Spelling::Polygons(_, rle) | Spelling::Text(rle) | Spelling::Numbers(rle)) = &spelling;
    let area = coco_mask::area(rle);
    if area == 0 {
        return None;
    }
    let bbox = coco_mask::to_bbox(rle);
    let size = [rle.h, rle.w];
    let segmentation = match spelling {
        Spelling::Polygons(polygons, _) => Segmentation::Polygons(polygons),
        Spelling::Text(rle) => Segmentation::Text { size, counts: coco_mask::rle_to_string(&rle) },
        Spelling::Numbers(rle) => Segmentation::Numbers { size, counts: rle.counts },
    };
    Some(AnnotationRecord {
        segmentation,
        area,
        iscrowd: u8::from(owner.crowd),
        image_id: owner.image,
        bbox,
        category_id: owner.layout.category_id(owner.class),
        id: 0,
    })
}

fn failed(owner: Owner) -> impl FnOnce(hotcoco::error::Error) -> Error {
    move |error| Error::Bug(format!("cannot create the annotations of image {}: {error}", owner.image))
}

fn rasterize(polygons: &[Vec<f64>], owner: Owner) -> Result<Rle> {
    coco_mask::fr_polys(polygons, owner.size.1, owner.size.0).map_err(failed(owner))
}

/// The run lengths of a mask within its image.
fn exact(mask: &Mask, owner: Owner) -> Result<Rle> {
    let (width, height) = (owner.size.0 as usize, owner.size.1 as usize);
    let mut columns = vec![0u8; width * height];
    for y in 0..mask.height {
        for x in 0..mask.width {
            if mask.inside[y * mask.width + x] {
                columns[(mask.left + x) * height + mask.top + y] = 1;
            }
        }
    }
    coco_mask::encode(&columns, owner.size.1, owner.size.0).map_err(failed(owner))
}

/// The pixels that are in exactly one of two masks of equal size.
fn exclusive(a: &Rle, b: &Rle, owner: Owner) -> Result<Rle> {
    let pixels: Vec<u8> = coco_mask::decode(a).iter().zip(coco_mask::decode(b)).map(|(a, b)| a ^ b).collect();
    coco_mask::encode(&pixels, a.h, a.w).map_err(failed(owner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polygons_cover_the_visible_parts_of_objects() {
        let options = crate::Options::default();
        let mut checked = 0;
        for image in 1..30 {
            let scene = crate::scene::draw(&options, image);
            let size = (scene.width as u32, scene.height as u32);
            for seen in scene.visible.iter().filter(|seen| seen.mask.area() > 200) {
                let owner = Owner { image, size, class: seen.class, crowd: seen.crowd, layout: Layout::Coco };
                let Segmentation::Polygons(polygons) = describe(&seen.mask, owner).unwrap().unwrap().segmentation
                else {
                    continue;
                };
                let (found, wanted) = (rasterize(&polygons, owner).unwrap(), exact(&seen.mask, owner).unwrap());
                let differing = coco_mask::area(&exclusive(&found, &wanted, owner).unwrap());
                let share = differing as f64 / seen.mask.area() as f64;
                assert!(share < 0.1, "image {image}, {:?}: {differing} pixels differ", seen.class);
                checked += 1;
            }
        }
        assert!(checked > 30, "{checked}");
    }
}
