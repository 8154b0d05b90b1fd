//! Jobs started by the real mpirun, with the library that scripts/mpi.sh builds.

use std::path::PathBuf;
use std::process::Command;

use crate::outputs::{losses, progress, tensors};
use crate::support::{Running, Scene, finish, signal, skip, until, worker_program};

/// A scene, if mpirun and the library exist. Otherwise the test is skipped.
fn scene() -> Option<Scene> {
    if mpirun_program().is_file() && worker_program().with_file_name("libfnet_mpi.so").is_file() {
        return Some(Scene::small());
    }
    skip("run `make mpi`");
    None
}

fn mpirun_program() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/mpirun")
}

/// `mpirun` with two ranks of the worker; `line` has the worker's arguments.
fn mpirun(scene: &Scene, line: &str) -> Command {
    let worker = worker_program();
    let line = format!("--allow-run-as-root --oversubscribe --bind-to none -n 2 {} {line}", worker.display());
    let mut command = scene.command(&mpirun_program(), &line);
    // A killed mpirun leaves its folder in TMPDIR behind.
    command.env("CUDA_VISIBLE_DEVICES", "").env("TMPDIR", scene.path(""));
    command
}

/// Starts a long job with mpirun and waits until it has done some steps.
fn start(scene: &Scene) -> Running {
    let command = mpirun(scene, "train cfg.toml --no-validate --set train.epochs=1000");
    let running = Running::start(command, scene.path("stderr.txt"));
    until("some steps are done", || losses(&scene.path("work_dirs/cfg")).len() > 2);
    running
}

#[test]
fn mpirun_starts_the_same_job() {
    let Some(scene) = scene() else { return };
    finish(mpirun(&scene, "train cfg.toml --work-dir by_mpirun")).expect(0, &["Saved by_mpirun/epoch_2.ckpt"]);
    scene.assert_nothing_left();
    scene.two("train cfg.toml --work-dir by_fnet");
    assert_eq!(losses(&scene.path("by_mpirun")), losses(&scene.path("by_fnet")));
    let [a, b] = ["by_mpirun", "by_fnet"].map(|name| tensors(&scene.path(name).join("latest.ckpt")));
    assert!(a == b, "the weights differ");
}

/// mpirun ends the other ranks, and names the one that was lost.
#[test]
fn a_killed_rank_ends_the_job() {
    let Some(scene) = scene() else { return };
    let running = start(&scene);
    signal(scene.process_with("OMPI_COMM_WORLD_RANK", 1), "KILL");
    let ended = running.wait();
    ended.expect(137, &["process rank 1", "signal 9"]);
    scene.assert_nothing_left();
}

/// slide2vec PR #131: the launcher is killed, but the workers continue.
#[test]
fn the_ranks_of_a_killed_mpirun_end() {
    let Some(scene) = scene() else { return };
    let running = start(&scene);
    running.signal("KILL");
    running.wait();
    scene.assert_nothing_left();
}

#[test]
fn a_signal_to_mpirun_saves_the_job_which_can_be_resumed() {
    let Some(scene) = scene() else { return };
    let running = start(&scene);
    running.signal("USR1");
    running.wait().expect(75, &["Saved work_dirs/cfg/"]);
    scene.assert_nothing_left();
    // To the end of the epoch, or of the next one.
    let done = progress(&scene.path("work_dirs/cfg/latest.ckpt"));
    let epochs = done / scene.steps(2) + 1;
    let line = format!("train cfg.toml --no-validate --resume --set train.epochs={epochs}");
    finish(mpirun(&scene, &line)).expect(0, &["resumed epoch "]);
    assert_eq!(losses(&scene.path("work_dirs/cfg")).len(), epochs * scene.steps(2));
}

// Without RANK in its environment, every rank assumed that it was rank 0.
#[test]
fn a_fault_is_injected_only_on_its_rank() {
    let Some(scene) = scene() else { return };
    let ended = finish(mpirun(&scene, "train cfg.toml --fault exit:rank=1,phase=data"));
    ended.expect(17, &["fault injection: exit:rank=1,phase=data"]);
    let ended =
        finish(mpirun(&scene, "train cfg.toml --work-dir b --no-validate --set train.epochs=1 --fault exit:rank=2"));
    ended.expect(0, &["Saved b/epoch_1.ckpt"]);
    scene.assert_nothing_left();
}

#[test]
fn a_config_error_ends_mpirun_with_its_exit_code() {
    let Some(scene) = scene() else { return };
    let ended = finish(mpirun(&scene, "train cfg.toml --set optimizer.lr=fast"));
    ended.expect(2, &["optimizer.lr"]);
    scene.assert_nothing_left();
}
