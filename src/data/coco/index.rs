//! From images and annotations to the pictures and objects that are used, by the reference's rules.

use std::collections::HashMap;
use std::path::Path;

use super::annotations::{FOREIGN, NOWHERE, Row, Span};
use super::header::{Header, number};
use super::records::shown_id;
use super::{IdNames, Split};
use crate::data::findings::{Code, Findings, Place};

/// Pictures narrower or lower than this are not trained on.
const MIN_SIDE: u32 = 32;

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

/// The pictures and objects that are used.
pub(super) struct Index {
    pub images: Images,
    pub objects: ObjectColumns,
    pub id_names: IdNames,
}

/// Applies the rules. `sizes` are those of the images, `filter_empty` that of the config.
pub(super) fn build(
    header: Header,
    sizes: &[[u32; 2]],
    mut rows: Vec<Row>,
    (path, split, filter_empty): (&Path, Split, bool),
    findings: &mut Findings,
) -> Index {
    last_of_equal_ids(&mut rows, path, findings);
    unused_categories(&header, &rows, path, findings);
    let (order, starts) = by_image(&rows, header.images.len());
    let mut names = header.names;
    let mut images = Images { first_object: vec![0], ..Images::default() };
    let mut objects = ObjectColumns::default();
    for (place, image) in header.images.iter().enumerate() {
        let own = order[starts[place] as usize..starts[place + 1] as usize].iter().map(|&row| &rows[row as usize]);
        if filter_empty {
            // Crowds and boxes that are not trained on count here, as they do in the reference.
            let has_wanted = own.clone().any(|row| row.label != FOREIGN);
            let is_small = sizes[place].iter().any(|&side| side < MIN_SIDE);
            let place_of = || Place::image(shown_id(Some(&image.id), place));
            if !has_wanted {
                findings
                    .add(Code::ImageEmpty, path, place_of, || format!("{:?} has no wanted object", image.file_name));
            } else if is_small {
                let [width, height] = sizes[place];
                findings.add(Code::ImageSmall, path, place_of, || format!("{:?} is {width}x{height}", image.file_name));
            }
            if !has_wanted || is_small {
                continue;
            }
        }
        for row in own.filter(|row| row.is_used) {
            objects.boxes.push(row.bbox);
            objects.labels.push(row.label);
            objects.ids.push(row.id);
            objects.masks.push(row.mask);
        }
        images.ids.push(number(&image.id, &mut names));
        images.sizes.push(sizes[place]);
        images.names.push_str(&image.file_name);
        images.name_ends.push(images.names.len() as u32);
        images.first_object.push(objects.boxes.len() as u32);
    }
    if split == Split::Train && objects.boxes.is_empty() {
        findings.add(Code::FileNothing, path, Place::file, || {
            format!("{} images, {} annotations, and nothing to train on", header.images.len(), rows.len())
        });
    }
    Index { images, objects, id_names: IdNames { names, are_text: header.ids_are_text } }
}

/// The rows of each image in the order of the file, and where those of each image start.
fn by_image(rows: &[Row], image_count: usize) -> (Vec<u32>, Vec<u32>) {
    let mut starts = vec![0u32; image_count + 1];
    let known = || rows.iter().enumerate().filter(|(_, row)| row.image != NOWHERE);
    for (_, row) in known() {
        starts[row.image as usize + 1] += 1;
    }
    for i in 0..image_count {
        starts[i + 1] += starts[i];
    }
    let mut next = starts.clone();
    let mut order = vec![0u32; starts[image_count] as usize];
    for (index, row) in known() {
        let slot = &mut next[row.image as usize];
        order[*slot as usize] = index as u32;
        *slot += 1;
    }
    (order, starts)
}

/// The reference looks annotations up by id, so of several with one id the last stands for all.
fn last_of_equal_ids(rows: &mut [Row], path: &Path, findings: &mut Findings) {
    let mut ids: Vec<i64> = rows.iter().filter(|row| row.has_id).map(|row| row.id).collect();
    ids.sort_unstable();
    let repeated: Vec<i64> = ids.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    if repeated.is_empty() {
        return;
    }
    let mut last = HashMap::new();
    for (index, row) in rows.iter().enumerate() {
        if row.has_id && repeated.binary_search(&row.id).is_ok() && last.insert(row.id, index).is_some() {
            findings.add(
                Code::AnnotationIdRepeated,
                path,
                || Place::annotation(row.id),
                || format!("number {} of the list has this id too", index + 1),
            );
        }
    }
    for index in 0..rows.len() {
        if let Some(&other) = rows[index].has_id.then(|| last.get(&rows[index].id)).flatten() {
            rows[index] = Row { image: rows[index].image, ..rows[other] };
        }
    }
}

fn unused_categories(header: &Header, rows: &[Row], path: &Path, findings: &mut Findings) {
    if !header.has_annotations {
        return;
    }
    let mut used = vec![false; header.categories.len()];
    for row in rows.iter().filter(|row| row.label != FOREIGN) {
        used[usize::from(row.label)] = true;
    }
    for (category, _) in header.categories.iter().zip(used).filter(|(_, used)| !used) {
        let place = || Place::category(category.id);
        findings.add(Code::CategoryUnused, path, place, || format!("{:?} has no annotation", category.name));
    }
}
