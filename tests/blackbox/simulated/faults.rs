//! What a GPU, its driver or NCCL does wrong, and what becomes of the job.

use super::Gpus;
use crate::outputs::{losses, progress};
use crate::support::Scene;

const JOB: &str = "--max-restarts 0 train cfg.toml --no-validate --set train.epochs=2";

fn small() -> Option<Gpus> {
    Gpus::of(|| Scene::with_images(16, 4))
}

/// The state after the last step that was logged is saved.
fn assert_no_step_lost(gpus: &Gpus, folder: &str) {
    let logged = losses(&gpus.path(folder)).len();
    let saved = progress(&gpus.path(folder).join("latest.ckpt"));
    assert!(saved >= logged && saved > 0, "{saved} steps saved, {logged} logged");
}

#[test]
fn memory_that_runs_out_is_told_with_the_remedy() {
    let Some(gpus) = small() else { return };
    let ended = gpus.launch(&format!("--gpus 2 {JOB} --work-dir full"), &[("FNET_SIM_FAULT", "oom@3000/1")]);
    ended.expect(4, &["rank 1 failed", "The GPU is out of memory: lower data.samples_per_gpu"]);
    assert_no_step_lost(&gpus, "full");
    // A smaller card beside a larger one.
    let ended = gpus.launch(&format!("--gpus 2 {JOB} --work-dir small"), &[("FNET_SIM_GPU_MIB", "16384,2")]);
    ended.expect(4, &["rank 1 failed", "The GPU is out of memory: lower data.samples_per_gpu"]);
}

#[test]
fn convolutions_without_an_engine_mean_that_memory_is_full() {
    let Some(gpus) = small() else { return };
    let ended = gpus.launch(&format!("--gpus 2 {JOB} --work-dir full"), &[("FNET_SIM_FAULT", "no-engine@200/1")]);
    ended.expect(4, &["rank 1 failed", "The GPU is out of memory: lower data.samples_per_gpu"]);
    assert_no_step_lost(&gpus, "full");
}

#[test]
fn a_broken_device_is_a_fault_of_the_machine() {
    let Some(gpus) = small() else { return };
    let ended = gpus.launch(&format!("--gpus 2 {JOB} --work-dir ecc"), &[("FNET_SIM_FAULT", "ecc@4000/1")]);
    ended.expect(6, &["rank 1 failed", "ECC"]);
    assert_no_step_lost(&gpus, "ecc");
}

#[test]
fn a_peer_that_falls_silent_is_found_and_named() {
    let Some(gpus) = small() else { return };
    // Some 130 collectives bring weights to all ranks, then there are two in each step.
    let settings = [("FNET_SIM_NCCL", "silent@140/1")];
    let ended = gpus.launch(&format!("--gpus 2 --step-timeout 8 {JOB} --work-dir silent"), &settings);
    assert!(matches!(ended.code, 4 | 5), "{}: {}", ended.code, ended.stderr);
}

#[test]
fn an_abort_that_never_returns_costs_no_step() {
    let Some(gpus) = small() else { return };
    for mode in ["abort-hangs", "abort-slow", "abort-frees"] {
        let line = format!("--gpus 4 {JOB} --work-dir {mode} --fault kill:rank=1,phase=backward,step=4");
        let ended = gpus.launch(&line, &[("FNET_SIM_NCCL", mode)]);
        ended.expect(4, &["rank 1 failed", "SIGKILL", "no completed step is lost"]);
        assert_eq!(progress(&gpus.path(mode).join("latest.ckpt")), 3, "{mode}");
    }
}
