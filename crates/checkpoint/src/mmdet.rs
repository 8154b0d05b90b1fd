//! Complete MMDetection checkpoints: weights, metadata and AdamW's state.

use std::collections::HashMap;
use std::path::Path;

use indexmap::IndexMap;
use tch::Tensor;

use fnet_common::{Context, Error, Result};
use fnet_model::{LoadReport, Parameters};

use super::lazy::{Budget, LazyTensor};
use super::meta::Meta;
use super::pth::{self, state_of};
use super::value::Value;
use super::variant::{BACKBONE, Variant};

/// A training state as in MMDetection, to resume from or to export.
#[derive(Debug)]
pub struct MmdetCheckpoint {
    /// The model's tensors in the order of its `state_dict`.
    pub state: IndexMap<String, Tensor>,
    /// Classes, epoch and iteration.
    pub meta: Meta,
    /// The optimizer's state, if the file has one.
    pub optimizer: Option<OptimizerState>,
}

/// AdamW's state as in PyTorch's `state_dict`.
#[derive(Debug)]
pub struct OptimizerState {
    /// The parameter groups; MMDetection has one.
    pub groups: Vec<ParameterGroup>,
    /// The moments by parameter index; a parameter that never had a gradient has none.
    pub moments: IndexMap<usize, Moments>,
}

/// Settings of a parameter group.
#[derive(Debug, Clone, PartialEq)]
pub struct ParameterGroup {
    /// Learning rate of the last step.
    pub lr: f64,
    /// Initial learning rate of the schedule, if known.
    pub initial_lr: Option<f64>,
    /// Decay of the first and second moment.
    pub betas: (f64, f64),
    /// Added to the square root of the second moment.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Indices of its parameters among the trained tensors, in the order of the `state_dict`.
    pub params: Vec<usize>,
}

/// AdamW's state of a parameter.
#[derive(Debug)]
pub struct Moments {
    /// Number of steps taken.
    pub step: u64,
    /// Running mean of the gradient; the parameter's shape.
    pub exp_avg: Tensor,
    /// Running mean of the gradient's square; the parameter's shape.
    pub exp_avg_sq: Tensor,
}

impl MmdetCheckpoint {
    /// Reads an MMDetection checkpoint with everything that is needed to resume its training.
    /// Errors: if the file cannot be read or is not such a checkpoint, or its optimizer is not AdamW.
    pub fn open(path: &Path) -> Result<Self> {
        let file = pth::open_file(path)?;
        let read = || Self::from_value(&pth::read(&file)?, &mut Loader(Budget::of(&file)));
        read().with_context(|| path.display().to_string())
    }

    fn from_value(value: &Value, loader: &mut Loader) -> Result<Self> {
        let (_, tensors) = state_of(value)?;
        let mut state = IndexMap::with_capacity(tensors.len());
        for (name, tensor) in tensors {
            let tensor = loader.load(&tensor).with_context(|| name.clone())?;
            state.insert(name.strip_prefix("module.").unwrap_or(&name).to_owned(), tensor);
        }
        let optimizer = match value.get("optimizer") {
            None | Some(Value::None) => None,
            Some(optimizer) => Some(read_optimizer(optimizer, loader).context("optimizer")?),
        };
        Ok(Self { state, meta: meta(value), optimizer })
    }

    /// The moments of each trained tensor of `parameters`, in order. The optimizer counts the trained tensors of the
    /// file in the order of its `state_dict`.
    /// Errors: if there is no optimizer, its state has another number of tensors, or a moment has another shape than
    /// its tensor.
    pub fn moments(&self, parameters: &Parameters) -> Result<Vec<Option<&Moments>>> {
        let optimizer = self.optimizer.as_ref().ok_or_else(|| {
            Error::data(
                "the file has no optimizer state, so its training cannot be resumed; start a new training with --load-from",
            )
        })?;
        let trained: HashMap<&str, &Tensor> = parameters.trainable().collect();
        let names: Vec<&str> =
            self.state.keys().map(String::as_str).filter(|name| trained.contains_key(name)).collect();
        let mut indices: Vec<usize> = optimizer.groups.iter().flat_map(|group| group.params.iter().copied()).collect();
        indices.sort_unstable();
        if names.len() != trained.len() || !indices.iter().copied().eq(0..names.len()) {
            return Err(Error::data(format!(
                "the optimizer's state has {} parameters, the model has {}: {OTHER_MODEL}",
                indices.len(),
                trained.len()
            )));
        }
        let mut moments = HashMap::with_capacity(names.len());
        for (index, name) in names.into_iter().enumerate() {
            let Some(found) = optimizer.moments.get(&index) else { continue };
            let size = trained[name].size();
            if let Some(other) = [&found.exp_avg, &found.exp_avg_sq].into_iter().find(|moment| moment.size() != size) {
                return Err(Error::data(format!(
                    "the optimizer's state of parameter {index} has shape {:?}, but {name} has {size:?}: {OTHER_MODEL}",
                    other.size()
                )));
            }
            moments.insert(name, found);
        }
        Ok(parameters.trained().map(|(name, _)| moments.get(name).copied()).collect())
    }

    /// Loads the weights into `parameters`. None may be missing; those that the model does not have are ignored and named
    /// in the report.
    /// Errors: a data error if they belong to another model.
    pub fn fill(&self, parameters: &Parameters) -> Result<LoadReport> {
        self.variant().map_or(Ok(()), |found| found.check(parameters))?;
        let mut report = parameters.load(&self.state)?;
        let unused = std::mem::take(&mut report.unexpected);
        report.require_complete()?;
        report.unexpected = unused;
        Ok(report)
    }

    /// The FasterNet variant of the weights.
    pub fn variant(&self) -> Option<Variant> {
        let tensors: Vec<_> = self.state.iter().map(|(name, tensor)| (name.as_str(), tensor.size())).collect();
        Variant::recognize(BACKBONE, tensors.iter().map(|(name, size)| (*name, size.as_slice())))
    }
}

const OTHER_MODEL: &str =
    "give the config that the checkpoint was trained with, or load only its weights with --load-from";

/// Loads tensors up to a limit of bytes.
struct Loader(Budget);

impl Loader {
    fn load(&mut self, tensor: &LazyTensor) -> Result<Tensor> {
        self.0.spend(tensor)?;
        tensor.load()
    }
}

impl OptimizerState {
    /// Renumbers parameter `index` to `moved[index]`; `moved` is a permutation of all indices.
    pub fn renumber(&mut self, moved: &[usize]) {
        let place = |index: usize| moved.get(index).copied().unwrap_or(index);
        self.moments = self.moments.drain(..).map(|(index, moments)| (place(index), moments)).collect();
        self.moments.sort_unstable_keys();
        for group in &mut self.groups {
            group.params.iter_mut().for_each(|index| *index = place(*index));
        }
    }
}

/// Reads `meta` of an MMDetection checkpoint; empty for other files. All entries are optional; invalid ones are ignored with
/// a warning.
pub(super) fn meta(value: &Value) -> Meta {
    let fact = |name: &str| value.at(&["meta", name]).filter(|fact| !matches!(fact, Value::None));
    let ignore = |name: &str, found: &Value, expected: &str| {
        log::warn!("meta.{name} of the weights is ignored: it is {}, expected {expected}", found.describe());
    };
    let count = |name: &str| {
        let found = fact(name)?;
        let count = found.as_int().and_then(|count| u64::try_from(count).ok());
        if count.is_none() {
            ignore(name, found, "a whole number of at least 0");
        }
        count
    };
    let classes = match fact("CLASSES") {
        Some(Value::Str(class)) => vec![class.to_string()],
        Some(found) => {
            let names = found.as_items().map(|items| items.iter().map(|name| name.as_str().map(str::to_owned)));
            names.and_then(Iterator::collect::<Option<Vec<_>>>).unwrap_or_else(|| {
                ignore("CLASSES", found, "a list of names");
                Vec::new()
            })
        }
        None => Vec::new(),
    };
    Meta { classes, epoch: count("epoch"), iter: count("iter") }
}

fn read_optimizer(value: &Value, loader: &mut Loader) -> Result<OptimizerState> {
    let groups = value.get("param_groups").and_then(Value::as_items).unwrap_or_default();
    if groups.is_empty() {
        return Err(Error::data("param_groups is missing, which the state_dict of a PyTorch optimizer has"));
    }
    let groups = groups.iter().map(read_group).collect::<Result<Vec<_>>>()?;
    let mut moments = IndexMap::new();
    let Some(Value::Dict(states)) = value.get("state") else {
        return Err(Error::data("state is missing, which the state_dict of a PyTorch optimizer has"));
    };
    for (index, state) in states {
        let index = index.as_int().and_then(|index| usize::try_from(index).ok());
        let index = index.ok_or_else(|| Error::data("a key of its state is not a parameter index"))?;
        let state = read_moments(state, loader).with_context(|| format!("parameter {index}"))?;
        moments.insert(index, state);
    }
    Ok(OptimizerState { groups, moments })
}

fn read_group(value: &Value) -> Result<ParameterGroup> {
    let number = |name: &str| {
        let number = value.get(name).and_then(Value::as_f64);
        number.ok_or_else(|| Error::data(format!("a parameter group has no {name}: it is not AdamW's")))
    };
    if !matches!(value.get("amsgrad"), None | Some(Value::None | Value::Bool(false))) {
        return Err(Error::data("it uses amsgrad, which is not supported: load only the weights"));
    }
    let betas = value.get("betas").and_then(Value::as_items).unwrap_or_default();
    let betas: Option<Vec<f64>> = betas.iter().map(Value::as_f64).collect();
    let &[first, second] = betas.as_deref().unwrap_or_default() else {
        return Err(Error::data("a parameter group has no betas: it is not AdamW's. Load only the weights"));
    };
    let params = value.get("params").and_then(Value::as_items).unwrap_or_default();
    let params: Option<Vec<usize>> =
        params.iter().map(|index| index.as_int().and_then(|index| usize::try_from(index).ok())).collect();
    Ok(ParameterGroup {
        lr: number("lr")?,
        initial_lr: value.get("initial_lr").map(|_| number("initial_lr")).transpose()?,
        betas: (first, second),
        eps: number("eps")?,
        weight_decay: number("weight_decay")?,
        params: params.ok_or_else(|| Error::data("the params of a group are not indices"))?,
    })
}

fn read_moments(value: &Value, loader: &mut Loader) -> Result<Moments> {
    let mut tensor = |name: &str| match value.get(name).and_then(Value::as_tensor) {
        Some(tensor) => loader.load(tensor).with_context(|| name.to_owned()),
        None => Err(Error::data(format!("{name} is missing: it is not AdamW's state. Load only the weights"))),
    };
    let step = match value.get("step") {
        // A tensor since PyTorch 1.12, a number before.
        Some(Value::Tensor(_)) => {
            let step = tensor("step")?;
            if step.numel() != 1 {
                return Err(Error::data("step is not a single number"));
            }
            Value::Float(step.f_double_value(&[])?).as_int()
        }
        other => other.and_then(Value::as_int),
    };
    let step = step.and_then(|step| u64::try_from(step).ok()).ok_or_else(|| Error::data("step is not a count"))?;
    Ok(Moments { step, exp_avg: tensor("exp_avg")?, exp_avg_sq: tensor("exp_avg_sq")? })
}
