//! The classes of an annotation file alone, for configs that take them from it.

use std::path::Path;

use super::file;
use crate::error::{Error, Result};

/// The names of the categories of an annotation file, in its order: one for each id, whether it has annotations or not,
/// as the reference counts them.
///
/// # Errors
/// A data error if the file cannot be read, or has no categories.
pub fn category_names(path: &Path) -> Result<Vec<String>> {
    let bytes = std::fs::read(path).map_err(|error| {
        Error::data(format!("cannot read the annotation file {} (data.train.ann_file): {error}", path.display()))
    })?;
    let mut categories: Vec<(i64, String)> = Vec::new();
    for category in file::parse(&bytes, path)?.categories.unwrap_or_default() {
        let known = (category.id.value, category.name);
        if !categories.contains(&known) {
            categories.push(known);
        }
    }
    if categories.is_empty() {
        return Err(Error::data(format!(
            "{}: there are no categories, so nothing can be told apart; export the file with them",
            path.display()
        )));
    }
    Ok(categories.into_iter().map(|(_, name)| name).collect())
}
