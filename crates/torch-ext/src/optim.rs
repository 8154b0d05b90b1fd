//! Optimizer steps over all parameters at once, with their state in sight; gradient norms and clipping.
//!
//! A step skips parameters that have no gradient, as PyTorch's optimizers do.

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use crate::error::{Error, ErrorKind, RawError, Result, check};
use crate::ffi::{new_tensor, pointers};

unsafe extern "C" {
    fn fnet_adamw_step(
        parameters: *const *mut C_tensor,
        exp_avg: *const *mut C_tensor,
        exp_avg_sq: *const *mut C_tensor,
        steps: *const *mut C_tensor,
        count: usize,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    ) -> *mut RawError;
    fn fnet_sgd_step(
        parameters: *const *mut C_tensor,
        momentum_buffers: *const *mut C_tensor,
        count: usize,
        lr: f64,
        momentum: f64,
        weight_decay: f64,
        nesterov: bool,
    ) -> *mut RawError;
    fn fnet_norm(tensors: *const *mut C_tensor, count: usize, out: *mut *mut C_tensor) -> *mut RawError;
    fn fnet_grad_norm(parameters: *const *mut C_tensor, count: usize, out: *mut *mut C_tensor) -> *mut RawError;
    fn fnet_clip_grad_norm(
        parameters: *const *mut C_tensor,
        count: usize,
        max_norm: f64,
        out: *mut *mut C_tensor,
    ) -> *mut RawError;
    fn fnet_unscale_gradients(
        parameters: *const *mut C_tensor,
        count: usize,
        inverse_scale: f64,
        out: *mut *mut C_tensor,
    ) -> *mut RawError;
    fn fnet_clear_gradients(parameters: *const *mut C_tensor, count: usize) -> *mut RawError;
}

/// Constants of [`AdamW`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWOptions {
    /// Decay rates of the first and second moment.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, per unit of learning rate.
    pub weight_decay: f64,
}

/// AdamW (Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019), as `torch.optim.AdamW` computes it.
pub struct AdamW {
    options: AdamWOptions,
    parameters: Vec<Tensor>,
    steps: Vec<Tensor>,
    exp_avg: Vec<Tensor>,
    exp_avg_sq: Vec<Tensor>,
}

/// What [`AdamW`] keeps for one parameter.
pub struct AdamWState<'a> {
    /// Number of steps taken: float32, no dimension.
    pub step: &'a Tensor,
    /// Moving average of the gradient, shaped and laid out like the parameter.
    pub exp_avg: &'a Tensor,
    /// Moving average of the gradient's square, likewise.
    pub exp_avg_sq: &'a Tensor,
}

impl AdamW {
    /// An optimizer with a zero state for the parameters, to which it keeps handles.
    pub fn new(parameters: &[Tensor], options: AdamWOptions) -> Result<Self> {
        Ok(Self {
            options,
            parameters: parameters.iter().map(Tensor::shallow_clone).collect(),
            steps: parameters
                .iter()
                .map(|parameter| Ok(Tensor::f_zeros([0i64; 0], (Kind::Float, parameter.device()))?))
                .collect::<Result<_>>()?,
            exp_avg: zeros_like(parameters)?,
            exp_avg_sq: zeros_like(parameters)?,
        })
    }

    /// One step of all parameters with learning rate `lr`.
    pub fn step(&mut self, lr: f64) -> Result<()> {
        let all: Vec<usize> = (0..self.parameters.len()).collect();
        self.step_group(&all, lr, self.options.weight_decay)
    }

    /// One step of the parameters at some indices, with a learning rate and weight decay of their own.
    /// Errors: if libtorch fails, or there is no such parameter.
    pub fn step_group(&mut self, members: &[usize], lr: f64, weight_decay: f64) -> Result<()> {
        let AdamWOptions { betas, eps, .. } = self.options;
        let (parameters, exp_avg) = (chosen(&self.parameters, members)?, chosen(&self.exp_avg, members)?);
        let (exp_avg_sq, steps) = (chosen(&self.exp_avg_sq, members)?, chosen(&self.steps, members)?);
        // SAFETY: four arrays of `parameters.len()` valid pointers.
        check(unsafe {
            fnet_adamw_step(
                parameters.as_ptr(),
                exp_avg.as_ptr(),
                exp_avg_sq.as_ptr(),
                steps.as_ptr(),
                parameters.len(),
                lr,
                betas.0,
                betas.1,
                weight_decay,
                eps,
            )
        })
    }

    /// The state of parameter `index`; none beyond the last.
    pub fn state(&self, index: usize) -> Option<AdamWState<'_>> {
        Some(AdamWState {
            step: self.steps.get(index)?,
            exp_avg: self.exp_avg.get(index)?,
            exp_avg_sq: self.exp_avg_sq.get(index)?,
        })
    }

    /// Copies a saved state into parameter `index`'s; the memory layout stays the parameter's.
    /// Errors: if there is no such parameter or a shape differs.
    pub fn load_state(&mut self, index: usize, saved: &AdamWState<'_>) -> Result<()> {
        load(&mut self.steps, index, saved.step, "step")?;
        load(&mut self.exp_avg, index, saved.exp_avg, "exp_avg")?;
        load(&mut self.exp_avg_sq, index, saved.exp_avg_sq, "exp_avg_sq")
    }
}

/// Constants of [`Sgd`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SgdOptions {
    /// Momentum; 0 for none.
    pub momentum: f64,
    /// Weight decay, added to the gradient.
    pub weight_decay: f64,
    /// Nesterov's momentum.
    pub nesterov: bool,
}

/// Stochastic gradient descent with momentum (dampening 0), as `torch.optim.SGD` computes it.
pub struct Sgd {
    options: SgdOptions,
    parameters: Vec<Tensor>,
    momentum_buffers: Vec<Tensor>,
}

impl Sgd {
    /// An optimizer with zero momentum for the parameters, to which it keeps handles.
    pub fn new(parameters: &[Tensor], options: SgdOptions) -> Result<Self> {
        Ok(Self {
            options,
            parameters: parameters.iter().map(Tensor::shallow_clone).collect(),
            momentum_buffers: zeros_like(parameters)?,
        })
    }

    /// One step of all parameters with learning rate `lr`.
    pub fn step(&mut self, lr: f64) -> Result<()> {
        let all: Vec<usize> = (0..self.parameters.len()).collect();
        self.step_group(&all, lr, self.options.weight_decay)
    }

    /// One step of the parameters at some indices, with a learning rate and weight decay of their own.
    /// Errors: if libtorch fails, or there is no such parameter.
    pub fn step_group(&mut self, members: &[usize], lr: f64, weight_decay: f64) -> Result<()> {
        let SgdOptions { momentum, nesterov, .. } = self.options;
        let (parameters, buffers) = (chosen(&self.parameters, members)?, chosen(&self.momentum_buffers, members)?);
        // SAFETY: two arrays of `parameters.len()` valid pointers.
        check(unsafe {
            fnet_sgd_step(parameters.as_ptr(), buffers.as_ptr(), parameters.len(), lr, momentum, weight_decay, nesterov)
        })
    }

    /// The momentum of parameter `index`; none beyond the last.
    pub fn momentum_buffer(&self, index: usize) -> Option<&Tensor> {
        self.momentum_buffers.get(index)
    }

    /// Copies a saved momentum into parameter `index`'s; the memory layout stays the parameter's.
    /// Errors: if there is no such parameter or the shape differs.
    pub fn load_momentum_buffer(&mut self, index: usize, saved: &Tensor) -> Result<()> {
        load(&mut self.momentum_buffers, index, saved, "momentum_buffer")
    }
}

/// The L2 norm of all values of all tensors together: float32, no dimension, on their device.
/// Errors: if the tensors lie on different devices.
pub fn norm(tensors: &[Tensor]) -> Result<Tensor> {
    let tensors = pointers(tensors);
    // SAFETY: an array of `tensors.len()` valid pointers; `out` is written on success.
    new_tensor(|out| unsafe { fnet_norm(tensors.as_ptr(), tensors.len(), out) })
}

/// The L2 norm of the parameters' gradients; parameters without one are skipped.
/// Errors: if the gradients lie on different devices.
pub fn grad_norm(parameters: &[Tensor]) -> Result<Tensor> {
    let parameters = pointers(parameters);
    // SAFETY: an array of `parameters.len()` valid pointers; `out` is written on success.
    new_tensor(|out| unsafe { fnet_grad_norm(parameters.as_ptr(), parameters.len(), out) })
}

/// Scales the parameters' gradients so that their norm is at most `max_norm`; returns the norm before, as
/// [`grad_norm`] does. The rule of `torch.nn.utils.clip_grad_norm_`.
/// Errors: if the gradients lie on different devices.
pub fn clip_norm(parameters: &[Tensor], max_norm: f64) -> Result<Tensor> {
    let parameters = pointers(parameters);
    // SAFETY: an array of `parameters.len()` valid pointers; `out` is written on success.
    new_tensor(|out| unsafe { fnet_clip_grad_norm(parameters.as_ptr(), parameters.len(), max_norm, out) })
}

/// Divides the parameters' gradients by the loss scale; returns 1 if one holds a value that is not finite, else 0: float32, no
/// dimension, on their device.
pub fn unscale(parameters: &[Tensor], scale: f64) -> Result<Tensor> {
    let parameters = pointers(parameters);
    // SAFETY: an array of `parameters.len()` valid pointers; `out` is written on success.
    new_tensor(|out| unsafe { fnet_unscale_gradients(parameters.as_ptr(), parameters.len(), scale.recip(), out) })
}

/// Drops the parameters' gradients, so that the next backward pass stores instead of adding.
pub fn clear_gradients(parameters: &[Tensor]) -> Result<()> {
    let parameters = pointers(parameters);
    // SAFETY: an array of `parameters.len()` valid pointers.
    check(unsafe { fnet_clear_gradients(parameters.as_ptr(), parameters.len()) })
}

/// Pointers to the tensors at some indices.
fn chosen(tensors: &[Tensor], members: &[usize]) -> Result<Vec<*mut C_tensor>> {
    let all = pointers(tensors);
    let one = |&index: &usize| {
        let message = || format!("an optimizer of {} parameters has no parameter {index}", all.len());
        all.get(index).copied().ok_or_else(|| Error::new(ErrorKind::Invalid, message()))
    };
    members.iter().map(one).collect()
}

fn zeros_like(parameters: &[Tensor]) -> Result<Vec<Tensor>> {
    parameters.iter().map(|parameter| Ok(parameter.f_zeros_like()?)).collect()
}

fn load(states: &mut [Tensor], index: usize, saved: &Tensor, name: &str) -> Result<()> {
    let count = states.len();
    let Some(state) = states.get_mut(index) else {
        let message = format!("optimizer state {name} for parameter {index}, of {count} parameters");
        return Err(Error::new(ErrorKind::Invalid, message));
    };
    if state.size() != saved.size() {
        let (found, expected) = (saved.size(), state.size());
        let message = format!("optimizer state {name} of parameter {index} has shape {found:?}, expected {expected:?}");
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    Ok(state.f_copy_(saved)?)
}

#[cfg(test)]
mod tests;
