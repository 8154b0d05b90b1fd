//! MMDetection checkpoints in full: weights, facts about the training and AdamW's state.

use std::path::Path;

use indexmap::IndexMap;
use tch::Tensor;

use super::lazy::LazyTensor;
use super::load::{Meta, state_of};
use super::pth;
use super::value::Value;
use crate::error::{Context, Error, Result};
use crate::model::Parameters;

/// A training state as MMDetection keeps it, to be continued from or exported to.
#[derive(Debug)]
pub struct MmdetCheckpoint {
    /// The model's tensors in the order of its `state_dict`.
    pub state: IndexMap<String, Tensor>,
    /// Classes, epoch and iteration.
    pub meta: Meta,
    /// The optimizer's state, if kept.
    pub optimizer: Option<OptimizerState>,
}

/// AdamW's state as PyTorch's `state_dict` has it.
#[derive(Debug)]
pub struct OptimizerState {
    /// The groups of parameters with equal settings; MMDetection makes one.
    pub groups: Vec<ParameterGroup>,
    /// The moments by index of the parameter; a parameter that never had a gradient has none.
    pub moments: IndexMap<usize, Moments>,
}

/// Settings of a group of parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct ParameterGroup {
    /// Learning rate of the last step.
    pub lr: f64,
    /// Learning rate that the schedule starts from, if told.
    pub initial_lr: Option<f64>,
    /// Decay of the first and second moment.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Indices of its parameters, counted over the trained tensors in the order of the `state_dict`.
    pub params: Vec<usize>,
}

/// What AdamW keeps for a parameter.
#[derive(Debug)]
pub struct Moments {
    /// Number of steps taken.
    pub step: u64,
    /// Running mean of the gradient; the parameter's shape.
    pub exp_avg: Tensor,
    /// Running mean of the gradient's square; the parameter's shape.
    pub exp_avg_sq: Tensor,
}

/// All tensors of a file together may have this many times its bytes: weights may share a storage, and a packed file
/// may be compressed, but a small file must not fill the memory.
const MAX_EXPANSION: u64 = 4;

impl MmdetCheckpoint {
    /// Reads an MMDetection checkpoint with everything that is needed to continue its training.
    ///
    /// # Errors
    /// If the file cannot be read or is none such, or its optimizer is not AdamW.
    pub fn open(path: &Path) -> Result<Self> {
        let value = pth::open(path)?;
        let len = path.metadata().map(|metadata| metadata.len()).unwrap_or(0);
        let budget = len.saturating_mul(MAX_EXPANSION).saturating_add(1 << 20);
        Self::from_value(&value, budget).with_context(|| path.display().to_string())
    }

    fn from_value(value: &Value, budget: u64) -> Result<Self> {
        let mut loader = Loader { left: budget };
        let (_, tensors) = state_of(value)?;
        let mut state = IndexMap::with_capacity(tensors.len());
        for (name, tensor) in tensors {
            let tensor = loader.load(&tensor).with_context(|| name.clone())?;
            state.insert(name.strip_prefix("module.").unwrap_or(&name).to_owned(), tensor);
        }
        let optimizer = match value.get("optimizer") {
            None | Some(Value::None) => None,
            Some(optimizer) => Some(read_optimizer(optimizer, &mut loader).context("optimizer")?),
        };
        Ok(Self { state, meta: meta(value), optimizer })
    }
}

impl OptimizerState {
    /// The moments of each trained tensor of `parameters`, in order.
    ///
    /// # Errors
    /// If the state is for another number of parameters, or a moment has not its parameter's shape.
    pub fn of<'a>(&'a self, parameters: &Parameters) -> Result<Vec<Option<&'a Moments>>> {
        let expected = parameters.trainable().count();
        let mut indices: Vec<usize> = self.groups.iter().flat_map(|group| group.params.iter().copied()).collect();
        indices.sort_unstable();
        if !indices.iter().copied().eq(0..expected) {
            return Err(Error::data(format!(
                "the optimizer's state is for {} parameters, the model has {expected}: give the config that the \
                 checkpoint was trained with, or load only its weights",
                indices.len()
            )));
        }
        let fitting = |(index, (name, tensor)): (usize, (&str, &Tensor))| {
            let Some(moments) = self.moments.get(&index) else { return Ok(None) };
            let size = tensor.size();
            match [&moments.exp_avg, &moments.exp_avg_sq].into_iter().find(|moment| moment.size() != size) {
                None => Ok(Some(moments)),
                Some(moment) => Err(Error::data(format!(
                    "the optimizer's state of parameter {index} has shape {:?}, but {name} has {size:?}: give the \
                     config that the checkpoint was trained with, or load only its weights",
                    moment.size()
                ))),
            }
        };
        parameters.trainable().enumerate().map(fitting).collect()
    }
}

/// Reads tensors as long as the bound on their bytes allows.
struct Loader {
    left: u64,
}

impl Loader {
    fn load(&mut self, tensor: &LazyTensor) -> Result<Tensor> {
        self.left = self.left.checked_sub(tensor.bytes()).ok_or_else(|| {
            Error::data("the tensors are far larger than the file, as they share their data: the file is hostile")
        })?;
        tensor.load()
    }
}

/// What `meta` of an MMDetection checkpoint says; empty for other files.
pub(super) fn meta(value: &Value) -> Meta {
    let fact = |name: &str| value.at(&["meta", name]);
    let count = |name: &str| fact(name).and_then(Value::as_int).and_then(|count| u64::try_from(count).ok());
    let classes = match fact("CLASSES") {
        Some(Value::Str(class)) => vec![class.to_string()],
        Some(classes) => {
            let names = classes.as_items().unwrap_or_default().iter().map(|name| name.as_str().map(str::to_owned));
            names.collect::<Option<_>>().unwrap_or_default()
        }
        None => Vec::new(),
    };
    Meta { classes, epoch: count("epoch"), iter: count("iter") }
}

fn read_optimizer(value: &Value, loader: &mut Loader) -> Result<OptimizerState> {
    let groups = value.get("param_groups").and_then(Value::as_items).unwrap_or_default();
    if groups.is_empty() {
        return Err(Error::data("there are no param_groups, as the state_dict of a PyTorch optimizer has"));
    }
    let groups = groups.iter().map(read_group).collect::<Result<Vec<_>>>()?;
    let mut moments = IndexMap::new();
    for (index, state) in value.get("state").map(Value::entries).unwrap_or_default() {
        let index = index.as_int().and_then(|index| usize::try_from(index).ok());
        let index = index.ok_or_else(|| Error::data("a key of its state is no index of a parameter"))?;
        let state = read_moments(state, loader).with_context(|| format!("parameter {index}"))?;
        moments.insert(index, state);
    }
    Ok(OptimizerState { groups, moments })
}

fn read_group(value: &Value) -> Result<ParameterGroup> {
    let number = |name: &str| {
        let number = value.get(name).and_then(Value::as_f64);
        number.ok_or_else(|| Error::data(format!("a group of parameters has no {name}: it is not AdamW's")))
    };
    if matches!(value.get("amsgrad"), Some(Value::Bool(true))) {
        return Err(Error::data("it uses amsgrad, which is not supported: load only the weights"));
    }
    let betas = value.get("betas").and_then(Value::as_items).unwrap_or_default();
    let betas: Vec<f64> = betas.iter().filter_map(Value::as_f64).collect();
    let &[first, second] = betas.as_slice() else {
        return Err(Error::data("a group of parameters has no betas: it is not AdamW's. Load only the weights"));
    };
    let params = value.get("params").and_then(Value::as_items).unwrap_or_default();
    let params: Option<Vec<usize>> =
        params.iter().map(|index| index.as_int().and_then(|index| usize::try_from(index).ok())).collect();
    Ok(ParameterGroup {
        lr: number("lr")?,
        initial_lr: value.get("initial_lr").and_then(Value::as_f64),
        betas: (first, second),
        eps: number("eps")?,
        weight_decay: number("weight_decay")?,
        params: params.ok_or_else(|| Error::data("a group's params are no indices"))?,
    })
}

fn read_moments(value: &Value, loader: &mut Loader) -> Result<Moments> {
    let mut tensor = |name: &str| match value.get(name).and_then(Value::as_tensor) {
        Some(tensor) => loader.load(tensor).with_context(|| name.to_owned()),
        None => Err(Error::data(format!("{name} is missing: it is not AdamW's state. Load only the weights"))),
    };
    let step = match value.get("step") {
        // Since PyTorch 1.12 a tensor, before a number.
        Some(Value::Tensor(_)) => {
            let step = tensor("step")?;
            if step.numel() != 1 {
                return Err(Error::data("step is no single number"));
            }
            Value::Float(step.f_double_value(&[])?).as_int()
        }
        other => other.and_then(Value::as_int),
    };
    let step = step.and_then(|step| u64::try_from(step).ok()).ok_or_else(|| Error::data("step is no count"))?;
    Ok(Moments { step, exp_avg: tensor("exp_avg")?, exp_avg_sq: tensor("exp_avg_sq")? })
}
