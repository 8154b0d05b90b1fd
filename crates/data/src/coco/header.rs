//! The images and categories of an annotation file, and the labels derived from them.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use fnet_common::text::{list, quoted};
use fnet_config::WithoutMask;

use super::annotations::{Context, OTHER_CLASS};
use super::records::{RawCategory, RawImage, category, image, shown_id};
use super::source::AnnotationSource;
use super::values::RawId;
use super::{Split, lists};
use crate::diagnostics::{Code, Diagnostics, Location};

/// One class. Its label is its index in [`crate::Dataset::categories`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Category {
    /// The `id` in the annotation file.
    pub id: i64,
    /// Its name.
    pub name: String,
}

/// The images and categories of an annotation file.
pub(super) struct Header {
    pub images: Vec<RawImage>,
    /// Number of entries in the list of images, including invalid ones.
    pub listed_images: usize,
    /// Image id -> index in `images`.
    pub places: HashMap<RawId, u32>,
    /// The selected categories. A label is an index into this list.
    pub categories: Vec<Category>,
    /// Category id -> label, for all categories of the file.
    pub labels: HashMap<RawId, u16>,
    /// Ids that are not numbers. The id `i64::MIN + i` represents entry `i`.
    pub names: Vec<String>,
    /// Whether the ids of images and of categories are strings in the file.
    pub ids_are_text: [bool; 2],
    /// Whether there is a list of annotations.
    pub has_annotations: bool,
}

impl Header {
    /// The context for reading annotations. `sizes` are the image sizes; `masks` says what to do with objects without a
    /// mask.
    pub fn context<'c>(
        &'c self,
        path: &'c Path,
        split: Split,
        sizes: &'c [[u32; 2]],
        masks: Option<WithoutMask>,
    ) -> Context<'c> {
        Context { path, split, images: &self.places, sizes, labels: &self.labels, masks }
    }
}

enum Entry {
    Image(RawImage),
    Category(RawCategory),
    /// An invalid entry. A diagnostic says why.
    Broken,
}

/// Why there is no header.
pub(super) enum NoHeader {
    /// The text cannot be read completely.
    Broken(super::elements::Broken),
    /// The text is a JSON object, but lists are missing. Holds its keys.
    KeysMissing(Vec<(String, u8)>),
    /// Diagnostics say what is wrong.
    Reported,
}

/// Reads the header. `classes` are the selected names; empty for all.
pub(super) fn read(
    source: &AnnotationSource,
    path: &Path,
    classes: &[String],
    diagnostics: &mut Diagnostics,
) -> Result<Header, NoHeader> {
    let parse = |list: &str, text: &[u8], _: u64, row: usize, diagnostics: &mut Diagnostics| {
        let entry = match list {
            "images" => image(text, row, path, diagnostics).map(Entry::Image),
            _ => category(text, row, path, diagnostics).map(Entry::Category),
        };
        entry.or(Some(Entry::Broken))
    };
    let (mut images, mut raw_categories) = (Vec::new(), Vec::new());
    // Images, categories.
    let mut broken = [0; 2];
    let mut take = |list: &str, entry: Option<Entry>| {
        let is_image = list == "images";
        match entry {
            Some(Entry::Image(image)) => images.push(image),
            Some(Entry::Category(category)) => raw_categories.push(category),
            Some(Entry::Broken) => broken[usize::from(!is_image)] += 1,
            None => {
                broken[usize::from(!is_image)] = 0;
                if is_image { images.clear() } else { raw_categories.clear() }
            }
        }
    };
    let wanted_lists = ["images", "categories"];
    let keys = lists::read(source, path, &wanted_lists, &parse, &mut take, diagnostics).map_err(NoHeader::Broken)?;
    let is_list = |name: &str| keys.iter().any(|(key, first)| key == name && *first == b'[');
    if !is_list("images") || !is_list("categories") {
        return Err(NoHeader::KeysMissing(keys));
    }
    let has_annotations = is_list("annotations");
    let listed_images = images.len() + broken[0];
    if raw_categories.is_empty() && broken[1] > 0 {
        return Err(NoHeader::Reported);
    }
    let mut names = Vec::new();
    let texts = [images.iter().any(|i| i.id.as_text), raw_categories.iter().any(|c| c.id.as_text)];
    let (categories, labels) =
        wanted(&raw_categories, classes, path, &mut names, diagnostics).ok_or(NoHeader::Reported)?;
    let (images, places) = unique(images, path, diagnostics);
    Ok(Header { images, listed_images, places, categories, labels, names, ids_are_text: texts, has_annotations })
}

/// The number that represents an id.
pub(super) fn number(id: &RawId, names: &mut Vec<String>) -> i64 {
    match id {
        RawId::Number(number) => *number,
        RawId::Name(name) => {
            names.push(name.clone());
            i64::MIN + (names.len() as i64 - 1)
        }
    }
}

/// The images without repeated ids. The last entry replaces the first, as in pycocotools.
fn unique(images: Vec<RawImage>, path: &Path, diagnostics: &mut Diagnostics) -> (Vec<RawImage>, HashMap<RawId, u32>) {
    let mut places: HashMap<RawId, u32> = HashMap::with_capacity(images.len());
    let mut kept: Vec<RawImage> = Vec::with_capacity(images.len());
    let mut files: HashMap<u64, u32> = HashMap::with_capacity(images.len());
    for (row, image) in images.into_iter().enumerate() {
        let place = || Location::image(shown_id(Some(&image.id), row));
        if image.id.as_text {
            diagnostics.add(Code::ImageIdText, path, place, || format!("the id of {:?} is a string", image.file_name));
        }
        if image.size_as_text {
            diagnostics.add(Code::ImageSizeText, path, place, || {
                format!("the size of {:?} is given as strings", image.file_name)
            });
        }
        if let Some(&place_before) = places.get(&image.id.value) {
            let before = &mut kept[place_before as usize];
            diagnostics.add(Code::ImageIdRepeated, path, place, || {
                format!("the id belongs to both {:?} and {:?}", before.file_name, image.file_name)
            });
            *before = image;
            continue;
        }
        let number = kept.len() as u32;
        if let Some(&other) = files.get(&hash(&image.file_name))
            && kept[other as usize].file_name == image.file_name
        {
            diagnostics.add(Code::ImageNameRepeated, path, place, || {
                format!(
                    "{:?} is also the file of image {}",
                    image.file_name,
                    shown_id(Some(&kept[other as usize].id), 0)
                )
            });
        } else {
            files.insert(hash(&image.file_name), number);
        }
        places.insert(image.id.value.clone(), number);
        kept.push(image);
    }
    (kept, places)
}

fn hash(text: &str) -> u64 {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
    BuildHasherDefault::<DefaultHasher>::default().hash_one(text)
}

/// The categories that `classes` selects, in the order of the file, and the label of every category.
fn wanted(
    raw: &[RawCategory],
    classes: &[String],
    path: &Path,
    names: &mut Vec<String>,
    diagnostics: &mut Diagnostics,
) -> Option<(Vec<Category>, HashMap<RawId, u16>)> {
    let errors =
        |diagnostics: &Diagnostics| [Code::ClassUnknown, Code::CategoryConflict].map(|code| diagnostics.count(code));
    let before = errors(diagnostics);
    for class in classes.iter().filter(|class| !raw.iter().any(|category| category.name == **class)) {
        let nearest = raw
            .iter()
            .map(|category| &category.name)
            .max_by(|a, b| strsim::jaro_winkler(a, class).total_cmp(&strsim::jaro_winkler(b, class)));
        diagnostics.add(Code::ClassUnknown, path, Location::file, || match nearest {
            Some(nearest) => format!("no category is named {class:?}; the most similar is {nearest:?}"),
            None => format!("no category is named {class:?}"),
        });
    }
    let mut categories: Vec<Category> = Vec::new();
    let mut labels = HashMap::new();
    let mut taken: HashSet<&str> = HashSet::new();
    let mut seen: HashMap<&RawId, &str> = HashMap::new();
    for (row, category) in raw.iter().enumerate() {
        let place = || Location::category(shown_id(Some(&category.id), row));
        let key = &category.id.value;
        match seen.get(key) {
            // The list was written several times.
            Some(&known) if known == category.name => {
                diagnostics.add(Code::CategoryRepeated, path, place, || format!("{known:?} is in the list again"));
                continue;
            }
            Some(&known) => {
                diagnostics.add(Code::CategoryConflict, path, place, || {
                    format!("the id belongs to both {known:?} and {:?}", category.name)
                });
                continue;
            }
            None => {}
        }
        let is_wanted = classes.is_empty() || classes.contains(&category.name);
        if category.id.as_text {
            diagnostics.add(Code::CategoryIdText, path, place, || format!("the id of {:?} is a string", category.name));
        }
        if is_wanted && !taken.insert(&category.name) {
            diagnostics.add(Code::CategoryNameRepeated, path, place, || {
                format!("another category is also {:?}", category.name)
            });
        }
        seen.insert(key, &category.name);
        if is_wanted && categories.len() < usize::from(OTHER_CLASS) {
            labels.insert(key.clone(), categories.len() as u16);
            categories.push(Category { id: number(key, names), name: category.name.clone() });
        } else {
            if is_wanted {
                diagnostics.add(Code::CategoryMany, path, place, || "too many categories".into());
            }
            labels.insert(key.clone(), OTHER_CLASS);
        }
    }
    if categories.is_empty() && classes.is_empty() {
        diagnostics.add(Code::CategoryNone, path, Location::file, || "the list \"categories\" is empty".into());
        return None;
    }
    let all_known = errors(diagnostics)[0] == before[0];
    if !classes.is_empty() && all_known && !categories.iter().map(|category| &category.name).eq(classes) {
        diagnostics.add(Code::ClassOrder, path, Location::file, || {
            format!("the order of the file is {}", list(categories.iter().map(|category| quoted(&category.name)), 8))
        });
    }
    (errors(diagnostics) == before).then_some((categories, labels))
}
