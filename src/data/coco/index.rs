//! From the columns of an annotation file to the pictures and objects that are used, by the reference's rules.

use std::collections::HashMap;
use std::path::Path;

use super::file::{RawAnnotation, RawCategory, RawFile, RawImage, Span};
use super::{Category, Split};
use crate::error::{Error, Result};

/// Pictures narrower or lower than this are not trained on.
const MIN_SIDE: u32 = 32;

/// What decides which pictures and objects are used.
pub(super) struct Rules<'a> {
    pub path: &'a Path,
    pub split: Split,
    pub classes: &'a [String],
    pub filter_empty: bool,
}

/// Columns with one entry per picture.
#[derive(Debug, Default)]
pub(super) struct Images {
    pub ids: Vec<i64>,
    /// `[width, height]`.
    pub sizes: Vec<[u32; 2]>,
    /// All file names, one after the other.
    pub names: String,
    pub name_ends: Vec<u32>,
    /// Where the objects of a picture start; one entry more than pictures.
    pub first_object: Vec<u32>,
}

/// Columns with one entry per object.
#[derive(Debug, Default)]
pub(super) struct ObjectColumns {
    pub boxes: Vec<[f32; 4]>,
    pub labels: Vec<u16>,
    pub ids: Vec<i64>,
    pub masks: Vec<Span>,
}

pub(super) struct Index {
    pub categories: Vec<Category>,
    pub images: Images,
    pub objects: ObjectColumns,
    pub warnings: Vec<String>,
}

/// Applies the rules to what the file says.
pub(super) fn build(raw: RawFile, rules: &Rules) -> Result<Index> {
    let missing = |key: &str| {
        Error::data(format!("{}: no key {key:?}: not a COCO instance annotation file", rules.path.display()))
    };
    let images = raw.images.ok_or_else(|| missing("images"))?;
    let categories = raw.categories.ok_or_else(|| missing("categories"))?;
    let annotations = match (raw.annotations, rules.split) {
        (Some(annotations), _) => annotations,
        // Lists of pictures to predict on have no annotations.
        (None, Split::Val) => Vec::new(),
        (None, Split::Train) => return Err(missing("annotations")),
    };
    let mut warnings = Vec::new();
    if raw.text_ids > 0 {
        warnings.push(format!("{}: {} ids are strings; read as numbers", rules.path.display(), raw.text_ids));
    }
    let categories = wanted_categories(&categories, rules, &mut warnings)?;
    let places = image_places(&images, rules)?;
    let grouped = Grouped::new(&annotations, &places, images.len(), rules, &mut warnings)?;
    let mut builder = Builder {
        labels: categories.iter().enumerate().map(|(label, category)| (category.id, label as u16)).collect(),
        rules,
        images: Images { first_object: vec![0], ..Images::default() },
        objects: ObjectColumns::default(),
        without_area: 0,
    };
    for (place, image) in images.iter().enumerate() {
        builder.image(image, &mut grouped.of_image(place).map(|row| (row, &annotations[row])))?;
    }
    if builder.without_area > 0 {
        warnings.push(format!("{}: {} annotations have no area", rules.path.display(), builder.without_area));
    }
    if builder.images.ids.is_empty() && rules.split == Split::Train {
        return Err(Error::data(format!(
            "{}: no picture to train on: none of {} is at least {MIN_SIDE} pixels wide and high with an object of a \
             wanted class; check data.classes and the annotations",
            rules.path.display(),
            images.len()
        )));
    }
    Ok(Index { categories, images: builder.images, objects: builder.objects, warnings })
}

/// The categories whose names are in `classes`, or all, in the order of the file.
fn wanted_categories(raw: &[RawCategory], rules: &Rules, warnings: &mut Vec<String>) -> Result<Vec<Category>> {
    let wrong = |message: String| Error::data(format!("{}: {message}", rules.path.display()));
    for class in rules.classes {
        if !raw.iter().any(|category| category.name == *class) {
            let nearest = raw.iter().max_by(|a, b| {
                let score = |c: &RawCategory| strsim::jaro_winkler(&c.name, class);
                score(a).total_cmp(&score(b))
            });
            let hint = nearest.map_or_else(String::new, |c| format!(" (the nearest is {:?})", c.name));
            return Err(wrong(format!("no category is named {class:?}{hint}; correct data.classes")));
        }
    }
    let mut categories: Vec<Category> = Vec::new();
    for category in raw {
        if !rules.classes.is_empty() && !rules.classes.contains(&category.name) {
            continue;
        }
        let (id, name) = (category.id.value, category.name.clone());
        match categories.iter().find(|known| known.id == id) {
            // A list that was written several times over says nothing new.
            Some(known) if known.name == name => continue,
            Some(known) => return Err(wrong(format!("category id {id} is both {:?} and {name:?}", known.name))),
            None => categories.push(Category { id, name }),
        }
    }
    if categories.is_empty() {
        return Err(wrong("there are no categories, so nothing can be told apart; export the file with them".into()));
    }
    if categories.len() > usize::from(u16::MAX) {
        return Err(wrong(format!("{} categories, at most {} are supported", categories.len(), u16::MAX)));
    }
    if !rules.classes.is_empty() && !categories.iter().map(|category| &category.name).eq(rules.classes) {
        warnings
            .push(format!("{}: labels follow the order of the file, not that of data.classes", rules.path.display()));
    }
    Ok(categories)
}

/// Image id -> place in the list.
fn image_places(images: &[RawImage], rules: &Rules) -> Result<HashMap<i64, usize>> {
    let mut places = HashMap::with_capacity(images.len());
    for (place, image) in images.iter().enumerate() {
        if let Some(other) = places.insert(image.id.value, place) {
            return Err(Error::data(format!(
                "{}: image id {} stands for {:?} and for {:?}; give every image its own id",
                rules.path.display(),
                image.id.value,
                images[other].file_name,
                image.file_name
            )));
        }
    }
    Ok(places)
}

/// The rows of the annotations, image by image, in the order of the file.
struct Grouped {
    rows: Vec<u32>,
    starts: Vec<u32>,
}

impl Grouped {
    fn new(
        annotations: &[RawAnnotation],
        places: &HashMap<i64, usize>,
        image_count: usize,
        rules: &Rules,
        warnings: &mut Vec<String>,
    ) -> Result<Self> {
        let count = u32::try_from(annotations.len())
            .map_err(|_| Error::data(format!("{}: too many annotations", rules.path.display())))?;
        let mut starts = vec![0u32; image_count + 1];
        // Most files list the annotations of an image together or in the order of ids: one look-up each is cheap.
        let place: Vec<u32> = annotations
            .iter()
            .map(|annotation| places.get(&annotation.image_id).map_or(u32::MAX, |&place| place as u32))
            .collect();
        let unknown = place.iter().filter(|&&place| place == u32::MAX).count();
        if unknown > 0 {
            warnings.push(format!("{}: {unknown} annotations are of unknown images; left out", rules.path.display()));
        }
        for &place in place.iter().filter(|&&place| place != u32::MAX) {
            starts[place as usize + 1] += 1;
        }
        for i in 0..image_count {
            starts[i + 1] += starts[i];
        }
        let mut next = starts.clone();
        let mut rows = vec![0u32; starts[image_count] as usize];
        for row in 0..count {
            let place = place[row as usize];
            if place != u32::MAX {
                let slot = &mut next[place as usize];
                rows[*slot as usize] = row;
                *slot += 1;
            }
        }
        let grouped = Self { rows, starts };
        Ok(grouped.with_last_of_equal_ids(annotations, rules, warnings))
    }

    /// The reference looks annotations up by id, so of several with one id the last stands for all.
    fn with_last_of_equal_ids(
        mut self,
        annotations: &[RawAnnotation],
        rules: &Rules,
        warnings: &mut Vec<String>,
    ) -> Self {
        let mut ids: Vec<i64> = annotations.iter().filter_map(|annotation| annotation.id).collect();
        ids.sort_unstable();
        let repeated: Vec<i64> = ids.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
        let Some(&first) = repeated.first() else { return self };
        warnings.push(format!(
            "{}: annotation ids are repeated ({} times, the first is {first}); the last of each is used in place of all",
            rules.path.display(),
            repeated.len()
        ));
        let mut last = HashMap::new();
        for (row, annotation) in annotations.iter().enumerate() {
            if let Some(id) = annotation.id.filter(|id| repeated.binary_search(id).is_ok()) {
                last.insert(id, row as u32);
            }
        }
        for row in &mut self.rows {
            if let Some(&other) = annotations[*row as usize].id.and_then(|id| last.get(&id)) {
                *row = other;
            }
        }
        self
    }

    fn of_image(&self, place: usize) -> impl Iterator<Item = usize> {
        self.rows[self.starts[place] as usize..self.starts[place + 1] as usize].iter().map(|&row| row as usize)
    }
}

struct Builder<'a> {
    labels: HashMap<i64, u16>,
    rules: &'a Rules<'a>,
    images: Images,
    objects: ObjectColumns,
    without_area: usize,
}

impl Builder<'_> {
    /// Takes a picture and its objects, or leaves it out.
    fn image(
        &mut self,
        image: &RawImage,
        annotations: &mut dyn Iterator<Item = (usize, &RawAnnotation)>,
    ) -> Result<()> {
        let id = image.id.value;
        let wrong = |message: String| Error::data(format!("{}: image {id}: {message}", self.rules.path.display()));
        let side = |value: Option<super::values::Integer>, name: &str| {
            let value = value.ok_or_else(|| wrong(format!("no {name}; add the {name} of the picture in pixels")))?;
            u32::try_from(value.value)
                .ok()
                .filter(|&side| side > 0)
                .ok_or_else(|| wrong(format!("{name} is {}, expected pixels above 0", value.value)))
        };
        let size = [side(image.width, "width")?, side(image.height, "height")?];
        let before = self.objects.boxes.len();
        // Crowds and boxes that are dropped below count here, as they do in the reference.
        let mut has_wanted = false;
        for (row, annotation) in annotations {
            has_wanted |= annotation.category_id.is_some_and(|category| self.labels.contains_key(&category));
            self.object(row, annotation, size)?;
        }
        if self.rules.filter_empty && !(has_wanted && size[0].min(size[1]) >= MIN_SIDE) {
            self.truncate(before);
            return Ok(());
        }
        let too_much = || Error::data(format!("{}: too many pictures or objects", self.rules.path.display()));
        self.images.ids.push(id);
        self.images.sizes.push(size);
        self.images.names.push_str(&image.file_name);
        self.images.name_ends.push(u32::try_from(self.images.names.len()).map_err(|_| too_much())?);
        self.images.first_object.push(u32::try_from(self.objects.boxes.len()).map_err(|_| too_much())?);
        Ok(())
    }

    /// The reference's rules for one annotation (`CocoDataset._parse_ann_info`).
    fn object(&mut self, row: usize, annotation: &RawAnnotation, [width, height]: [u32; 2]) -> Result<()> {
        let id = annotation.id.unwrap_or(row as i64 + 1);
        let wrong = |message: &str| Error::data(format!("{}: annotation {id}: {message}", self.rules.path.display()));
        if annotation.ignore {
            return Ok(());
        }
        let label = annotation.category_id.and_then(|category| self.labels.get(&category).copied());
        let Some([x, y, w, h]) = annotation.bbox else {
            // Pictures that are only evaluated need no box here, nor do objects of other classes.
            return if label.is_some() && self.rules.split == Split::Train {
                Err(wrong("no bbox; add [x, y, width, height] or remove the annotation"))
            } else {
                Ok(())
            };
        };
        let overlap = |start: f64, length: f64, limit: u32| (start + length).min(limit.into()) - start.max(0.0);
        let (inner_width, inner_height) = (overlap(x, w, width).max(0.0), overlap(y, h, height).max(0.0));
        self.without_area += usize::from(annotation.area.is_none());
        if inner_width * inner_height == 0.0 || annotation.area.is_some_and(|area| area <= 0.0) || w < 1.0 || h < 1.0 {
            return Ok(());
        }
        let Some(label) = label.filter(|_| !annotation.is_crowd) else { return Ok(()) };
        let mask = match annotation.segmentation {
            Some(span) => span,
            None if self.rules.split == Split::Train => {
                return Err(wrong(
                    "no segmentation: training needs a mask for every object; add a polygon or remove the annotation",
                ));
            }
            None => Span::default(),
        };
        self.objects.boxes.push([x as f32, y as f32, (x + w) as f32, (y + h) as f32]);
        self.objects.labels.push(label);
        self.objects.ids.push(id);
        self.objects.masks.push(mask);
        Ok(())
    }

    fn truncate(&mut self, length: usize) {
        self.objects.boxes.truncate(length);
        self.objects.labels.truncate(length);
        self.objects.ids.truncate(length);
        self.objects.masks.truncate(length);
    }
}
