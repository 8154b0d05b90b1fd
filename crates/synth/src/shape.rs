//! The classes of objects and their shapes.
//!
//! A shape is a signed distance function in its own frame: negative inside, in units of roughly half the object's
//! length. All shapes are slanted and asymmetric, so that they cover little of their boxes and differ from their mirror
//! images.

use serde::{Deserialize, Serialize};

/// A class of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// An elliptic ring: its mask has a hole.
    Ring,
    /// A crescent in warm colors.
    Crescent,
    /// The same crescent in cold colors.
    Moon,
    /// A bottle of one color.
    Bottle,
    /// The same bottle with bands across.
    Flask,
    /// The letter L.
    Letter,
    /// A disc with a tapering tail.
    Comet,
    /// Two discs of different size side by side: its mask has two parts.
    Pair,
}

impl Class {
    /// Every class in the order of the annotation file's categories.
    pub const ALL: [Self; 8] =
        [Self::Ring, Self::Crescent, Self::Moon, Self::Bottle, Self::Flask, Self::Letter, Self::Comet, Self::Pair];

    /// Name in the annotation file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Crescent => "crescent",
            Self::Moon => "moon",
            Self::Bottle => "bottle",
            Self::Flask => "flask",
            Self::Letter => "letter",
            Self::Comet => "comet",
            Self::Pair => "pair",
        }
    }

    /// Category id in the annotation file. Ids have gaps, as in COCO, so that they differ from labels.
    pub fn category_id(self) -> u32 {
        match self {
            Self::Ring => 1,
            Self::Crescent => 2,
            Self::Moon => 3,
            Self::Bottle => 5,
            Self::Flask => 6,
            Self::Letter => 8,
            Self::Comet => 11,
            Self::Pair => 13,
        }
    }

    /// Signed distance of the point (`u`, `v`) from the shape's edge; negative inside.
    pub(crate) fn distance(self, u: f32, v: f32) -> f32 {
        match self {
            Self::Ring => ellipse(u, v, 1.0, 0.55).max(-ellipse(u, v, 0.62, 0.25)),
            Self::Crescent | Self::Moon => (u.hypot(v) - 1.0).max(0.8 - (u - 0.55).hypot(v)),
            Self::Bottle | Self::Flask => {
                (rectangle(u, v - 0.36, 0.27, 0.49) - 0.15).min(rectangle(u, v + 0.6, 0.12, 0.36) - 0.05)
            }
            Self::Letter => {
                (rectangle(u + 0.4, v, 0.2, 0.86) - 0.04).min(rectangle(u - 0.02, v - 0.66, 0.62, 0.2) - 0.04)
            }
            Self::Comet => uneven_capsule(u, v - 0.45, 0.52, 0.14, 1.3),
            Self::Pair => ((u + 0.42).hypot(v - 0.42) - 0.54).min((u - 0.48).hypot(v + 0.48) - 0.4),
        }
    }
}

/// Approximate distance to an ellipse with half-axes `a` and `b`: exact in sign, first-order near the edge.
fn ellipse(u: f32, v: f32, a: f32, b: f32) -> f32 {
    let scaled = (u / a).hypot(v / b);
    let gradient = (u / (a * a)).hypot(v / (b * b));
    if gradient < 1e-6 { -b } else { scaled * (scaled - 1.0) / gradient }
}

/// Distance to a rectangle with half-sides `a` and `b`.
fn rectangle(u: f32, v: f32, a: f32, b: f32) -> f32 {
    let (x, y) = (u.abs() - a, v.abs() - b);
    x.max(0.0).hypot(y.max(0.0)) + x.max(y).min(0.0)
}

/// Distance to the hull of a disc of radius `r` at the origin and a disc of radius `tip` at distance `length` along -v.
fn uneven_capsule(u: f32, v: f32, r: f32, tip: f32, length: f32) -> f32 {
    let (x, y) = (u.abs(), -v);
    let sine = (r - tip) / length;
    let cosine = (1.0 - sine * sine).sqrt();
    let along = cosine * y - sine * x;
    if along < 0.0 {
        x.hypot(y) - r
    } else if along > cosine * length {
        x.hypot(y - length) - tip
    } else {
        x * cosine + y * sine - r
    }
}

/// The pose of a shape in the plane.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Pose {
    /// Cosine of the rotation.
    pub(crate) cosine: f32,
    /// Sine of the rotation.
    pub(crate) sine: f32,
    /// Whether the shape is mirrored before it is rotated.
    pub(crate) mirrored: bool,
}

impl Pose {
    pub(crate) fn new(angle: f32, mirrored: bool) -> Self {
        Self { cosine: angle.cos(), sine: angle.sin(), mirrored }
    }

    /// The point (`x`, `y`) of the plane in the shape's own frame.
    pub(crate) fn local(self, x: f32, y: f32) -> (f32, f32) {
        let (u, v) = (self.cosine * x + self.sine * y, self.cosine * y - self.sine * x);
        (if self.mirrored { -u } else { u }, v)
    }
}

/// Measurements of a posed shape.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Extent {
    /// Left, top, right, bottom in the shape's units.
    pub(crate) bounds: [f32; 4],
    /// Fraction of the box that the shape covers.
    pub(crate) fill: f32,
    /// Intersection over union of the shape and its left-to-right mirror image within the box.
    pub(crate) mirror_iou: f32,
}

/// Samples on each axis when a shape is measured.
const SAMPLES: usize = 56;
/// Maximum distance of a shape's points from its origin.
pub(crate) const REACH: f32 = 1.25;

/// Measures a posed shape on a coarse grid.
pub(crate) fn measure(class: Class, pose: Pose) -> Extent {
    let step = 2.0 * REACH / SAMPLES as f32;
    let at = |i: usize| (i as f32 + 0.5).mul_add(step, -REACH);
    let mut inside = [[false; SAMPLES]; SAMPLES];
    let (mut left, mut top, mut right, mut bottom) = (SAMPLES, SAMPLES, 0, 0);
    for (row, line) in inside.iter_mut().enumerate() {
        for (column, cell) in line.iter_mut().enumerate() {
            let (u, v) = pose.local(at(column), at(row));
            *cell = class.distance(u, v) < 0.0;
            if *cell {
                (left, right) = (left.min(column), right.max(column));
                (top, bottom) = (top.min(row), bottom.max(row));
            }
        }
    }
    let (mut area, mut both, mut either) = (0, 0, 0);
    for line in &inside[top..=bottom] {
        for column in left..=right {
            let (here, there) = (line[column], line[left + right - column]);
            area += usize::from(here);
            both += usize::from(here && there);
            either += usize::from(here || there);
        }
    }
    let edge = |i: usize| (i as f32).mul_add(step, -REACH);
    Extent {
        bounds: [edge(left), edge(top), edge(right + 1), edge(bottom + 1)],
        fill: area as f32 / ((right + 1 - left) * (bottom + 1 - top)) as f32,
        mirror_iou: both as f32 / either as f32,
    }
}

/// Maximum fraction of its box that an object may cover.
pub(crate) const MAX_FILL: f32 = 0.58;
/// Maximum IoU of an object with its mirror image.
pub(crate) const MAX_MIRROR_IOU: f32 = 0.45;

/// A random pose in which both the box and the mirror image differ clearly from the mask.
pub(crate) fn telling_pose(class: Class, random: &mut crate::random::Random) -> (Pose, Extent) {
    let mut best: Option<(f32, Pose, Extent)> = None;
    for _ in 0..24 {
        let pose = Pose::new(random.between(0.0, std::f32::consts::TAU), random.chance(0.5));
        let extent = measure(class, pose);
        let excess = (extent.fill - MAX_FILL).max(extent.mirror_iou - MAX_MIRROR_IOU);
        if excess <= 0.0 {
            return (pose, extent);
        }
        if best.is_none_or(|(least, ..)| excess < least) {
            best = Some((excess, pose, extent));
        }
    }
    match best {
        Some((_, pose, extent)) => (pose, extent),
        None => {
            let pose = Pose::new(std::f32::consts::FRAC_PI_4, false);
            (pose, measure(class, pose))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn every_class_has_poses_that_cover_little_of_their_box_and_differ_from_their_mirror_image() {
        for class in Class::ALL {
            let mut random = Random::new(3, &[]);
            let mut good = 0;
            for _ in 0..100 {
                let (_, extent) = telling_pose(class, &mut random);
                good += usize::from(extent.fill <= MAX_FILL && extent.mirror_iou <= MAX_MIRROR_IOU);
                assert!(extent.fill > 0.2, "{class:?} is too thin for a 28x28 mask: {extent:?}");
            }
            assert!(good >= 95, "{class:?}: only {good} of 100 poses");
        }
    }

    #[test]
    fn shapes_stay_within_their_reach() {
        for class in Class::ALL {
            for i in 0..360 {
                let angle = (i as f32).to_radians();
                let (u, v) = (REACH * angle.cos(), REACH * angle.sin());
                assert!(class.distance(u, v) > 0.0, "{class:?} at {i} degrees");
            }
        }
    }

    #[test]
    fn category_ids_and_names_are_unique_and_ids_ascend_with_gaps() {
        let ids: Vec<u32> = Class::ALL.iter().map(|c| c.category_id()).collect();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(*ids.last().unwrap() > Class::ALL.len() as u32);
        let names: std::collections::HashSet<_> = Class::ALL.iter().map(|c| c.name()).collect();
        assert_eq!(names.len(), Class::ALL.len());
    }
}
