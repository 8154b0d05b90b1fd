//! Drivers and cards of all kinds: what the launcher finds, and what it says where a job cannot run.

use std::time::{Duration, Instant};

use super::Gpus;
use crate::outputs::{differences, tensors};
use crate::processes::free_port;
use crate::support::{Scene, python_tool};

fn idle() -> Option<Gpus> {
    Gpus::of(|| Scene::of(1))
}

const TRAIN: &str = "train cfg.toml --no-validate --set train.epochs=1";

#[test]
fn a_driver_that_cannot_run_the_job_is_named() {
    let Some(gpus) = idle() else { return };
    let on = |driver| gpus.launch(&format!("--gpus 2 --max-restarts 0 {TRAIN}"), &[("FNET_SIM_DRIVER", driver)]);
    on("old").expect(6, &["driver is too old", "CUDA 12.4"]);
    on("none").expect(6, &["no GPU found"]);
    let started = Instant::now();
    on("hang").expect(6, &["driver hangs"]);
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

#[test]
fn a_card_that_the_wheel_has_no_kernels_for_is_named() {
    let Some(gpus) = idle() else { return };
    let ended = gpus.launch(&format!("--gpus 2 --max-restarts 0 {TRAIN}"), &[("FNET_SIM_CAPABILITY", "9.0,7.0")]);
    ended.expect(6, &["compute capability is 7.0"]);
}

#[test]
fn cards_are_chosen_by_index_uuid_and_order() {
    let Some(gpus) = idle() else { return };
    for (visible, texts) in [("3,1", ["cuda 3", "cuda 1"]), ("GPU-a2b2c202,0", ["cuda GPU-a2b2c202", "cuda 0"])] {
        let line = format!("--gpus 2 --dry-run {TRAIN}");
        let ended = gpus.launch(&line, &[("CUDA_VISIBLE_DEVICES", visible)]);
        let told = ended.stdout.clone() + &ended.stderr;
        assert!(ended.code == 0 && texts.iter().all(|text| told.contains(text)), "{visible}: {told}");
    }
}

#[test]
fn a_job_runs_on_chosen_cards_without_nvml() {
    let Some(gpus) = Gpus::of(|| Scene::with_images(4, 2)) else { return };
    let settings = [("CUDA_VISIBLE_DEVICES", "GPU-a3b3c303,1"), ("FNET_SIM_DRIVER", "no-nvml")];
    gpus.launch(&format!("--gpus 2 {TRAIN}"), &settings).expect(0, &[]);
}

/// A process sees one slice of a card at most, and an exclusive card takes one process.
#[test]
fn slices_and_exclusive_cards_are_told() {
    let Some(gpus) = Gpus::of(|| Scene::with_images(4, 2)) else { return };
    let slices = [("FNET_SIM_MIG", "1"), ("CUDA_VISIBLE_DEVICES", "MIG-a0b0c000,MIG-a1b1c101")];
    gpus.launch(&format!("--gpus 2 {TRAIN} --work-dir slices"), &slices).expect(0, &[]);
    let of_one_card = [("FNET_SIM_MIG", "2"), slices[1]];
    let ended = gpus.launch(&format!("--gpus 2 {TRAIN} --work-dir card"), &of_one_card);
    ended.expect(6, &["MIG-a0b0c000 and MIG-a1b1c101 are MIG slices of one GPU", "To run on one slice"]);
    // What the launcher does not see NCCL refuses.
    let ended =
        gpus.launch(&format!("--gpus 2 --max-restarts 0 {TRAIN} --work-dir twice"), &[("CUDA_VISIBLE_DEVICES", "0,0")]);
    ended.expect(6, &["Duplicate GPU detected", "CUDA_VISIBLE_DEVICES names each GPU once"]);
    let twice = [("FNET_SIM_EXCLUSIVE", "1"), ("CUDA_VISIBLE_DEVICES", "0,0")];
    let ended = gpus.launch(&format!("--gpus 2 --max-restarts 0 {TRAIN} --work-dir exclusive"), &twice);
    assert!(ended.code != 0 && ended.stderr.contains("busy or unavailable"), "{}: {}", ended.code, ended.stderr);
}

/// torchrun leaves all cards visible to each rank, and fnet-launch one.
#[test]
fn ranks_that_see_all_cards_use_their_own() {
    let Some(torchrun) = python_tool("torchrun") else { return };
    let Some(gpus) = Gpus::of(|| Scene::with_images(4, 2)) else { return };
    let worker = gpus.program("fnet-worker");
    let port = free_port();
    let line = format!("--no-python --nproc-per-node 2 --master-port {port} {} {TRAIN}", worker.display());
    gpus.run(&torchrun, &format!("{line} --work-dir all"), &[("FNET_DEVICE", "cuda")]).expect(0, &[]);
    gpus.launch(&format!("--gpus 2 {TRAIN} --work-dir one"), &[]).expect(0, &[]);
    let [all, one] = ["all", "one"].map(|name| tensors(&gpus.path(name).join("latest.ckpt")));
    assert_eq!(differences(&all, &one), Vec::<String>::new());
}
