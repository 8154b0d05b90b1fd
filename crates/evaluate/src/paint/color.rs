//! One color per class, the same in every image and every run.

/// Red, green and blue of sRGB.
pub(super) type Rgb = [u8; 3];

/// The color of crowd regions.
pub(super) const CROWD: Rgb = [190; 3];

/// The color of a class, light enough for black text.
///
/// Hues advance by the golden angle, so that the colors of neighboring labels differ clearly. Three lightnesses
/// alternate. Colors are computed in OKLCH (Ottosson, 2020), in which lightness is perceptually uniform.
pub(super) fn of_class(label: usize) -> Rgb {
    const GOLDEN_ANGLE: f64 = 137.507_764;
    let (lightness, chroma) = [(0.72, 0.17), (0.64, 0.20), (0.80, 0.15)][label % 3];
    let hue = (25.0 + GOLDEN_ANGLE * label as f64).to_radians();
    // Reduce chroma until the color is within sRGB; gray always is.
    (0..=20)
        .map(|step| from_oklch(lightness, chroma * (1.0 - f64::from(step) / 20.0), hue))
        .find(|linear| linear.iter().all(|value| (-1e-3..=1.001).contains(value)))
        .map_or(CROWD, |linear| linear.map(encode))
}

/// Linear light of a color in OKLCH.
fn from_oklch(lightness: f64, chroma: f64, hue: f64) -> [f64; 3] {
    let (a, b) = (chroma * hue.cos(), chroma * hue.sin());
    let l = (lightness + 0.396_337_777_4 * a + 0.215_803_757_3 * b).powi(3);
    let m = (lightness - 0.105_561_345_8 * a - 0.063_854_172_8 * b).powi(3);
    let s = (lightness - 0.089_484_177_5 * a - 1.291_485_548 * b).powi(3);
    [
        4.076_741_662_1 * l - 3.307_711_591_3 * m + 0.230_969_929_2 * s,
        -1.268_438_004_6 * l + 2.609_757_401_1 * m - 0.341_319_396_5 * s,
        -0.004_196_086_3 * l - 0.703_418_614_7 * m + 1.707_614_701 * s,
    ]
}

/// Linear light to sRGB.
fn encode(value: f64) -> u8 {
    let value = value.clamp(0.0, 1.0);
    let encoded = if value <= 0.003_130_8 { 12.92 * value } else { 1.055 * value.powf(1.0 / 2.4) - 0.055 };
    (encoded * 255.0).round() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_hundred_classes_have_unique_colors_for_black_text() {
        let colors: Vec<Rgb> = (0..=100).map(of_class).collect();
        for (label, &color) in colors[..100].iter().enumerate() {
            assert!(!colors[..label].contains(&color), "class {label}: {color:?}");
            // A luminance of 0.175 has a WCAG contrast ratio of 4.5 with black.
            let [red, green, blue] = color.map(|value| ((f64::from(value) / 255.0 + 0.055) / 1.055).powf(2.4));
            assert!(0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.175, "class {label}: {color:?}");
            let distance: u32 = (0..3).map(|i| u32::from(color[i].abs_diff(colors[label + 1][i]))).sum();
            assert!(distance > 120, "class {label}: {color:?}, the next is {:?}", colors[label + 1]);
        }
    }
}
