//! `export`: writes a checkpoint's weights for PyTorch and MMDetection, or as safetensors.

use std::collections::HashMap;
use std::path::Path;

use indexmap::IndexMap;
use tch::{Device, Tensor};

use fnet_checkpoint::native::{Checkpoint, MODEL, OPTIMIZER};
use fnet_checkpoint::{Meta, MmdetCheckpoint, Moments, OptimizerState, ParameterGroup, TrainedFile, Weights, export};
use fnet_common::{Context, Error, Result};
use fnet_config::{Multipliers, Paramwise};
use fnet_model::{MaskRcnn, Parameters};
use fnet_protocol::cli::Export;
use fnet_protocol::work_dir::is_pytorch_file;
use fnet_train::{LearningRate, is_norm};

/// Runs `export` and returns a message.
/// Errors: if the command line, the checkpoint or the config is wrong, or the file cannot be written.
pub fn export(arguments: &Export) -> Result<String> {
    let (path, out) = (arguments.checkpoint.as_path(), arguments.out.as_path());
    let is_safetensors = export::is_safetensors(out)?;
    if arguments.with_optimizer && is_safetensors {
        return Err(Error::usage(format!(
            "{}: only .pth files can contain an optimizer's state; use the extension .pth, or omit --with-optimizer",
            out.display()
        )));
    }
    let (mut exported, note) = read(path, arguments.with_optimizer)?;
    let mut note = note.to_owned();
    if let Some(config) = &arguments.config {
        note.push_str(&fit(&mut exported, config).with_context(|| path.display().to_string())?);
    }
    export::write(out, &exported)?;
    let mut message = format!("wrote {} tensors", exported.state.len());
    if let Some(optimizer) = &exported.optimizer {
        message.push_str(&format!(" and AdamW's state of {} parameters", optimizer.moments.len()));
    }
    if let (Some(epoch), Some(iter)) = (exported.meta.epoch, exported.meta.iter) {
        message.push_str(&format!(" of epoch {epoch}, iter {iter}"));
    }
    message.push_str(&format!(" to {}{note}", out.display()));
    Ok(message)
}

/// The checkpoint at `path` in MMDetection's form, and a note for the message.
fn read(path: &Path, with_optimizer: bool) -> Result<(MmdetCheckpoint, &'static str)> {
    if with_optimizer && is_pytorch_file(path) {
        let checkpoint = MmdetCheckpoint::open(path)?;
        if checkpoint.optimizer.is_none() {
            return Err(no_optimizer(path));
        }
        return Ok((checkpoint, ""));
    }
    match TrainedFile::open(path)? {
        TrainedFile::Fnet(_, checkpoint) => {
            from_native(&checkpoint, path, with_optimizer).with_context(|| path.display().to_string())
        }
        TrainedFile::ThirdParty(_) if with_optimizer => Err(no_optimizer(path)),
        TrainedFile::ThirdParty(weights) => Ok((from_third_party(&weights)?, "")),
    }
}

fn no_optimizer(path: &Path) -> Error {
    Error::data(format!("{}: the file has no optimizer state; omit --with-optimizer", path.display()))
}

fn from_third_party(weights: &Weights) -> Result<MmdetCheckpoint> {
    let state = weights.iter().map(|(name, _)| Ok((name.to_owned(), weights.tensor(name)?))).collect::<Result<_>>()?;
    Ok(MmdetCheckpoint { state, meta: weights.meta().clone(), optimizer: None })
}

/// The weights that are evaluated (the moving average, if there is one), or with the optimizer those that are trained.
fn from_native(checkpoint: &Checkpoint, path: &Path, with_optimizer: bool) -> Result<(MmdetCheckpoint, &'static str)> {
    let model = checkpoint.section(MODEL).map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()));
    let (mut state, average): (IndexMap<String, Tensor>, _) = (model.collect(), checkpoint.averages()?);
    let note = match (average.is_empty(), with_optimizer) {
        (true, _) => "",
        (false, true) => "; the weights as they are trained, not their moving average",
        (false, false) => "; the moving average of the weights, which is what test evaluates",
    };
    let optimizer = if with_optimizer {
        Some(optimizer(checkpoint, path)?)
    } else {
        // Replaces the trained weights in place, so that the order stays.
        for (name, tensor) in average {
            state.insert(name, tensor);
        }
        None
    };
    let progress = checkpoint.meta.progress;
    let meta = Meta {
        classes: checkpoint.meta.classes.clone(),
        epoch: Some(progress.epoch as u64),
        iter: Some(progress.step as u64),
    };
    Ok((MmdetCheckpoint { state, meta, optimizer }, note))
}

/// AdamW's state, with the settings of the last update.
fn optimizer(checkpoint: &Checkpoint, path: &Path) -> Result<OptimizerState> {
    let state = |kind: &str, name: &str| checkpoint.tensors.get(&format!("{OPTIMIZER}{kind}.{name}"));
    let has_state = |name: &str| state("step", name).is_some();
    let config = checkpoint.meta.config(path)?;
    // PyTorch counts frozen parameters, too.
    let is_frozen = |name: &str| fnet_model::is_frozen(&config.model, name) && !is_buffer(name);
    let names = checkpoint.section(MODEL).map(|(name, _)| name);
    let trained: Vec<&str> = names.filter(|name| has_state(name) || is_frozen(name)).collect();
    if !trained.iter().any(|name| has_state(name)) {
        return Err(Error::data("the checkpoint has no state of AdamW; omit --with-optimizer"));
    }
    let mut moments = IndexMap::new();
    for (index, name) in trained.iter().enumerate().filter(|(_, name)| !is_frozen(name)) {
        let (Some(step), Some(exp_avg), Some(exp_avg_sq)) =
            (state("step", name), state("exp_avg", name), state("exp_avg_sq", name))
        else {
            return Err(Error::data(format!("AdamW's state of {name} is incomplete")));
        };
        let step = step.f_double_value(&[])? as u64;
        // PyTorch has no state for parameters that never had a gradient.
        if step > 0 {
            let copy = Moments { step, exp_avg: exp_avg.shallow_clone(), exp_avg_sq: exp_avg_sq.shallow_clone() };
            moments.insert(index, copy);
        }
    }
    let progress = checkpoint.meta.progress;
    let optimizer = &config.optimizer;
    let rates = LearningRate {
        schedule: &config.schedule,
        base: optimizer.lr,
        epochs: config.train.epochs,
        // The schedules of older checkpoints, which lack it, do not depend on it.
        steps: checkpoint.meta.state.total_steps.unwrap_or(progress.step),
    };
    let rate = rates.last(progress.epoch, progress.step_in_epoch, progress.step);
    let group = |Multipliers { lr_mult, decay_mult }: Multipliers, params| ParameterGroup {
        lr: rate.of(lr_mult),
        initial_lr: Some(optimizer.lr * lr_mult),
        betas: (optimizer.betas[0], optimizer.betas[1]),
        eps: optimizer.eps,
        weight_decay: optimizer.weight_decay * decay_mult,
        params,
    };
    let is_norm = |name: &str| is_norm(name, |name| checkpoint.tensors.contains_key(&format!("{MODEL}{name}")));
    let groups = if optimizer.paramwise == Paramwise::default() {
        vec![group(Multipliers::default(), (0..trained.len()).collect())]
    } else {
        // As MMCV's DefaultOptimizerConstructor does.
        let multipliers = trained.iter().map(|name| optimizer.paramwise.multipliers(name, is_norm(name)));
        multipliers.enumerate().map(|(index, of)| group(of, vec![index])).collect()
    };
    Ok(OptimizerState { groups, moments })
}

/// Whether a tensor of the model is no parameter.
fn is_buffer(name: &str) -> bool {
    ["running_mean", "running_var", "num_batches_tracked"].iter().any(|last| name.ends_with(last))
}

/// Checks that the weights fit the model of `config`, sorts them in its order, and drops those that it does not have. Returns
/// a note about dropped ones.
fn fit(exported: &mut MmdetCheckpoint, config: &Path) -> Result<String> {
    let config = fnet_data::load_config(config, &[])?.config;
    let mut parameters = Parameters::new();
    MaskRcnn::build(&config.model, &mut parameters, Device::Cpu)?;
    let unused = exported.fill(&parameters)?.unexpected;
    if exported.optimizer.is_some() {
        exported.moments(&parameters)?;
    }
    let places: HashMap<&str, usize> = parameters.trainable().map(|(name, _)| name).zip(0..).collect();
    let moved: Vec<usize> = exported.state.keys().filter_map(|name| places.get(name.as_str()).copied()).collect();
    if let Some(optimizer) = &mut exported.optimizer {
        optimizer.renumber(&moved);
    }
    let order: HashMap<&str, usize> = parameters.iter().map(|(name, ..)| name).zip(0..).collect();
    exported.state.retain(|name, _| order.contains_key(name.as_str()));
    exported.state.sort_by_cached_key(|name, _| order.get(name.as_str()).copied());
    Ok(if unused.is_empty() {
        String::new()
    } else {
        format!("; dropped {} that the model does not have", unused.len())
    })
}
