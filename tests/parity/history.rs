//! Stage "five steps": training continues as in MMDetection, as far as rounding allows.
//!
//! Rounding noise grows by orders of magnitude with every step, because one proposal that changes its rank changes the
//! samples of the box head. The distance to MMDetection is therefore compared with MMDetection's own noise: the
//! distance between runs with inputs perturbed by 1e-7 and 1e-6. Two runs of fnet that differ only in the number of
//! threads show the same growth.

use serde_json::Value;
use tch::Tensor;

use fnet_config as config;
use fnet_model::StepRandom;
use fnet_model::sample::First;
use fnet_train::Optimizer;

use super::fixtures::Fixtures;
use super::proposals;

/// Losses of each step, by name.
type History = Vec<Vec<(&'static str, f64)>>;

/// Trains on the fixtures' batch with `threads` threads.
fn train(fixtures: &Fixtures, steps: usize, rate: f64, threads: i32) -> History {
    tch::set_num_threads(threads);
    let (model, parameters) = fixtures.model();
    let batch = fixtures.batch();
    let trained: Vec<(String, Tensor)> =
        parameters.trainable().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())).collect();
    let mut optimizer = Optimizer::new(&config::Optimizer::default(), &trained, |_| false).unwrap();
    let step = |number| {
        let mut random = StepRandom::new(0, 0, number).with_choice(First);
        let losses = model.forward_train(&batch, &mut random).unwrap();
        losses.total().unwrap().backward();
        optimizer.step(rate).unwrap();
        trained.iter().for_each(|(_, tensor)| tensor.shallow_clone().zero_grad());
        losses.to_host().unwrap()
    };
    (0..steps as u64).map(step).collect()
}

/// Maximum relative difference of the values of one step.
fn apart(own: &[(&str, f64)], expected: impl Fn(&str) -> f64) -> f64 {
    let off = |&(name, value): &(&str, f64)| (value - expected(name)).abs() / expected(name).abs().max(1e-9);
    own.iter().map(off).fold(0.0, f64::max)
}

/// The minimum bounds of the second step and of later steps, because two proposals may change places at any time.
const LEAST: [f64; 2] = [0.02, 0.2];
/// The maximum bound.
const MOST: f64 = 0.5;

/// The bound of each step. The first step has no history and is exact if it starts from the same proposals. The other
/// bounds are MMDetection's own noise, the maximum so far, times a factor because there are few samples of it.
fn bounds(meta: &Value, steps: usize, same_proposals: bool) -> Vec<f64> {
    let runs = meta["stability_train_first_max_rel_logvar_diff_per_step"].as_object();
    let mut maximum = 0.0_f64;
    let mut bound = |step: usize| {
        if step == 0 {
            return if same_proposals { 1e-5 } else { LEAST[0] };
        }
        let stored = runs.into_iter().flatten().filter_map(|(_, run)| run[step].as_f64()).reduce(f64::max);
        maximum = maximum.max(10.0 * stored.unwrap_or(1.0));
        maximum.clamp(if step == 1 { LEAST[0] } else { LEAST[1] }, MOST)
    };
    (0..steps).map(&mut bound).collect()
}

#[test]
fn parity_five_steps() {
    let Some(fixtures) = Fixtures::open() else { return };
    let stored = fixtures.json("train_first");
    let expected = stored["five_steps_log_vars"].as_array().expect("train_first.json has five_steps_log_vars");
    let rate = stored["optimizer"]["lr"].as_f64().unwrap();
    let before = tch::get_num_threads();
    let [one, two] = [1, 2].map(|threads| train(&fixtures, expected.len(), rate, threads));
    tch::set_num_threads(before);
    let compare = fixtures.compare("five steps");
    let first = fixtures.tensors("train_first");
    let same_proposals = proposals::are_defined(&fixtures.model().0, &first, &fixtures.metas("img_metas"));
    for (step, bound) in bounds(&fixtures.meta, expected.len(), same_proposals).into_iter().enumerate() {
        let number = step + 1;
        let reference = |name: &str| expected[step][name].as_f64().unwrap();
        for own in [&one, &two] {
            let off = apart(&own[step], reference);
            compare.at_most(&format!("step {number}, values vs. MMDetection, relative"), off, bound);
        }
        let other = |name: &str| two[step].iter().find(|(known, _)| *known == name).unwrap().1;
        let off = apart(&one[step], other);
        compare.at_most(&format!("step {number}, values of 1 vs. 2 threads, relative"), off, bound);
    }
}
