//! Converts the Python configs of MMDetection 2 and 3 to fnet's, without running Python.
//!
//! [`load`](load::load) evaluates a file with its bases to a tree of values, [`map`](map::map) carries these over by the rows
//! of a table, and [`convert`] settles what needs several fields at once and checks the result.

mod load;
mod map;
mod path;
mod pipeline;
mod python;
mod report;
mod schedule;
mod settle;
mod table;
#[cfg(test)]
mod tests;
mod training_sets;
mod value;

use std::collections::HashSet;
use std::path::Path;

use fnet_common::{Error, Result};
use fnet_config::Config;

pub use report::ConversionReport;

/// A converted config.
#[derive(Debug)]
pub struct Converted {
    /// The config as TOML: what differs from fnet's defaults.
    pub toml: String,
    /// What became of each field.
    pub report: ConversionReport,
}

/// Converts a config.
/// Usage errors: a file is no Python config, its bases are missing, its detector is another one, or its values
/// do not fit together.
pub fn convert(path: &Path) -> Result<Converted> {
    let loaded = load::load(path)?;
    settle::check_detector(&loaded.values)?;
    let sets = training_sets::separate(&loaded.values)?;
    let mut mapped = training_sets::merge(&sets, map::map);
    settle::settle(&loaded.values, &mut mapped);
    let config = config_of(&mapped, path)?;
    let text = short_toml(&config, path)?;
    // What is written is what was checked.
    let read = Config::from_toml(&text, "the converted config")?;
    if without_root(read) != without_root(config.clone()) {
        return Err(Error::bug("the converted config reads as another one"));
    }
    Ok(Converted { toml: text, report: ConversionReport::new(path, mapped, loaded.left_out, &config)? })
}

/// The environment may override it.
fn without_root(mut config: Config) -> Config {
    config.data.root.clear();
    config
}

fn config_of(mapped: &map::Mapped, path: &Path) -> Result<Config> {
    let fields = mapped.values.iter().filter(|(name, _)| !name.starts_with('='));
    let text: String = fields.map(|(name, value)| format!("{name} = {value}\n")).collect();
    let mut config = Config::from_toml(&text, CONVERTED).map_err(|error| refused(&error.into(), mapped, path))?;
    let root = mapped.values.get("data.root").and_then(toml::Value::as_str);
    config.data.root = root.map_or_else(|| Config::default().data.root, str::to_owned);
    Ok(config)
}

/// What messages about a config call the text that no user sees.
const CONVERTED: &str = "converted";

/// The problems in fnet's names, each with the field that it came from.
fn refused(error: &Error, mapped: &map::Mapped, path: &Path) -> Error {
    let text = error.to_string();
    let problems = text.lines().map(|line| {
        let hidden = line.strip_prefix(CONVERTED).filter(|rest| rest.starts_with(':'));
        let problem = hidden.and_then(|rest| rest.split_once(": ")).map_or(line, |(_, problem)| problem);
        let field = problem.split(' ').next().unwrap_or_default();
        let from = mapped.carried.iter().find(|carried| carried.to == field);
        format!("\n  {}{problem}", from.map(|carried| format!("{} -> ", carried.from)).unwrap_or_default())
    });
    Error::usage(format!(
        "{}: these values do not fit fnet; correct them there and convert the file again:{}",
        path.display(),
        problems.collect::<String>()
    ))
}

/// The fields that differ from the defaults, with their sections.
fn short_toml(config: &Config, path: &Path) -> Result<String> {
    let (all, defaults) = (config.to_toml()?, Config::default().to_toml()?);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut text = format!(
        "# Converted from {} by fnet-launch convert-config. Fields that are not here have their defaults (docs/config.md).\n",
        fnet_common::text::printable(&name)
    );
    let defaults: HashSet<_> = with_sections(&defaults).collect();
    let mut section = "";
    for line in with_sections(&all).filter(|line| !defaults.contains(line)) {
        if section != line.0 {
            section = line.0;
            text.push_str(&format!("\n{section}\n"));
        }
        text.push_str(&format!("{}\n", line.1));
    }
    Ok(text)
}

/// The lines with values, each with the line that begins its section.
fn with_sections(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut section = "";
    text.lines().filter(|line| !line.is_empty()).filter_map(move |line| {
        let is_section = line.starts_with('[');
        section = if is_section { line } else { section };
        (!is_section).then_some((section, line))
    })
}
