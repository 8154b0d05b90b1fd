//! Writes a config as TOML, optionally with the origin of each value.

use std::fmt::Write as _;

use crate::Result;
use fnet_protocol::message::Failure;

use super::tree::{self, Origin};
use super::{Config, Resolved, fields};

impl Config {
    /// The whole config as TOML: every field, in the order of the documentation.
    /// Errors: a usage error if an integer exceeds 2^63 - 1.
    pub fn to_toml(&self) -> Result<String> {
        render(self, |_| None)
    }
}

impl Resolved {
    /// The config as TOML with a comment after each value that names its origin.
    pub fn to_annotated_toml(&self) -> Result<String> {
        let inside = |path: &str| {
            let prefix = format!("{path}.");
            self.origins.iter().find(|(path, _)| path.starts_with(&prefix)).map(|(_, origin)| origin)
        };
        render(&self.config, |path| self.origins.get(path).or_else(|| inside(path)).map(Origin::to_string))
    }
}

fn render(config: &Config, note: impl Fn(&str) -> Option<String>) -> Result<String> {
    let table = toml::Table::try_from(config)
        .map_err(|error| Failure::usage(format!("the config cannot be written as TOML: {error}")))?;
    let mut values = std::collections::HashMap::new();
    for (path, field) in fields::all() {
        if field.schema.as_ref().is_some_and(|schema| fields::entry_fields(schema).is_some()) {
            let mut parts = path.split('.');
            let first = parts.next().and_then(|part| table.get(part));
            if let Some(value) = parts.try_fold(first, |value, part| Some(value?.get(part))).flatten() {
                values.insert(path.clone(), value.to_string());
            }
        }
    }
    tree::each_leaf(&tree::from_value(table, &Origin::Default), "", &mut |path, value, _| {
        values.insert(path.to_owned(), value.to_string());
    });
    let mut out = String::new();
    section("", &values, &note, &mut out);
    Ok(out)
}

/// Writes the values of a section, then its subsections, the order that TOML requires.
fn section(
    prefix: &str,
    values: &std::collections::HashMap<String, String>,
    note: &impl Fn(&str) -> Option<String>,
    out: &mut String,
) {
    let children: Vec<(String, bool)> = fields::names_in(prefix)
        .into_iter()
        .map(|name| tree::join(prefix, name))
        // A list of tables is written as a value in place of its section.
        .map(|path| (path.clone(), fields::all()[&path].schema.is_some() || values.contains_key(&path)))
        .collect();
    if !prefix.is_empty() && children.iter().any(|(_, leaf)| *leaf) {
        let gap = if out.is_empty() { "" } else { "\n" };
        let _ = writeln!(out, "{gap}[{prefix}]");
    }
    for (path, _) in children.iter().filter(|(_, leaf)| *leaf) {
        let name = path.rsplit('.').next().unwrap_or(path);
        let value = values.get(path).map_or("\"\"", String::as_str);
        let _ = match note(path) {
            Some(note) => writeln!(out, "{name} = {value}  # {}", note.replace(['\n', '\r'], " ")),
            None => writeln!(out, "{name} = {value}"),
        };
    }
    for (path, _) in children.iter().filter(|(_, leaf)| !leaf) {
        section(path, values, note, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_round_trips_through_toml() {
        let mut config = Config::default();
        config.optimizer.eps = 1e-8;
        config.data.classes = vec!["quote \" and é".into(), "b".into()];
        config.model.num_classes = 2;
        let multipliers = crate::Multipliers { lr_mult: 0.1, decay_mult: 0.0 };
        config.optimizer.paramwise.custom_keys.insert("backbone.norm\"0".into(), multipliers);
        let text = config.to_toml().unwrap();
        let read = Config::from_toml(&text, "checkpoint").unwrap();
        // If FNET_DATA_ROOT is set, it overrides the text.
        config.data.root = std::env::var(fnet_protocol::env::DATA_ROOT).unwrap_or(config.data.root);
        assert_eq!(read, config);
    }

    #[test]
    fn a_list_of_sets_round_trips_and_each_set_has_its_defaults() {
        let text = "[[data.train]]\nann_file = \"a.json\"\n[[data.train]]\nann_file = \"b.json\"\nrepeat = 3\n";
        let config = Config::from_toml(text, "a.toml").unwrap();
        assert_eq!(config.data.train.iter().map(|set| set.repeat).collect::<Vec<_>>(), [1, 3]);
        assert!(config.data.train.iter().all(|set| set.filter_empty && set.img_prefix.is_empty()));
        let read = Config::from_toml(&config.to_toml().unwrap(), "checkpoint").unwrap();
        assert_eq!(read.data.train, config.data.train);
        let inline = "data.train = [{ann_file = \"a.json\"}, {ann_file = \"b.json\", repeat = 3}]";
        assert_eq!(Config::from_toml(inline, "a.toml").unwrap().data.train, config.data.train);
        // A list of one is the table.
        let one = Config::from_toml("[[data.train]]\nann_file = \"a.json\"\n", "a.toml").unwrap();
        assert!(one.to_toml().unwrap().contains("[data.train]\nann_file = \"a.json\"\n"));
    }

    #[test]
    fn each_value_is_annotated_with_its_origin() {
        let sets = ["train.epochs=3".to_owned()];
        let resolved = Resolved::from_toml("[optimizer]\nlr = 0.1\n", "a.toml", &sets, &|_| unreachable!()).unwrap();
        let text = resolved.to_annotated_toml().unwrap();
        assert!(text.contains("lr = 0.1  # a.toml:2\n"), "{text}");
        assert!(text.contains("epochs = 3  # --set train.epochs=3\n"), "{text}");
        assert!(text.contains("weight_decay = 0.0001  # default\n"), "{text}");
    }
}
