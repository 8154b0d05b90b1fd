//! Finds what a config names by relative paths from any folder.

use std::path::{Path, PathBuf};

use super::classes::find;
use super::tree::{self, Origin, Table, Value};

/// Fields with the path of something that must exist.
const FIELDS: [&str; 2] = ["data.root", "model.backbone.pretrained"];

/// The folder of a file and those above it, in this order.
pub fn folders_above(file: &Path) -> Vec<PathBuf> {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    file.ancestors().skip(1).map(Path::to_owned).collect()
}

/// Completes relative paths of files and folders that are not in the current folder but in one of `folders`: the first one
/// counts. What the environment or an override says stays as it is.
pub(super) fn locate(all: &mut Table, folders: &[PathBuf]) {
    for field in FIELDS {
        let Some((toml::Value::String(path), origin)) = find(all, field) else { continue };
        let is_of_config = matches!(origin, Origin::Default | Origin::File { .. });
        if !is_of_config || path.is_empty() || Path::new(path).exists() {
            continue;
        }
        let found = folders.iter().map(|folder| folder.join(path)).find(|path| path.exists());
        if let Some(found) = found.as_deref().and_then(Path::to_str) {
            let (value, origin) = (Value::Leaf(toml::Value::String(found.to_owned())), origin.clone());
            tree::insert(all, field, value, &origin);
        }
    }
}
