//! The classes of an annotation file alone, for configs that take them from it.

use std::path::Path;

use fnet_common::Result;

use super::Split;
use super::foreign;
use super::open::read_header;
use super::source::Source;
use crate::findings::{Code, Findings, Place};

/// The names of the categories of an annotation file, in its order: one for each id, whether it has annotations or not,
/// as the reference counts them.
///
/// # Errors
/// A data error if the file cannot be read, or has no categories.
pub fn category_names(path: &Path) -> Result<Vec<String>> {
    let mut findings = Findings::default().of(Split::Train.name());
    let header = match Source::open(path) {
        Ok(source) => {
            let mut found = findings.none();
            let header = read_header(&source, path, Split::Val, &[], &mut found);
            match foreign::of_annotations(&source, path).filter(|_| header.is_none()) {
                Some(format) => findings.add(Code::FileOtherFormat, path, Place::file, || format.into()),
                None => findings.append(found),
            }
            header
        }
        Err(error) => {
            let message = || format!("data.train.ann_file names it: {error}");
            findings.add(Code::FileUnreadable, path, Place::file, message);
            None
        }
    };
    let names = header.map(|header| header.categories.into_iter().map(|category| category.name).collect());
    match names {
        Some(names) => Ok(names),
        None => Err(findings.refuse_errors().err().unwrap_or_else(|| {
            fnet_common::Error::bug(format!("{}: no header, and no finding that says why", path.display()))
        })),
    }
}
