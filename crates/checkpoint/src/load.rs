//! Opens a file of weights of any known format.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use tch::Tensor;

use fnet_common::{Context, Error, Result};

use super::lazy::LazyTensor;
use super::safetensors;
use super::value::Value;
use super::variant::{BACKBONE, Variant};
use super::{mmdet, pth};

/// What a file of weights is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A PyTorch file: a dictionary with the tensors under `state_dict`, as MMDetection writes.
    StateDict,
    /// A PyTorch file with the tensors under `model`.
    Model,
    /// A PyTorch file that is nothing but the dictionary of tensors.
    Bare,
    /// A safetensors file; checkpoints of this program are such, with the weights' names below `model.`.
    Safetensors,
}

/// What the file says about the training that the weights come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta {
    /// Names of the object classes in the order of their labels; empty if not told.
    pub classes: Vec<String>,
    /// Number of finished epochs.
    pub epoch: Option<u64>,
    /// Number of finished iterations.
    pub iter: Option<u64>,
}

/// Named tensors in a file, read when asked for.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    format: Format,
    meta: Meta,
    tensors: IndexMap<String, Arc<LazyTensor>>,
}

impl Weights {
    /// Opens `path`: a PyTorch file (by its contents, whatever its name), a safetensors file or a checkpoint of this
    /// program. A leading `module.` of names, which data-parallel training adds, is dropped.
    ///
    /// # Errors
    /// If the file cannot be read, is of no known format, holds no tensors, or is damaged or hostile.
    pub fn open(path: &Path) -> Result<Self> {
        let file = pth::open_file(path)?;
        let place = || path.display().to_string();
        let (format, meta, tensors) = if safetensors::is_one(&file) {
            let (meta, tensors) = safetensors::read(&file).with_context(place)?;
            (Format::Safetensors, meta, tensors)
        } else {
            let value = pth::read(&file).with_context(place)?;
            let (format, tensors) = state_of(&value).with_context(place)?;
            (format, mmdet::meta(&value), tensors)
        };
        let tensors = plain_names(tensors);
        if tensors.is_empty() {
            return Err(Error::data(format!("{}: the file holds no tensors", path.display())));
        }
        let mut budget = Budget::of(&file);
        tensors.values().try_for_each(|tensor| budget.spend(tensor)).with_context(place)?;
        Ok(Self { path: path.to_owned(), format, meta, tensors })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file is.
    pub fn format(&self) -> Format {
        self.format
    }

    /// What the file says about its training.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor; never so for an opened file.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Names and tensors in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &LazyTensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.as_ref()))
    }

    /// Shape, type and place of the tensor called `name`.
    pub fn get(&self, name: &str) -> Option<&LazyTensor> {
        self.tensors.get(name).map(AsRef::as_ref)
    }

    /// Reads the tensor called `name` to the CPU.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let tensor = self.get(name).ok_or_else(|| Error::data(format!("there is no tensor {name}")));
        tensor.and_then(LazyTensor::load).with_context(|| format!("{}: {name}", self.path.display()))
    }

    /// The member of the FasterNet family whose weights these are, bare or below `backbone.`.
    pub fn variant(&self) -> Option<Variant> {
        let tensors = || self.iter().map(|(name, tensor)| (name, tensor.size()));
        Variant::recognize(BACKBONE, tensors()).or_else(|| Variant::recognize("", tensors()))
    }
}

/// A bound on what the tensors of a file take in all: weights may share their data, and a packed file may be compressed,
/// but a small file must not fill the memory, or keep a reader busy.
pub(super) struct Budget {
    left: u64,
}

impl Budget {
    /// Four times the file, and a MiB.
    pub(super) fn of(file: &File) -> Self {
        let len = file.metadata().map_or(0, |metadata| metadata.len());
        Self { left: len.saturating_mul(4).saturating_add(1 << 20) }
    }

    /// Counts what it takes to read `tensor`.
    pub(super) fn spend(&mut self, tensor: &LazyTensor) -> Result<()> {
        self.left = self.left.checked_sub(tensor.cost()).ok_or_else(|| {
            Error::data("the tensors are far larger than the file, as they share their data: the file is hostile")
        })?;
        Ok(())
    }
}

/// The tensors of a PyTorch file: under `state_dict`, else under `model`, else the dictionary itself, in the order
/// that the reference looks.
pub(super) fn state_of(value: &Value) -> Result<(Format, IndexMap<String, Arc<LazyTensor>>)> {
    let (format, state) = match (value.get("state_dict"), value.get("model")) {
        (Some(state), _) => (Format::StateDict, state),
        (None, Some(state)) => (Format::Model, state),
        (None, None) => (Format::Bare, value),
    };
    if !matches!(state, Value::Dict(_)) {
        return Err(Error::data(format!(
            "expected a dictionary of tensors (a state_dict), found {}: in Python, save module.state_dict()",
            state.describe()
        )));
    }
    let tensors: IndexMap<_, _> = state
        .entries()
        .iter()
        .filter_map(|(name, value)| match (name, value) {
            (Value::Str(name), Value::Tensor(tensor)) => Some((name.as_ref().to_owned(), Arc::clone(tensor))),
            _ => None,
        })
        .collect();
    if tensors.is_empty() {
        let keys: Vec<&str> = state.entries().iter().filter_map(|(key, _)| key.as_str()).take(8).collect();
        return Err(Error::data(format!(
            "the dictionary holds no tensors; its keys begin with {keys:?}. Expected a state_dict, or one under \
             \"state_dict\" or \"model\""
        )));
    }
    Ok((format, tensors))
}

/// Names without what the way of training has put before them: `module.` (data parallel), and `model.` if the model's
/// weights are kept below it.
fn plain_names(tensors: IndexMap<String, Arc<LazyTensor>>) -> IndexMap<String, Arc<LazyTensor>> {
    let short = |name: &str| name.strip_prefix("module.").unwrap_or(name).to_owned();
    let tensors: IndexMap<_, _> = tensors.into_iter().map(|(name, tensor)| (short(&name), tensor)).collect();
    let is_model = |name: &String| name.starts_with("backbone.") || name.starts_with("patch_embed.");
    if tensors.keys().any(is_model) || !tensors.keys().any(|name| name.starts_with("model.")) {
        return tensors;
    }
    let below = |(name, tensor): (String, _)| name.strip_prefix("model.").map(|name| (name.to_owned(), tensor));
    tensors.into_iter().filter_map(below).collect()
}

#[cfg(test)]
mod tests;
