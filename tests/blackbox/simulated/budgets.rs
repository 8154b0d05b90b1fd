//! How often a training step makes the host wait for the device, and how many operators it calls: exact budgets.

use std::fs;

use serde_json::Value;

use super::Gpus;
use crate::outputs::files;
use crate::support::Scene;

/// What a step may cost on one GPU. A wait that is not named here makes the test fail, and so does a lower count: then the
/// number here is lowered.
const OPERATORS: u64 = 477;
const WAITS: [(&str, u64); 5] = [
    ("aten::nonzero", 2),
    ("blocking download", 3),
    ("blocking upload", 4),
    ("torchvision::nms", 2),
    ("upload of more than 64 KiB from pageable memory", 1),
];

#[test]
fn a_training_step_keeps_to_its_budget() {
    let Some(gpus) = Gpus::of("a_training_step_keeps_to_its_budget", || Scene::with_pictures(16, 2)) else { return };
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
        let expected = WAITS.iter().map(|(name, count)| ((*name).to_owned(), Value::from(*count))).collect();
        assert_eq!(step["wait"], Value::Object(expected), "waits of a step");
    }
}

#[test]
fn the_hosts_work_is_measured_with_kernels_switched_off() {
    let Some(gpus) = Gpus::of("the_hosts_work_is_measured_with_kernels_switched_off", || Scene::of(1)) else { return };
    let line = "--gpus 1 benchmark train cfg.toml --batch 2 --shape 96 96 --iters 3 --json";
    gpus.launch(line, &[("FNET_SIM_NO_COMPUTE", "2")]).expect(0, &[]);
}
