//! `data.classes = "auto"`: class names and class count from the training annotation file.

use std::path::Path;

use crate::Result;
use fnet_protocol::message::Failure;
use fnet_protocol::text;

use super::tree::{Origin, Table, Value, find, insert};

/// Reads the class names of an annotation file.
pub type ReadClasses<'r> = &'r dyn Fn(&Path) -> Result<Vec<String>>;

const CLASSES: &str = "data.classes";
const COUNT: &str = "model.num_classes";

/// Replaces "auto" with the category names of the training set, and sets `model.num_classes` to their number unless a
/// config sets it. A checkpoint therefore stores the names. Returns whether `data.classes` was "auto". If the
/// annotation file cannot be read and the classes are not needed, the list is left empty.
/// Errors: a data error if the annotation file cannot be read; a usage error if a config sets another number.
pub(super) fn resolve(all: &mut Table, read_classes: ReadClasses<'_>, needs_classes: bool) -> Result<bool> {
    let Some((toml::Value::String(word), origin)) = find(all, CLASSES) else { return Ok(false) };
    if word != "auto" {
        return Ok(false);
    }
    let origin = origin.clone();
    let text = |path: &str| find(all, path).and_then(|(value, _)| value.as_str()).unwrap_or_default().to_owned();
    // The first of several sets; the others are compared with it when they are opened.
    let first = find(all, "data.train").and_then(|(sets, _)| sets.get(0)?.get("ann_file")?.as_str());
    let file = first.map_or_else(|| text("data.train.ann_file"), str::to_owned);
    let file = Path::new(&text("data.root")).join(file);
    let names = read_classes(&file);
    if names.is_err() && !needs_classes {
        insert(all, CLASSES, Value::Leaf(toml::Value::Array(Vec::new())), &origin);
        return Ok(true);
    }
    let doing = || format!("{}: {CLASSES} = \"auto\" reads the classes of the training set", origin.exact());
    let names = names.map_err(|error| error.context(doing()))?;
    let count = names.len() as i64;
    match find(all, COUNT) {
        Some((toml::Value::Integer(said), from)) if *from != Origin::Default && *said != count => {
            return Err(Failure::usage(format!(
                "{}: {COUNT} is {said}, but {CLASSES} = \"auto\" ({origin}) finds {} in {}: remove {COUNT} \
                 or set it to {count}; to train some of the classes only, name them in {CLASSES}",
                from.exact(),
                text::count(names.len(), "class"),
                file.display()
            )));
        }
        _ => insert(all, COUNT, Value::Leaf(toml::Value::Integer(count)), &origin),
    }
    let names = names.into_iter().map(toml::Value::String).collect();
    insert(all, CLASSES, Value::Leaf(toml::Value::Array(names)), &origin);
    Ok(true)
}
