//! The mask of an annotation, as stored in the file.

use hotcoco::mask::{check_counts, fr_polys, merge, rle_from_string, to_bbox};
use hotcoco::types::Rle;

use super::json::{items, members, string};
use super::values::{Written, float, integer, is_whole, shown};
use crate::diagnostics::Code;

/// Polygons or RLE.
#[derive(Debug, Clone, PartialEq)]
pub enum Segmentation {
    /// Each polygon is `[x, y, x, y, ...]` in pixels; the mask is their union.
    Polygons(Vec<Vec<f64>>),
    /// Run lengths in column-major order, COCO's format for crowds.
    RunLengths(Rle),
}

/// Maximum outline length in pixels. Drawing follows the outline, so its length bounds time and memory.
const LONGEST_OUTLINE: f64 = 4_194_304.0;

/// Receives the problems of a mask.
type Note<'n> = dyn FnMut(Code, String) + 'n;

impl Segmentation {
    /// Reads the JSON of a `segmentation` value. A polygon of fewer than three points is left out. An odd last number
    /// is ignored, as in pycocotools.
    /// Errors: a message about the text, without its location.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        Self::parse_noting(json, &mut |_, _| {})
    }

    /// Like [`Self::parse`]. Reports to `note` what was repaired or left out.
    pub(super) fn parse_noting(json: &[u8], note: &mut Note) -> Result<Self, String> {
        let start = json.iter().position(|b| !b.is_ascii_whitespace()).unwrap_or(json.len());
        match json.get(start) {
            Some(b'{') => run_lengths(json, note).map(Self::RunLengths),
            Some(b'[') => list(json, note),
            _ => Err(expected(json)),
        }
    }

    /// Whether there is neither a polygon nor run lengths.
    fn is_nothing(&self) -> bool {
        matches!(self, Self::Polygons(polygons) if polygons.is_empty())
    }

    /// Why this mask, read from `json`, is none: it has no polygons, and pycocotools, which checks only the first one, raises
    /// an exception for it. `None` if pycocotools draws a mask, perhaps an empty one.
    pub(super) fn refusal(&self, json: &[u8]) -> Option<String> {
        if !self.is_nothing() {
            return None;
        }
        let mut parts = Vec::new();
        if items(json, |part| parts.push(part)).is_err() {
            return None;
        }
        let numbers: Vec<usize> = parts.iter().map(|part| length(part).unwrap_or(0)).collect();
        let what = match numbers.as_slice() {
            _ if parts.iter().any(|part| part.first() != Some(&b'[')) => "one polygon without its enclosing list",
            [] => "no polygon",
            all if all.len() > 2 && all.iter().all(|&count| count == 2) => {
                "one polygon as points [x, y]; write [[x, y, x, y, ...]]"
            }
            [4, ..] => "four numbers are two points, or a box [x, y, width, height], not a polygon",
            [0..4, ..] => "fewer than three points",
            _ => return None,
        };
        Some(format!("{}: {what}", shown(json)))
    }

    /// The mask in a frame of `(height, width)` pixels, rasterized as in pycocotools. Run lengths must have the size of
    /// the frame.
    /// Errors: a message without the location.
    pub fn to_rle(&self, (height, width): (usize, usize)) -> Result<Rle, String> {
        let side = |value: usize| u32::try_from(value).map_err(|_| format!("a side of {value} pixels"));
        let (height, width) = (side(height)?, side(width)?);
        match self {
            Self::Polygons(polygons) => fr_polys(polygons, height, width).map_err(|error| error.to_string()),
            Self::RunLengths(rle) => fits(rle, [width, height]).map(|()| rle.clone()),
        }
    }

    /// The bounding box `[x, y, width, height]` of the mask in an image of `size` (width, height): of the points of
    /// polygons, of the pixels of run lengths. `None` for an empty mask.
    pub(super) fn bounds(&self, size: [u32; 2]) -> Result<Option<[f64; 4]>, String> {
        if u64::from(size[0]) * u64::from(size[1]) > u64::from(u32::MAX) {
            return Err(format!("no mask can be drawn in {}x{} pixels", size[0], size[1]));
        }
        match self {
            Self::Polygons(polygons) => {
                let points = || polygons.iter().flat_map(|polygon| polygon.chunks_exact(2));
                let start = [f64::INFINITY, f64::INFINITY, f64::NEG_INFINITY, f64::NEG_INFINITY];
                let [x1, y1, x2, y2] = points().fold(start, |[x1, y1, x2, y2], point| {
                    [x1.min(point[0]), y1.min(point[1]), x2.max(point[0]), y2.max(point[1])]
                });
                Ok(points().next().map(|_| [x1, y1, x2 - x1, y2 - y1]))
            }
            Self::RunLengths(rle) => {
                fits(rle, size)?;
                Ok((hotcoco::mask::area(rle) > 0).then(|| to_bbox(rle)))
            }
        }
    }
}

/// The number of items in a list.
fn length(json: &[u8]) -> Option<usize> {
    let mut count = 0;
    items(json, |_| count += 1).ok().map(|()| count)
}

/// Checks that run lengths have the image's `size` (width, height).
fn fits(rle: &Rle, [width, height]: [u32; 2]) -> Result<(), String> {
    if (rle.h, rle.w) == (height, width) {
        return Ok(());
    }
    Err(format!(
        "run lengths of size [{}, {}], expected the image's [{height}, {width}] as [height, width]",
        rle.h, rle.w
    ))
}

fn expected(json: &[u8]) -> String {
    let text = json.trim_ascii();
    let what = match string(text) {
        Ok(text) if text.starts_with("b'") || text.starts_with("b\"") => "the string form of Python bytes b'...'",
        Ok(text) if text.starts_with("data:image") || is_base64(&text) => {
            "base64, perhaps of a PNG or of compressed data"
        }
        Ok(_) => "a string",
        Err(_) if contains_key(text, "x") && contains_key(text, "y") => "points with x and y",
        Err(_) => "",
    };
    if !what.is_empty() {
        return format!(
            "{}: {what}; expected [[x, y, x, y, ...]] or {{\"size\": [h, w], \"counts\": ...}}",
            shown(json)
        );
    }
    format!(
        "{} is neither polygons [[x, y, ...], ...] nor run lengths {{\"size\": [h, w], \"counts\": ...}}",
        shown(json)
    )
}

/// Whether a text is base64, judging by its length and characters.
fn is_base64(text: &str) -> bool {
    let end = text.trim_end_matches('=');
    end.len() >= 12 && end.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/')
}

fn contains_key(text: &[u8], key: &str) -> bool {
    memchr::memmem::find(text, format!("\"{key}\"").as_bytes()).is_some()
}

/// Reads a list of polygons or run lengths, or one polygon without its enclosing list.
fn list(json: &[u8], note: &mut Note) -> Result<Segmentation, String> {
    let mut parts = Vec::new();
    items(json, |item| parts.push(item)).map_err(|error| format!("{}: {}", shown(json), error.what))?;
    let kind = |item: &&[u8]| match item.first() {
        Some(b'[') => b'[',
        Some(b'{') => b'{',
        _ => b'0',
    };
    let first = parts.first().map_or(b'[', kind);
    if !parts.iter().all(|item| kind(item) == first) {
        return Err(expected(json));
    }
    match first {
        b'[' => {
            let polygons = parts.iter().map(|part| polygon(part, note)).collect::<Result<Vec<_>, _>>()?;
            drawn(polygons, note)
        }
        b'{' => {
            let rles = parts.iter().map(|part| run_lengths(part, note)).collect::<Result<Vec<_>, _>>()?;
            let union = merge(&rles, false).map_err(|error| error.to_string())?;
            Ok(Segmentation::RunLengths(union))
        }
        _ => {
            let polygon = polygon(json, note)?;
            note(Code::MaskFlat, format!("{} numbers without an enclosing list", polygon.len()));
            drawn(vec![polygon], note)
        }
    }
}

/// The mask of the polygons that can be drawn.
fn drawn(polygons: Vec<Vec<f64>>, note: &mut Note) -> Result<Segmentation, String> {
    drawable(&polygons)?;
    Ok(Segmentation::Polygons(enclosing(polygons, note)))
}

fn polygon(json: &[u8], note: &mut Note) -> Result<Vec<f64>, String> {
    let mut nested = None;
    // Values that are not lists are reported below.
    let _ = items(json, |item| nested = nested.or((item.first() == Some(&b'[')).then(|| length(item).unwrap_or(0))));
    if let Some(numbers) = nested {
        let what = match numbers {
            2 => "a polygon of points [x, y]",
            _ => "polygons with an extra enclosing list",
        };
        return Err(format!("{}: {what}; write [[x, y, x, y, ...]]", shown(json)));
    }
    let finite = |item: &[u8]| float(item).ok().filter(|written| written.value.is_finite());
    numbers(json, finite, ["the polygon ", "in a polygon is not a finite number"], note)
}

/// Reads the numbers of a list with `read`. The two words are for messages: before a list that has strings, and after
/// an item that is not such a number.
fn numbers<T>(
    json: &[u8],
    read: impl Fn(&[u8]) -> Option<Written<T>>,
    [what, wrong_item]: [&str; 2],
    note: &mut Note,
) -> Result<Vec<T>, String> {
    let mut numbers = Vec::new();
    let (mut has_text, mut wrong) = (false, None);
    items(json, |item| match read(item) {
        Some(Written { value, as_text }) => {
            has_text |= as_text;
            numbers.push(value);
        }
        None => {
            let what = if is_whole(item) && !item.starts_with(b"-") { "is too large" } else { wrong_item };
            wrong.get_or_insert_with(|| format!("{} {what}", shown(item)));
        }
    })
    .map_err(|error| format!("{}: {}", shown(json), error.what))?;
    if has_text {
        note(Code::MaskText, format!("{what}{} has strings", shown(json)));
    }
    wrong.map_or(Ok(numbers), Err)
}

/// Checks that the total outline is at most [`LONGEST_OUTLINE`].
fn drawable(polygons: &[Vec<f64>]) -> Result<(), String> {
    let outline = |polygon: &Vec<f64>| -> f64 {
        let points = || polygon.chunks_exact(2);
        let next = points().skip(1).chain(points().take(1));
        points().zip(next).map(|(a, b)| (a[0] - b[0]).abs().max((a[1] - b[1]).abs())).sum()
    };
    let length: f64 = polygons.iter().map(outline).sum();
    if length <= LONGEST_OUTLINE {
        return Ok(());
    }
    Err(format!("polygons with an outline of {length:.0} pixels, expected at most {LONGEST_OUTLINE:.0}"))
}

/// The polygons with at least three points.
fn enclosing(mut polygons: Vec<Vec<f64>>, note: &mut Note) -> Vec<Vec<f64>> {
    polygons.retain(|polygon| {
        if polygon.len() < 6 {
            note(Code::MaskFewPoints, format!("a polygon of {} numbers: {polygon:?}", polygon.len()));
            return false;
        }
        if polygon.len() % 2 == 1 {
            note(Code::MaskOdd, format!("a polygon of {} numbers", polygon.len()));
        }
        true
    });
    polygons
}

fn run_lengths(json: &[u8], note: &mut Note) -> Result<Rle, String> {
    let (mut size, mut counts) = (None, None);
    members(json, |key, value, _| match key {
        "size" => size = Some(value),
        "counts" => counts = Some(value),
        _ => {}
    })
    .map_err(|error| format!("{}: {}", shown(json), error.what))?;
    let (Some(size), Some(counts)) = (size, counts) else { return Err(expected(json)) };
    let sides = whole_numbers(size, note)?;
    let &[height, width] = sides.as_slice() else {
        return Err(format!("size {}, expected [height, width]", shown(size)));
    };
    let rle = if counts.first() == Some(&b'"') {
        let text = string(counts)?;
        if text.starts_with("b'") || text.starts_with("b\"") {
            return Err(format!(
                "counts {} is the string form of Python bytes; write counts.decode(\"ascii\")",
                shown(counts)
            ));
        }
        if let Some(odd) = text.chars().find(|c| !('0'..='o').contains(c)) {
            let what = if is_base64(&text) {
                "it may be base64, which must be decoded first"
            } else {
                "export the mask again"
            };
            return Err(format!("counts {} has the invalid character {odd:?}; {what}", shown(counts)));
        }
        rle_from_string(&text, height, width).map_err(|error| error.to_string())?
    } else {
        let counts = whole_numbers(counts, note)?;
        check_counts(&counts, height, width).map_err(|error| error.to_string())?;
        Rle { h: height, w: width, counts }
    };
    let total: u64 = rle.counts.iter().map(|&run| u64::from(run)).sum();
    let pixels = u64::from(height) * u64::from(width);
    if total < pixels {
        note(Code::MaskShort, format!("runs of {total} pixels for a mask of {height}x{width} = {pixels}"));
    }
    Ok(rle)
}

fn whole_numbers(json: &[u8], note: &mut Note) -> Result<Vec<u32>, String> {
    let pixels = |item: &[u8]| {
        let Written { value, as_text } = integer(item).ok()?;
        Some(Written { value: u32::try_from(value).ok()?, as_text })
    };
    numbers(json, pixels, ["", "is not a whole number of pixels"], note)
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
    fn pycocotools_checks_only_the_first_polygon() {
        for (text, refused) in [
            ("[]", Some("no polygon")),
            ("[[]]", Some("fewer than three")),
            ("[[], [1, 1, 2, 2, 3]]", Some("fewer than three")),
            ("[[1, 1]]", Some("fewer than three")),
            ("[[1, 1, 5, 4]]", Some("a box [x, y, width, height]")),
            ("[1, 1, 5, 4]", Some("without its enclosing list")),
            ("[[1, 1], [5, 1], [5, 4]]", Some("points [x, y]")),
            ("[[1, 1, 5, 4, 9]]", None),
            ("[[3, 3, 3, 3, 3, 3]]", None),
        ] {
            let found = Segmentation::parse(text.as_bytes()).unwrap().refusal(text.as_bytes());
            assert_eq!(found.is_some(), refused.is_some(), "{text}: {found:?}");
            assert!(refused.is_none_or(|part| found.is_some_and(|found| found.contains(part))), "{text}");
        }
    }

    #[test]
    fn a_list_of_run_lengths_is_their_union() {
        let text = b"[{\"size\": [2, 2], \"counts\": [0, 1, 3]}, {\"size\": [2, 2], \"counts\": [3, 1]}]";
        let Ok(Segmentation::RunLengths(rle)) = Segmentation::parse(text) else { panic!("no run lengths") };
        assert_eq!(decode(&rle), [1, 0, 0, 1]);
    }

    #[test]
    fn errors_describe_the_problem() {
        for (text, expected) in [
            ("{\"size\": [2, 2], \"counts\": [1, 9]}", "4"),
            ("{\"size\": [2, 2]}", "polygons"),
            ("[[1, 2, NaN, 4, 5, 6]]", "NaN"),
            ("[[1, 2], 3]", "polygons"),
            ("[1, 2, 3", "the end of the list"),
            ("\"abc\"", "a string"),
            ("\"b'abc'\"", "Python bytes"),
            ("\"iVBORw0KGgoAAAANSUhEUg==\"", "base64"),
            ("[{\"x\": 1, \"y\": 2}]", "points with x and y"),
            ("[[[1, 1], [5, 1], [5, 4]]]", "points [x, y]"),
            ("[[[1, 1, 5, 1, 5, 4]]]", "extra enclosing list"),
            ("{\"size\": [2, 2], \"counts\": \"b'13'\"}", "counts.decode"),
            ("{\"size\": [2, 2], \"counts\": \"eJyLNlAAAQ+zwx==\"}", "base64"),
            ("{\"size\": [2, 2], \"counts\": [9223372036854775808]}", "too large"),
            ("[[0, 0, 3e6, 0, 3e6, 3]]", "6000003 pixels"),
            ("[[0, 0, 1e308, -1e308, -1e308, 1e308]]", "inf pixels"),
        ] {
            let message = Segmentation::parse(text.as_bytes()).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
        let triangle = Segmentation::parse(b"[[0, 0, 9, 0, 9, 9]]").unwrap();
        assert_eq!(triangle.bounds([9, 9]), Ok(Some([0.0, 0.0, 9.0, 9.0])));
        assert!(triangle.bounds([1 << 17, 1 << 17]).unwrap_err().contains("131072x131072"));
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
