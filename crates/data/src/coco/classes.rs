//! Reads only the classes of an annotation file, for `data.classes = "auto"`.

use std::path::Path;

use fnet_common::Result;

use super::Split;
use super::external;
use super::open::read_header;
use super::source::AnnotationSource;
use crate::diagnostics::{Code, Diagnostics, Location};

/// The category names of an annotation file, in its order: one for each id, with or without annotations, like in
/// MMDetection.
///
/// # Errors
/// A data error if the file cannot be read, or has no categories.
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
