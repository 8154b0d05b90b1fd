//! The model's tensors by name: parameters that are trained and buffers that are not, in the order of the reference's
//! `state_dict`.

use std::borrow::Borrow;
use std::fmt;

use indexmap::IndexMap;
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use fnet_common::{Context, Error, Result};

use super::init::{Init, stream_of};

/// What a tensor of the model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Trained by the optimizer.
    Parameter,
    /// Kept and saved, but changed by the forward pass only: BatchNorm's running statistics.
    Buffer,
}

#[derive(Debug)]
struct Entry {
    tensor: Tensor,
    role: Role,
    init: Init,
}

/// Ordered names and tensors of a model. The modules hold aliases of the same storage, so that writing to a tensor in
/// place (as the optimizer and [`Parameters::load`] do) changes the model.
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
    /// No tensors yet; [`super::MaskRcnn::new`] fills them in.
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

    /// Whether no model was built yet.
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

    /// Name and tensor of what the optimizer trains, in order: the index here is the index in the optimizer's state.
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

    /// Number of trained values.
    pub fn count(&self) -> usize {
        self.trainable().map(|(_, tensor)| tensor.numel()).sum()
    }

    /// Copies the tensors of `source` into those of equal name and shape; the others stay as they are.
    ///
    /// # Errors
    /// If a value cannot be copied; names and shapes that do not fit are told in the report, not here.
    pub fn load<N: AsRef<str>, T: Borrow<Tensor>>(
        &self,
        source: impl IntoIterator<Item = (N, T)>,
    ) -> Result<LoadReport> {
        self.load_below("", source)
    }

    /// Like [`Parameters::load`] for a part of the model: `prefix` (such as `backbone.`) is put before each name of
    /// `source`, and only names below it count as missing.
    ///
    /// # Errors
    /// As [`Parameters::load`].
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

    /// Starts a new model on `device`, forgetting what was there.
    pub fn reset(&mut self, device: Device) {
        self.entries.clear();
        self.device = device;
    }

    /// Adds a trained tensor and returns an alias of it; [`Parameters::initialize`] gives it its values.
    pub fn parameter(&mut self, name: String, shape: &[i64], init: Init) -> Result<Tensor> {
        let options = (Kind::Float, self.device);
        let tensor = match *shape {
            // Channels last also where a side of 1 leaves the order open: the gradient of a convolution has these strides, and
            // libtorch compares all of them.
            [_, inputs, height, width] => {
                let strides = [height * width * inputs, 1, width * inputs, inputs];
                Tensor::f_empty_strided(shape, &strides[..], options)?.f_zero_()?
            }
            _ => Tensor::f_zeros(shape, options)?,
        };
        let tensor = tensor.f_set_requires_grad(true)?;
        self.add(name, tensor, Role::Parameter, init)
    }

    /// Adds a buffer and returns an alias of it; [`Parameters::initialize`] gives it its values.
    pub fn buffer(&mut self, name: String, shape: &[i64], kind: Kind, init: Init) -> Result<Tensor> {
        let tensor = Tensor::f_zeros(shape, (kind, self.device))?;
        self.add(name, tensor, Role::Buffer, init)
    }

    /// Makes the counters of batches whose names begin with `prefix` parts of one tensor, which is returned: so they are
    /// counted up in one call.
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
        match self.entries.insert(name, Entry { tensor, role, init }) {
            None => Ok(alias),
            Some(_) => Err(Error::bug("two tensors of the model have one name")),
        }
    }

    /// Draws the initial value of every tensor. Each has a stream of its own, made of `seed` and its name, so that the
    /// values depend on neither the order nor the number of ranks.
    pub fn initialize(&self, seed: u64) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let jobs: Vec<(usize, &str, Init, usize)> = self
            .entries
            .iter()
            .enumerate()
            .filter(|(_, (_, entry))| !entry.init.is_zero())
            .map(|(index, (name, entry))| (index, name.as_str(), entry.init, entry.tensor.numel()))
            .collect();
        // In portions, so that not all of a large model's values lie in memory twice.
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

/// Whether a missing `name` is no loss: counters of batches, which older checkpoints lack.
fn is_counter(name: &str) -> bool {
    name.ends_with(".num_batches_tracked")
}

/// A tensor whose stored shape is not the model's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShapeConflict {
    /// Name of the tensor.
    pub name: String,
    /// Its shape in the model.
    pub expected: Vec<i64>,
    /// Its shape in the source.
    pub found: Vec<i64>,
}

/// What became of each name in a load.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Copied.
    pub loaded: Vec<String>,
    /// In the model only; kept as they were. Batch counters are not listed.
    pub missing: Vec<String>,
    /// In the source only; ignored.
    pub unexpected: Vec<String>,
    /// In both with different shapes; kept as they were.
    pub conflicts: Vec<ShapeConflict>,
}

impl LoadReport {
    /// Whether every tensor of the model was loaded and nothing was left over.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.conflicts.is_empty()
    }

    /// An error unless every tensor of the model was loaded and nothing was left over.
    ///
    /// # Errors
    /// A data error that names the first tensors that do not fit.
    pub fn require_complete(&self) -> Result<()> {
        if self.is_complete() {
            return Ok(());
        }
        Err(Error::data(format!(
            "the weights are of another model and do not fit that of the config: {self}; give the config that they were \
             trained with (compare model.num_classes and [model.backbone])"
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
                ", {} of another shape (first: {} is {:?}, the model's {:?})",
                self.conflicts.len(),
                first.name,
                first.found,
                first.expected
            )?;
        }
        Ok(())
    }
}

/// The first few names, so that a wrong prefix does not fill the screen.
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
    fn a_load_says_what_was_loaded_missing_left_over_and_of_another_shape() {
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
    fn initial_values_depend_on_seed_and_name_alone() {
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
    fn two_tensors_of_one_name_are_refused() {
        assert!(small().parameter("a.bias".into(), &[2], Init::Constant(0.0)).is_err());
    }
}
