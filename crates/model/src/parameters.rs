//! The model's tensors by name: parameters (trained) and buffers (not trained), in the order of MMDetection's
//! `state_dict`.

use std::borrow::Borrow;
use std::fmt;

use indexmap::IndexMap;
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use fnet_common::{Context, Error, Result};

use super::init::{Init, stream_of};

/// The role of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Trained by the optimizer.
    Parameter,
    /// Saved, but changed only by the forward pass: BatchNorm's running statistics.
    Buffer,
}

#[derive(Debug)]
struct Entry {
    tensor: Tensor,
    role: Role,
    init: Init,
    is_frozen: bool,
}

/// Ordered names and tensors of a model. The modules share their storage, so writing to a tensor in place (as the
/// optimizer and [`Parameters::load`] do) changes the model.
#[derive(Debug)]
pub struct Parameters {
    entries: IndexMap<String, Entry>,
    device: Device,
}

impl Default for Parameters {
    fn default() -> Self {
        Self::new()
    }
}

impl Parameters {
    /// Creates an empty collection. [`super::MaskRcnn::new`] adds the tensors.
    pub fn new() -> Self {
        Self { entries: IndexMap::new(), device: Device::Cpu }
    }

    /// The device of every tensor.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.entries.get(name).map(|entry| &entry.tensor)
    }

    /// Name, role and tensor of every entry, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, Role, &Tensor)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry.role, &entry.tensor))
    }

    /// Names and tensors of the parameters that are trained, in order.
    pub fn trained(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.trainable().filter(|(name, _)| !self.is_frozen(name))
    }

    /// Whether a parameter was excluded from training.
    pub fn is_frozen(&self, name: &str) -> bool {
        self.entries.get(name).is_some_and(|entry| entry.is_frozen)
    }

    /// Excludes from training the parameters for which `is_frozen` holds: they get no gradient.
    pub fn freeze(&mut self, is_frozen: impl Fn(&str) -> bool) -> Result<()> {
        for (name, entry) in &mut self.entries {
            if entry.role == Role::Parameter && is_frozen(name) {
                let _ = entry.tensor.f_set_requires_grad(false)?;
                entry.is_frozen = true;
            }
        }
        Ok(())
    }

    /// Names and tensors of all parameters, in order. The index is the index in the state of a PyTorch optimizer.
    pub fn trainable(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.of_role(Role::Parameter)
    }

    /// Name and tensor of the buffers, in order.
    pub fn buffers(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.of_role(Role::Buffer)
    }

    fn of_role(&self, role: Role) -> impl Iterator<Item = (&str, &Tensor)> {
        self.iter().filter(move |entry| entry.1 == role).map(|(name, _, tensor)| (name, tensor))
    }

    /// Number of trainable values.
    pub fn count(&self) -> usize {
        self.trainable().map(|(_, tensor)| tensor.numel()).sum()
    }

    /// Copies the tensors of `source` to the tensors with the same name and shape. The others do not change.
    /// Errors: if a value cannot be copied. Names and shapes that do not match are in the report instead.
    pub fn load<N: AsRef<str>, T: Borrow<Tensor>>(
        &self,
        source: impl IntoIterator<Item = (N, T)>,
    ) -> Result<LoadReport> {
        self.load_below("", source)
    }

    /// Like [`Parameters::load`] for a part of the model: prepends `prefix` (such as `backbone.`) to each name of
    /// `source`. Only names with this prefix count as missing.
    pub fn load_below<N: AsRef<str>, T: Borrow<Tensor>>(
        &self,
        prefix: &str,
        source: impl IntoIterator<Item = (N, T)>,
    ) -> Result<LoadReport> {
        let _guard = tch::no_grad_guard();
        let mut report = LoadReport::default();
        let mut seen = vec![false; self.entries.len()];
        for (name, tensor) in source {
            let (name, tensor) = (format!("{prefix}{}", name.as_ref()), tensor.borrow());
            let Some((index, _, entry)) = self.entries.get_full(&name) else {
                report.unexpected.push(name);
                continue;
            };
            seen[index] = true;
            let (expected, found) = (entry.tensor.size(), tensor.size());
            if expected != found {
                report.conflicts.push(ShapeConflict { name, expected, found });
                continue;
            }
            entry.tensor.shallow_clone().f_copy_(tensor).with_context(|| format!("loading {name}"))?;
            report.loaded.push(name);
        }
        let unseen = self.entries.keys().zip(&seen).filter(|(name, seen)| !**seen && name.starts_with(prefix));
        report.missing = unseen.map(|(name, _)| name.clone()).filter(|name| !is_counter(name)).collect();
        Ok(report)
    }

    /// Starts a new model on `device` and removes all tensors.
    pub fn reset(&mut self, device: Device) {
        self.entries.clear();
        self.device = device;
    }

    /// Adds a parameter and returns an alias of it. [`Parameters::initialize`] sets its values.
    pub fn parameter(&mut self, name: String, shape: &[i64], init: Init) -> Result<Tensor> {
        let options = (Kind::Float, self.device);
        let tensor = match *shape {
            // Use channels-last strides even if a side of 1 makes the order ambiguous, because the gradient of a
            // convolution has these strides and libtorch compares all of them.
            [_, inputs, height, width] => {
                let strides = [height * width * inputs, 1, width * inputs, inputs];
                Tensor::f_empty_strided(shape, &strides[..], options)?.f_zero_()?
            }
            _ => Tensor::f_zeros(shape, options)?,
        };
        let tensor = tensor.f_set_requires_grad(true)?;
        self.add(name, tensor, Role::Parameter, init)
    }

    /// Adds a buffer and returns an alias of it. [`Parameters::initialize`] sets its values.
    pub fn buffer(&mut self, name: String, shape: &[i64], kind: Kind, init: Init) -> Result<Tensor> {
        let tensor = Tensor::f_zeros(shape, (kind, self.device))?;
        self.add(name, tensor, Role::Buffer, init)
    }

    /// Replaces the batch counters with the prefix `prefix` by views of one tensor and returns it, so that one call
    /// increments all of them.
    pub fn join_counters(&mut self, prefix: &str) -> Result<Tensor> {
        let counters = self.entries.iter_mut().filter(|(name, _)| name.starts_with(prefix) && is_counter(name));
        let counters: Vec<&mut Tensor> = counters.map(|(_, entry)| &mut entry.tensor).collect();
        let joined = Tensor::f_zeros([counters.len() as i64], (Kind::Int64, self.device))?;
        for (place, counter) in (0..).zip(counters) {
            let mut part = joined.f_select(0, place)?;
            part.f_copy_(counter)?;
            *counter = part;
        }
        Ok(joined)
    }

    fn add(&mut self, name: String, tensor: Tensor, role: Role, init: Init) -> Result<Tensor> {
        let alias = tensor.shallow_clone();
        match self.entries.insert(name, Entry { tensor, role, init, is_frozen: false }) {
            None => Ok(alias),
            Some(_) => Err(Error::bug("two tensors of the model have the same name")),
        }
    }

    /// Sets the initial values of every tensor. Each has its own random stream from `seed` and its name, so the values
    /// do not depend on the order or the number of ranks.
    pub fn initialize(&self, seed: u64) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let jobs: Vec<(usize, &str, Init, usize)> = self
            .entries
            .iter()
            .enumerate()
            .filter(|(_, (_, entry))| !entry.init.is_zero())
            .map(|(index, (name, entry))| (index, name.as_str(), entry.init, entry.tensor.numel()))
            .collect();
        // In portions, so that not all values of a large model are in memory twice.
        for portion in jobs.chunks(32) {
            let values: Vec<(usize, Vec<f32>)> = portion
                .par_iter()
                .map(|&(index, name, init, count)| (index, init.values(count, &mut stream_of(seed, name))))
                .collect();
            for (index, values) in values {
                let tensor = &self.entries[index].tensor;
                let values = Tensor::f_from_slice(&values)?.f_reshape(tensor.size())?;
                tensor.shallow_clone().f_copy_(&values)?;
            }
        }
        Ok(())
    }
}

/// Whether `name` is a batch counter, which older checkpoints lack.
fn is_counter(name: &str) -> bool {
    name.ends_with(".num_batches_tracked")
}

/// A tensor with a different shape than in the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShapeConflict {
    /// Name of the tensor.
    pub name: String,
    /// Its shape in the model.
    pub expected: Vec<i64>,
    /// Its shape in the source.
    pub found: Vec<i64>,
}

/// The result of loading tensors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Copied.
    pub loaded: Vec<String>,
    /// Only in the model; unchanged. Batch counters are not listed.
    pub missing: Vec<String>,
    /// Only in the source; ignored.
    pub unexpected: Vec<String>,
    /// In both with different shapes; unchanged.
    pub conflicts: Vec<ShapeConflict>,
}

impl LoadReport {
    /// Whether every tensor of the model was loaded and no other tensor was found.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.conflicts.is_empty()
    }

    /// Returns an error unless every tensor of the model was loaded and no other tensor was found.
    /// Errors: a data error that names the first tensors that do not match.
    pub fn require_complete(&self) -> Result<()> {
        if self.is_complete() {
            return Ok(());
        }
        Err(Error::data(format!(
            "the weights do not match the model in the config: {self}; use the config that they were trained with \
             (compare model.num_classes, model.mask and [model.backbone])"
        )))
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tensors loaded", self.loaded.len())?;
        for (what, names) in [("missing", &self.missing), ("unexpected", &self.unexpected)] {
            if !names.is_empty() {
                write!(f, ", {} {what} ({})", names.len(), abridge(names))?;
            }
        }
        if let Some(first) = self.conflicts.first() {
            write!(
                f,
                ", {} with another shape (first: {} is {:?}, in the model {:?})",
                self.conflicts.len(),
                first.name,
                first.found,
                first.expected
            )?;
        }
        Ok(())
    }
}

/// The first few names.
fn abridge(names: &[String]) -> String {
    let shown = names.iter().take(4).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > 4 { format!("{shown}, ...") } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Parameters {
        let mut parameters = Parameters::new();
        let _ = parameters.parameter("a.weight".into(), &[2, 3], Init::Normal(0.02)).unwrap();
        let _ = parameters.parameter("a.bias".into(), &[2], Init::Constant(0.0)).unwrap();
        let _ = parameters.buffer("a.num_batches_tracked".into(), &[], Kind::Int64, Init::Constant(0.0)).unwrap();
        parameters.initialize(3).unwrap();
        parameters
    }

    #[test]
    fn the_load_report_lists_loaded_missing_unexpected_and_conflicting_names() {
        let parameters = small();
        let report = parameters
            .load_below("a.", [("weight", Tensor::ones([3, 2], (Kind::Float, Device::Cpu))), ("x", Tensor::from(1.0))])
            .unwrap();
        assert_eq!(report.missing, ["a.bias"]);
        assert_eq!(report.unexpected, ["a.x"]);
        assert_eq!(report.conflicts[0].found, [3, 2]);
        assert!(!report.is_complete());
        let text = report.to_string();
        assert!(text.contains("a.bias") && text.contains("[3, 2]"), "{text}");
        let weight = Tensor::ones([2, 3], (Kind::Float, Device::Cpu));
        assert_eq!(parameters.load([("a.weight", &weight)]).unwrap().loaded, ["a.weight"]);
        assert_eq!(parameters.get("a.weight").unwrap(), &weight);
    }

    #[test]
    fn initial_values_depend_only_on_seed_and_name() {
        let mut other = Parameters::new();
        let _ = other.parameter("before".into(), &[7], Init::Normal(1.0)).unwrap();
        let _ = other.parameter("a.weight".into(), &[2, 3], Init::Normal(0.02)).unwrap();
        other.initialize(3).unwrap();
        assert_eq!(small().get("a.weight"), other.get("a.weight"));
        other.initialize(4).unwrap();
        assert_ne!(small().get("a.weight"), other.get("a.weight"));
    }

    #[test]
    fn joined_counters_count_together_and_keep_names_and_values() {
        let mut parameters = small();
        let _ = parameters.buffer("a.x.num_batches_tracked".into(), &[], Kind::Int64, Init::Constant(0.0)).unwrap();
        let _ = parameters.buffer("b.num_batches_tracked".into(), &[], Kind::Int64, Init::Constant(0.0)).unwrap();
        parameters.load([("a.x.num_batches_tracked", Tensor::from(4_i64))]).unwrap();
        let mut joined = parameters.join_counters("a.").unwrap();
        let _ = joined.f_add_scalar_(1).unwrap();
        let value = |name: &str| i64::try_from(parameters.get(name).unwrap()).unwrap();
        let names = ["a.num_batches_tracked", "a.x.num_batches_tracked", "b.num_batches_tracked"];
        assert_eq!(names.map(value), [1, 5, 0]);
        assert!(names.iter().all(|name| parameters.get(name).unwrap().size().is_empty()));
    }

    #[test]
    fn two_tensors_with_the_same_name_are_an_error() {
        assert!(small().parameter("a.bias".into(), &[2], Init::Constant(0.0)).is_err());
    }
}
