//! What the main job does on a machine with GPUs is what it does on CPU workers.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::Gpus;
use crate::outputs::{assert_same_metrics, differences, files, floats, losses, object, progress, series, tensors};
use crate::support::{Scene, until};

/// Everything with a state of its own is on, and as much as fits into one job.
const EVERYTHING: &str = "train cfg.toml --set train.epochs=2 train.ema=0.9 train.accumulate=2 optimizer.grad_clip=5.0 \
    model.sync_bn=true model.backbone.drop_path_rate=0.2 data.samples_per_gpu=2 \
    data.pipeline.scales=[[96,64],[128,96]] schedule.steps=[1] checkpoint.interval=2";

/// The largest distance between the values of a number in two logs, of the first `steps` steps.
fn distance(a: &Path, b: &Path, name: &str, steps: usize) -> f64 {
    let (a, b) = (series(a, name), series(b, name));
    assert!(a.len() >= steps && b.len() >= steps, "{} and {} steps", a.len(), b.len());
    a.iter().zip(&b).take(steps).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
}

/// Losses are logged with five digits. Two kernels differ in the order of their additions: RoIAlign, where torchvision's
/// adds sample by sample and the CPU's by separate axes, and BatchNorm, where libtorch's stands for CUDA's. One unit of the
/// last place grows in some 20 steps to about 1e-6 of a weight under SGD (AdamW makes whole steps of the rounding of gradients
/// that are zero, as those of biases before BatchNorm); all proposals enter the losses, since a choice among them
/// would turn a difference of the last place into one of a whole box.
#[test]
fn two_gpus_train_as_two_cpu_workers_do() {
    let Some(gpus) = Gpus::of(Scene::new) else { return };
    let job = "--max-restarts 0 train cfg.toml --set train.epochs=1 \
        model.roi_head.sampler.count=4096 optimizer.kind=sgd optimizer.lr=2e-4";
    gpus.launch(&format!("--gpus 2 {job} --work-dir gpu"), &[]).expect(0, &["2 workers (cuda)"]);
    gpus.launch(&format!("--device cpu --nproc 2 {job} --work-dir cpu"), &[]).expect(0, &[]);
    let (gpu, cpu) = (gpus.path("gpu"), gpus.path("cpu"));
    for name in ["loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask", "loss"] {
        let found = distance(&gpu, &cpu, name, gpus.scene.steps(2));
        assert!(found <= 2e-5, "{name} differs by {found}");
    }
    let (a, b) = (tensors(&gpu.join("latest.ckpt")), tensors(&cpu.join("latest.ckpt")));
    assert!(a.keys().eq(b.keys()));
    let weights: Vec<_> = a.keys().filter(|name| name.starts_with("model.") && a[*name].len() % 4 == 0).collect();
    assert!(weights.len() > 50, "{weights:?}");
    for name in weights {
        let (x, y) = (floats(&a[name]), floats(&b[name]));
        let sum: f32 = x.iter().zip(&y).map(|(x, y)| (x - y).abs()).sum();
        assert!(sum <= 1e-5 * x.len() as f32, "{name} differs by {} on average", sum / x.len() as f32);
    }
    // The evaluation of a checkpoint gives what training measured, with another number of GPUs too.
    let measured = gpu.join("results/epoch_1.metrics.json");
    gpus.launch("--gpus 4 test gpu/latest.ckpt --metrics four.json", &[]).expect(0, &[]);
    assert_same_metrics(&measured, &gpus.path("four.json"));
    assert!(object(&measured).contains_key("bbox_mAP"));
}

/// One step and the detections of the same weights, of the smallest model and of FasterNet-T0. What differs are the kernels of
/// the test above; and where a box that differs in its last place is cut out of an object's mask, a pixel of it may change
/// sides. So losses agree to 3e-4, the whole gradient to 2e-3 of its length, and all but a few detections to a hundredth of a
/// pixel.
#[test]
fn a_step_and_the_detections_of_a_gpu_are_those_of_the_cpu() {
    let Some(gpus) = Gpus::of(|| Scene::with_images(2, 2)) else { return };
    let smallest = fs::read_to_string(gpus.path("cfg.toml")).unwrap();
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let base = configs.join("mask_rcnn_fasternet_t0_fpn_1x_coco.toml");
    let data = &smallest[smallest.find("[data]").unwrap()..];
    fs::write(gpus.path("t0.toml"), format!("base = [{base:?}]\n[model]\nnum_classes = 8\n{data}")).unwrap();
    for config in ["cfg", "t0"] {
        let all = "model.rpn.max_per_image=20000 model.roi_head.score_threshold=0";
        for (device, workers) in [("gpu", "--gpus 1"), ("cpu", "--device cpu --nproc 1")] {
            let folder = format!("{config}_{device}");
            let step = "train.epochs=1 data.samples_per_gpu=2 optimizer.kind=sgd optimizer.weight_decay=0 \
                model.roi_head.sampler.count=4096 model.rpn.train_nms_pre=20000";
            let train = format!("{workers} train {config}.toml --no-validate --work-dir {folder} --set {step} {all}");
            gpus.launch(&train, &[]).expect(0, &[]);
            let weights = format!("{config}_gpu/latest.ckpt");
            let test = format!("{workers} test {weights} --out {folder}.json --set model.rpn.nms_pre=20000 {all}");
            gpus.launch(&test, &[]).expect(0, &[]);
        }
        let [gpu, cpu] = ["gpu", "cpu"].map(|device| gpus.path(&format!("{config}_{device}")));
        for name in ["loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask", "loss"] {
            let (found, expected) = (series(&gpu, name)[0], series(&cpu, name)[0]);
            assert!((found - expected).abs() <= 3e-4 * expected, "{config}: {name} is {found} for {expected}");
        }
        let [found, expected] = [&gpu, &cpu].map(|folder| tensors(&folder.join("latest.ckpt")));
        let (mut difference, mut length) = (0.0, 0.0);
        // After one step the momentum is the gradient.
        for (name, gradient) in expected.iter().filter(|(name, _)| name.contains("momentum_buffer")) {
            for (x, y) in floats(&found[name]).into_iter().zip(floats(gradient)) {
                difference += f64::from(x - y).powi(2);
                length += f64::from(y).powi(2);
            }
        }
        assert!(length > 0.0 && difference.sqrt() <= 2e-3 * length.sqrt(), "{config}: {difference:e} of {length:e}");
        let [found, expected] =
            ["gpu", "cpu"].map(|device| detections(&gpus.path(&format!("{config}_{device}.bbox.json"))));
        assert!(found.len() == expected.len() && expected.len() > 100, "{} and {}", found.len(), expected.len());
        let is_near =
            |a: &Detection, b: &Detection| a.0 == b.0 && a.1.iter().zip(b.1).all(|(x, y)| (x - y).abs() <= 0.01);
        let missing = expected.iter().filter(|one| !found.iter().any(|other| is_near(other, one))).count();
        assert!(missing <= expected.len() / 50, "{config}: {missing} of {} detections are missing", expected.len());
    }
}

/// Image and class; box and score in hundredths, so that one bound fits both.
type Detection = ([i64; 2], [f64; 5]);

fn detections(file: &Path) -> Vec<Detection> {
    let found: Vec<Value> = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let of = |one: &Value| {
        let box_ = one["bbox"].as_array().unwrap().iter().map(|side| side.as_f64().unwrap());
        let numbers: Vec<f64> = box_.chain([100.0 * one["score"].as_f64().unwrap()]).collect();
        (["image_id", "category_id"].map(|name| one[name].as_i64().unwrap()), numbers.try_into().unwrap())
    };
    found.iter().map(of).collect()
}

#[test]
fn a_job_with_every_setting_that_is_stopped_and_loses_a_rank_is_the_job_that_never_stopped() {
    let Some(gpus) = Gpus::of(|| Scene::with_images(16, 4)) else { return };
    let launch = |line: &str| gpus.launch(&format!("--gpus 2 --max-restarts 0 {EVERYTHING} {line}"), &[]);
    launch("--work-dir whole").expect(0, &[]);
    let whole = gpus.path("whole");
    launch("--work-dir parts --fault term:rank=1,phase=backward,step=2").expect(75, &[]);
    launch("--work-dir parts --resume --fault kill:rank=1,phase=backward,step=5")
        .expect(4, &["rank 1 failed", "SIGKILL"]);
    assert_eq!(progress(&gpus.path("parts/latest.ckpt")), 4);
    launch("--work-dir parts --resume").expect(0, &[]);
    let parts = gpus.path("parts");
    let without_memory = |folder: &Path| {
        let mut lines = losses(folder);
        lines.iter_mut().for_each(|line| drop(line.remove("memory")));
        lines
    };
    assert_eq!(without_memory(&parts), without_memory(&whole));
    // BatchNorm's statistics of the lost rank are lost with it, but all ranks have the same ones here.
    assert_eq!(
        differences(&tensors(&parts.join("latest.ckpt")), &tensors(&whole.join("latest.ckpt"))),
        Vec::<String>::new()
    );
}

#[test]
fn four_gpus_of_which_one_is_lost_lose_no_step() {
    let Some(gpus) = Gpus::of(|| Scene::with_images(16, 4)) else {
        return;
    };
    let job = "train cfg.toml --no-validate --set train.epochs=2";
    let fault = "--fault kill:rank=2,phase=backward,step=4";
    gpus.launch(&format!("--gpus 4 --max-restarts 0 {job} --work-dir lost {fault}"), &[])
        .expect(4, &["rank 2 failed", "SIGKILL", "no completed step is lost"]);
    assert_eq!(progress(&gpus.path("lost/latest.ckpt")), 3);
    // By itself the launcher starts the job again.
    gpus.launch(&format!("--gpus 4 {job} --work-dir again {fault}"), &[]).expect(0, &[]);
    let steps = losses(&gpus.path("again")).len();
    assert_eq!(progress(&gpus.path("again/latest.ckpt")), steps);
}

#[test]
fn narrow_types_train_with_losses_near_those_of_float32() {
    let Some(gpus) = Gpus::of(|| Scene::with_images(12, 4)) else {
        return;
    };
    let job = "--gpus 2 --max-restarts 0 train cfg.toml --no-validate --set train.epochs=1 data.samples_per_gpu=3";
    // The CPU's convolutions in float16 take long; wide ones are rounded at the end only.
    let settings = [("FNET_SIM_WIDE_HALF", "1")];
    for amp in ["off", "bf16", "fp16"] {
        gpus.launch(&format!("{job} train.amp={amp} --work-dir {amp}"), &settings).expect(0, &[]);
    }
    let steps = series(&gpus.path("off"), "loss").len();
    for amp in ["bf16", "fp16"] {
        let found = distance(&gpus.path("off"), &gpus.path(amp), "loss", steps);
        assert!(found > 0.0 && found < 0.2, "{amp} differs by {found}");
    }
}

#[test]
fn deterministic_jobs_and_jobs_with_losses_that_are_not_finite() {
    let Some(gpus) = Gpus::of(|| Scene::with_images(8, 4)) else { return };
    let job = "--gpus 2 --max-restarts 0 train cfg.toml --no-validate --set train.epochs=1";
    let told = gpus.launch(&format!("-v {job} --deterministic --work-dir first"), &[]);
    told.expect(0, &["RoIAlign's backward pass on a GPU adds in no fixed order"]);
    let alerts: Vec<&str> =
        told.stderr.lines().filter(|line| line.contains("have a deterministic implementation")).collect();
    // The windows of FPN's pooling have one pixel, so that no two of them add to the same one.
    let known =
        |line: &&&str| line.contains("roi_align_backward_kernel") || line.contains("max_pool2d_with_indices_backward");
    let unexpected: Vec<&&str> = alerts.iter().filter(|line| !known(line)).collect();
    assert!(!alerts.is_empty() && unexpected.is_empty(), "{unexpected:?}");
    gpus.launch(&format!("{job} --deterministic --work-dir second"), &[]).expect(0, &[]);
    let [first, second] = ["first", "second"].map(|folder| tensors(&gpus.path(folder).join("latest.ckpt")));
    assert_eq!(differences(&first, &second), Vec::<String>::new());
    // Additions in any order, which is what CUDA's atomics do, change the last digits of the losses and nothing more.
    gpus.launch(&format!("{job} --work-dir any_order"), &[("FNET_SIM_UNORDERED", "1")]).expect(0, &[]);
    let found = distance(&gpus.path("first"), &gpus.path("any_order"), "loss", 4);
    assert!(found < 1e-3, "in another order: {found}");
    let diverging = "optimizer.lr=1e30 schedule.warmup_iters=0";
    gpus.launch(&format!("{job} {diverging} --work-dir stops"), &[]).expect(2, &["not finite", "train.on_nan=skip"]);
    gpus.launch(&format!("{job} {diverging} train.on_nan=skip --work-dir skips"), &[])
        .expect(0, &["step 2 of epoch 1 did not update the weights"]);
}

#[test]
fn ctrl_c_saves_and_a_checkpoint_is_used_by_the_other_commands() {
    let Some(gpus) = Gpus::of(Scene::new) else { return };
    let running = gpus.start("--gpus 2 train cfg.toml --no-validate --set train.epochs=500", &[]);
    let folder = gpus.path("work_dirs/cfg");
    until("some steps are done", || losses(&folder).len() >= 4);
    running.signal("INT");
    let ended = running.wait();
    ended.expect(130, &["work_dirs/cfg/iter_"]);
    gpus.assert_sound(&ended);
    let checkpoint = files(&folder, ".ckpt").pop().unwrap();
    let data = gpus.scene.images().join("val");
    gpus.launch(&format!("--gpus 2 predict {} {} --out shown", checkpoint.display(), data.display()), &[])
        .expect(0, &[]);
    assert!(!files(&gpus.path("shown"), "").is_empty());
    let ended = gpus.launch("--gpus 1 benchmark infer cfg.toml --shape 64 96 --max-iter 8 --json", &[]);
    ended.expect(0, &[]);
    let ended = gpus.launch("--gpus 2 benchmark train cfg.toml --batch 1 --shape 96 96 --iters 2 --json", &[]);
    ended.expect(0, &[]);
}
