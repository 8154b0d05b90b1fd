//! A rank of a job on GPUs is lost while collectives run that never end, and whose abort never returns.

use std::fs;

use super::Gpus;
use crate::outputs::{differences, files, losses, progress, tensors, without_ranks};
use crate::support::Scene;

const JOB: &str = "train cfg.toml --set train.epochs=2 train.ema=0.9 optimizer.grad_clip=5.0";
const HANGS: (&str, &str) = ("FNET_SIM_NCCL", "abort-hangs");

fn small() -> Option<Gpus> {
    Gpus::of(|| Scene::with_images(16, 4))
}

/// The state that a survivor saves is that of an undisturbed job at the same step, to the last bit: weights, moments, average,
/// rank 0's statistics, and the losses so far. It does not matter what the survivor was doing.
#[test]
fn what_a_survivor_saves_beside_hung_collectives_is_the_state_after_the_last_update() {
    let Some(gpus) = small() else { return };
    // Values with a space, which `--set` cannot take here.
    let policy = "[checkpoint]\ninterval = \"1 steps\"\nkeep_last = 100\n";
    fs::write(gpus.path("steps.toml"), fs::read_to_string(gpus.path("cfg.toml")).unwrap() + policy).unwrap();
    let whole = JOB.replace("cfg.toml", "steps.toml");
    gpus.launch(&format!("--gpus 2 {whole} --work-dir whole"), &[]).expect(0, &[]);
    let steps = losses(&gpus.path("whole"));
    for (rank, phase, at, saved) in [
        (0, "forward", 4, 3),
        (1, "backward", 4, 3),
        (0, "all_reduce", 4, 3),
        (1, "optimizer", 4, 4),
        (1, "evaluation", 0, steps.len() / 2),
    ] {
        let folder = format!("{phase}{rank}");
        let step = if at > 0 { format!(",step={at}") } else { String::new() };
        let fault = format!("--fault kill:rank={rank},phase={phase}{step}");
        let ended = gpus.launch(&format!("--gpus 2 --max-restarts 0 {JOB} --work-dir {folder} {fault}"), &[HANGS]);
        ended.expect(4, &[&format!("rank {rank} failed"), "SIGKILL"]);
        let latest = gpus.path(&folder).join("latest.ckpt");
        assert_eq!(progress(&latest), saved, "{folder}: {}", ended.stderr);
        let found = without_ranks(&latest);
        let same = files(&gpus.path("whole"), ".ckpt").into_iter().find(|path| progress(path) == saved).unwrap();
        let expected = without_ranks(&same);
        assert_eq!(differences(&found, &expected), Vec::<String>::new(), "{folder}");
    }
}

/// The sums of synchronised BatchNorm stand before what the forward pass waits for.
#[test]
fn a_survivor_comes_back_from_a_forward_pass_behind_sums_of_statistics() {
    let Some(gpus) = small() else { return };
    let fault = "--set model.sync_bn=true --fault kill:rank=1,phase=forward,step=4";
    let ended = gpus.launch(&format!("--gpus 2 --max-restarts 0 {JOB} --work-dir sums {fault}"), &[HANGS]);
    ended.expect(4, &["rank 1 failed", "SIGKILL", "no completed step is lost"]);
    assert_eq!(progress(&gpus.path("sums/latest.ckpt")), 3);
}

#[test]
fn an_error_that_nccl_finds_by_itself_is_told_with_the_operation_and_costs_no_step() {
    let Some(gpus) = small() else { return };
    let count = collectives_of_a_start(&gpus);
    let settings = [("FNET_SIM_NCCL", &*format!("error@{}/1,abort-hangs", count + 6))];
    let ended = gpus.launch(&format!("--gpus 2 --max-restarts 0 {JOB} --no-validate --work-dir error"), &settings);
    ended.expect(4, &["rank 1 failed", "NCCL reports an error", "all-reduce", "no completed step is lost"]);
    let saved = progress(&gpus.path("error/latest.ckpt"));
    assert!(saved > 0 && saved >= losses(&gpus.path("error")).len(), "{saved} steps saved");
}

/// A rank whose GPU takes no part: all ranks wait, and their state is saved all the same.
#[test]
fn ranks_that_wait_for_a_silent_gpu_save_the_last_step() {
    let Some(gpus) = small() else { return };
    let count = collectives_of_a_start(&gpus);
    let settings = [("FNET_SIM_NCCL", &*format!("silent@{}/1,abort-hangs", count + 6))];
    let line = format!("--gpus 2 --max-restarts 0 --step-timeout 5 {JOB} --no-validate --work-dir silent");
    gpus.launch(&line, &settings).expect(5, &["all-reduce of the gradients", "no completed step is lost"]);
    assert!(progress(&gpus.path("silent/latest.ckpt")) > 0);
}

/// Collectives on the GPU that a job begins with: every parameter and buffer of rank 0.
fn collectives_of_a_start(gpus: &Gpus) -> usize {
    gpus.launch(&format!("--gpus 1 {JOB} --no-validate --work-dir count --fault term:rank=0,phase=data,step=1"), &[])
        .expect(75, &[]);
    let names = tensors(&gpus.path("count/latest.ckpt"));
    names.keys().filter(|name| name.starts_with("model.")).count()
}
