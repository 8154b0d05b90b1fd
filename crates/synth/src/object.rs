//! One object: its pose and its surface.

use crate::paint::{Color, Noise, blend, hsv};
use crate::random::Random;
use crate::shape::{Class, Extent, Pose, telling_pose};

/// A posed shape in an image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Object {
    pub(crate) class: Class,
    pose: Pose,
    extent: Extent,
    /// Pixels of one unit of the shape.
    unit: f32,
    /// The shape's origin in pixels.
    origin: (f32, f32),
}

impl Object {
    /// An object in a random suitable pose at the image's corner. The longer side of its box has `length` pixels.
    pub(crate) fn new(class: Class, length: f32, random: &mut Random) -> Self {
        let (pose, extent) = telling_pose(class, random);
        let [left, top, right, bottom] = extent.bounds;
        Self { class, pose, extent, unit: length / (right - left).max(bottom - top), origin: (0.0, 0.0) }
    }

    /// Width and height of the box in pixels.
    pub(crate) fn size(&self) -> (f32, f32) {
        let [left, top, right, bottom] = self.extent.bounds;
        ((right - left) * self.unit, (bottom - top) * self.unit)
    }

    /// The same object with the middle of its box at (`x`, `y`).
    pub(crate) fn centered(self, x: f32, y: f32) -> Self {
        let [left, top, right, bottom] = self.extent.bounds;
        Self { origin: (x - (left + right) / 2.0 * self.unit, y - (top + bottom) / 2.0 * self.unit), ..self }
    }

    /// Left, top, right, bottom in pixels.
    pub(crate) fn bounds(&self) -> [f32; 4] {
        let [left, top, right, bottom] = self.extent.bounds.map(|edge| edge * self.unit);
        let (x, y) = self.origin;
        [x + left, y + top, x + right, y + bottom]
    }

    /// The point (`x`, `y`) in the shape's frame.
    pub(crate) fn local(&self, x: f32, y: f32) -> (f32, f32) {
        self.pose.local((x - self.origin.0) / self.unit, (y - self.origin.1) / self.unit)
    }

    /// Signed distance from the object's edge in pixels; negative inside.
    pub(crate) fn distance(&self, x: f32, y: f32) -> f32 {
        let (u, v) = self.local(x, y);
        self.class.distance(u, v) * self.unit
    }
}

/// A pattern on an object.
#[derive(Debug, Clone, Copy)]
enum Pattern {
    Plain,
    /// Stripes across the object's length, specific to one class.
    Bands,
    Speckles,
    Fade,
}

/// The look of an object's surface.
#[derive(Debug, Clone)]
pub(crate) struct Surface {
    pattern: Pattern,
    base: Color,
    second: Color,
    phase: f32,
    noise: Noise,
    /// How much the rim is darkened.
    rim: f32,
}

impl Surface {
    /// A random surface that the class allows.
    pub(crate) fn new(class: Class, random: &mut Random) -> Self {
        let hue = match class {
            Class::Crescent => random.between(-0.06, 0.13),
            Class::Moon => random.between(0.47, 0.7),
            _ => random.unit(),
        };
        let pattern = match class {
            Class::Flask => Pattern::Bands,
            Class::Bottle => Pattern::Plain,
            _ => [Pattern::Plain, Pattern::Speckles, Pattern::Fade][random.below(3)],
        };
        let value = random.between(0.6, 1.0);
        let base = hsv(hue, random.between(0.6, 0.95), value);
        let second = match pattern {
            // Bands differ from the base in brightness, so that they are visible in any color and light.
            Pattern::Bands if random.chance(0.5) => base.map(|c| c * 0.3),
            Pattern::Bands => blend(base, [1.0; 3], 0.75),
            _ => hsv(hue + random.between(-0.04, 0.04), 0.8, value * random.between(0.65, 0.8)),
        };
        Self { pattern, base, second, phase: random.unit(), noise: Noise::new(random), rim: random.between(0.1, 0.4) }
    }

    /// The color at (`u`, `v`) of the shape's frame, `depth` pixels inside the edge.
    pub(crate) fn at(&self, u: f32, v: f32, depth: f32) -> Color {
        let share = match self.pattern {
            Pattern::Plain => 0.3 * self.noise.octave(3.0 * u, 3.0 * v),
            Pattern::Bands => f32::from((v * 2.1 + self.phase).rem_euclid(1.0) < 0.5),
            Pattern::Speckles => f32::from(self.noise.octave(7.0 * u, 7.0 * v) > 0.62),
            Pattern::Fade => (0.5 + 0.4 * v).clamp(0.0, 1.0),
        };
        let shade = 1.0 - self.rim * (1.0 - depth / 3.0).clamp(0.0, 1.0);
        blend(self.base, self.second, share).map(|c| c * shade)
    }
}
