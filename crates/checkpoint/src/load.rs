//! Opens files of weights in any supported format.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use tch::Tensor;

use fnet_common::{Context, Error, Result};

use super::lazy::{Budget, LazyTensor};
use super::meta::{Format, Meta};
use super::variant::{BACKBONE, Variant};
use super::{mmdet, pth, safetensors};

/// Named tensors of a file, which are loaded on demand.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    format: Format,
    meta: Meta,
    tensors: IndexMap<String, Arc<LazyTensor>>,
}

impl Weights {
    /// Opens `path`: a PyTorch file (detected by its contents, not its name), a safetensors file or an fnet checkpoint. The
    /// prefix `module.` of names, which data-parallel training adds, is removed.
    /// Errors: if the file cannot be read, has an unknown format, contains no tensors, or is damaged or hostile.
    pub fn open(path: &Path) -> Result<Self> {
        let file = pth::open_file(path)?;
        let place = || path.display().to_string();
        let (format, meta, tensors) = if safetensors::is_one(&file) {
            let (meta, tensors) = safetensors::read(&file).with_context(place)?;
            (Format::Safetensors, meta, tensors)
        } else {
            let value = pth::read(&file).with_context(place)?;
            let (format, tensors) = pth::state_of(&value).with_context(place)?;
            (format, mmdet::meta(&value), tensors)
        };
        let tensors = plain_names(tensors);
        if tensors.is_empty() {
            return Err(Error::data(format!("{}: the file contains no tensors", path.display())));
        }
        let mut budget = Budget::of(&file);
        tensors.values().try_for_each(|tensor| budget.spend(tensor)).with_context(place)?;
        Ok(Self { path: path.to_owned(), format, meta, tensors })
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The format of the file.
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

    /// Whether there are no tensors; always false for an opened file.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Names and tensors in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &LazyTensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.as_ref()))
    }

    /// Shape, type and location of the tensor `name`.
    pub fn get(&self, name: &str) -> Option<&LazyTensor> {
        self.tensors.get(name).map(AsRef::as_ref)
    }

    /// Loads the tensor `name` to the CPU.
    /// Errors: if there is none, or it cannot be read.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let tensor = self.get(name).ok_or_else(|| Error::data(format!("there is no tensor {name}")));
        tensor.and_then(LazyTensor::load).with_context(|| format!("{}: {name}", self.path.display()))
    }

    /// The FasterNet variant of the weights, with or without the prefix `backbone.`.
    pub fn variant(&self) -> Option<Variant> {
        let tensors = || self.iter().map(|(name, tensor)| (name, tensor.size()));
        Variant::recognize(BACKBONE, tensors()).or_else(|| Variant::recognize("", tensors()))
    }
}

/// Removes prefixes of names: `module.` (data parallel), and `model.` if the model's weights are below it.
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
