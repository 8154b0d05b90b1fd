//! Entries of `annotations`, reduced to what training needs. Follows MMDetection's `CocoDataset._parse_ann_info`.

use std::collections::HashMap;
use std::path::Path;

use fnet_config::WithoutMask;

use super::Split;
use super::json::members;
use super::records::{shown_id, syntax_message};
use super::segmentation::Segmentation;
use super::values::{RawId, Written, bbox, flag, float, id, shown};
use crate::diagnostics::{Code, Diagnostics, Location};

/// Position of a JSON value in the file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Span {
    pub offset: u64,
    /// 0 if there is no value.
    pub length: u32,
}

/// The label of annotations without a selected class.
pub(super) const OTHER_CLASS: u16 = u16::MAX;
/// The size of an image whose size is unknown. An error is reported for it.
pub(super) const UNKNOWN_SIZE: [u32; 2] = [0, 0];
/// The index of annotations without an image.
pub(super) const NOWHERE: u32 = u32::MAX;

/// The stored part of an annotation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// Index of its image, or [`NOWHERE`].
    pub image: u32,
    /// Its class, or [`OTHER_CLASS`].
    pub label: u16,
    pub usage: Usage,
    /// Whether `id` comes from the file. Otherwise it is the position in the list, from 1.
    pub has_id: bool,
    /// `[x1, y1, x2, y2]`.
    pub bbox: [f32; 4],
    pub id: i64,
    pub mask: Span,
}

/// How an annotation is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Usage {
    /// It is trained on.
    Trained,
    /// Its image is not in the list.
    NoImage,
    /// Its class is not selected or not in the list.
    OtherClass,
    /// Its key `ignore` is set.
    Ignored,
    /// It is a region of many objects.
    Crowd,
    /// Its box or area is empty.
    Unfit,
    /// It has no mask, and such objects are skipped.
    WithoutMask,
    /// It cannot be used. A diagnostic says why.
    Broken,
}

impl Row {
    const BROKEN: Self = Self {
        image: NOWHERE,
        label: OTHER_CLASS,
        usage: Usage::Broken,
        has_id: false,
        bbox: [0.0; 4],
        id: 0,
        mask: Span { offset: 0, length: 0 },
    };
}

/// What is needed to interpret annotations.
pub(super) struct Context<'c> {
    pub path: &'c Path,
    pub split: Split,
    /// Image id -> index.
    pub images: &'c HashMap<RawId, u32>,
    /// `[width, height]` of every image.
    pub sizes: &'c [[u32; 2]],
    /// Category id -> label, for all categories of the file. [`OTHER_CLASS`] for categories that are not selected.
    pub labels: &'c HashMap<RawId, u16>,
    /// What to do with objects without a mask; `None` if masks are not used.
    pub masks: Option<WithoutMask>,
}

/// The members of an annotation, as written in the file.
#[derive(Default)]
pub(super) struct Raw<'t> {
    pub id: Option<Written<RawId>>,
    pub image: Option<Written<RawId>>,
    pub category: Option<Written<RawId>>,
    pub bbox: Option<Written<[f64; 4]>>,
    pub area: Option<Written<f64>>,
    pub crowd: Option<bool>,
    pub ignore: bool,
    /// The text of the mask and its offset in the element. `None` if it is absent, null or empty.
    pub mask: Option<(&'t [u8], usize)>,
    /// The text of a null or empty mask.
    pub empty_mask: Option<&'t [u8]>,
}

impl<'t> Raw<'t> {
    /// Reads an element.
    /// Errors: the id, if known, and a message.
    pub fn read(text: &'t [u8]) -> Result<Self, (Option<Written<RawId>>, String)> {
        let mut raw = Self::default();
        let mut wrong = None;
        let walked = members(text, |key, value, at| {
            if let Err(message) = raw.member(key, value, at) {
                wrong.get_or_insert(format!("{key}: {message}"));
            }
        });
        match (walked, wrong) {
            (Err(error), _) => Err((raw.id, syntax_message(&error))),
            (Ok(()), Some(message)) => Err((raw.id, message)),
            (Ok(()), None) => Ok(raw),
        }
    }

    fn member(&mut self, key: &str, value: &'t [u8], at: usize) -> Result<(), String> {
        let is_null = value == b"null";
        match key {
            "id" if !is_null => self.id = Some(id(value)?),
            "image_id" if !is_null => self.image = Some(id(value)?),
            "category_id" if !is_null => self.category = Some(id(value)?),
            "bbox" => self.bbox = bbox(value)?,
            "area" if !is_null => self.area = Some(float(value)?),
            "iscrowd" => self.crowd = Some(flag(value)?),
            "ignore" => self.ignore = flag(value)?,
            "segmentation" if is_empty(value) => (self.mask, self.empty_mask) = (None, Some(value)),
            "segmentation" => (self.mask, self.empty_mask) = (Some((value, at)), None),
            _ => {}
        }
        Ok(())
    }
}

/// Whether a mask is null, or an empty list, object or string.
fn is_empty(value: &[u8]) -> bool {
    let content = |b: &u8| !b.is_ascii_whitespace() && !matches!(b, b'[' | b']' | b'{' | b'}' | b'"');
    value == b"null" || !value.iter().any(content)
}

/// Describes why there is no mask.
pub(super) fn no_mask(raw: &Raw) -> String {
    match raw.empty_mask {
        Some(text) => format!("segmentation is {}", shown(text)),
        None => "no segmentation".into(),
    }
}

/// Reads the annotation `text`, which starts at `offset` of the file and has index `row` in the list. Adds a diagnostic
/// if it cannot be used.
pub(super) fn row(text: &[u8], offset: u64, row: usize, context: &Context, diagnostics: &mut Diagnostics) -> Row {
    match Raw::read(text) {
        Ok(raw) => row_of(&raw, offset, row, context, diagnostics).unwrap_or(Row::BROKEN),
        Err((id, message)) => {
            let place = || Location::annotation(shown_id(id.as_ref(), row));
            diagnostics.add(Code::AnnotationMalformed, context.path, place, || message);
            Row::BROKEN
        }
    }
}

/// Like [`row`], for a parsed annotation. `None` if it cannot be used.
pub(super) fn row_of(
    raw: &Raw,
    offset: u64,
    row: usize,
    context: &Context,
    diagnostics: &mut Diagnostics,
) -> Option<Row> {
    let place = || {
        let place = Location::annotation(shown_id(raw.id.as_ref(), row));
        match &raw.image {
            Some(image) => place.of_image(shown_id(Some(image), 0)),
            None => place,
        }
    };
    let mut reader = Reader { context, raw, row, diagnostics, place: &place };
    let id = reader.id();
    let image = reader.image()?;
    let label = reader.label()?;
    let (bbox, usage) = reader.object(image, label)?;
    let mask = raw.mask.map_or_else(Span::default, |(text, at)| Span {
        offset: offset + at as u64,
        // Elements are shorter than 4 GB.
        length: text.len() as u32,
    });
    let has_id = matches!(raw.id, Some(Written { value: RawId::Number(_), .. }));
    Some(Row { image, label, usage, has_id, bbox, id, mask })
}

/// Applies the rules to one annotation.
struct Reader<'r> {
    context: &'r Context<'r>,
    raw: &'r Raw<'r>,
    row: usize,
    diagnostics: &'r mut Diagnostics,
    place: &'r dyn Fn() -> Location,
}

impl Reader<'_> {
    fn add(&mut self, code: Code, message: impl FnOnce() -> String) {
        self.diagnostics.add(code, self.context.path, self.place, message);
    }

    /// The id, or the position in the list.
    fn id(&mut self) -> i64 {
        let raw = self.raw;
        for (name, id) in [("id", &raw.id), ("image_id", &raw.image), ("category_id", &raw.category)] {
            if let Some(id) = id.as_ref().filter(|id| id.as_text) {
                self.add(Code::AnnotationIdText, || format!("{name} is the string {:?}", shown_id(Some(id), 0)));
            }
        }
        match &raw.id {
            Some(Written { value: RawId::Number(0), .. }) => {
                self.add(Code::AnnotationIdZero, || "the id is 0".into());
                0
            }
            Some(Written { value: RawId::Number(number), .. }) => *number,
            Some(_) => self.row as i64 + 1,
            None => {
                let row = self.row;
                self.add(Code::AnnotationIdMissing, || format!("entry {} of the list has no id", row + 1));
                self.row as i64 + 1
            }
        }
    }

    /// The index of its image, or [`NOWHERE`]. `None` without an image id.
    fn image(&mut self) -> Option<u32> {
        let Some(id) = &self.raw.image else {
            self.add(Code::AnnotationImageMissing, || "no image_id".into());
            return None;
        };
        let place = self.context.images.get(&id.value).copied();
        if place.is_none() {
            self.add(Code::AnnotationImageUnknown, || format!("no image has the id {}", shown_id(Some(id), 0)));
        }
        Some(place.unwrap_or(NOWHERE))
    }

    /// The class, or [`OTHER_CLASS`]. `None` if it is ambiguous.
    fn label(&mut self) -> Option<u16> {
        let Some(id) = &self.raw.category else {
            let mut labels = self.context.labels.values();
            return match (labels.next(), labels.next()) {
                (Some(&label), None) => {
                    self.add(Code::AnnotationCategoryImplied, || "no category_id".into());
                    Some(label)
                }
                _ => {
                    self.add(Code::AnnotationCategoryMissing, || "no category_id".into());
                    None
                }
            };
        };
        let label = self.context.labels.get(&id.value).copied();
        match label {
            None => self
                .add(Code::AnnotationCategoryUnknown, || format!("no category has the id {}", shown_id(Some(id), 0))),
            Some(OTHER_CLASS) => {
                let code = match self.context.split {
                    Split::Train => Code::AnnotationOtherClass,
                    Split::Val | Split::Test => Code::AnnotationOtherClassEvaluated,
                };
                self.add(code, || format!("category {} is not in data.classes", shown_id(Some(id), 0)));
            }
            Some(_) => {}
        }
        Some(label.unwrap_or(OTHER_CLASS))
    }

    /// Its box and how it is used. `None` if it cannot be used. Annotations without an image or class are not checked.
    fn object(&mut self, image: u32, label: u16) -> Option<([f32; 4], Usage)> {
        let raw = self.raw;
        let passed_over = match () {
            () if image == NOWHERE => Some(Usage::NoImage),
            () if label == OTHER_CLASS => Some(Usage::OtherClass),
            () if raw.ignore => Some(Usage::Ignored),
            () => None,
        };
        if let Some(usage) = passed_over {
            return Some(([0.0; 4], usage));
        }
        if raw.crowd.is_none() {
            self.add(Code::AnnotationCrowdMissing, || "no iscrowd".into());
        }
        match raw.area {
            Some(area) if area.as_text => {
                self.add(Code::AnnotationAreaText, || format!("area is the string \"{}\"", area.value));
            }
            Some(_) => {}
            None => self.add(Code::AnnotationAreaMissing, || "no area".into()),
        }
        let size = self.context.sizes[image as usize];
        if size == UNKNOWN_SIZE && (raw.bbox.is_some() || raw.mask.is_some()) {
            return Some(([0.0; 4], Usage::Unfit));
        }
        let sides = self.bbox(size)?;
        let fits = self.fits(sides, size);
        let usage = match (raw.crowd.unwrap_or(false), fits) {
            (true, _) => Usage::Crowd,
            (false, true) => Usage::Trained,
            (false, false) => Usage::Unfit,
        };
        let usage = match usage {
            Usage::Trained if self.context.split == Split::Train => self.by_mask()?,
            usage => usage,
        };
        let [x, y, w, h] = sides;
        Some(([x as f32, y as f32, (x + w) as f32, (y + h) as f32], usage))
    }

    /// How a sound object is used in training. `None` if it needs a mask.
    fn by_mask(&mut self) -> Option<Usage> {
        let raw = self.raw;
        match (raw.mask, self.context.masks) {
            (None, Some(WithoutMask::Error)) => {
                self.add(Code::MaskMissing, || format!("{}, and training needs a mask for every object", no_mask(raw)));
                None
            }
            (None, Some(WithoutMask::Box)) => {
                self.add(Code::MaskMissingBox, || no_mask(raw));
                Some(Usage::Trained)
            }
            (mask, Some(WithoutMask::Skip)) => {
                let message = match mask {
                    // Other masks are read later, but which images have objects is decided here.
                    Some((text, _)) => Segmentation::parse(text).ok().and_then(|mask| mask.refusal(text)),
                    None => Some(no_mask(raw)),
                };
                let Some(message) = message else { return Some(Usage::Trained) };
                self.add(Code::MaskMissingSkipped, || message);
                Some(Usage::WithoutMask)
            }
            _ => Some(Usage::Trained),
        }
    }

    /// Its box `[x, y, width, height]`, computed from the mask if necessary.
    fn bbox(&mut self, size: [u32; 2]) -> Option<[f64; 4]> {
        let raw = self.raw;
        match (raw.bbox, raw.mask) {
            (Some(bbox), _) => {
                if bbox.as_text {
                    self.add(Code::BoxText, || format!("bbox has strings for {:?}", bbox.value));
                }
                Some(bbox.value)
            }
            (None, Some((mask, _))) => match Segmentation::parse(mask).and_then(|mask| mask.bounds(size)) {
                Ok(Some(bounds)) => {
                    self.add(Code::BoxFromMask, || format!("no bbox; its mask has the bounds {bounds:?}"));
                    Some(bounds)
                }
                Ok(None) => {
                    self.add(Code::BoxMissing, || "no bbox, and its mask is empty".into());
                    None
                }
                Err(message) => {
                    self.add(Code::MaskMalformed, || message);
                    None
                }
            },
            (None, None) => {
                self.add(Code::BoxMissing, || "no bbox".into());
                None
            }
        }
    }

    /// Whether MMDetection trains on a box in an image of `size` (width, height).
    fn fits(&mut self, sides: [f64; 4], [width, height]: [u32; 2]) -> bool {
        let [x, y, w, h] = sides;
        let shown = move || format!("bbox {sides:?} in {width}x{height} pixels");
        if !sides.iter().all(|side| side.is_finite()) {
            let code = match self.context.split {
                Split::Train => Code::BoxNotFinite,
                Split::Val | Split::Test => Code::BoxNotFiniteEvaluated,
            };
            self.add(code, shown);
        }
        // As with Python's min and max, NaN gives 0.
        let overlap = |start: f64, length: f64, limit: u32| {
            let (end, limit) = (start + length, f64::from(limit));
            let end = if limit < end { limit } else { end };
            let start = if 0.0 > start { 0.0 } else { start };
            if end - start > 0.0 { end - start } else { 0.0 }
        };
        let (inner_width, inner_height) = (overlap(x, w, width), overlap(y, h, height));
        if w < 1.0 || h < 1.0 {
            let like_fractions =
                width > 2 && height > 2 && w > 0.0 && h > 0.0 && sides.iter().all(|side| (0.0..=1.0).contains(side));
            self.add(if like_fractions { Code::BoxNormalized } else { Code::BoxEmpty }, shown);
            return false;
        }
        if inner_width * inner_height == 0.0 {
            if sides.iter().all(|side| side.is_finite()) {
                self.add(Code::BoxElsewhere, shown);
            }
            return false;
        }
        if let Some(area) = self.raw.area.map(|area| area.value).filter(|&area| area <= 0.0) {
            self.add(Code::AnnotationAreaZero, move || format!("area {area} and {}", shown()));
            return false;
        }
        let over = [-x, -y, x + w - f64::from(width), y + h - f64::from(height)];
        if over.iter().any(|&over| over > 1.0) {
            self.add(Code::BoxOutside, shown);
        }
        true
    }
}
