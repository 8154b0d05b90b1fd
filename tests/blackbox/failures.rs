//! What people do wrong, and what they are told.

use std::fs;

use crate::outputs::{floats, losses, tensors};
use crate::support::{Scene, finish, launcher, until};

const TRAIN: &str = "--device cpu --nproc 2 train cfg.toml";

#[test]
fn a_folder_with_checkpoints_is_not_trained_into_again_without_being_told() {
    let scene = Scene::new();
    scene.two("train cfg.toml --no-validate --set train.epochs=1");
    let before = fs::read(scene.path("work_dirs/cfg/latest.ckpt")).unwrap();
    scene.launch(TRAIN).expect(
        2,
        &[
            "work_dirs/cfg/epoch_1.ckpt",
            "\n  fnet-launch --device cpu --nproc 2 train --resume cfg.toml\n",
            "\n  fnet-launch --device cpu --nproc 2 train --work-dir=work_dirs/cfg_2 cfg.toml\n",
        ],
    );
    assert_eq!(fs::read(scene.path("work_dirs/cfg/latest.ckpt")).unwrap(), before);
    // Both lines work as they are printed.
    scene.launch("--device cpu --nproc 2 train --resume cfg.toml").expect(0, &[]);
    scene.launch("--device cpu --nproc 2 train --work-dir=work_dirs/cfg_2 cfg.toml").expect(0, &[]);
}

#[test]
fn a_folder_is_not_trained_into_by_two_jobs_at_once() {
    let scene = Scene::new();
    let mut first = scene.start(&format!("{TRAIN} --no-validate --set train.epochs=2000 checkpoint.interval=2000"));
    let folder = scene.path("work_dirs/cfg");
    until("some steps are done", || losses(&folder).len() >= 2);
    let line = format!("{TRAIN} --no-validate --set train.epochs=1");
    finish(scene.command(&launcher(), &line)).expect(2, &["another job trains into work_dirs/cfg"]);
    let other = format!("{line} --work-dir elsewhere");
    finish(scene.command(&launcher(), &other)).expect(0, &[]);
    assert!(first.runs());
    first.signal("KILL");
    first.wait();
    scene.launch(&line).expect(0, &[]);
}

#[test]
fn without_a_gpu_the_line_to_run_on_the_cpu_is_printed() {
    if fs::exists("/dev/nvidia0").unwrap() {
        println!("SKIPPED without_a_gpu_the_line_to_run_on_the_cpu_is_printed: this machine has a GPU");
        return;
    }
    let scene = Scene::new();
    let ended = scene.launch("--gpus 8 train cfg.toml");
    ended.expect(6, &["no GPU found for --gpus 8", "/dev/nvidia0", "\n  fnet-launch --device cpu --nproc "]);
    let line = ended.stderr.lines().find(|line| line.starts_with("  fnet-launch --device cpu")).unwrap();
    let arguments = line.trim().strip_prefix("fnet-launch ").unwrap();
    scene.launch(&format!("{arguments} --no-validate --set train.epochs=1")).expect(0, &[]);
}

#[test]
fn an_unknown_field_is_refused_with_file_line_and_the_nearest_name() {
    let scene = Scene::new();
    let text = fs::read_to_string(scene.path("cfg.toml")).unwrap();
    fs::write(scene.path("cfg.toml"), text.replace("embed_dim", "embed_dims")).unwrap();
    scene
        .launch(TRAIN)
        .expect(2, &["cfg.toml:5:", "model.backbone.embed_dims", "did you mean `model.backbone.embed_dim`?"]);
    fs::write(scene.path("cfg.toml"), text).unwrap();
    scene.launch(&format!("{TRAIN} --set optimiser.lr=1")).expect(2, &["--set", "optimizer"]);
    scene.launch(&format!("{TRAIN} --set optimizer.lr=fast")).expect(2, &["optimizer.lr", "fast"]);
}

#[test]
fn a_missing_annotation_file_and_a_missing_folder_of_pictures_are_named() {
    let scene = Scene::new();
    scene
        .launch(&format!("{TRAIN} --set data.train.ann_file=annotations/none.json"))
        .expect(3, &["annotations/none.json", "data.train.ann_file", "No such file"]);
    scene
        .launch(&format!("{TRAIN} --set data.val.ann_file=annotations/none.json"))
        .expect(3, &["annotations/none.json", "data.val.ann_file"]);
    scene.launch(&format!("{TRAIN} --set data.train.img_prefix=nowhere")).expect(3, &["nowhere"]);
}

#[test]
fn a_wrong_number_of_classes_says_both_numbers_and_the_remedy() {
    let scene = Scene::new();
    scene
        .launch(&format!("{TRAIN} --set model.num_classes=5"))
        .expect(3, &["instances_train.json has 8 classes", "model.num_classes is 5", "set model.num_classes to 8"]);
}

#[test]
fn a_damaged_or_foreign_checkpoint_is_refused_by_name() {
    let scene = Scene::new();
    scene.one("train cfg.toml --no-validate --set train.epochs=1");
    let path = scene.path("work_dirs/cfg/epoch_1.ckpt");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(scene.path("damaged.ckpt"), &bytes).unwrap();
    fs::write(scene.path("short.ckpt"), &bytes[..middle]).unwrap();
    fs::write(scene.path("text.ckpt"), "no checkpoint").unwrap();
    for name in ["damaged.ckpt", "short.ckpt", "text.ckpt", "missing.ckpt"] {
        scene.launch(&format!("--device cpu --nproc 2 test {name}")).expect(3, &[name]);
    }
    scene
        .launch("--device cpu --nproc 1 train cfg.toml --resume --set model.neck.out_channels=8")
        .expect(3, &["epoch_1.ckpt", "another model"]);
}

#[test]
fn resume_without_a_checkpoint_says_so() {
    let scene = Scene::new();
    let ended = scene.launch(&format!("{TRAIN} --resume"));
    assert!([2, 3].contains(&ended.code), "{ended:?}");
    ended.expect(ended.code, &["work_dirs/cfg"]);
    scene.launch(&format!("{TRAIN} --resume=none.ckpt")).expect(3, &["none.ckpt"]);
}

#[test]
fn a_loss_that_is_not_finite_ends_the_job_with_its_name_and_the_remedy() {
    let scene = Scene::new();
    let diverging = "optimizer.lr=1e38 schedule.warmup_iters=0 optimizer.kind=sgd";
    scene
        .launch(&format!("{TRAIN} --no-validate --set {diverging}"))
        .expect(2, &["not finite at epoch 1, step 2", "train.on_nan=skip"]);
}

#[test]
fn with_skip_a_step_that_is_not_finite_leaves_no_trace() {
    let scene = Scene::new();
    // The first update throws the weights so far out that no later loss is finite.
    let ended = scene.two(
        "train cfg.toml --no-validate --set train.epochs=1 optimizer.lr=1e30 schedule.warmup_iters=0 train.on_nan=skip",
    );
    ended.expect(0, &["step 2 of epoch 1 left the weights as they were", "not finite"]);
    let latest = tensors(&scene.path("work_dirs/cfg/latest.ckpt"));
    let updates: Vec<f32> =
        latest.iter().filter(|(name, _)| name.starts_with("optimizer.step.")).flat_map(|(_, t)| floats(t)).collect();
    assert!(!updates.is_empty() && updates.iter().all(|&count| count == 1.0), "{updates:?}");
    let statistics = latest.iter().filter(|(name, _)| name.contains(".running_"));
    let values: Vec<f32> = statistics.flat_map(|(_, bytes)| floats(bytes)).collect();
    assert!(!values.is_empty() && values.iter().all(|value| value.is_finite()));
}
