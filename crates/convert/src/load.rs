//! Reads a config with its bases, as MMDetection's `Config.fromfile` does.

use std::path::{Path, PathBuf};

use fnet_common::{Context, Error, Result};

use crate::python;
use crate::value::{self, Dict, SourceLocation};

/// The largest file that is read. The longest config of MMDetection has 100 KB.
const LARGEST: u64 = 1 << 20;

/// The values of a config with those of its bases.
#[derive(Debug, Default)]
pub struct Loaded {
    pub values: Dict,
    /// Statements that were left out, each with its place.
    pub left_out: Vec<String>,
}

/// Reads a config with its bases.
/// Usage errors: a file cannot be read or is not Python, bases are missing, circular or set the same variable.
pub fn load(path: &Path) -> Result<Loaded> {
    let loaded = with_bases(path, &mut Vec::new())?;
    value::check_size(&loaded.values)?;
    let values = loaded.values.iter().map(|(name, item)| (name.clone(), value::without_delete(item))).collect();
    Ok(Loaded { values, ..loaded })
}

/// `chain` holds the files that are being read, outermost first.
fn with_bases(path: &Path, chain: &mut Vec<PathBuf>) -> Result<Loaded> {
    let shown = path.display();
    let text = read(path)?;
    let identity = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if chain.contains(&identity) {
        return Err(Error::usage(format!("{shown} is a base of itself; remove it from `_base_`")));
    }
    let mut below = Loaded::default();
    let bases = python::bases(&text, path)?;
    chain.push(identity);
    for (name, place) in &bases {
        let file = base_file(path, name, place)?;
        let loaded = with_bases(&file, chain).with_context(|| format!("base '{name}' of {place}"))?;
        for (key, item) in loaded.values {
            if let Some(other) = below.values.get(&key) {
                return Err(Error::usage(format!(
                    "{place}: two bases set `{key}` ({} and {}); MMDetection refuses that too. Expected each variable in one \
                     base: remove it from one of them, or let one inherit from the other",
                    other.place, item.place
                )));
            }
            below.values.insert(key, item);
        }
        below.left_out.extend(loaded.left_out);
    }
    chain.pop();
    let own = python::evaluate(&text, path, (!bases.is_empty()).then_some(&below.values))?;
    let mut values = own.variables;
    values.retain(|name, _| !name.starts_with("__") && name != python::BASE);
    value::check_size(&values)?;
    value::check_size(&own.base)?;
    let values = value::merge(&own.base, &values)?;
    below.left_out.extend(own.left_out);
    Ok(Loaded { values, left_out: below.left_out })
}

fn base_file(path: &Path, name: &str, place: &SourceLocation) -> Result<PathBuf> {
    let file = path.parent().unwrap_or(Path::new("")).join(name);
    if name.contains("::") {
        return Err(Error::usage(format!(
            "{place}: the base '{name}' is in an installed package; expected a path relative to this file: copy the file \
             from MMDetection's folder configs/ and name it"
        )));
    }
    if !file.exists() {
        return Err(Error::usage(format!(
            "{place}: the base {} does not exist; expected a path relative to this file: copy the file there (those of \
             MMDetection are in its folder configs/), or correct `_base_`",
            file.display()
        )));
    }
    Ok(file)
}

fn read(path: &Path) -> Result<String> {
    let shown = path.display();
    let failed = |error: std::io::Error| Error::usage(format!("cannot read the config {shown}: {error}"));
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() || metadata.len() > LARGEST {
        return Err(Error::usage(format!(
            "{shown} is not a Python config; expected a regular file of at most {} MiB",
            LARGEST >> 20
        )));
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    String::from_utf8(bytes).map_err(|error| {
        Error::usage(format!(
            "{shown}: byte {} is not UTF-8; expected a Python file, which is UTF-8: save it as that",
            error.utf8_error().valid_up_to() + 1
        ))
    })
}
