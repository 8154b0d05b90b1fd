//! Options that are off in MMDetection's configs: each one has its documented effect.

use std::collections::BTreeMap;

use crate::outputs::{assert_same_metrics, differences, floats, losses, object, of_mode, series, tensors};
use crate::support::Scene;

/// A single update of plain SGD with a constant learning rate.
const ONE_UPDATE: &str = "train cfg.toml --no-validate --set train.epochs=1 optimizer.kind=sgd optimizer.momentum=0.0 \
    optimizer.weight_decay=0.0 schedule.warmup_iters=0 train.accumulate=1000";

type Tensors = BTreeMap<String, Vec<u8>>;

fn latest(scene: &Scene, folder: &str) -> Tensors {
    tensors(&scene.path(folder).join("latest.ckpt"))
}

/// L2 norm of the difference of all weights.
fn distance(a: &Tensors, b: &Tensors) -> f64 {
    let is_weight =
        |name: &str| name.starts_with("model.") && !name.contains("running_") && !name.contains("num_batches");
    let square = |name: &String| -> f64 {
        let pairs = floats(&a[name]).into_iter().zip(floats(&b[name]));
        pairs.map(|(x, y)| (f64::from(x) - f64::from(y)).powi(2)).sum()
    };
    a.keys().filter(|name| is_weight(name)).map(square).sum::<f64>().sqrt()
}

/// An update of plain SGD is the learning rate times the gradient.
#[test]
fn gradients_are_averaged_over_steps_clipped_and_scaled_by_multipliers() {
    let scene = Scene::small();
    let run = |folder: &str, rest: &str| {
        scene.two(&format!("{ONE_UPDATE} {rest} --work-dir {folder}"));
        latest(&scene, folder)
    };
    // Only a step with an update has a norm.
    let norm_of = |folder: &str| of_mode(&scene.path(folder), "train").last().unwrap()["grad_norm"].as_f64().unwrap();
    let relative = |value: f64, expected: f64| (value / expected - 1.0).abs();
    let start = run("start", "optimizer.lr=0.0");
    assert!(of_mode(&scene.path("start"), "train").iter().all(|line| !line.contains_key("grad_norm")));
    let free = run("free", "optimizer.lr=0.1 optimizer.grad_clip=1e9");
    let norm = norm_of("free");
    assert!(relative(distance(&free, &start), 0.1 * norm) < 1e-3, "{} {norm}", distance(&free, &start));

    // A sum instead of the mean over the epoch would be longer than the mean of the norms.
    let twice = run("twice", "optimizer.lr=0.2");
    assert!(relative(distance(&twice, &start), 0.2 * norm) < 1e-3, "{} {norm}", distance(&twice, &start));
    run("each", "train.accumulate=1 optimizer.lr=0.0 optimizer.grad_clip=1e9");
    let each = series(&scene.path("each"), "grad_norm");
    let bound = each.iter().sum::<f64>() / each.len() as f64;
    assert!(norm <= bound * 1.001, "the norm of a mean, {norm}, is at most the mean of the norms, {bound}");

    assert!(norm > 0.6, "{norm}: too small to be clipped");
    let clipped = run("clipped", "optimizer.lr=0.1 optimizer.grad_clip=0.5");
    assert!(relative(distance(&clipped, &start), 0.1 * 0.5) < 1e-3, "{}", distance(&clipped, &start));
    let logged = norm_of("clipped");
    assert!(relative(logged, norm) < 1e-4, "the norm before clipping: {logged} {norm}");

    let keys = "optimizer.paramwise.custom_keys.rpn_head.lr_mult=0.25 optimizer.paramwise.bias_lr_mult=2";
    let grouped = run("grouped", &format!("optimizer.lr=0.1 {keys}"));
    let change = |now: &Tensors, name: &str| {
        let of = |all: &Tensors| Tensors::from([(name.to_owned(), all[name].clone())]);
        distance(&of(now), &of(&start))
    };
    for (name, multiplier) in [
        ("model.neck.fpn_convs.0.conv.weight", 1.0),
        ("model.neck.fpn_convs.0.conv.bias", 2.0),
        ("model.backbone.norm0.bias", 1.0),
        ("model.rpn_head.rpn_conv.weight", 0.25),
        ("model.rpn_head.rpn_conv.bias", 0.25),
    ] {
        let ratio = change(&grouped, name) / change(&free, name);
        assert!((ratio / multiplier - 1.0).abs() < 1e-3, "{name}: {ratio}");
    }
}

#[test]
fn accumulated_steps_change_the_weights_only_at_the_last_one() {
    let scene = Scene::small();
    let run = |folder: &str, rest: &str| {
        let job = "train cfg.toml --no-validate --set train.epochs=1 schedule.warmup_iters=0";
        scene.two(&format!("{job} {rest} --work-dir {folder}"));
        series(&scene.path(folder), "loss")
    };
    // Training losses do not depend on running statistics, so with a rate of 0 they are those of the initial weights.
    let constant = run("constant", "optimizer.lr=0.0");
    let single = run("single", "optimizer.lr=0.01");
    let double = run("double", "optimizer.lr=0.01 train.accumulate=2");
    assert_eq!(single[0], constant[0]);
    assert_ne!(single[1], constant[1]);
    assert_eq!(double[..2], constant[..2]);
    assert_ne!(double[2], constant[2]);
    assert_ne!(run("other", "optimizer.lr=0.0 --seed 8")[0], constant[0], "another seed");
    // The rest of an epoch, which may be shorter than a group, ends with an update, too.
    run("three", "train.accumulate=3");
    for (folder, group) in [("single", 1), ("double", 2), ("three", 3)] {
        let updates = scene.steps(2).div_ceil(group) as f32;
        let steps: Vec<f32> = latest(&scene, folder)
            .iter()
            .filter(|(name, _)| name.starts_with("optimizer.step."))
            .flat_map(|(_, bytes)| floats(bytes))
            .collect();
        assert!(!steps.is_empty() && steps.iter().all(|&step| step == updates), "{folder}: {steps:?}");
    }
}

#[test]
fn a_moving_average_is_saved_and_evaluated_and_does_not_affect_training() {
    let scene = Scene::new();
    scene.two("train cfg.toml --work-dir plain --set optimizer.lr=0.003");
    scene.two("train cfg.toml --work-dir ema --set optimizer.lr=0.003 train.ema=0.99");
    assert_eq!(losses(&scene.path("plain")), losses(&scene.path("ema")));
    let (plain, ema) = (latest(&scene, "plain"), latest(&scene, "ema"));
    let extra = differences(&plain, &ema);
    assert!(extra.iter().all(|name| name.starts_with("ema.")) && !extra.is_empty(), "{extra:?}");
    let weight = "roi_head.bbox_head.fc_cls.weight";
    assert_ne!(ema[&format!("ema.{weight}")], ema[&format!("model.{weight}")]);

    let measured = |folder: &str| scene.path(folder).join("results/epoch_2.metrics.json");
    assert_ne!(object(&measured("plain")), object(&measured("ema")), "the averaged weights are evaluated");
    scene.two("test ema/latest.ckpt --metrics again.json");
    assert_same_metrics(&measured("ema"), &scene.path("again.json"));
}

#[test]
fn sync_bn_gives_all_ranks_the_same_statistics() {
    let scene = Scene::small();
    let buffers = |folder: &str, rest: &str| {
        scene.two(&format!("train cfg.toml --no-validate --work-dir {folder} --set train.epochs=1 {rest}"));
        let all = latest(&scene, folder);
        let second: Vec<&String> =
            all.keys().filter(|name| name.starts_with("rank1.") && name.contains("running_")).collect();
        assert!(!second.is_empty(), "{:?}", all.keys());
        let first = |name: &String| &all[&name.replacen("rank1.", "model.", 1)];
        (second.iter().filter(|name| &all[**name] == first(name)).count(), second.len())
    };
    let (equal, count) = buffers("own", "");
    assert_eq!(equal, 0, "of {count}: each rank has its own images");
    let (equal, count) = buffers("synced", "model.sync_bn=true");
    assert_eq!(equal, count);
    assert_ne!(series(&scene.path("own"), "loss"), series(&scene.path("synced"), "loss"));
}

#[test]
fn several_scales_are_sampled_by_value_or_within_a_range() {
    let scene = Scene::small();
    let run = |folder: &str, scales: &str| {
        scene.one(&format!(
            "train cfg.toml --no-validate --work-dir {folder} --set train.epochs=1 optimizer.lr=0.0 \
             data.pipeline.flip_probability=0.0 data.pipeline.scales={scales}"
        ));
        series(&scene.path(folder), "loss")
    };
    let (small, large) = (run("small", "[[96,64]]"), run("large", "[[160,128]]"));
    let value = run("value", "[[96,64],[160,128]]");
    // The weights do not change, so the loss of a step shows the size of its image.
    let from_small = value.iter().zip(&small).filter(|(a, b)| a == b).count();
    let from_large = value.iter().zip(&large).filter(|(a, b)| a == b).count();
    assert_eq!(from_small + from_large, value.len(), "each image has one of the two sizes");
    assert!(from_small >= 2 && from_large >= 2, "{from_small} and {from_large} of {}", value.len());

    let range = run("range", "[[96,64],[160,128]] data.pipeline.scale_mode=range");
    let between = range.iter().zip(small.iter().zip(&large)).filter(|(a, (b, c))| a != b && a != c).count();
    assert!(between >= 4, "{between} of {} images have a size in between", range.len());
    assert_eq!(run("point", "[[96,64],[96,64]] data.pipeline.scale_mode=range"), small);
}

#[test]
fn auto_scale_lr_follows_the_number_of_images_per_update() {
    let scene = Scene::small();
    let job =
        "train cfg.toml --no-validate --auto-scale-lr --set train.epochs=1 optimizer.lr=0.001 schedule.warmup_iters=0";
    scene.two(&format!("{job} --work-dir two"));
    assert!(series(&scene.path("two"), "lr").iter().all(|&lr| lr == 0.000125), "0.001 times 2 / 16");
    scene.one(&format!("{job} data.samples_per_gpu=2 train.accumulate=4 --work-dir eight"));
    assert!(series(&scene.path("eight"), "lr").iter().all(|&lr| lr == 0.0005), "0.001 times 8 / 16");
}

#[test]
fn bfloat16_stays_close_to_float32_and_is_evaluated_in_float32_by_default() {
    let scene = Scene::small();
    let run = |amp: &str| {
        scene.two(&format!("train cfg.toml --no-validate --set train.epochs=1 train.amp={amp} --work-dir {amp}"));
        series(&scene.path(amp), "loss")
    };
    let (full, narrow) = (run("off"), run("bf16"));
    assert_ne!(full, narrow);
    assert!((narrow[0] / full[0] - 1.0).abs() < 0.02, "{} and {}", narrow[0], full[0]);
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    assert!((mean(&narrow) / mean(&full) - 1.0).abs() < 0.1, "{} and {}", mean(&narrow), mean(&full));
    let weights = latest(&scene, "bf16");
    let width = |name: &str| weights[name].len();
    assert_eq!(width("model.roi_head.bbox_head.fc_cls.bias"), 9 * 4, "weights stay float32");

    let found = |name: &str, rest: &str| {
        scene.one(&format!("test bf16/latest.ckpt --format-only --out {name}.json --set {rest}"));
        std::fs::read_to_string(scene.path(&format!("{name}.bbox.json"))).unwrap()
    };
    let exact = found("exact", "evaluation.amp=off");
    assert_eq!(found("as_trained", "train.seed=0"), exact);
    assert!(["bf16", "fp16"].iter().all(|amp| found(amp, &format!("evaluation.amp={amp}")) != exact));
}

#[test]
fn float16_skips_overflowing_steps_on_all_workers_and_resumes_with_its_scale() {
    let scene = Scene::new();
    let job =
        "train cfg.toml --no-validate --work-dir fp16 --set train.amp=fp16 train.loss_scale=1e8 optimizer.lr=0.01";
    scene.two(&format!("{job} train.epochs=1"));
    let count_skipped = |rank: usize| {
        let log = std::fs::read_to_string(scene.path(&format!("fp16/logs/rank_{rank}.log"))).unwrap();
        log.lines().filter(|line| line.contains("a gradient overflowed float16 at loss scale")).count()
    };
    let scales = series(&scene.path("fp16"), "loss_scale");
    let skipped = count_skipped(0);
    assert!(skipped >= 6 && skipped < scales.len() - 2, "{skipped} of {scales:?}");
    assert_eq!(count_skipped(1), skipped);
    assert_eq!(scales[..3], [1e8, 5e7, 2.5e7]);
    assert!(series(&scene.path("fp16"), "loss").iter().all(|loss| loss.is_finite()));

    let scale = 1e8 / 2.0_f64.powi(i32::try_from(skipped).unwrap());
    let ended = scene.two(&format!("{job} train.epochs=2 --resume"));
    ended.expect(0, &[&format!("loss scale {scale}, {skipped} updates skipped so far")]);
    let resumed = series(&scene.path("fp16"), "loss_scale");
    assert!((resumed[scales.len()] / scale - 1.0).abs() < 1e-4, "{resumed:?}");
}

#[test]
fn frozen_stages_stay_as_they_are_and_may_be_trained_later() {
    let scene = Scene::small();
    let job = "train cfg.toml --no-validate --set train.ema=0.9 model.norm_eval=true";
    let ended = scene.two(&format!("{job} optimizer.lr=0.0 train.epochs=1 --work-dir start"));
    assert!(!ended.stderr.contains("random weights"), "{}", ended.stderr);
    let start = latest(&scene, "start");
    let ended = scene.two(&format!("{job} model.frozen_stages=1 --work-dir frozen"));
    assert!(ended.stderr.contains("model.frozen_stages is 1, which keeps random weights"), "{}", ended.stderr);
    let frozen = latest(&scene, "frozen");
    let is_frozen = |name: &str| {
        ["patch_embed", "stages.0", "norm0"].iter().any(|part| name.starts_with(&format!("backbone.{part}.")))
    };
    let mut changed = 0;
    for (name, now) in frozen.iter().filter_map(|(name, now)| Some((name.strip_prefix("model.")?, now))) {
        let is_statistic = name.contains("running_") || name.contains("num_batches");
        assert!(!(is_frozen(name) || is_statistic) || now == &start[&format!("model.{name}")], "{name} changed");
        assert_eq!(frozen.contains_key(&format!("optimizer.step.{name}")), !is_frozen(name) && !is_statistic, "{name}");
        changed += usize::from(now != &start[&format!("model.{name}")]);
    }
    assert!(changed > 30, "{changed}");

    let ended = scene.two(&format!("{job} train.epochs=3 --work-dir frozen --resume"));
    assert!(ended.stderr.contains("model.frozen_stages = -1 (was 1)"), "{}", ended.stderr);
    let later = latest(&scene, "frozen");
    let updates = |name: &str| floats(&later[&format!("optimizer.step.{name}")])[0] as usize;
    assert_eq!(updates("backbone.patch_embed.proj.weight"), scene.steps(2));
    assert_eq!(updates("neck.fpn_convs.0.conv.weight"), 3 * scene.steps(2));
    // And frozen again.
    scene.two(&format!("{job} train.epochs=4 model.frozen_stages=4 --work-dir frozen --resume"));
    assert_ne!(differences(&later, &latest(&scene, "frozen")), Vec::<String>::new());
}

#[test]
fn the_learning_rate_follows_the_policy_and_print_config_shows_it() {
    let scene = Scene::small();
    let set = "schedule.policy=cosine schedule.by_epoch=false schedule.min_lr_ratio=0.1 schedule.warmup=constant \
               schedule.warmup_iters=2 schedule.warmup_ratio=0.5";
    scene.two(&format!("train cfg.toml --no-validate --set {set}"));
    let (logged, all) = (series(&scene.path("work_dirs/cfg"), "lr"), 2 * scene.steps(2));
    let expected = |step: usize| {
        let regular = 1e-3 * (0.1 + 0.9 * (1.0 + (std::f64::consts::PI * step as f64 / all as f64).cos()) / 2.0);
        if step < 2 { 0.5 * regular } else { regular }
    };
    assert_eq!(logged.len(), all);
    for (step, &rate) in logged.iter().enumerate() {
        // Five significant digits.
        assert!((rate / expected(step) - 1.0).abs() < 1e-4, "step {step}: {rate} for {}", expected(step));
    }
    let ended = scene.launch(&format!("print-config cfg.toml --schedule --world-size 2 --set {set}"));
    let shown = &ended.expect(0, &[]).stdout;
    let head = format!("Learning rate of 2 epochs of {} steps on 2 workers, 2 images per update", scene.steps(2));
    let last = format!("{all} {:>15.4e}", expected(all - 1));
    assert!(shown.starts_with(&head) && shown.contains("5.0000e-4  warm-up") && shown.contains(&last), "{shown}");
    scene.launch("print-config cfg.toml --set schedule.policy=CosineAnnealing").expect(2, &["use \"cosine\""]);
    scene
        .launch("print-config cfg.toml --set schedule.min_lr_ratio=0.1")
        .expect(2, &["schedule.min_lr_ratio is 0.1; expected 0", "schedule.min_lr instead"]);
}

#[test]
fn early_stopping_ends_the_job_and_a_longer_patience_goes_on() {
    let scene = Scene::small();
    // Nothing is learned, so no evaluation is better than the first, whatever its value.
    let job = "train cfg.toml --set train.epochs=9 optimizer.lr=0.0 model.norm_eval=true checkpoint.interval=9 \
               checkpoint.save_best=segm_mAP train.early_stop.metric=bbox_mAP train.early_stop.patience=";
    let folder = scene.path("work_dirs/cfg");
    let evaluations = || of_mode(&folder, "val").len();
    let ended = scene.two(&format!("{job}2"));
    assert!(ended.stderr.contains("Stopped after 3 of 9 epochs: 2 evaluations in a row"), "{}", ended.stderr);
    assert!(ended.stdout.contains("trained 3 epochs"), "{}", ended.stdout);
    assert_eq!(evaluations(), 3);
    assert!(folder.join("best_segm_mAP.ckpt").is_file() && folder.join("epoch_3.ckpt").is_file());
    scene.two(&format!("{job}2 --resume"));
    assert_eq!((evaluations(), series(&folder, "loss").len()), (3, 3 * scene.steps(2)), "the job is over");
    scene.two(&format!("{job}3 --resume"));
    assert_eq!((evaluations(), series(&folder, "loss").len()), (4, 4 * scene.steps(2)));
    scene
        .launch("print-config cfg.toml --set train.early_stop.metric=loss")
        .expect(2, &["train.early_stop.metric is \"loss\"", "bbox_mAP"]);
}
