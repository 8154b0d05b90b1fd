//! The optimizer of a job, with its state by parameter name.

use std::fmt;

use indexmap::IndexMap;
use tch::{Device, Kind, Tensor};
use torch_ext::optim::{AdamW, AdamWOptions, AdamWState, Sgd, SgdOptions};

use fnet_checkpoint::Moments;
use fnet_common::{Error, Result};
use fnet_config::{self as config, OptimizerKind};

use super::learning_rate::Rate;

/// AdamW or SGD over all parameters as one group.
pub struct Optimizer {
    names: Vec<String>,
    engine: Engine,
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
    /// An optimizer with an empty state for the named parameters.
    pub fn new(config: &config::Optimizer, parameters: &[(String, Tensor)]) -> Result<Self> {
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
        Ok(Self { names: parameters.iter().map(|(name, _)| name.clone()).collect(), engine })
    }

    /// Applies the parameters' gradients.
    pub fn step(&mut self, learning_rate: impl Into<Rate>) -> Result<()> {
        let learning_rate = learning_rate.into().plain();
        match &mut self.engine {
            Engine::AdamW(adamw) => adamw.step(learning_rate)?,
            Engine::Sgd(sgd) => sgd.step(learning_rate)?,
        }
        Ok(())
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

    /// Restores the result of [`Optimizer::state`]; `get` returns a tensor of it by name.
    ///
    /// # Errors
    /// A data error if a tensor is missing or has another shape.
    pub fn restore<'t>(&mut self, get: impl Fn(&str) -> Option<&'t Tensor>) -> Result<()> {
        let find = |kind: &str, parameter: &str| {
            let name = format!("{kind}.{parameter}");
            get(&name).ok_or_else(|| {
                Error::data(format!(
                    "the checkpoint has no {name}: it belongs to another optimizer or model; load only its weights with \
                     --load-from"
                ))
            })
        };
        for (index, name) in self.names.iter().enumerate() {
            let loaded = match &mut self.engine {
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
    ///
    /// # Errors
    /// A data error if this optimizer is not AdamW.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn trained(kind: OptimizerKind) -> (Vec<(String, Tensor)>, Optimizer) {
        let weight = Tensor::from_slice(&[1.0f32, -2.0]).set_requires_grad(true);
        let parameters = vec![("weight".to_owned(), weight)];
        let optimizer = Optimizer::new(&config::Optimizer { kind, ..Default::default() }, &parameters).unwrap();
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
            other.restore(|name| kept.get(name)).unwrap();
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
        let error = adamw.restore(|name| state.get(name)).unwrap_err();
        assert!(error.to_string().contains("step.weight"), "{error}");
    }
}
