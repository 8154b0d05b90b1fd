//! One color per class, the same in every image and every run.

/// An sRGB color, 0 to 255.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassColor {
    /// Red.
    pub red: u8,
    /// Green.
    pub green: u8,
    /// Blue.
    pub blue: u8,
}

impl ClassColor {
    /// The color of a class.
    ///
    /// Hues advance by the golden angle, so that the colors of neighboring labels differ clearly. Three lightnesses
    /// alternate. Colors are computed in OKLCH (Ottosson, 2020), in which lightness is perceptually uniform.
    pub fn of_class(label: usize) -> Self {
        const GOLDEN_ANGLE: f64 = 137.507_764;
        let (lightness, chroma) = [(0.72, 0.17), (0.64, 0.20), (0.80, 0.15)][label % 3];
        let hue = (25.0 + GOLDEN_ANGLE * label as f64).to_radians();
        // Reduce chroma until the color is within sRGB.
        (0..20)
            .map(|step| from_oklch(lightness, chroma * (1.0 - f64::from(step) / 20.0), hue))
            .find_map(|linear| linear.iter().all(|value| (-1e-3..=1.001).contains(value)).then(|| encode(linear)))
            .unwrap_or(Self { red: 160, green: 160, blue: 160 })
    }

    /// The neutral color of crowd regions.
    pub const fn neutral() -> Self {
        Self { red: 190, green: 190, blue: 190 }
    }

    /// Black or white, whichever has the higher WCAG contrast ratio with this color.
    pub fn text(self) -> Self {
        let luminance = self.luminance();
        let (on_white, on_black) = (1.05 / (luminance + 0.05), (luminance + 0.05) / 0.05);
        let value = if on_white > on_black { 255 } else { 0 };
        Self { red: value, green: value, blue: value }
    }

    /// Relative luminance, 0 to 1.
    pub fn luminance(self) -> f64 {
        0.2126 * decode(self.red) + 0.7152 * decode(self.green) + 0.0722 * decode(self.blue)
    }
}

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
fn encode(linear: [f64; 3]) -> ClassColor {
    let [red, green, blue] = linear.map(|value| {
        let value = value.clamp(0.0, 1.0);
        let encoded = if value <= 0.003_130_8 { 12.92 * value } else { 1.055 * value.powf(1.0 / 2.4) - 0.055 };
        (encoded * 255.0).round() as u8
    });
    ClassColor { red, green, blue }
}

/// sRGB to linear light.
fn decode(value: u8) -> f64 {
    let value = f64::from(value) / 255.0;
    if value <= 0.040_45 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_hundred_classes_have_unique_colors_with_readable_text() {
        let colors: Vec<ClassColor> = (0..100).map(ClassColor::of_class).collect();
        for (index, color) in colors.iter().enumerate() {
            let (dark, light) =
                (color.luminance().min(color.text().luminance()), color.luminance().max(color.text().luminance()));
            assert!((light + 0.05) / (dark + 0.05) > 4.5, "{color:?}");
            assert!(!colors[..index].contains(color), "class {index}: {color:?}");
        }
    }

    #[test]
    fn colors_of_neighboring_classes_differ_clearly() {
        for label in 0..100 {
            let (a, b) = (ClassColor::of_class(label), ClassColor::of_class(label + 1));
            let distance =
                [(a.red, b.red), (a.green, b.green), (a.blue, b.blue)].map(|(a, b)| u32::from(a.abs_diff(b)));
            assert!(distance.iter().sum::<u32>() > 120, "{label}: {a:?} {b:?}");
        }
    }
}
