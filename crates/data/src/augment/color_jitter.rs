//! `color_jitter`: MMDetection's `PhotoMetricDistortion`.
//!
//! Brightness, contrast, saturation, hue, and a swap of channels, each with probability 0.5; contrast comes either second or
//! second to last. The values become float32 and are not clipped. Saturation and hue change in HSV, with OpenCV's formulas for
//! float32, where hue is in degrees and the other two are as the values came in, 0 to 255 and beyond. The way to HSV and back
//! is gone for every image: values below 0 do not survive it unchanged.

use fnet_common::Result;
use fnet_common::random::Generator;
use fnet_config::augment::ColorJitter;

use super::frame::{Augment, Draws, Frame, between};

/// What is changed, and by how much.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Choice {
    /// Added to all values.
    pub brightness: Option<f32>,
    /// Whether contrast comes before saturation and hue.
    pub contrast_first: bool,
    /// Factor of all values.
    pub contrast: Option<f32>,
    /// Factor of the saturation.
    pub saturation: Option<f32>,
    /// Added to the hue in degrees.
    pub hue: Option<f32>,
    /// For blue, green and red, which of them takes the place: 0 for blue, 2 for red.
    pub swap: Option<[usize; 3]>,
}

/// A value of the range in half of all cases.
fn sometimes(random: &mut Generator, range: [f64; 2]) -> Option<f32> {
    (random.below(2) == 1).then(|| between(random, range) as f32)
}

impl Augment for ColorJitter {
    type Choice = Choice;

    fn draw(&self, _: &Frame, draws: &mut Draws<'_>) -> Result<Choice> {
        let random = &mut *draws.random;
        let brightness = sometimes(random, [-self.brightness_delta, self.brightness_delta]);
        let contrast_first = random.below(2) == 1;
        let first = if contrast_first { sometimes(random, self.contrast_range) } else { None };
        let saturation = sometimes(random, self.saturation_range);
        let hue = sometimes(random, [-self.hue_delta, self.hue_delta]);
        let contrast = if contrast_first { first } else { sometimes(random, self.contrast_range) };
        let swap = (random.below(2) == 1).then(|| random.permutation(3)).and_then(|order| order.try_into().ok());
        Ok(Choice { brightness, contrast_first, contrast, saturation, hue, swap })
    }

    fn apply(&self, choice: Choice, frame: &mut Frame) -> bool {
        frame.raster.change_floats(|values| {
            let (pixels, _) = values.as_chunks_mut::<3>();
            pixels.iter_mut().for_each(|pixel| *pixel = jittered(*pixel, &choice));
        });
        true
    }
}

/// One pixel, red, green, blue.
fn jittered(mut rgb: [f32; 3], choice: &Choice) -> [f32; 3] {
    let factor = choice.contrast.unwrap_or(1.0);
    let (before, after) = if choice.contrast_first { (factor, 1.0) } else { (1.0, factor) };
    rgb = rgb.map(|value| (value + choice.brightness.unwrap_or(0.0)) * before);
    let [mut hue, mut saturation, value] = hsv(rgb);
    saturation *= choice.saturation.unwrap_or(1.0);
    hue += choice.hue.unwrap_or(0.0);
    hue = if hue > 360.0 { hue - 360.0 } else { hue };
    hue = if hue < 0.0 { hue + 360.0 } else { hue };
    rgb = from_hsv([hue, saturation, value]).map(|value| value * after);
    match choice.swap {
        // In the order of MMDetection, blue first.
        Some([blue, green, red]) => [rgb[2 - red], rgb[2 - green], rgb[2 - blue]],
        None => rgb,
    }
}

/// Hue in degrees, saturation, value. Saturation is the distance of the largest and the smallest value in relation to the
/// largest, which is `value`.
fn hsv([r, g, b]: [f32; 3]) -> [f32; 3] {
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    let distance = max - min;
    let saturation = distance / (max.abs() + f32::EPSILON);
    let degrees = 60.0 / (distance + f32::EPSILON);
    let hue = if max == r {
        (g - b) * degrees
    } else if max == g {
        (b - r) * degrees + 120.0
    } else {
        (r - g) * degrees + 240.0
    };
    [if hue < 0.0 { hue + 360.0 } else { hue }, saturation, max]
}

/// The inverse of [`hsv`]: the color circle has six sectors, in each of which one value is the largest, one the smallest, and
/// the third rises or falls.
fn from_hsv([hue, saturation, value]: [f32; 3]) -> [f32; 3] {
    let position = hue * (6.0 / 360.0);
    let position = if position >= 6.0 { position - 6.0 } else { position };
    // The position is not negative.
    let sector = position as i32;
    let within = position - sector as f32;
    let smallest = value * (1.0 - saturation);
    let falling = value * (1.0 - saturation * within);
    let rising = value * (1.0 - saturation * (1.0 - within));
    match sector {
        0 => [value, rising, smallest],
        1 => [falling, value, smallest],
        2 => [smallest, value, rising],
        3 => [smallest, falling, value],
        4 => [rising, smallest, value],
        _ => [value, smallest, falling],
    }
}
