//! Selects the images and objects that are used, by MMDetection's rules.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use fnet_common::process;
use fnet_common::text::count;

use super::Split;
use super::annotations::{NOWHERE, OTHER_CLASS, Row, UNKNOWN_SIZE, Usage};
use super::header::{Header, number};
use super::records::shown_id;
use super::source::AnnotationSource;
use crate::diagnostics::{Code, Diagnostics, Location};

/// Images with a side below this are not trained on.
const MIN_SIDE: u32 = 32;

/// Columns with one entry per image.
#[derive(Debug, Default)]
pub(super) struct Images {
    pub ids: Vec<i64>,
    /// `[width, height]`.
    pub sizes: Vec<[u32; 2]>,
    /// All file names, concatenated.
    pub names: String,
    pub name_ends: Vec<u32>,
    /// Start of the objects of each image; one entry more than images.
    pub first_object: Vec<u32>,
    /// See [`Selection::keeps_classes`].
    pub classes: Vec<Vec<u16>>,
}

/// Columns with one entry per object.
#[derive(Debug, Default)]
pub(super) struct ObjectColumns {
    pub boxes: Vec<[f32; 4]>,
    pub labels: Vec<u16>,
    pub ids: Vec<i64>,
    pub mask_offsets: Vec<u64>,
    /// 0 if there is no mask.
    pub mask_lengths: Vec<u32>,
}

impl ObjectColumns {
    fn reserve_exact(&mut self, more: usize) {
        self.boxes.reserve_exact(more);
        self.labels.reserve_exact(more);
        self.ids.reserve_exact(more);
        self.mask_offsets.reserve_exact(more);
        self.mask_lengths.reserve_exact(more);
    }

    fn push(&mut self, row: &Row) {
        self.boxes.push(row.bbox);
        self.labels.push(row.label);
        self.ids.push(row.id);
        self.mask_offsets.push(row.mask.offset);
        self.mask_lengths.push(row.mask.length);
    }

    fn set(&mut self, place: usize, other: usize) {
        self.boxes[place] = self.boxes[other];
        self.labels[place] = self.labels[other];
        self.ids[place] = self.ids[other];
        self.mask_offsets[place] = self.mask_offsets[other];
        self.mask_lengths[place] = self.mask_lengths[other];
    }

    /// The entries listed in `order`, in that order. Columns are processed one after the other to save memory.
    fn in_order(self, order: &[u32]) -> Self {
        fn column<T: Copy>(column: Vec<T>, order: &[u32]) -> Vec<T> {
            order.iter().map(|&index| column[index as usize]).collect()
        }
        Self {
            boxes: column(self.boxes, order),
            labels: column(self.labels, order),
            ids: column(self.ids, order),
            mask_offsets: column(self.mask_offsets, order),
            mask_lengths: column(self.mask_lengths, order),
        }
    }
}

/// The original spelling of ids that are strings in the file.
#[derive(Debug, Default)]
pub(super) struct IdNames {
    /// The id `i64::MIN + i` represents name `i`.
    names: Vec<String>,
    /// Whether the ids of images and of categories are strings.
    pub are_text: [bool; 2],
}

impl IdNames {
    pub fn written(&self, id: i64, is_text: bool) -> Value {
        let name = usize::try_from(id.wrapping_sub(i64::MIN)).ok().and_then(|i| self.names.get(i));
        match name {
            Some(name) => Value::String(name.clone()),
            None if is_text => Value::String(id.to_string()),
            None => Value::from(id),
        }
    }
}

/// All annotations in the order of the file, as columns.
#[derive(Debug, Default)]
pub(super) struct Rows {
    images: Vec<u32>,
    usages: Vec<Usage>,
    has_id: Vec<bool>,
    objects: ObjectColumns,
}

impl Rows {
    /// Typical minimum length of an annotation, in bytes.
    const SHORT: u64 = 128;

    /// Reserves capacity for the annotations of a text of `length` bytes. Unused capacity takes address space but no
    /// memory; growing step by step would fragment memory.
    pub fn for_text(length: u64) -> Self {
        let mut rows = Self::default();
        let room = usize::try_from(length / Self::SHORT).unwrap_or(0);
        rows.images.reserve_exact(room);
        rows.usages.reserve_exact(room);
        rows.has_id.reserve_exact(room);
        rows.objects.reserve_exact(room);
        rows
    }

    pub fn push(&mut self, row: Row) {
        self.images.push(row.image);
        self.usages.push(row.usage);
        self.has_id.push(row.has_id);
        self.objects.push(&row);
    }

    /// Number of annotations of the file.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    fn number_of(&self, usage: Usage) -> usize {
        self.usages.iter().filter(|&&own| own == usage).count()
    }

    /// The selected classes of the annotations of each image whose usage is `wanted`, sorted.
    pub fn classes(&self, image_count: usize, wanted: impl Fn(Usage) -> bool) -> Vec<Vec<u16>> {
        let mut classes = vec![Vec::new(); image_count];
        for ((&image, &usage), &label) in self.images.iter().zip(&self.usages).zip(&self.objects.labels) {
            if image != NOWHERE && label != OTHER_CLASS && wanted(usage) {
                classes[image as usize].push(label);
            }
        }
        for own in &mut classes {
            own.sort_unstable();
            own.dedup();
        }
        classes
    }
}

/// Which images of a file are used.
pub(super) struct Selection<'s> {
    pub path: &'s Path,
    pub split: Split,
    /// From the config.
    pub filter_empty: bool,
    /// Whether the classes of the annotations of each image are kept, crowds too.
    pub keeps_classes: bool,
    /// The images of the file that belong to the set, if it has only a part of them.
    pub side: Option<&'s [bool]>,
}

/// The images and objects that are used.
pub(super) struct Index {
    pub images: Images,
    pub objects: ObjectColumns,
    pub id_names: IdNames,
}

/// Applies the rules. `sizes` are the image sizes. If some annotations cannot be used, only these are reported, because
/// images and classes may have objects that were not read.
pub(super) fn build(
    header: Header,
    sizes: &[[u32; 2]],
    mut rows: Rows,
    selection: &Selection<'_>,
    source: &AnnotationSource,
    diagnostics: &mut Diagnostics,
) -> Index {
    let &Selection { path, split, filter_empty, keeps_classes, side } = selection;
    last_of_equal_ids(&mut rows, path, diagnostics);
    let is_whole = rows.number_of(Usage::Broken) == 0;
    if is_whole {
        unused_categories(&header, &rows, path, diagnostics);
    }
    let (order, starts) = by_image(&rows, header.images.len());
    double_objects(&header, &rows, (&order, &starts), source, path, diagnostics);
    let mut classes = if keeps_classes { rows.classes(header.images.len(), |_| true) } else { Vec::new() };
    let mut names = header.names;
    let mut images = Images { first_object: vec![0], ..Images::default() };
    let mut used = Vec::with_capacity(order.len());
    for (place, image) in header.images.iter().enumerate() {
        // For all images, so that names map to the same numbers when the ground truth is read.
        let id = number(&image.id.value, &mut names);
        if side.is_some_and(|side| !side[place]) {
            continue;
        }
        let own = &order[starts[place] as usize..starts[place + 1] as usize];
        if filter_empty {
            // As in MMDetection, crowds and boxes that are not trained on count here.
            let is_skipped = |row: usize| rows.usages[row] == Usage::WithoutMask;
            let is_wanted = |row: usize| rows.objects.labels[row] != OTHER_CLASS && !is_skipped(row);
            let has_wanted = own.iter().any(|&row| is_wanted(row as usize));
            let is_small = sizes[place] != UNKNOWN_SIZE && sizes[place].iter().any(|&side| side < MIN_SIDE);
            let place_of = || Location::image(shown_id(Some(&image.id), place));
            if !has_wanted && is_whole {
                diagnostics.add(Code::ImageEmpty, path, place_of, || {
                    let what = if own.iter().any(|&row| is_skipped(row as usize)) {
                        "with a mask"
                    } else {
                        "of a selected class"
                    };
                    format!("{:?} has no object {what}", image.file_name)
                });
            } else if has_wanted && is_small {
                let [width, height] = sizes[place];
                diagnostics
                    .add(Code::ImageSmall, path, place_of, || format!("{:?} is {width}x{height}", image.file_name));
            }
            if !has_wanted || is_small {
                continue;
            }
        }
        used.extend(own.iter().copied().filter(|&row| rows.usages[row as usize] == Usage::Trained));
        images.ids.push(id);
        images.sizes.push(sizes[place]);
        images.names.push_str(&image.file_name);
        images.name_ends.push(images.names.len() as u32);
        images.first_object.push(used.len() as u32);
        if keeps_classes {
            images.classes.push(std::mem::take(&mut classes[place]));
        }
    }
    if is_whole {
        crowds_and_nothing(header.listed_images, &rows, used.is_empty(), (path, split), diagnostics);
    }
    // Frees memory for the new columns.
    let Rows { objects, .. } = rows;
    drop((order, starts, header.images, header.places, header.labels));
    process::return_memory();
    let objects = objects.in_order(&used);
    process::return_memory();
    Index { images, objects, id_names: IdNames { names, are_text: header.ids_are_text } }
}

/// Reports crowds, and a training set without objects together with the reasons.
fn crowds_and_nothing(
    listed_images: usize,
    rows: &Rows,
    nothing: bool,
    (path, split): (&Path, Split),
    diagnostics: &mut Diagnostics,
) {
    let of = |usage| rows.number_of(usage);
    let crowds = of(Usage::Crowd);
    let all = count(rows.len(), "annotation");
    let only_crowds = crowds > 0 && of(Usage::Trained) + of(Usage::Unfit) + of(Usage::WithoutMask) == 0;
    let mut add = |code, message: String| diagnostics.add(code, path, Location::file, || message);
    if crowds > 0 && !only_crowds {
        add(Code::AnnotationCrowd, format!("{crowds} of {all} have \"iscrowd\": 1"));
    }
    match split {
        Split::Val | Split::Test if only_crowds => {
            add(
                Code::AnnotationCrowdAllEvaluated,
                format!("{crowds} of {all} (all of the selected classes) have \"iscrowd\": 1"),
            );
        }
        Split::Train if only_crowds => {
            add(
                Code::AnnotationCrowdAll,
                format!("{crowds} of {all} (all of the selected classes) have \"iscrowd\": 1"),
            );
        }
        Split::Train if nothing => {
            let reasons = [
                (of(Usage::NoImage), "of images that are not in the list"),
                (of(Usage::OtherClass), "of other classes"),
                (of(Usage::Ignored), "with \"ignore\": 1"),
                (crowds, "crowds"),
                (of(Usage::Unfit), "with an empty box or area"),
                (of(Usage::WithoutMask), "without a mask"),
                (of(Usage::Trained), "in images smaller than 32 pixels"),
            ];
            let reasons: Vec<String> = reasons
                .iter()
                .filter(|(number, _)| *number > 0)
                .map(|(number, what)| format!("{number} {what}"))
                .collect();
            let reasons = if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join(", ")) };
            let images = count(listed_images, "image");
            add(Code::FileNothing, format!("{images} and {all}, but nothing to train on{reasons}"));
        }
        _ => {}
    }
}

/// Reports duplicate objects: the same image, class, box and mask text.
fn double_objects(
    header: &Header,
    rows: &Rows,
    (order, starts): (&[u32], &[u32]),
    source: &AnnotationSource,
    path: &Path,
    diagnostics: &mut Diagnostics,
) {
    let text = |row: usize| {
        let mut text = vec![0; rows.objects.mask_lengths[row] as usize];
        source.read_exact_at(&mut text, rows.objects.mask_offsets[row]).ok().map(|()| text)
    };
    let mut seen: HashMap<(u16, [u32; 4], u32), usize> = HashMap::new();
    for image in 0..header.images.len() {
        let own = &order[starts[image] as usize..starts[image + 1] as usize];
        seen.clear();
        for row in own.iter().map(|&row| row as usize).filter(|&row| rows.usages[row] == Usage::Trained) {
            let objects = &rows.objects;
            let key = (objects.labels[row], objects.boxes[row].map(f32::to_bits), objects.mask_lengths[row]);
            match seen.get(&key) {
                // Repeated ids are reported separately.
                Some(&other) if rows.has_id[row] && rows.has_id[other] && objects.ids[row] == objects.ids[other] => {}
                Some(&other) if text(row) == text(other) => {
                    let image = shown_id(Some(&header.images[image].id), image);
                    let place = || Location::annotation(objects.ids[row]).of_image(image);
                    diagnostics.add(Code::AnnotationDouble, path, place, || {
                        format!("the same class, box and mask as annotation {}", objects.ids[other])
                    });
                }
                Some(_) => {}
                None => _ = seen.insert(key, row),
            }
        }
    }
}

/// The rows of each image in the order of the file, and the start of each image's rows.
fn by_image(rows: &Rows, image_count: usize) -> (Vec<u32>, Vec<u32>) {
    let mut starts = vec![0u32; image_count + 1];
    let known = || rows.images.iter().enumerate().filter(|(_, image)| **image != NOWHERE);
    for (_, &image) in known() {
        starts[image as usize + 1] += 1;
    }
    for i in 0..image_count {
        starts[i + 1] += starts[i];
    }
    let mut next = starts.clone();
    let mut order = vec![0u32; starts[image_count] as usize];
    for (index, &image) in known() {
        let slot = &mut next[image as usize];
        order[*slot as usize] = index as u32;
        *slot += 1;
    }
    (order, starts)
}

/// MMDetection looks up annotations by id, so the last one with an id replaces all others.
fn last_of_equal_ids(rows: &mut Rows, path: &Path, diagnostics: &mut Diagnostics) {
    let own_id = |rows: &Rows, index: usize| rows.has_id[index].then(|| rows.objects.ids[index]);
    let mut ids: Vec<i64> = (0..rows.len()).filter_map(|index| own_id(rows, index)).collect();
    ids.sort_unstable();
    let repeated: Vec<i64> = ids.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    if repeated.is_empty() {
        return;
    }
    let mut last = HashMap::new();
    for index in 0..rows.len() {
        let Some(id) = own_id(rows, index).filter(|id| repeated.binary_search(id).is_ok()) else { continue };
        if last.insert(id, index).is_some() {
            diagnostics.add(
                Code::AnnotationIdRepeated,
                path,
                || Location::annotation(id),
                || format!("entry {} of the list also has this id", index + 1),
            );
        }
    }
    for index in 0..rows.len() {
        if let Some(&other) = own_id(rows, index).and_then(|id| last.get(&id)) {
            rows.usages[index] = rows.usages[other];
            rows.objects.set(index, other);
        }
    }
}

fn unused_categories(header: &Header, rows: &Rows, path: &Path, diagnostics: &mut Diagnostics) {
    if !header.has_annotations {
        return;
    }
    let mut used = vec![false; header.categories.len()];
    for &label in rows.objects.labels.iter().filter(|&&label| label != OTHER_CLASS) {
        used[usize::from(label)] = true;
    }
    for (category, _) in header.categories.iter().zip(used).filter(|(_, used)| !used) {
        let place = || Location::category(category.id);
        diagnostics.add(Code::CategoryUnused, path, place, || format!("{:?} has no annotation", category.name));
    }
}
