//! Mistakes of users and the resulting messages.

use std::fs;

use crate::outputs::{files, floats, losses, tensors};
use crate::support::{Scene, finish, launcher, skip, until, worker_program};

const TRAIN: &str = "--device cpu --nproc 2 train cfg.toml";

#[test]
fn a_folder_with_checkpoints_is_not_overwritten() {
    let scene = Scene::small();
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
    // Both printed commands work.
    scene.launch("--device cpu --nproc 2 train --resume cfg.toml").expect(0, &[]);
    scene.launch("--device cpu --nproc 2 train --work-dir=work_dirs/cfg_2 cfg.toml").expect(0, &[]);
}

#[test]
fn two_jobs_cannot_use_one_folder() {
    let scene = Scene::small();
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
fn without_a_gpu_the_command_for_the_cpu_is_printed() {
    if fs::exists("/dev/nvidia0").unwrap() {
        return skip("this machine has a GPU");
    }
    let scene = Scene::small();
    let ended = scene.launch("--gpus 8 train cfg.toml");
    ended.expect(6, &["no GPU found for --gpus 8", "/dev/nvidia0", "\n  fnet-launch --device cpu --nproc "]);
    let line = ended.stderr.lines().find(|line| line.starts_with("  fnet-launch --device cpu")).unwrap();
    let arguments = line.trim().strip_prefix("fnet-launch ").unwrap();
    scene.launch(&format!("{arguments} --no-validate --set train.epochs=1")).expect(0, &[]);
}

#[test]
fn a_damaged_or_invalid_checkpoint_is_an_error_that_names_it() {
    let scene = Scene::with_detector(2, 2);
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
        .expect(3, &["epoch_1.ckpt", "do not match the model"]);
}

#[test]
fn a_loss_that_is_not_finite_stops_the_job_with_a_remedy() {
    let scene = Scene::small();
    let diverging = "optimizer.lr=1e38 schedule.warmup_iters=0 optimizer.kind=sgd";
    scene
        .launch(&format!("{TRAIN} --no-validate --set {diverging}"))
        .expect(2, &["not finite at epoch 1, step 2", "train.on_nan=skip"]);
}

#[test]
fn with_skip_a_step_that_is_not_finite_has_no_effect() {
    let scene = Scene::small();
    // After the first update, no later loss is finite.
    let ended = scene.two(
        "train cfg.toml --no-validate --set train.epochs=1 optimizer.lr=1e30 schedule.warmup_iters=0 train.on_nan=skip",
    );
    ended.expect(0, &["step 2 of epoch 1 did not update the weights", "not finite"]);
    let latest = tensors(&scene.path("work_dirs/cfg/latest.ckpt"));
    let updates: Vec<f32> =
        latest.iter().filter(|(name, _)| name.starts_with("optimizer.step.")).flat_map(|(_, t)| floats(t)).collect();
    assert!(!updates.is_empty() && updates.iter().all(|&count| count == 1.0), "{updates:?}");
    let statistics = latest.iter().filter(|(name, _)| name.contains(".running_"));
    let values: Vec<f32> = statistics.flat_map(|(_, bytes)| floats(bytes)).collect();
    assert!(!values.is_empty() && values.iter().all(|value| value.is_finite()));
}

#[test]
fn usage_errors_are_printed_plainly_before_anything_is_created() {
    let scene = Scene::new();
    let text = fs::read_to_string(scene.path("cfg.toml")).unwrap();
    fs::write(scene.path("field.toml"), text.replace("embed_dim", "embed_dims")).unwrap();
    fs::write(scene.path("type.toml"), text.replace("embed_dim = 8", "embed_dim = \"wide\"")).unwrap();
    fs::write(scene.path("syntax.toml"), text.replace("[model.neck]", "[model.neck")).unwrap();
    fs::write(scene.path("base.toml"), "base = \"none.toml\"\n").unwrap();
    fs::write(scene.path("python.toml"), "base = \"cfg.py\"\n").unwrap();
    fs::write(scene.path("cfg.py"), "model = dict(type='MaskRCNN')\n").unwrap();
    fs::write(scene.path("results.json"), "[{\"image_id\": 1}]").unwrap();
    fs::create_dir(scene.path("folder")).unwrap();
    for (line, code, words) in [
        ("train field.toml", 2, "fnet-launch: field.toml:5:"),
        ("train type.toml", 2, "fnet-launch: type.toml:5:"),
        ("train syntax.toml", 2, "fnet-launch: syntax.toml:"),
        ("train base.toml", 2, "fnet-launch: base \"none.toml\" of base.toml:1"),
        ("train python.toml", 2, "cfg.py: this is a Python file, not a config"),
        ("train missing.toml", 2, "fnet-launch: config missing.toml: no such file"),
        ("train folder", 2, "fnet-launch: config folder: this is a folder"),
        ("train cfg.toml --resume=none.ckpt", 3, "none.ckpt"),
        ("train cfg.py", 2, "fnet-launch: config cfg.py: this is a Python file"),
        ("train cfg.toml --set optimiser.lr=1", 2, "fnet-launch: --set optimiser.lr=1: unknown field"),
        ("train cfg.toml --set optimizer.lr=fast", 2, "fnet-launch: --set optimizer.lr=fast"),
        ("train cfg.toml --set runner.max_epochs=3", 2, "unknown field `runner.max_epochs`; use `train.epochs`"),
        ("test results.json", 3, "fnet-launch: checkpoint results.json: this is a JSON file, not a checkpoint"),
    ] {
        let ended = scene.launch(&format!("--device cpu --nproc 2 {line}"));
        ended.expect(code, &[words]);
        for noise in ["rank ", "last lines", "full log", "not restarted", "error:", "7306916042975116123"] {
            assert!(!ended.stderr.contains(noise), "{line}: {}", ended.stderr);
        }
        assert!(!scene.path("work_dirs").exists(), "{line}");
    }
    // Errors that only a worker can detect are printed in the same way: once, by the launcher.
    for (line, code, words) in [
        (
            "train cfg.toml --set data.train.ann_file=annotations/none.json",
            3,
            &["annotations/none.json", "data.train.ann_file", "No such file"][..],
        ),
        (
            "train cfg.toml --set data.val.ann_file=annotations/none.json",
            3,
            &["annotations/none.json", "data.val.ann_file"],
        ),
        ("train cfg.toml --set data.train.img_prefix=nowhere", 3, &["nowhere"]),
        (
            "train cfg.toml --set model.num_classes=5",
            3,
            &["instances_train.json: 8 classes", "model.num_classes is 5", "set model.num_classes to"],
        ),
        ("train cfg.toml --resume", 3, &["work_dirs/cfg has no checkpoint to resume from"]),
        ("train cfg.toml --set model.pretrained=results.json", 3, &["results.json: this is a JSON file"]),
        ("train cfg.toml --set model.backbone.partial_conv=slicing", 2, &["model.backbone.partial_conv"]),
    ] {
        let ended = scene.launch(&format!("--device cpu --nproc 2 {line}"));
        ended.expect(code, words);
        for noise in ["last lines", "full log", "after it", "not restarted", "error: "] {
            assert!(!ended.stderr.contains(noise), "{line}: {}", ended.stderr);
        }
        let mut logs = files(&scene.path("work_dirs/cfg/logs"), ".log").into_iter();
        assert!(logs.any(|log| fs::read_to_string(log).unwrap().contains("error: ")), "{line}: the log has it too");
        let mut alone = scene.command(&worker_program(), line);
        alone.env(fnet_protocol::env::DEVICE, "cpu");
        finish(alone).expect(code, words).expect(code, &["error: "]);
    }
}

#[test]
fn quiet_prints_only_results_and_errors() {
    let scene = Scene::small();
    let ended = scene.one("-q train cfg.toml --set train.epochs=1");
    assert_eq!(ended.stderr, "");
    let lines: Vec<&str> = ended.stdout.lines().collect();
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    for words in ["trained 1 epoch: bbox_mAP ", "segm_mAP ", "; work_dirs/cfg/latest.ckpt"] {
        assert!(line.contains(words), "{line}");
    }
    let ended = scene.one("-q test work_dirs/cfg/latest.ckpt");
    assert!(ended.stdout.contains("objects larger than 96x96") && ended.stderr.is_empty(), "{}", ended.stderr);
    let log = files(&scene.path("work_dirs/cfg"), ".log").remove(0);
    assert!(fs::read_to_string(log).unwrap().contains("Config:\n"), "the log has everything all the same");
    scene.launch("--device cpu --nproc 1 -q train cfg.toml").expect(2, &["contains checkpoints"]);
}
