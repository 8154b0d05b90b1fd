//! The optimizer of a job, with its state by parameter name.

use std::fmt;

use indexmap::IndexMap;
use tch::{Device, Kind, Tensor};
use torch_ext::optim::{self, AdamW, AdamWOptions, AdamWState, Sgd, SgdOptions};

use fnet_checkpoint::Moments;
use fnet_common::{Error, Result};
use fnet_config::{self as config, Multipliers, OptimizerKind};

use super::learning_rate::Rate;

/// AdamW or SGD, with a group of parameters for each pair of multipliers of `optimizer.paramwise`.
pub struct Optimizer {
    names: Vec<String>,
    tensors: Vec<Tensor>,
    groups: Vec<Group>,
    engine: Engine,
}

/// Parameters with the same multipliers.
struct Group {
    lr_mult: f64,
    weight_decay: f64,
    /// Their indices.
    members: Vec<usize>,
}

enum Engine {
    AdamW(AdamW),
    Sgd(Sgd),
}

impl fmt::Debug for Optimizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Optimizer").field("parameters", &self.names.len()).finish_non_exhaustive()
    }
}

impl Optimizer {
    /// An optimizer with an empty state for the named parameters; `is_norm` tells which belong to a norm ([`is_norm`]).
    pub fn new(
        config: &config::Optimizer,
        parameters: &[(String, Tensor)],
        is_norm: impl Fn(&str) -> bool,
    ) -> Result<Self> {
        let tensors: Vec<Tensor> = parameters.iter().map(|(_, tensor)| tensor.shallow_clone()).collect();
        let (momentum, weight_decay) = (config.momentum, config.weight_decay);
        let engine = match config.kind {
            OptimizerKind::AdamW => {
                let betas = (config.betas[0], config.betas[1]);
                Engine::AdamW(AdamW::new(&tensors, AdamWOptions { betas, eps: config.eps, weight_decay })?)
            }
            OptimizerKind::Sgd => {
                Engine::Sgd(Sgd::new(&tensors, SgdOptions { momentum, weight_decay, nesterov: false })?)
            }
        };
        let names: Vec<String> = parameters.iter().map(|(name, _)| name.clone()).collect();
        Ok(Self { groups: groups(config, &names, is_norm), names, tensors, engine })
    }

    /// Applies the parameters' gradients.
    pub fn step(&mut self, learning_rate: impl Into<Rate>) -> Result<()> {
        let learning_rate = learning_rate.into();
        for Group { lr_mult, weight_decay, members } in &self.groups {
            let rate = learning_rate.of(*lr_mult);
            match &mut self.engine {
                Engine::AdamW(adamw) => adamw.step_group(members, rate, *weight_decay)?,
                Engine::Sgd(sgd) => sgd.step_group(members, rate, *weight_decay)?,
            }
        }
        Ok(())
    }

    /// Divides the gradients by the loss scale. Returns on their device whether one of them overflowed: 0 if none did.
    pub fn unscale(&self, scale: f64) -> Result<Tensor> {
        Ok(optim::unscale(&self.tensors, scale)?)
    }

    /// Scales the gradients down to a norm of at most `maximum`. Returns on their device the norm that they had.
    pub fn clip_norm(&self, maximum: f64) -> Result<Tensor> {
        Ok(optim::clip_norm(&self.tensors, maximum)?)
    }

    /// Clears the gradients.
    pub fn clear_gradients(&self) -> Result<()> {
        Ok(optim::clear_gradients(&self.tensors)?)
    }

    /// The state, by `<kind of state>.<parameter>`: `step`, `exp_avg` and `exp_avg_sq` of AdamW, `momentum_buffer` of
    /// SGD.
    pub fn state(&self) -> IndexMap<String, Tensor> {
        let mut state = IndexMap::new();
        for (index, name) in self.names.iter().enumerate() {
            let mut put = |kind: &str, tensor: &Tensor| state.insert(format!("{kind}.{name}"), tensor.shallow_clone());
            match &self.engine {
                Engine::AdamW(adamw) => {
                    if let Some(AdamWState { step, exp_avg, exp_avg_sq }) = adamw.state(index) {
                        put("step", step);
                        put("exp_avg", exp_avg);
                        put("exp_avg_sq", exp_avg_sq);
                    }
                }
                Engine::Sgd(sgd) => {
                    if let Some(buffer) = sgd.momentum_buffer(index) {
                        put("momentum_buffer", buffer);
                    }
                }
            }
        }
        state
    }

    /// Restores the result of [`Optimizer::state`]; `get` returns a tensor of it by name. A parameter that `was_frozen` has
    /// no state yet.
    /// Errors: a data error if a tensor is missing or has another shape.
    pub fn restore<'t>(
        &mut self,
        get: impl Fn(&str) -> Option<&'t Tensor>,
        was_frozen: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let find = |kind: &str, parameter: &str| {
            let name = format!("{kind}.{parameter}");
            get(&name).ok_or_else(|| {
                Error::data(format!(
                    "the checkpoint has no {name}: it belongs to another optimizer or model; load only its weights with \
                     --load-from"
                ))
            })
        };
        let (names, engine) = (&self.names, &mut self.engine);
        for (index, name) in names.iter().enumerate().filter(|(_, name)| !was_frozen(name)) {
            let loaded = match &mut *engine {
                Engine::AdamW(adamw) => {
                    let (step, exp_avg) = (find("step", name)?, find("exp_avg", name)?);
                    adamw.load_state(index, &AdamWState { step, exp_avg, exp_avg_sq: find("exp_avg_sq", name)? })
                }
                Engine::Sgd(sgd) => sgd.load_momentum_buffer(index, find("momentum_buffer", name)?),
            };
            loaded.map_err(|error| Error::data(format!("{name}: {error}")))?;
        }
        Ok(())
    }

    /// Restores AdamW's moments, in the order of the parameters; a parameter without any was never updated.
    /// Errors: a data error if this optimizer is not AdamW.
    pub fn restore_moments(&mut self, moments: &[Option<&Moments>]) -> Result<()> {
        let Engine::AdamW(adamw) = &mut self.engine else {
            return Err(Error::data(
                "the checkpoint has the state of AdamW, but optimizer.kind is different; load only its weights with \
                 --load-from",
            ));
        };
        for (index, moments) in moments.iter().enumerate() {
            let Some(Moments { step, exp_avg, exp_avg_sq }) = moments else { continue };
            let step = Tensor::f_full([0_i64; 0], *step as f64, (Kind::Float, Device::Cpu))?;
            adamw.load_state(index, &AdamWState { step: &step, exp_avg, exp_avg_sq })?;
        }
        Ok(())
    }
}

/// Whether a parameter belongs to a norm, whose running mean `exists` beside it.
pub fn is_norm(parameter: &str, exists: impl Fn(&str) -> bool) -> bool {
    parameter.rsplit_once('.').is_some_and(|(module, _)| exists(&format!("{module}.running_mean")))
}

/// The parameters by their multipliers, in the order of the first ones.
fn groups(config: &config::Optimizer, names: &[String], is_norm: impl Fn(&str) -> bool) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let Multipliers { lr_mult, decay_mult } = config.paramwise.multipliers(name, is_norm(name));
        let weight_decay = config.weight_decay * decay_mult;
        match groups.iter_mut().find(|group| (group.lr_mult, group.weight_decay) == (lr_mult, weight_decay)) {
            Some(group) => group.members.push(index),
            None => groups.push(Group { lr_mult, weight_decay, members: vec![index] }),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trained(kind: OptimizerKind) -> (Vec<(String, Tensor)>, Optimizer) {
        let weight = Tensor::from_slice(&[1.0f32, -2.0]).set_requires_grad(true);
        let parameters = vec![("weight".to_owned(), weight)];
        let optimizer =
            Optimizer::new(&config::Optimizer { kind, ..Default::default() }, &parameters, |_| false).unwrap();
        (parameters, optimizer)
    }

    fn step(parameters: &[(String, Tensor)], optimizer: &mut Optimizer) -> Vec<f32> {
        let mut weight = parameters[0].1.shallow_clone();
        weight.zero_grad();
        (&weight * &weight).sum(tch::Kind::Float).backward();
        optimizer.step(0.1).unwrap();
        Vec::try_from(&weight.detach()).unwrap()
    }

    #[test]
    fn a_restored_optimizer_continues_bit_for_bit() {
        for kind in [OptimizerKind::AdamW, OptimizerKind::Sgd] {
            let (parameters, mut optimizer) = trained(kind);
            step(&parameters, &mut optimizer);
            let kept: IndexMap<_, _> =
                optimizer.state().into_iter().map(|(name, tensor)| (name, tensor.detach_copy())).collect();
            let (others, mut other) = trained(kind);
            tch::no_grad(|| others[0].1.shallow_clone().copy_(&parameters[0].1));
            other.restore(|name| kept.get(name), |_| false).unwrap();
            for _ in 0..3 {
                assert_eq!(step(&parameters, &mut optimizer), step(&others, &mut other));
            }
        }
    }

    #[test]
    fn the_state_of_another_optimizer_is_an_error_that_names_a_tensor() {
        let (_, sgd) = trained(OptimizerKind::Sgd);
        let (_, mut adamw) = trained(OptimizerKind::AdamW);
        let state = sgd.state();
        let error = adamw.restore(|name| state.get(name), |_| false).unwrap_err();
        assert!(error.to_string().contains("step.weight"), "{error}");
    }

    /// The change of SGD without momentum is `rate * (gradient + decay * weight)`; the gradient of `w * w` is `2 w`.
    #[test]
    fn each_group_has_its_rate_and_decay() {
        let one = |name: &str| (name.to_owned(), Tensor::from_slice(&[1.0f32]).set_requires_grad(true));
        let parameters = ["a.weight", "a.bias", "norm.bias", "head.weight"].map(one);
        let of = |lr_mult, decay_mult| Multipliers { lr_mult, decay_mult };
        let config = config::Optimizer {
            kind: OptimizerKind::Sgd,
            momentum: 0.0,
            weight_decay: 0.5,
            paramwise: config::Paramwise {
                custom_keys: [("head".to_owned(), of(10.0, 2.0))].into(),
                norm_decay_mult: 0.0,
                bias_lr_mult: 2.0,
                bias_decay_mult: 3.0,
            },
            ..Default::default()
        };
        let mut optimizer = Optimizer::new(&config, &parameters, |name| name.starts_with("norm")).unwrap();
        for (_, weight) in &parameters {
            (weight * weight).sum(Kind::Float).backward();
        }
        optimizer.step(0.01).unwrap();
        let change = |(_, weight): &(String, Tensor)| 1.0 - f64::try_from(weight.detach().sum(Kind::Double)).unwrap();
        for (parameter, expected) in
            parameters.iter().zip([0.01 * (2.0 + 0.5), 0.02 * (2.0 + 1.5), 0.01 * 2.0, 0.1 * (2.0 + 1.0)])
        {
            assert!((change(parameter) - expected).abs() < 1e-6, "{}: {}", parameter.0, change(parameter));
        }
    }

    #[test]
    fn a_parameter_that_was_frozen_starts_without_state() {
        let (_, mut optimizer) = trained(OptimizerKind::AdamW);
        optimizer.restore(|_| None, |name| name == "weight").unwrap();
        assert_eq!(f64::try_from(&optimizer.state()["step.weight"]).unwrap(), 0.0);
    }
}
