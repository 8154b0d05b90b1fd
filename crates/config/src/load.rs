//! Reads a config: bases, the file itself, the environment, then overrides. Each layer is checked separately.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use crate::Result;
use fnet_protocol::env::DATA_ROOT;
use fnet_protocol::message::Failure;
use fnet_protocol::{file_kind, hints};

use super::classes::{self, ReadClasses};
use super::problem::Problem;
use super::tree::{self, Node, Origin, Table, Value};
use super::{Config, Resolved, fields};

/// The list of augmentations, and the fields that it replaces.
const AUGMENTATIONS: &str = "data.pipeline.train";
const REPLACED: [&str; 3] = ["data.pipeline.scales", "data.pipeline.scale_mode", "data.pipeline.flip_probability"];

/// Short field names, as in MMDetection.
const ALIASES: [(&str, &str); 1] = [("model.pretrained", "model.backbone.pretrained")];

/// Fields with the path of something that must exist.
const PATHS: [&str; 2] = ["data.root", "model.backbone.pretrained"];

/// The name of `train.amp` in configs of older checkpoints, where "off" was "fp32".
const FORMER_AMP: &str = "train.precision";

/// Reads a config file with its bases, then applies FNET_DATA_ROOT and `key=value` overrides. Calls `read_classes` if
/// `data.classes` is "auto". `data.root` and `model.backbone.pretrained` may be relative to the folder of the file or one above.
/// Usage errors that name file, line and column (or the override), the field, what was expected, and for an
/// unknown field the most similar name. All errors of one layer are listed together.
pub fn load(path: impl AsRef<Path>, overrides: &[String], read_classes: ReadClasses<'_>) -> Result<Resolved> {
    load_file(path.as_ref(), overrides, read_classes, true)
}

/// Like [`load`], for `check-data`: if `data.classes = "auto"` cannot be resolved, the classes are left empty. The data
/// check then reports what is wrong with the annotation file.
pub fn load_for_check(path: impl AsRef<Path>, overrides: &[String], read_classes: ReadClasses<'_>) -> Result<Resolved> {
    load_file(path.as_ref(), overrides, read_classes, false)
}

fn load_file(
    path: &Path,
    overrides: &[String],
    read_classes: ReadClasses<'_>,
    needs_classes: bool,
) -> Result<Resolved> {
    let layer = read_file(path, &mut Vec::new())?;
    let name = path.file_stem().map_or_else(|| "config".into(), |stem| stem.to_string_lossy().into_owned());
    resolve(layer, overrides, name, &folders_above(path), |all| classes::resolve(all, read_classes, needs_classes))
}

impl Config {
    /// Reads a config from text, for example from the metadata of a checkpoint. Errors refer to it as `origin`.
    /// Errors: like [`load`]. `base` is an error, because there is no folder that it could be relative to. Field names
    /// of older checkpoints are accepted.
    pub fn from_toml(text: &str, origin: &str) -> Result<Self> {
        let no_classes = |_: &Path| {
            Err(Failure::usage("data.classes = \"auto\" needs a training annotation file; list the class names"))
        };
        Ok(Resolved::from_toml(text, origin, &[], &no_classes)?.config)
    }
}

impl Resolved {
    /// Reads a config from text and applies the environment and overrides, like [`load`].
    pub fn from_toml(text: &str, origin: &str, overrides: &[String], read_classes: ReadClasses<'_>) -> Result<Self> {
        Self::from_checkpoint(text, origin, overrides, &[], read_classes)
    }

    /// Like [`Resolved::from_toml`], for a config whose relative paths may also start in one of `folders`.
    pub fn from_checkpoint(
        text: &str,
        origin: &str,
        overrides: &[String],
        folders: &[PathBuf],
        read_classes: ReadClasses<'_>,
    ) -> Result<Self> {
        let mut layer = tree::parse(text, origin)?;
        rename_former(&mut layer);
        resolve(checked(layer)?, overrides, "config".into(), folders, |all| classes::resolve(all, read_classes, true))
    }
}

fn resolve(
    layer: Table,
    overrides: &[String],
    name: String,
    folders: &[PathBuf],
    resolve_classes: impl FnOnce(&mut Table) -> Result<bool>,
) -> Result<Resolved> {
    let mut all = defaults()?;
    tree::merge(&mut all, layer);
    if let Some(root) = std::env::var_os(DATA_ROOT).filter(|root| !root.is_empty()) {
        let root = root.into_string().map_err(|_| Failure::usage(format!("{DATA_ROOT} is not valid UTF-8")))?;
        let origin = Origin::Environment(DATA_ROOT);
        tree::insert(&mut all, "data.root", Value::Leaf(toml::Value::String(root)), &origin);
    }
    let mut sets = Table::new();
    for text in overrides {
        tree::merge(&mut sets, parse_override(text)?);
    }
    put_over(&mut all, checked(sets)?);
    locate(&mut all, folders);
    let classes_are_auto = resolve_classes(&mut all)?;
    default_metrics(&mut all);

    let mut origins = BTreeMap::new();
    tree::each_leaf(&all, "", &mut |path, _, origin| drop(origins.insert(path.to_owned(), origin.clone())));
    let mut config = Config::deserialize(toml::Value::Table(tree::to_value(&all)))
        .map_err(|error| Failure::bug(format!("a config that passed its checks was rejected: {error}")))?;
    config.data.classes_are_auto = classes_are_auto;
    config.data.boxes_only = !config.model.mask;
    let resolved = Resolved { config, name, origins };
    resolved.validate()?;
    Ok(resolved)
}

/// The folder of a file and those above it, in this order.
pub fn folders_above(file: &Path) -> Vec<PathBuf> {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    file.ancestors().skip(1).map(Path::to_owned).collect()
}

/// Completes relative paths of files and folders that are not in the current folder but in one of `folders`: the first one
/// counts. What the environment or an override says stays as it is.
fn locate(all: &mut Table, folders: &[PathBuf]) {
    for field in PATHS {
        let Some((toml::Value::String(path), origin)) = tree::find(all, field) else { continue };
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

/// A model without masks is evaluated with boxes, unless a config says something else.
fn default_metrics(all: &mut Table) {
    const METRICS: &str = "evaluation.metrics";
    let origin = match (tree::find(all, "model.mask"), tree::find(all, METRICS)) {
        (Some((toml::Value::Boolean(false), origin)), Some((_, Origin::Default))) => origin.clone(),
        _ => return,
    };
    tree::insert(all, METRICS, Value::Leaf(toml::Value::Array(vec!["bbox".into()])), &origin);
}

/// The tree of all defaults. It holds every field, so that a config can set part of a section.
pub(super) fn defaults() -> Result<Table> {
    let table = toml::Table::try_from(Config::default())
        .map_err(|error| Failure::bug(format!("the default config cannot be written as TOML: {error}")))?;
    Ok(tree::from_value(table, &Origin::Default))
}

/// Reads a file and its bases. `chain` holds the files that are being read, outermost first.
fn read_file(path: &Path, chain: &mut Vec<(PathBuf, String)>) -> Result<Table> {
    let shown = path.display().to_string();
    if let Some(why) = file_kind::not_a_config(path) {
        return Err(Failure::usage(format!("config {shown}: {why}")));
    }
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("cannot read the config {shown}: {error}{}", similar_file(path))))?;
    let identity = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if chain.iter().any(|(open, _)| *open == identity) {
        let names: Vec<&str> = chain.iter().map(|(_, name)| name.as_str()).chain([shown.as_str()]).collect();
        return Err(Failure::usage(format!("circular base configs: {}", names.join(" -> "))));
    }
    let mut own = tree::parse(&text, &shown)?;
    let bases = take_bases(&mut own)?;
    chain.push((identity, shown));
    let mut merged = Table::new();
    for (base, origin) in bases {
        let file = path.parent().unwrap_or(Path::new("")).join(&base);
        let layer = read_file(&file, chain);
        put_over(&mut merged, layer.map_err(|error| error.context(format!("base \"{base}\" of {origin}")))?);
    }
    chain.pop();
    put_over(&mut merged, checked(own)?);
    Ok(merged)
}

/// Takes `base` out of a file's table: a string or a list of strings.
fn take_bases(table: &mut Table) -> Result<Vec<(String, Origin)>> {
    let Some(Node { value, origin }) = table.shift_remove("base") else { return Ok(Vec::new()) };
    let names = match value {
        Value::Leaf(toml::Value::String(one)) => Some(vec![one]),
        Value::Leaf(toml::Value::Array(items)) => {
            items.into_iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        }
        _ => None,
    };
    let names = names.ok_or_else(|| {
        Failure::usage(format!("{}: base: expected a list of config files, relative to this file", origin.exact()))
    })?;
    Ok(names.into_iter().map(|name| (name, origin.clone())).collect())
}

/// ` (did you mean ...?)` with the most similar file name in the same folder.
fn similar_file(path: &Path) -> String {
    let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else { return String::new() };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    match fields::most_similar(names.filter(|other| other.ends_with(".toml")), &name, 0.8) {
        Some(other) => format!("; did you mean {}?", path.with_file_name(other).display()),
        None => String::new(),
    }
}

/// Parses `key=value` into a tree.
///
/// The value is TOML. Strings for text fields and words that are not valid TOML need no quotes.
fn parse_override(text: &str) -> Result<Table> {
    let example = "expected key=value, for example optimizer.lr=0.01";
    let (key, value) =
        text.split_once('=').ok_or_else(|| Failure::usage(format!("--set {text}: {example} (there is no `=`)")))?;
    let (key, value) = (key.trim(), value.trim());
    if key.is_empty() || key.split('.').any(|part| part.trim().is_empty()) {
        return Err(Failure::usage(format!("--set {text}: {example} (the key is empty)")));
    }
    let key = key.split('.').map(str::trim).collect::<Vec<_>>().join(".");
    let origin = Origin::Set(Arc::from(text));
    let mut out = Table::new();
    tree::insert(&mut out, &key, override_value(&key, value, &origin)?, &origin);
    Ok(out)
}

fn override_value(key: &str, value: &str, origin: &Origin) -> Result<Value> {
    let quoted = value.starts_with(['"', '\'']);
    let target = ALIASES.iter().find(|(alias, _)| *alias == key).map_or(key, |(_, field)| field);
    let schema = fields::all().get(target).and_then(|field| field.schema.as_ref());
    let text_field = schema.and_then(|schema| schema.get("type")).and_then(serde_json::Value::as_str) == Some("string");
    if text_field && !quoted {
        return Ok(Value::Leaf(toml::Value::String(value.to_owned())));
    }
    match toml::from_str::<toml::Table>(&format!("value = {value}")) {
        Ok(mut table) if table.len() == 1 => match table.remove("value") {
            Some(toml::Value::Table(inner)) => Ok(Value::Table(tree::from_value(inner, origin))),
            Some(other) => Ok(Value::Leaf(other)),
            None => Err(Failure::bug("an override has no value")),
        },
        _ if quoted || value.is_empty() || value.starts_with(['[', '{']) => Err(Failure::usage(format!(
            "{origin}: the value is not valid TOML; strings in a list need quotes, and the shell needs quotes around \
                 the whole argument, for example --set 'data.classes=[\"cat\", \"dog\"]'"
        ))),
        _ => Ok(Value::Leaf(toml::Value::String(value.to_owned()))),
    }
}

/// Resolves aliases, then checks a layer against the schema: unknown fields, wrong types, values out of range.
fn checked(mut layer: Table) -> Result<Table> {
    for (alias, field) in ALIASES {
        if let Some(node) = take(&mut layer, alias) {
            tree::insert(&mut layer, field, node.value, &node.origin);
        }
    }
    let mut problems = Vec::new();
    check_table(&layer, "", &mut problems);
    if problems.is_empty() { Ok(layer) } else { Err(Failure::usage(problems.join("\n"))) }
}

fn rename_former(layer: &mut Table) {
    let Some(Node { value, origin }) = take(layer, FORMER_AMP) else { return };
    let value = match value {
        Value::Leaf(toml::Value::String(word)) if word == "fp32" => Value::Leaf(toml::Value::String("off".into())),
        other => other,
    };
    tree::insert(layer, "train.amp", value, &origin);
}

/// Merges the later layer `over` into `under`. A list of augmentations replaces the fields of earlier layers that say the
/// same.
fn put_over(under: &mut Table, over: Table) {
    let list = take(&mut over.clone(), AUGMENTATIONS).map(|node| node.value);
    if matches!(&list, Some(Value::Leaf(toml::Value::Array(list))) if !list.is_empty()) {
        REPLACED.iter().for_each(|field| drop(take(under, field)));
    }
    tree::merge(under, over);
}

fn take(table: &mut Table, path: &str) -> Option<Node> {
    match path.split_once('.') {
        None => table.shift_remove(path),
        Some((head, rest)) => match &mut table.get_mut(head)?.value {
            Value::Table(inner) => take(inner, rest),
            Value::Leaf(_) => None,
        },
    }
}

fn check_table(table: &Table, prefix: &str, problems: &mut Vec<String>) {
    for (name, node) in table {
        let path = tree::join(prefix, name);
        let at = node.origin.exact();
        let field = fields::all().get(&path);
        match (field.map(|field| field.schema.as_ref()), &node.value) {
            (None, Value::Table(inner)) if has_hint(inner, &path) => {
                tree::each_leaf(inner, &path, &mut |path, _, origin| {
                    let right = suggestion(path, "");
                    problems.push(format!("{}: unknown field `{path}`; {right}", origin.exact()));
                });
            }
            (None, _) => problems.push(format!("{at}: unknown field `{path}`; {}", suggestion(&path, prefix))),
            (Some(None), Value::Table(inner)) => check_table(inner, &path, problems),
            (Some(None), Value::Leaf(leaf)) => match field.and_then(|field| field.tables(leaf)) {
                Some(tables) => tables.into_iter().for_each(|table| {
                    check_table(&tree::from_value(table.clone(), &node.origin), &path, problems);
                }),
                None => {
                    let list = if field.is_some_and(|field| field.several) { ", or a list of such tables" } else { "" };
                    problems.push(format!("{at}: {path} is {}; expected a table of fields{list}", fields::shown(leaf)));
                }
            },
            (Some(Some(schema)), Value::Table(entries)) => match fields::entry_fields(schema) {
                Some(fields) => check_entries(entries, &path, fields, &fields::expectation(schema), problems),
                None => problems.push(format!("{at}: {path} is a table; expected {}", fields::expectation(schema))),
            },
            (Some(Some(schema)), Value::Leaf(leaf)) if !fields::fits(leaf, schema) => {
                let all = Problem::all_of(&path, leaf, schema);
                problems.extend(all.iter().map(|problem| format!("{at}: {problem}")));
            }
            _ => {}
        }
    }
}

/// Checks a table with names that the user chooses, each with a table of `fields`.
fn check_entries(
    entries: &Table,
    path: &str,
    fields: &serde_json::Map<String, serde_json::Value>,
    expected: &str,
    problems: &mut Vec<String>,
) {
    for (name, node) in entries {
        let path = tree::join(path, name);
        let Value::Table(values) = &node.value else {
            problems.push(format!("{}: {path} is not a table; expected {expected}", node.origin.exact()));
            continue;
        };
        for (name, node) in values {
            let (path, at) = (tree::join(&path, name), node.origin.exact());
            match (fields.get(name), &node.value) {
                (Some(schema), Value::Leaf(leaf)) if fields::fits(leaf, schema) => {}
                (Some(schema), Value::Leaf(leaf)) => {
                    problems.push(format!("{at}: {}", Problem::unfit(&path, leaf, schema)));
                }
                _ => problems.push(format!("{at}: unknown field `{path}`; expected {expected}")),
            }
        }
    }
}

/// Whether a table, which is unknown itself, has fields of another program.
fn has_hint(table: &Table, path: &str) -> bool {
    let mut found = false;
    tree::each_leaf(table, path, &mut |path, _, _| found |= hints::of_field(path).is_some());
    found
}

fn suggestion(path: &str, section: &str) -> String {
    if let Some(hint) = hints::of_field(path) {
        return hint.text();
    }
    match fields::nearest(path) {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None if section.is_empty() => format!("the sections are {}", fields::names_in("").join(", ")),
        None => format!("the fields of `{section}` are {}", fields::names_in(section).join(", ")),
    }
}

#[cfg(test)]
mod tests;
