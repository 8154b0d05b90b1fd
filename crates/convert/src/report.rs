//! What became of each field, as text.

use std::fmt;
use std::path::Path;

use fnet_common::{Error, Result};
use fnet_config::Config;

use crate::map::Mapped;
use crate::python;

/// What became of each field of a config.
#[derive(Debug, Default)]
pub struct ConversionReport {
    /// Fields that were carried over and differ from fnet's defaults: `MMDetection's -> fnet's`.
    pub carried: Vec<String>,
    /// Fields that have fnet's default.
    pub unchanged: Vec<String>,
    /// Fields without counterpart, each with what fnet does.
    pub without: Vec<String>,
    /// What was assumed.
    pub assumed: Vec<String>,
    /// Values and statements that only Python can evaluate, each with its place.
    pub not_evaluated: Vec<String>,
    /// Variables that are no fields.
    pub variables: Vec<String>,
    /// The line that writes the config as one file.
    dump: String,
}

impl ConversionReport {
    pub(crate) fn new(path: &Path, mapped: Mapped, left_out: Vec<String>, config: &Config) -> Result<Self> {
        let tree = |config: &Config| {
            toml::Value::try_from(config).map_err(|error| Error::bug(format!("the config is not valid TOML: {error}")))
        };
        let (values, defaults) = (tree(config)?, tree(&Config::default())?);
        let mut report = Self {
            without: mapped.without,
            assumed: mapped.assumed,
            not_evaluated: mapped.not_evaluated,
            variables: mapped.variables,
            dump: python::dump_line(path),
            ..Self::default()
        };
        report.not_evaluated.extend(left_out);
        let mut unchanged = Vec::new();
        for carried in mapped.carried.iter().filter(|carried| !carried.to.starts_with('=')) {
            let (to, value) = (&carried.to, field(&values, &carried.to));
            if value == field(&defaults, to) {
                unchanged.push(carried.from.clone());
            } else {
                let value = value.map(|value| python::shortened(&value.to_string())).unwrap_or_default();
                report.carried.push(format!("{} -> {to} = {value}", carried.from));
            }
        }
        // A field that sets several of fnet's may have changed only some of them.
        unchanged.retain(|from| !report.carried.iter().any(|carried| carried.starts_with(&format!("{from} -> "))));
        unchanged.dedup();
        report.unchanged = unchanged;
        Ok(report)
    }
}

/// The value at a path: `model.mask`, `data.train[1].repeat`.
fn field<'t>(tree: &'t toml::Value, path: &str) -> Option<&'t toml::Value> {
    path.split(['.', '[', ']']).filter(|part| !part.is_empty()).try_fold(tree, |tree, part| match tree {
        toml::Value::Array(items) => items.get(part.parse::<usize>().ok()?),
        tree => tree.get(part),
    })
}

impl fmt::Display for ConversionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lists = [
            ("carried over", &self.carried),
            ("carried over, with the values that fnet has by default", &self.unchanged),
            ("without counterpart in fnet, and what fnet does", &self.without),
            ("assumed", &self.assumed),
            ("not evaluated, because that would run Python; fnet's defaults stay", &self.not_evaluated),
        ];
        for (title, lines) in lists {
            if !lines.is_empty() {
                writeln!(f, "{title}:")?;
                lines.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
            }
        }
        if !self.not_evaluated.is_empty() {
            writeln!(
                f,
                "where MMDetection is installed, this writes a config with all values evaluated:\n  {}",
                self.dump
            )?;
        }
        if !self.variables.is_empty() {
            writeln!(f, "variables without effect of their own: {}", self.variables.join(", "))?;
        }
        Ok(())
    }
}
