//! Precomputed outlines of posed shapes, for annotations without images.

use crate::contour::{Mask, simplify};
use crate::random::Random;
use crate::shape::{Class, telling_pose};

/// Poses of each class.
const POSES: usize = 24;
/// Pixels of the longer side of the grid that outlines are traced on.
const GRID: usize = 96;

/// A polygon with coordinates from 0 to 1, relative to the object's box.
type Polygon = Vec<(f64, f64)>;

/// A posed shape's parts and holes.
#[derive(Debug, Clone)]
pub(crate) struct Outline {
    pub(crate) class: Class,
    parts: Vec<Polygon>,
    holes: Vec<Polygon>,
    /// Width over height of the box.
    pub(crate) aspect: f64,
}

impl Outline {
    /// Parts and holes in pixels, for a box with the given corner and size: `[x, y, x, y, ...]` each.
    pub(crate) fn place(&self, corner: (f64, f64), size: (f64, f64)) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
        let scale = |polygons: &[Polygon]| -> Vec<Vec<f64>> {
            polygons
                .iter()
                .map(|polygon| {
                    polygon
                        .iter()
                        .flat_map(|&(x, y)| [corner.0 + x * size.0, corner.1 + y * size.1])
                        .map(crate::records::hundredths)
                        .collect()
                })
                .collect()
        };
        (scale(&self.parts), scale(&self.holes))
    }
}

/// Outlines of every class in many poses, determined by the seed.
pub(crate) fn library(seed: u64) -> Vec<Outline> {
    let mut random = Random::new(seed, &[u64::MAX]);
    Class::ALL.iter().flat_map(|&class| (0..POSES).map(move |_| class)).map(|class| trace(class, &mut random)).collect()
}

fn trace(class: Class, random: &mut Random) -> Outline {
    let (pose, extent) = telling_pose(class, random);
    let [left, top, right, bottom] = extent.bounds;
    let unit = (right - left).max(bottom - top) / GRID as f32;
    let width = ((right - left) / unit).ceil() as usize;
    let height = ((bottom - top) / unit).ceil() as usize;
    let inside = (0..width * height)
        .map(|i| {
            let (x, y) = ((i % width) as f32 + 0.5, (i / width) as f32 + 0.5);
            let (u, v) = pose.local(left + x * unit, top + y * unit);
            class.distance(u, v) < 0.0
        })
        .collect();
    let mask = Mask { left: 0, top: 0, width, height, inside };
    let polygons = |mask: &Mask| -> Vec<Polygon> {
        mask.components()
            .iter()
            .filter(|part| part.area() > 4)
            .map(|part| {
                let points = simplify(&part.outline(), 0.8);
                points.iter().map(|&(x, y)| (x / width as f64, y / height as f64)).collect()
            })
            .collect()
    };
    Outline { class, parts: polygons(&mask), holes: polygons(&mask.holes()), aspect: width as f64 / height as f64 }
}
