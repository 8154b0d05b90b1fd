//! How often a training step makes the host wait for the device, and how many operators it calls: exact budgets.

use std::fs;

use serde_json::Value;

use super::Gpus;
use crate::outputs::files;
use crate::support::Scene;

/// Operators of a step on one GPU. A lower count makes the test fail too: then the number here is lowered.
const OPERATORS: u64 = 295;
/// The host waits for two downloads, by asking for their events: that of the proposals, among which it chooses, and that of
/// the losses, which decide whether the update is made. Nothing waits within CUDA.
const DOWNLOADS: u64 = 2;

#[test]
fn a_training_step_keeps_to_its_budget() {
    let Some(gpus) = Gpus::of("a_training_step_keeps_to_its_budget", || Scene::with_images(16, 2)) else { return };
    let report = gpus.path("report").display().to_string();
    let job = "--gpus 1 train cfg.toml --no-validate --set train.epochs=1 data.samples_per_gpu=2";
    gpus.launch(job, &[("FNET_SIM_REPORT", &report)]).expect(0, &[]);
    let [steps] = &files(&gpus.path(""), ".steps")[..] else { panic!("one report") };
    let steps: Vec<Value> =
        fs::read_to_string(steps).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // The first step makes what later ones keep; the last one holds the end of the job.
    let steps = &steps[1..steps.len() - 1];
    let most = steps.iter().max_by_key(|step| step["operators"].as_u64()).unwrap();
    assert_eq!(most["operators"], OPERATORS, "operators of a step: {most:#}");
    for step in steps {
        assert_eq!(step["wait"], Value::Object(serde_json::Map::new()), "waits of a step within CUDA");
        assert_eq!(step["other"]["downloads to pinned memory"], DOWNLOADS, "{step:#}");
    }
}

#[test]
fn the_hosts_work_is_measured_with_kernels_switched_off() {
    let Some(gpus) = Gpus::of("the_hosts_work_is_measured_with_kernels_switched_off", || Scene::of(1)) else { return };
    let line = "--gpus 1 benchmark train cfg.toml --batch 2 --shape 256 256 --iters 3 --json";
    gpus.launch(line, &[("FNET_SIM_NO_COMPUTE", "2")]).expect(0, &[]);
}
