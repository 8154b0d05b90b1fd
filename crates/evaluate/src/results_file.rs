//! COCO results files, of fnet or of other programs.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use hotcoco::{Annotation, Segmentation};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use fnet_common::text::{count, quoted};
use fnet_common::{Error, Result};
use fnet_config::Metric;
use fnet_data::Dataset;

/// The detections of a results file, checked against a data set.
#[derive(Debug)]
pub struct ResultsFile {
    /// The file.
    pub path: PathBuf,
    /// The detections with boxes, and masks if all of them have one.
    pub detections: Vec<Annotation>,
    /// Whether they have masks.
    pub has_masks: bool,
    /// Notes for the metrics.
    pub notes: Vec<String>,
}

/// One detection as it is written.
#[derive(Deserialize)]
struct Entry {
    image_id: Value,
    category_id: Value,
    score: f64,
    bbox: Option<[f64; 4]>,
    segmentation: Option<Segmentation>,
}

impl ResultsFile {
    /// Reads a file.
    /// Errors: a data error that names the file, the entry and the field: it is not a list of detections, it is empty,
    /// a number is not finite, a mask is damaged, or an image or category is not in the data set.
    pub fn read(path: &Path, dataset: &Dataset) -> Result<Self> {
        let wrong = |message: String| Error::data(format!("{}: {message}", path.display()));
        let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        let entries = parse(text).map_err(wrong)?;
        if entries.is_empty() {
            return Err(wrong("the list is empty: no image has a detection, so there is nothing to evaluate".into()));
        }
        let ids = Ids::of(dataset);
        let mut file = Self { path: path.to_path_buf(), detections: Vec::new(), has_masks: false, notes: Vec::new() };
        file.has_masks = entries.iter().all(|entry| entry.segmentation.is_some());
        let mut unknown = BTreeMap::new();
        let (mut other_sizes, mut example) = (0, None);
        for (place, entry) in entries.into_iter().enumerate() {
            let (Some(&index), Some(&category_id)) =
                (ids.images.get(&key(&entry.image_id)), ids.categories.get(&key(&entry.category_id)))
            else {
                let is_image = !ids.images.contains_key(&key(&entry.image_id));
                let (field, id) =
                    if is_image { ("image_id", &entry.image_id) } else { ("category_id", &entry.category_id) };
                unknown.entry(field).or_insert_with(|| (place, id.to_string(), 0)).2 += 1;
                continue;
            };
            let image = dataset.image(index);
            let size = [image.height as u32, image.width as u32];
            let (detection, mask_size) =
                detection(entry, size).map_err(|why| wrong(format!("entry {place}: {why}")))?;
            if mask_size.is_some_and(|mask_size| mask_size != size) {
                other_sizes += 1;
                example.get_or_insert((image.file_name.to_owned(), mask_size.unwrap_or(size), size));
            }
            let (image_id, category_id) = (dataset.image_id(index) as u64, category_id as u64);
            file.detections.push(Annotation { image_id, category_id, ..detection });
        }
        if let Some((field, (place, id, number))) = unknown.into_iter().next_back() {
            let what = if field == "image_id" { "images" } else { "categories" };
            return Err(wrong(format!(
                "entry {place}: {field} {id} is none of the {what} of data.{} ({}), as for {} in all; give the config and \
                 --split of the set that the results are of",
                dataset.split().name(),
                dataset.annotation_files(),
                count(number, "detection")
            )));
        }
        file.notes.extend(example.map(|(name, found, listed)| {
            let size = |[height, width]: [u32; 2]| format!("{width}x{height}");
            format!(
                "{} of {} {} another size than listed for their image and match no object; the first: {} in {} (listed: {})",
                other_sizes,
                count(file.detections.len(), "mask"),
                if other_sizes == 1 { "has" } else { "have" },
                size(found),
                quoted(&name),
                size(listed)
            )
        }));
        Ok(file)
    }

    /// The metrics to compute: those of `--eval`, or boxes and masks if there are any.
    /// Errors: a usage error if masks are asked for and there are none.
    pub fn kinds(&self, asked: &[Metric]) -> Result<Vec<Metric>> {
        match (asked, self.has_masks) {
            ([], true) => Ok(vec![Metric::Bbox, Metric::Segm]),
            ([], false) => Ok(vec![Metric::Bbox]),
            (asked, false) if asked.contains(&Metric::Segm) => Err(Error::usage(format!(
                "--eval segm: {} has detections without masks; give the file with masks (FILE.segm.json), or use --eval bbox",
                self.path.display()
            ))),
            (asked, _) => Ok(asked.to_vec()),
        }
    }

    /// The detections as one metric needs them. Masks have no boxes, so that the areas are those of the masks.
    pub fn of_kind(&self, kind: Metric) -> Vec<Annotation> {
        let part = |detection: &Annotation| match kind {
            Metric::Segm => Annotation { bbox: None, ..detection.clone() },
            Metric::Bbox | Metric::Proposal => Annotation {
                image_id: detection.image_id,
                category_id: detection.category_id,
                score: detection.score,
                bbox: detection.bbox,
                ..Annotation::default()
            },
        };
        self.detections.iter().map(part).collect()
    }
}

/// What the ids of a file mean.
struct Ids {
    /// The index of the image in the data set.
    images: HashMap<String, usize>,
    categories: HashMap<String, i64>,
}

impl Ids {
    fn of(dataset: &Dataset) -> Self {
        let images = (0..dataset.len()).map(|index| (key(&dataset.written_image_id(dataset.image_id(index))), index));
        let categories = dataset.categories().iter().map(|category| category.id);
        Self {
            images: images.collect(),
            categories: categories.map(|id| (key(&dataset.written_category_id(id)), id)).collect(),
        }
    }
}

/// An id as text: 7, 7.0 and "7" are the same.
fn key(id: &Value) -> String {
    match id {
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 2e15 => (float as i64).to_string(),
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

/// The detection without its ids, and the size of its mask.
fn detection(entry: Entry, size: [u32; 2]) -> Result<(Annotation, Option<[u32; 2]>), String> {
    let mask = entry.segmentation.as_ref().map(|mask| mask.to_rle(size[0], size[1]));
    let mask = mask.transpose().map_err(|error| format!("segmentation: {error}"))?;
    let bbox = match (entry.bbox, &mask) {
        (Some(bbox), _) => bbox,
        (None, Some(mask)) => hotcoco::mask::to_bbox(mask),
        (None, None) => return Err("neither bbox nor segmentation; one of them is expected".into()),
    };
    if bbox[2] < 0.0 || bbox[3] < 0.0 {
        return Err(format!("bbox is {bbox:?}: [x, y, width, height] is expected, with no negative width or height"));
    }
    let (score, bbox) = (Some(entry.score), Some(bbox));
    let detection = Annotation { score, bbox, segmentation: entry.segmentation, ..Annotation::default() };
    Ok((detection, mask.map(|mask| [mask.h, mask.w])))
}

/// The entries of the list.
fn parse(text: &[u8]) -> Result<Vec<Entry>, String> {
    let expected = "a JSON list of {image_id, category_id, bbox, score, segmentation} is expected";
    match text.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'[') => {}
        Some(b'{') => {
            let keys: HashMap<String, IgnoredAny> = serde_json::from_slice(text).unwrap_or_default();
            let what = match keys.contains_key("annotations") {
                true => "an annotation file (ground truth), not results",
                false if keys.keys().any(|key| key.ends_with("mAP")) => "a file of metrics, not of detections",
                false => "a JSON object",
            };
            return Err(format!("this is {what}; {expected}"));
        }
        Some(0x80) => {
            return Err(format!(
                "this is a pickle, as MMDetection's --out writes; {expected}, which its test.py writes with --format-only \
                 --eval-options jsonfile_prefix=PREFIX"
            ));
        }
        _ => return Err(format!("this is no JSON; {expected}")),
    }
    let mut reader = serde_json::Deserializer::from_slice(text);
    let entries: Result<Vec<Entry>, _> = serde_path_to_error::deserialize(&mut reader);
    entries.map_err(|error| {
        let (place, inner) = (error.path().to_string(), error.inner());
        // Python writes NaN, Infinity and -Infinity, which JSON does not have.
        let line = text.split(|&byte| byte == b'\n').nth(inner.line().saturating_sub(1)).unwrap_or_default();
        let rest = &line[inner.column().saturating_sub(2).min(line.len())..];
        let is_not_finite =
            inner.is_syntax() && [&b"NaN"[..], b"Inf", b"-Inf"].iter().any(|name| starts_near(rest, name));
        match is_not_finite {
            true => format!("{place}: a number is NaN or Infinity; every score and coordinate must be finite"),
            false => format!("{place}: {inner}; {expected}"),
        }
    })
}

/// Whether a text begins with a name within its first two bytes.
fn starts_near(text: &[u8], name: &[u8]) -> bool {
    (0..=2).any(|offset| text.get(offset..).is_some_and(|rest| rest.starts_with(name)))
}
