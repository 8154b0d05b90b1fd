//! Stopped jobs and lost workers: resuming loses nothing and changes nothing.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use fnet_protocol::work_dir;

use crate::outputs::{differences, files, losses, of_mode, tensors};
use crate::support::{Ended, Files, Scene, signal, until};

/// All settings with randomness or state are on.
const JOB: &str = "train cfg.toml --set train.epochs=3 train.ema=0.9 optimizer.grad_clip=5.0 \
    model.backbone.drop_path_rate=0.2 data.pipeline.scales=[[96,64],[128,96]] schedule.steps=[1]";

/// The job that nothing disturbs, `whole`.
static WHOLE: LazyLock<Files> = LazyLock::new(|| {
    let scene = scene();
    scene.two(&format!("{JOB} --work-dir whole"));
    scene.files("whole")
});

/// A scene whose epochs are long enough to be interrupted.
fn scene() -> Scene {
    Scene::with_images(16, 4)
}

/// A scene with [`WHOLE`].
fn beside_whole() -> Scene {
    LazyLock::force(&WHOLE);
    let scene = scene();
    scene.put(&WHOLE);
    scene
}

/// Asserts that the job in `resumed` equals the undisturbed one in `whole`, bit for bit.
fn assert_equal(scene: &Scene, resumed: &str) {
    let (resumed, whole) = (scene.path(resumed), scene.path("whole"));
    let (a, b) = (losses(&resumed), losses(&whole));
    assert_eq!(a.len(), 3 * scene.steps(2));
    for (line, expected) in a.iter().zip(&b) {
        assert_eq!(line, expected);
    }
    let (a, b) = (tensors(&resumed.join("latest.ckpt")), tensors(&whole.join("latest.ckpt")));
    for kind in ["model.", "optimizer.exp_avg.", "optimizer.step.", "ema.", "rank1."] {
        assert!(a.keys().any(|name| name.starts_with(kind)), "no {kind}* in {:?}", a.keys());
    }
    assert_eq!(differences(&a, &b), Vec::<String>::new());
    let evaluated = |folder: &Path| {
        let mut lines = of_mode(folder, "val");
        lines.dedup();
        lines
    };
    assert_eq!(evaluated(&resumed), evaluated(&whole));
}

/// Starts the job, waits for `ready`, sends a signal, and returns the result.
fn stopped(scene: &Scene, folder: &str, name: &str, mut ready: impl FnMut(&Path) -> bool) -> Ended {
    let running = scene.start(&format!("--device cpu --nproc 2 {JOB} --work-dir {folder}"));
    let path = scene.path(folder);
    until("the job is far enough", || ready(&path));
    running.signal(name);
    let ended = running.wait();
    scene.assert_nothing_left();
    ended
}

/// [`stopped`] by SIGINT within an epoch. On a busy machine the signal may be late, so this retries.
fn interrupted_within_an_epoch(scene: &Scene) -> String {
    for attempt in 0..5 {
        let folder = format!("stopped{attempt}");
        stopped(scene, &folder, "INT", |path| losses(path).len() >= 3).expect(130, &[&format!("{folder}/iter_")]);
        if !files(&scene.path(&folder), ".ckpt").iter().any(|path| path.ends_with("epoch_1.ckpt")) {
            return folder;
        }
    }
    panic!("five jobs reached the end of the epoch before they were stopped");
}

#[test]
fn ctrl_c_within_an_epoch_and_resume_change_nothing() {
    let scene = beside_whole();
    let folder = interrupted_within_an_epoch(&scene);
    let done = losses(&scene.path(&folder)).len();
    assert!((3..scene.steps(2)).contains(&done), "{done}");
    assert!(scene.path(&folder).join(format!("iter_{done}.ckpt")).is_file());
    let ended = scene.two(&format!("{JOB} --work-dir {folder} --resume"));
    assert!(ended.stderr.contains(&format!("resumed epoch 0, iter {done} from")), "{}", ended.stderr);
    assert_equal(&scene, &folder);
}

#[test]
fn a_stop_at_the_end_of_an_epoch_and_resume_change_nothing() {
    let scene = beside_whole();
    // Stopped during the evaluation of the first epoch, or soon after.
    let ended = stopped(&scene, "stopped", "INT", |path| path.join("epoch_1.ckpt").is_file());
    ended.expect(130, &[]);
    scene.two(&format!("{JOB} --work-dir stopped --resume"));
    assert_equal(&scene, "stopped");

    // A job of one epoch, and another that resumes from its only checkpoint.
    scene.two(&format!("{JOB} train.epochs=1 --work-dir short"));
    scene.two(&format!("{JOB} --work-dir short --resume=short/epoch_1.ckpt"));
    assert_equal(&scene, "short");
}

#[test]
fn sigterm_saves_and_suggests_resume_to_workers_without_cuda() {
    let scene = Scene::new();
    let ended = stopped(&scene, "stopped", "TERM", |path| {
        let is_ready = losses(path).len() >= 3;
        if is_ready {
            // Loading it would take half a gigabyte and double the start-up time.
            let maps = fs::read_to_string(format!("/proc/{}/maps", scene.worker(0))).unwrap();
            assert!(maps.contains("libtorch_cpu.so") && !maps.contains("libtorch_cuda.so"), "{maps}");
        }
        is_ready
    });
    ended.expect(75, &["--resume"]);
    assert!(scene.path("stopped/latest.ckpt").is_file());
}

#[test]
fn sgd_resumes_with_and_without_momentum() {
    let scene = Scene::small();
    for momentum in ["0.9", "0.0"] {
        let job = format!("train cfg.toml --no-validate --set optimizer.kind=sgd optimizer.momentum={momentum}");
        let (whole, parts) = (format!("whole{momentum}"), format!("parts{momentum}"));
        scene.one(&format!("{job} --work-dir {whole}"));
        scene.one(&format!("{job} train.epochs=1 --work-dir {parts}"));
        scene.one(&format!("{job} --work-dir {parts} --resume"));
        let [a, b] = [&whole, &parts].map(|name| tensors(&scene.path(name).join("latest.ckpt")));
        assert_eq!(differences(&a, &b), Vec::<String>::new());
        let kept: Vec<&String> = a.keys().filter(|name| name.starts_with("optimizer.")).collect();
        assert!(!kept.is_empty() && kept.iter().all(|name| name.starts_with("optimizer.momentum_buffer.")), "{kept:?}");
    }
}

#[test]
fn resuming_a_finished_job_does_nothing_and_succeeds() {
    let scene = Scene::small();
    scene.two("train cfg.toml --no-validate");
    let before = tensors(&scene.path("work_dirs/cfg/latest.ckpt"));
    scene.two("train cfg.toml --no-validate --resume");
    assert_eq!(tensors(&scene.path("work_dirs/cfg/latest.ckpt")), before);
    assert_eq!(losses(&scene.path("work_dirs/cfg")).len(), 2 * scene.steps(2));
}

#[test]
fn a_killed_worker_ends_the_job_and_is_named() {
    let scene = Scene::new();
    let line = "--device cpu --nproc 2 --max-restarts 0 train cfg.toml --no-validate --set train.epochs=2000 \
        checkpoint.interval=2000";
    let running = scene.start(&format!("{line} --work-dir killed"));
    let folder = scene.path("killed");
    until("some steps are done", || losses(&folder).len() >= 5);
    let worker = scene.worker(1);
    // The state after a writer was killed between two system calls, or on a network drive.
    let half_written = [worker, 1].map(|process| {
        let prefix = work_dir::temporary_prefix("epoch_1.ckpt", &work_dir::Writer::of(process).unwrap());
        folder.join(format!("{prefix}a1b2c3{}", work_dir::TEMPORARY))
    });
    half_written.iter().for_each(|path| fs::write(path, "half").unwrap());
    let killed = Instant::now();
    signal(worker, "KILL");
    let ended = running.wait();
    let took = killed.elapsed();
    assert_eq!(half_written.map(|path| path.exists()), [false, true]);
    ended.expect(4, &["rank 1 failed: killed by SIGKILL", "logs/rank_1.log"]);
    assert!(took < Duration::from_secs(10), "{took:?}");
    scene.assert_nothing_left();
}

#[test]
fn after_a_killed_worker_the_job_restarts_from_the_newest_checkpoint_without_changes() {
    let scene = beside_whole();
    let running = scene.start(&format!("--device cpu --nproc 2 --max-restarts 1 {JOB} --work-dir killed"));
    let folder = scene.path("killed");
    until("the first epoch is saved", || folder.join("latest.ckpt").exists());
    signal(scene.worker(1), "KILL");
    let ended = running.wait();
    ended.expect(0, &["rank 1 failed: killed by SIGKILL", "epoch_1.ckpt"]);
    scene.assert_nothing_left();
    let [a, b] = ["killed", "whole"].map(|name| tensors(&scene.path(name).join("latest.ckpt")));
    assert_eq!(differences(&a, &b), Vec::<String>::new());
}

#[test]
fn an_interrupted_evaluation_ends_immediately() {
    let scene = Scene::with_detector(2, 8);
    let slow = "--device cpu --nproc 2 test work_dirs/cfg/latest.ckpt --set data.pipeline.test_scale=[3000,2400]";
    let running = scene.start(slow);
    let log = scene.path("work_dirs/cfg/logs/test/rank_1.log");
    until("the workers run", || log.exists());
    thread::sleep(Duration::from_millis(300));
    running.signal("INT");
    running.wait().expect(130, &[]);
    scene.assert_nothing_left();
}

#[test]
fn a_job_at_its_time_limit_saves_and_suggests_resume() {
    let scene = Scene::new();
    let ended = scene.launch("--device cpu --nproc 2 --time-limit 4s train cfg.toml --set train.epochs=1000");
    ended.expect(75, &["the time limit of 4s is reached (--time-limit)", "run again with --resume"]);
    assert!(scene.path("work_dirs/cfg/latest.ckpt").exists());
}

#[test]
fn auto_resume_starts_goes_on_and_refuses_to_replace_damaged_checkpoints() {
    let scene = Scene::small();
    scene.one("train cfg.toml --no-validate --work-dir first --set train.epochs=1");
    let job = "train cfg.toml --no-validate --auto-resume --load-from first/latest.ckpt --set train.epochs=";
    let started = scene.one(&format!("{job}1"));
    assert!(started.stderr.contains("first/") && !started.stderr.contains("resumed"), "{}", started.stderr);
    // What only the first start needs may be gone.
    fs::remove_dir_all(scene.path("first")).unwrap();
    let resumed = scene.one(&format!("{job}2"));
    assert!(resumed.stderr.contains("resumed epoch 1"), "{}", resumed.stderr);
    let planned = scene.launch(&format!("--device cpu --nproc 1 --dry-run {job}3 --json"));
    let planned: serde_json::Value = serde_json::from_str(&planned.expect(0, &[]).stdout).unwrap();
    assert_eq!(planned["training"]["epochs_done"], 2, "{planned}");

    for path in files(&scene.path("work_dirs/cfg"), ".ckpt") {
        fs::write(path, "damaged").unwrap();
    }
    scene.launch(&format!("--device cpu --nproc 1 {job}3")).expect(3, &["no checkpoint of work_dirs/cfg is intact"]);
}
