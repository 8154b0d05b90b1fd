//! The mask of an annotation as the file gives it.

use hotcoco::mask::{check_counts, fr_polys, rle_from_string};
use hotcoco::types::Rle;
use serde::Deserialize;

/// Polygons or run lengths.
#[derive(Debug, Clone, PartialEq)]
pub enum Segmentation {
    /// Each polygon is `[x, y, x, y, ...]` in pixels; the mask is their union.
    Polygons(Vec<Vec<f64>>),
    /// Run lengths in column-major order, as COCO has them for crowds.
    RunLengths(Rle),
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected polygons [[x, y, ...], ...] or run lengths {\"size\": [h, w], \"counts\": ...}"
)]
enum Text {
    Polygons(Vec<Vec<f64>>),
    /// One polygon without its enclosing list.
    Flat(Vec<f64>),
    RunLengths {
        size: [u32; 2],
        counts: Counts,
    },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Counts {
    Compressed(String),
    Plain(Vec<u32>),
}

impl Segmentation {
    /// Reads the JSON of a `segmentation` value. A polygon of fewer than three points, four numbers among them,
    /// encloses nothing and is left out; an odd last number is passed over, as pycocotools does.
    ///
    /// # Errors
    /// Says what is wrong with the text, without the place it comes from.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let text = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        match text {
            Text::Polygons(polygons) => Ok(Self::from_polygons(polygons)),
            Text::Flat(polygon) => Ok(Self::from_polygons(vec![polygon])),
            Text::RunLengths { size: [height, width], counts } => {
                let rle = match counts {
                    Counts::Compressed(text) => rle_from_string(&text, height, width),
                    Counts::Plain(counts) => {
                        check_counts(&counts, height, width).map(|()| Rle { h: height, w: width, counts })
                    }
                };
                rle.map(Self::RunLengths).map_err(|error| error.to_string())
            }
        }
    }

    fn from_polygons(mut polygons: Vec<Vec<f64>>) -> Self {
        polygons.retain(|polygon| polygon.len() >= 6);
        Self::Polygons(polygons)
    }

    /// The mask in a frame of `(height, width)` pixels, as pycocotools rasterises it; run lengths must have that frame.
    ///
    /// # Errors
    /// Says what is wrong, without the place it comes from.
    pub fn to_rle(&self, (height, width): (usize, usize)) -> Result<Rle, String> {
        let side = |value: usize| u32::try_from(value).map_err(|_| format!("a side of {value} pixels"));
        let (height, width) = (side(height)?, side(width)?);
        match self {
            Self::Polygons(polygons) => fr_polys(polygons, height, width).map_err(|error| error.to_string()),
            Self::RunLengths(rle) if (rle.h, rle.w) == (height, width) => Ok(rle.clone()),
            Self::RunLengths(rle) => Err(format!(
                "run lengths of size [{}, {}], expected the image's [{height}, {width}] as [height, width]",
                rle.h, rle.w
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use hotcoco::mask::{decode, rle_to_string};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn polygons_runs_and_strings_of_one_mask_are_equal() {
        let polygons = Segmentation::parse(b"[[1, 1, 5, 1, 5, 4, 1, 4]]").unwrap();
        let rle = polygons.to_rle((6, 7)).unwrap();
        let plain = format!("{{\"size\": [6, 7], \"counts\": {:?}}}", rle.counts);
        let compressed = serde_json::json!({"size": [6, 7], "counts": rle_to_string(&rle)}).to_string();
        for text in [plain, compressed, "[1, 1, 5, 1, 5, 4, 1, 4]".into()] {
            let again = Segmentation::parse(text.as_bytes()).unwrap().to_rle((6, 7)).unwrap();
            assert_eq!(decode(&again), decode(&rle), "{text}");
        }
        assert_eq!(hotcoco::mask::area(&rle), 12);
    }

    #[test]
    fn four_numbers_are_not_a_box() {
        assert_eq!(Segmentation::parse(b"[[1, 1, 5, 4]]").unwrap(), Segmentation::Polygons(vec![]));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, expected) in [
            ("{\"size\": [2, 2], \"counts\": [1, 9]}", "4"),
            ("{\"size\": [2, 2]}", "polygons"),
            ("\"abc\"", "polygons"),
        ] {
            let message = Segmentation::parse(text.as_bytes()).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
        let runs = Segmentation::parse(b"{\"size\": [2, 3], \"counts\": [1, 5]}").unwrap();
        assert!(runs.to_rle((3, 2)).unwrap_err().contains("[3, 2]"));
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_mask_or_a_message(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(segmentation) = Segmentation::parse(&bytes) {
                let _ = segmentation.to_rle((8, 8));
            }
        }

        #[test]
        fn any_numbers_give_a_mask_inside_the_frame(
            points in prop::collection::vec(-1e12f64..1e12, 0..16), runs in prop::collection::vec(any::<u32>(), 0..8)
        ) {
            let polygon = serde_json::to_vec(&[points]).unwrap();
            if let Ok(segmentation) = Segmentation::parse(&polygon) {
                let rle = segmentation.to_rle((9, 11)).unwrap();
                prop_assert!(hotcoco::mask::area(&rle) <= 99);
            }
            let text = serde_json::json!({"size": [9, 11], "counts": runs}).to_string();
            if let Ok(segmentation) = Segmentation::parse(text.as_bytes()) {
                prop_assert!(hotcoco::mask::area(&segmentation.to_rle((9, 11)).unwrap()) <= 99);
            }
        }
    }
}
