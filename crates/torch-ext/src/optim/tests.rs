use std::collections::HashMap;
use std::path::Path;

use tch::Device;

use super::*;
use crate::memory;

/// Five steps of PyTorch's optimizers; see tests/fixtures/make_optim.py.
fn fixture() -> HashMap<String, Tensor> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/optim.npz");
    Tensor::read_npz(file).unwrap().into_iter().collect()
}

fn parameters(f: &HashMap<String, Tensor>) -> Vec<Tensor> {
    let parameters: Vec<_> = (0..3).map(|i| f[&format!("start{i}")].copy().set_requires_grad(true)).collect();
    memory::make_channels_last(&parameters[0]).unwrap();
    parameters
}

fn set_gradients(f: &HashMap<String, Tensor>, parameters: &[Tensor], step: usize) {
    clear_gradients(parameters).unwrap();
    for (i, parameter) in parameters.iter().enumerate() {
        if (step, i) != (2, 2) {
            (parameter * &f[&format!("grad{step}_{i}")]).sum(Kind::Float).backward();
        }
    }
}

fn assert_close(f: &HashMap<String, Tensor>, name: &str, parameters: &[Tensor]) {
    for (i, parameter) in parameters.iter().enumerate() {
        let expected = &f[&format!("{name}{i}")];
        let difference = f64::try_from((parameter - expected).abs().max()).unwrap();
        assert!(difference < 5e-7, "{name}{i} differs by {difference}");
    }
}

const ADAMW: AdamWOptions = AdamWOptions { betas: (0.9, 0.99), eps: 1e-8, weight_decay: 0.05 };

#[test]
fn adamw_equals_pytorchs_and_skips_parameters_without_gradient() {
    let f = fixture();
    let parameters = parameters(&f);
    let mut optimizer = AdamW::new(&parameters, ADAMW).unwrap();
    for step in 0..5 {
        set_gradients(&f, &parameters, step);
        optimizer.step(0.01 / (step + 1) as f64).unwrap();
    }
    assert_close(&f, "adamw", &parameters);
    assert_eq!(f64::try_from(optimizer.state(0).unwrap().step).unwrap(), 5.0);
    assert_eq!(f64::try_from(optimizer.state(2).unwrap().step).unwrap(), 4.0);
    assert!(memory::is_channels_last(optimizer.state(0).unwrap().exp_avg).unwrap());
}

#[test]
fn sgd_equals_pytorchs_with_both_kinds_of_momentum() {
    let f = fixture();
    for (name, nesterov, weight_decay) in [("sgd", false, 1e-2), ("nesterov", true, 0.0)] {
        let parameters = parameters(&f);
        let mut optimizer = Sgd::new(&parameters, SgdOptions { momentum: 0.9, weight_decay, nesterov }).unwrap();
        for step in 0..5 {
            set_gradients(&f, &parameters, step);
            optimizer.step(0.01 / (step + 1) as f64).unwrap();
        }
        assert_close(&f, name, &parameters);
    }
}

#[test]
fn a_loaded_state_goes_on_to_the_same_bits() {
    let f = fixture();
    let first = parameters(&f);
    let mut whole = AdamW::new(&first, ADAMW).unwrap();
    for step in 0..2 {
        set_gradients(&f, &first, step);
        whole.step(0.01).unwrap();
    }
    let second: Vec<_> = first.iter().map(|p| p.detach().contiguous().copy().set_requires_grad(true)).collect();
    let mut resumed = AdamW::new(&second, ADAMW).unwrap();
    for i in 0..3 {
        let saved = whole.state(i).unwrap();
        let exp_avg = saved.exp_avg.contiguous();
        resumed.load_state(i, &AdamWState { exp_avg: &exp_avg, ..saved }).unwrap();
    }
    for (optimizer, parameters) in [(&mut whole, &first), (&mut resumed, &second)] {
        set_gradients(&f, parameters, 3);
        optimizer.step(0.01).unwrap();
    }
    assert_eq!(first, second);
}

/// PyTorch's parameter groups: each as an optimizer of its own.
#[test]
fn groups_step_as_optimizers_of_their_own() {
    let f = fixture();
    let (together, alone) = (parameters(&f), parameters(&f));
    let decayed = AdamWOptions { weight_decay: 0.0, ..ADAMW };
    let mut groups = AdamW::new(&together, ADAMW).unwrap();
    let mut first = AdamW::new(&alone[..1], ADAMW).unwrap();
    let mut rest = AdamW::new(&alone[1..], decayed).unwrap();
    let sgd = SgdOptions { momentum: 0.9, weight_decay: 0.1, nesterov: false };
    for step in 0..3 {
        for parameters in [&together, &alone] {
            set_gradients(&f, parameters, step);
        }
        groups.step_group(&[0], 0.01, 0.05).unwrap();
        groups.step_group(&[1, 2], 0.003, 0.0).unwrap();
        first.step(0.01).unwrap();
        rest.step(0.003).unwrap();
    }
    assert_eq!(together, alone);
    assert!(groups.step_group(&[3], 0.1, 0.0).unwrap_err().message().contains("no parameter 3"));

    let (together, alone) = (parameters(&f), parameters(&f));
    let mut groups = Sgd::new(&together, sgd).unwrap();
    let mut rest = Sgd::new(&alone[1..], SgdOptions { weight_decay: 0.0, ..sgd }).unwrap();
    for parameters in [&together, &alone] {
        set_gradients(&f, parameters, 0);
    }
    groups.step_group(&[1, 2], 0.003, 0.0).unwrap();
    rest.step(0.003).unwrap();
    assert_eq!(together, alone);
}

#[test]
fn a_state_of_another_shape_is_refused_by_name() {
    let f = fixture();
    let parameters = parameters(&f);
    let mut optimizer =
        Sgd::new(&parameters, SgdOptions { momentum: 0.9, weight_decay: 0.0, nesterov: false }).unwrap();
    let error = optimizer.load_momentum_buffer(1, &f["start2"]).unwrap_err();
    assert_eq!(error.message(), "optimizer state momentum_buffer of parameter 1 has shape [5, 7], expected [8]");
    assert!(optimizer.load_momentum_buffer(3, &f["start2"]).is_err());
}

#[test]
fn clipping_scales_the_whole_gradient_and_returns_the_norm_before() {
    let p = [3.0f32, 4.0].map(|value| Tensor::from_slice(&[value]).set_requires_grad(true));
    let bystander = Tensor::zeros([2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    ((&p[0] * &p[0] + &p[1] * &p[1]) / 2.0).sum(Kind::Float).backward();
    let all = [p[0].shallow_clone(), bystander, p[1].shallow_clone()];
    assert_eq!(f64::try_from(norm(&p).unwrap()).unwrap(), 5.0);
    assert_eq!(f64::try_from(clip_norm(&all, 10.0).unwrap()).unwrap(), 5.0);
    assert_eq!(f64::try_from(grad_norm(&all).unwrap()).unwrap(), 5.0);
    assert_eq!(f64::try_from(clip_norm(&all, 1.0).unwrap()).unwrap(), 5.0);
    assert!((f64::try_from(grad_norm(&all).unwrap()).unwrap() - 1.0).abs() < 1e-5);
}

#[test]
fn unscaling_tells_of_values_that_are_not_finite() {
    let p = Tensor::from_slice(&[1.0f32, 2.0]).set_requires_grad(true);
    (&p * 1024.0).sum(Kind::Float).backward();
    let overflow = |parameters: &[Tensor]| f64::try_from(unscale(parameters, 1024.0).unwrap()).unwrap();
    assert_eq!(overflow(&[p.shallow_clone()]), 0.0);
    assert_eq!(p.grad(), Tensor::from_slice(&[1.0f32, 1.0]));
    (&p * f64::INFINITY).sum(Kind::Float).backward();
    assert_eq!(overflow(&[p.shallow_clone()]), 1.0);
    assert_eq!(overflow(&[]), 0.0);
}
