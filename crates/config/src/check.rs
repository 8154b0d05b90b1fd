//! Checks of a whole config: first each field against its schema, then combinations of fields.

use crate::Result;
use fnet_protocol::hints;
use fnet_protocol::message::Failure;

use super::fields::Expected;
use super::problem::{Problem, Problems};
use super::tree::{self, Origin};
use super::{Config, Resolved, fields};

impl Problem {
    /// A value that does not match the schema of its field.
    pub(super) fn unfit(field: &str, value: &toml::Value, schema: &serde_json::Value) -> Self {
        let word = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let other = hints::of_word(field, &word).map(|word| format!("use \"{word}\""));
        let words = fields::choices(schema).into_iter().map(|(word, _)| word);
        let nearest = fields::most_similar(words, value.as_str().unwrap_or_default(), 0.75);
        Self {
            field: field.into(),
            value: fields::shown(value),
            expected: fields::expectation(schema),
            remedy: other.or_else(|| nearest.map(|word| format!("did you mean \"{word}\"?"))).unwrap_or_default(),
        }
    }

    /// The problems of a value that does not match the schema of its field; in a list of tables, one for each entry that
    /// is wrong.
    pub(super) fn all_of(field: &str, value: &toml::Value, schema: &serde_json::Value) -> Vec<Self> {
        let kinds = fields::kinds(schema);
        let (false, Some(items)) = (kinds.is_empty(), value.as_array()) else {
            return vec![Self::unfit(field, value, schema)];
        };
        let problem = |misfit: fields::Misfit<'_>| {
            let path = format!("{field}{}", misfit.path);
            match misfit.expected {
                Expected::Schema(schema) => Self::unfit(&path, &misfit.value, schema),
                Expected::Words { what, words, found } => {
                    let nearest = fields::most_similar(&words, &found, 0.75);
                    Self {
                        field: path,
                        value: fields::shown(&misfit.value),
                        expected: format!("{what} \"{}\"", words.join("\", \"")),
                        remedy: nearest.map(|word| format!("did you mean \"{word}\"?")).unwrap_or_default(),
                    }
                }
            }
        };
        fields::misfits(items, &kinds).into_iter().map(problem).collect()
    }
}

impl Config {
    /// All errors in the config: ranges of fields, then combinations.
    pub fn problems(&self) -> Result<Vec<Problem>> {
        let table = toml::Table::try_from(self).map_err(|error| {
            Failure::usage(format!("the config cannot be written as TOML: {error} (integers are limited to 2^63 - 1)"))
        })?;
        let mut problems = Problems::default();
        let mut check = |path: &str, value: &toml::Value| {
            let schema = fields::all().get(path).and_then(|field| field.schema.as_ref());
            if let Some(schema) = schema.filter(|schema| !fields::fits(value, schema)) {
                problems.0.extend(Problem::all_of(path, value, schema));
            }
        };
        tree::each_leaf(&tree::from_value(table, &Origin::Default), "", &mut |path, value, _| match fields::all()
            .get(path)
            .and_then(|field| field.tables(value))
        {
            None => check(path, value),
            Some(tables) => {
                tables.into_iter().flatten().for_each(|(name, value)| check(&tree::join(path, name), value))
            }
        });
        if problems.0.is_empty() {
            self.check(&mut problems);
        }
        Ok(problems.0)
    }

    /// Checks the config after a change in code, for example by a command-line option.
    /// Errors: a usage error that lists every problem.
    pub fn validate(&self) -> Result<()> {
        refuse(self.problems()?, |_| None)
    }

    /// Checks what matters only for training.
    /// Errors: a usage error that lists every problem.
    pub fn validate_for_training(&self) -> Result<()> {
        let mut problems = Problems::default();
        self.check_training(&mut problems);
        refuse(problems.0, |_| None)
    }
}

impl Resolved {
    /// Like [`Config::validate`], but each problem says where the value came from.
    pub(super) fn validate(&self) -> Result<()> {
        // An entry of a list has the origin of the list.
        let field_of = |path: &str| path.split('[').next().and_then(|field| self.origins.get(field));
        refuse(self.config.problems()?, field_of)?;
        let (part, file) = ("data.val.fraction", "data.val.ann_file");
        match (self.origins.get(part), self.origins.get(file)) {
            (Some(part_origin), Some(origin @ Origin::Set(_)))
                if self.config.data.val_is_fraction() && !matches!(part_origin, Origin::Set(_)) =>
            {
                Err(Failure::usage(format!(
                    "{origin}: {file} has no effect, because {part} is {} ({part_origin}): set {part}=0 too, or evaluate \
                     the file as data.test.ann_file with `test --split test`",
                    self.config.data.val.fraction
                )))
            }
            _ => Ok(()),
        }
    }
}

fn refuse<'a>(problems: Vec<Problem>, origin: impl Fn(&str) -> Option<&'a Origin>) -> Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    let line = |problem: Problem| match origin(&problem.field) {
        Some(origin @ (Origin::File { .. } | Origin::Set(_))) => format!("{}: {problem}", origin.exact()),
        Some(origin) => format!("{problem} (the value is the {origin})"),
        None => problem.to_string(),
    };
    Err(Failure::usage(problems.into_iter().map(line).collect::<Vec<_>>().join("\n")))
}
