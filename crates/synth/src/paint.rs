//! Colors, noise and patterns of backgrounds and objects.

use crate::random::{Random, mix};

/// Red, green, blue; 0 to 1 before lighting.
pub(crate) type Color = [f32; 3];

/// The color of a hue (0 to 1, around the circle), saturation and value.
pub(crate) fn hsv(hue: f32, saturation: f32, value: f32) -> Color {
    [0.0, 2.0 / 3.0, 1.0 / 3.0].map(|shift: f32| {
        let ramp = ((hue + shift).rem_euclid(1.0) * 6.0 - 3.0).abs() - 1.0;
        value * (1.0 - saturation * (1.0 - ramp.clamp(0.0, 1.0)))
    })
}

/// Interpolates between two colors.
pub(crate) fn blend(from: Color, to: Color, share: f32) -> Color {
    std::array::from_fn(|i| (to[i] - from[i]).mul_add(share, from[i]))
}

/// Smooth noise: random values at the points of a lattice, interpolated between them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Noise {
    key: u64,
}

impl Noise {
    pub(crate) fn new(random: &mut Random) -> Self {
        Self { key: random.bits() }
    }

    fn lattice(self, x: i32, y: i32) -> f32 {
        let place = (u64::from(x as u32) << 32) | u64::from(y as u32);
        (mix(place ^ self.key) >> 40) as f32 / (1u64 << 24) as f32
    }

    /// One octave at (`x`, `y`) in units of the lattice, 0 to 1.
    pub(crate) fn octave(self, x: f32, y: f32) -> f32 {
        let (x0, y0) = (x.floor(), y.floor());
        let smooth = |t: f32| t * t * (3.0 - 2.0 * t);
        let (fx, fy) = (smooth(x - x0), smooth(y - y0));
        let (i, j) = (x0 as i32, y0 as i32);
        let row = |j: i32| {
            let (a, b) = (self.lattice(i, j), self.lattice(i + 1, j));
            (b - a).mul_add(fx, a)
        };
        let (top, bottom) = (row(j), row(j + 1));
        (bottom - top).mul_add(fy, top)
    }

    /// Three octaves, 0 to 1.
    pub(crate) fn cloud(self, x: f32, y: f32) -> f32 {
        (4.0 * self.octave(x, y)
            + 2.0 * self.octave(2.0 * x + 17.0, 2.0 * y + 5.0)
            + self.octave(4.0 * x + 3.0, 4.0 * y + 29.0))
            / 7.0
    }
}

/// How two colors are mixed over the background.
#[derive(Debug, Clone, Copy)]
enum Pattern {
    Clouds,
    Gradient,
    Stripes,
    Checks,
    Grain,
}

/// A textured background: two dull colors in a pattern, with clouds over it.
#[derive(Debug, Clone)]
pub(crate) struct Background {
    pattern: Pattern,
    colors: [Color; 2],
    noise: Noise,
    /// Pixels between the lattice points of the clouds.
    scale: f32,
    /// Pixels from one stripe or check to the next.
    period: f32,
    direction: (f32, f32),
    contrast: f32,
}

impl Background {
    pub(crate) fn new(random: &mut Random, side: f32) -> Self {
        const PATTERNS: [Pattern; 5] =
            [Pattern::Clouds, Pattern::Gradient, Pattern::Stripes, Pattern::Checks, Pattern::Grain];
        let angle = random.between(0.0, std::f32::consts::TAU);
        let hue = random.unit();
        let value = random.between(0.25, 0.8);
        let first = hsv(hue, random.between(0.0, 0.25), value);
        let second_value = (value + random.between(-0.25, 0.25)).clamp(0.15, 0.9);
        let second = hsv(hue + random.between(-0.2, 0.2), random.between(0.0, 0.25), second_value);
        Self {
            pattern: PATTERNS[random.below(PATTERNS.len())],
            colors: [first, second],
            noise: Noise::new(random),
            scale: side * random.between(0.06, 0.3),
            period: side * random.between(0.05, 0.25),
            direction: (angle.cos(), angle.sin()),
            contrast: random.between(0.15, 0.5),
        }
    }

    /// The color at pixel (`x`, `y`) of an image whose longer side is `side`.
    pub(crate) fn at(&self, x: f32, y: f32, side: f32) -> Color {
        let along = x * self.direction.0 + y * self.direction.1;
        let across = y * self.direction.0 - x * self.direction.1;
        let wave = |t: f32| 0.5 + 0.5 * (t * std::f32::consts::TAU / self.period).sin();
        let cloud = self.noise.cloud(x / self.scale, y / self.scale);
        let share = match self.pattern {
            Pattern::Clouds => cloud,
            Pattern::Gradient => along / side,
            Pattern::Stripes => wave(along + 0.4 * self.period * cloud),
            Pattern::Checks => ((wave(along) - 0.5) * (wave(across) - 0.5) * 12.0 + 0.5).clamp(0.0, 1.0),
            Pattern::Grain => self.noise.octave(x / 2.5, y / 2.5),
        };
        let base = blend(self.colors[0], self.colors[1], share.clamp(0.0, 1.0));
        base.map(|c| c * (self.contrast.mul_add(cloud - 0.5, 1.0)))
    }
}

/// Light from one side of the image, with darker corners.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Light {
    slope: (f32, f32),
    corners: f32,
    /// Factor of each channel.
    tint: Color,
}

impl Light {
    pub(crate) fn new(random: &mut Random) -> Self {
        Self {
            slope: (random.between(-0.4, 0.4), random.between(-0.4, 0.4)),
            corners: random.between(0.0, 0.35),
            tint: std::array::from_fn(|_| random.between(0.9, 1.1)),
        }
    }

    /// Factors of the channels at (`x`, `y`), each -0.5 to 0.5 across the image.
    pub(crate) fn at(&self, x: f32, y: f32) -> Color {
        let level = 1.0 + self.slope.0 * x + self.slope.1 * y - self.corners * (x * x + y * y);
        self.tint.map(|t| t * level)
    }
}
