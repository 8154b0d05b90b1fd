//! How often a training step makes the host wait for the device, and how many operators it calls: exact budgets.

use std::fs;

use serde_json::{Value, json};

use super::Gpus;
use crate::outputs::files;
use crate::support::Scene;

// What the host waits for, and why it must. It asks for events again and again; nothing waits within CUDA.
/// The host chooses among the proposals: which boxes the heads look at follows from suppression and sampling, box after box.
const PROPOSALS: &str = "the best anchors";
/// Whether the update is made, and what the log says.
const LOSSES: &str = "the losses";
/// The log shows the norm, and a float16 update whose gradients overflow is left out; with both they come together.
const NORM_OR_OVERFLOW: &str = "the norm of the gradients, or whether they overflow";
/// An update behind an all-reduce that may be broken off would take what is left of it for gradients.
const REDUCED: &str = "the all-reduce of the gradients";

/// A step of a job, whose settings are the words of `job`.
struct Budget {
    job: &'static str,
    /// A lower count makes the test fail too: then the number here is lowered.
    operators: u64,
    waits: &'static [&'static str],
}

const BUDGETS: [Budget; 5] = [
    Budget { job: "--gpus 1", operators: 262, waits: &[PROPOSALS, LOSSES] },
    Budget { job: "--gpus 1 optimizer.grad_clip=5.0", operators: 270, waits: &[PROPOSALS, LOSSES, NORM_OR_OVERFLOW] },
    Budget { job: "--gpus 1 train.amp=fp16", operators: 431, waits: &[PROPOSALS, LOSSES, NORM_OR_OVERFLOW] },
    Budget {
        job: "--gpus 1 train.amp=fp16 optimizer.grad_clip=5.0",
        operators: 440,
        waits: &[PROPOSALS, LOSSES, NORM_OR_OVERFLOW],
    },
    Budget { job: "--gpus 2", operators: 263, waits: &[PROPOSALS, LOSSES, REDUCED] },
];

#[test]
fn a_training_step_keeps_to_its_budget() {
    let Some(gpus) = Gpus::of(|| Scene::with_images(32, 2)) else { return };
    let mut wrong = Vec::new();
    for (number, Budget { job, operators, waits }) in BUDGETS.iter().enumerate() {
        let (gpu_option, settings) = job.split_at("--gpus N".len());
        // A loss scale at which nothing overflows: a step without an update would be counted with the next one.
        let job = format!(
            "{gpu_option} train cfg.toml --no-validate --work-dir job{number} --set train.epochs=1 data.samples_per_gpu=2 \
             train.loss_scale=64{settings}"
        );
        let report = gpus.path(&format!("report{number}"));
        fs::create_dir(&report).unwrap();
        let report_of_rank = report.join("rank").display().to_string();
        gpus.launch(&job, &[("FNET_SIM_REPORT", &report_of_rank), ("FNET_SIM_WIDE_HALF", "1")]).expect(0, &[]);
        let ranks = files(&report, ".steps");
        assert_eq!(ranks.len(), if gpu_option.ends_with('2') { 2 } else { 1 });
        for rank in ranks {
            let lines = fs::read_to_string(rank).unwrap();
            let steps: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            // The first step makes what later ones keep; the last one holds the end of the job.
            let steps = &steps[1..steps.len() - 1];
            let most = steps.iter().max_by_key(|step| step["operators"].as_u64()).unwrap();
            if most["operators"] != *operators {
                wrong.push(format!("operators of a step of {job}: {operators} expected, {most:#}"));
            }
            if let Some(step) = steps.iter().find(|step| step["wait"] != json!({"polling": waits.len()})) {
                wrong.push(format!("waits of a step of {job}: {waits:?} expected, {:#}", step["wait"]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_hosts_work_is_measured_with_kernels_switched_off() {
    let Some(gpus) = Gpus::of(|| Scene::of(1)) else { return };
    let line = "--gpus 1 benchmark train cfg.toml --batch 2 --shape 256 256 --iters 3 --json";
    gpus.launch(line, &[("FNET_SIM_NO_COMPUTE", "2")]).expect(0, &[]);
}
