//! The classes of annotation files: reads them for `data.classes = "auto"`, and compares those of two sets.

use std::path::Path;

use fnet_common::Result;
use fnet_common::text::{self, quoted};

use super::external;
use super::open::read_header;
use super::source::AnnotationSource;
use super::{CocoDataset, Split};
use crate::diagnostics::{Code, Diagnostics, Location};

/// The category names of an annotation file, in its order: one for each id, with or without annotations, like in
/// MMDetection.
/// Errors: a data error if the file cannot be read, or has no categories.
pub fn category_names(path: &Path) -> Result<Vec<String>> {
    let mut diagnostics = Diagnostics::default().of(Split::Train.name());
    let header = match AnnotationSource::open(path) {
        Ok(source) => {
            let mut found = diagnostics.none();
            let header = read_header(&source, path, Split::Val, &[], &mut found);
            match external::of_annotations(&source, path).filter(|_| header.is_none()) {
                Some(format) => diagnostics.add(Code::FileOtherFormat, path, Location::file, || format.into()),
                None => diagnostics.append(found),
            }
            header
        }
        Err(error) => {
            let message = || format!("set by data.train.ann_file: {error}");
            diagnostics.add(Code::FileUnreadable, path, Location::file, message);
            None
        }
    };
    let names = header.map(|header| header.categories.into_iter().map(|category| category.name).collect());
    match names {
        Some(names) => Ok(names),
        None => Err(diagnostics
            .refuse_errors()
            .err()
            .unwrap_or_else(|| fnet_common::Error::bug(format!("{}: no header and no diagnostic", path.display())))),
    }
}

impl CocoDataset {
    /// The names of the classes, in the order of the labels.
    pub(crate) fn class_names(&self) -> Vec<String> {
        self.categories.iter().map(|category| category.name.clone()).collect()
    }
}

/// Labels are indices into the list of classes, so all sets must have the same names in the same order. Compares those of
/// `set` with the classes `trained` of `training_file`, and returns whether they are the same.
pub(crate) fn compare_classes(
    trained: &[String],
    training_file: &Path,
    set: &CocoDataset,
    diagnostics: &mut Diagnostics,
) -> bool {
    let found = set.class_names();
    if trained != found {
        let message = || difference(trained, &found, &training_file.display().to_string());
        diagnostics.add(Code::SplitCategories, &set.path, Location::file, message);
    }
    trained == found
}

/// Describes missing and extra class names, or the first difference in order.
fn difference(trained: &[String], tested: &[String], training_file: &str) -> String {
    let missing = |from: &[String], list: &[String]| {
        text::list(list.iter().filter(|name| !from.contains(name)).map(|name| quoted(name)), 5)
    };
    let (lacks, adds) = (missing(tested, trained), missing(trained, tested));
    let mut parts = Vec::new();
    if !lacks.is_empty() {
        parts.push(format!("lacks {lacks}"));
    }
    if !adds.is_empty() {
        parts.push(format!("adds {adds}"));
    }
    if parts.is_empty() {
        let place = trained.iter().zip(tested).position(|(a, b)| a != b).unwrap_or(trained.len().min(tested.len()));
        let name = |list: &[String]| list.get(place).map_or("nothing".into(), |name| format!("{name:?}"));
        parts.push(format!("has {} as label {place} instead of {}", name(tested), name(trained)));
    }
    format!("compared with {training_file}, this set {}", parts.join(" and "))
}
