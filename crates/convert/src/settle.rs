//! What depends on several fields of a config at once.

use toml::Value as Toml;

use fnet_common::{Error, Result};
use fnet_config::Config;

use crate::map::{Mapped, first};
use crate::path::type_of;
use crate::pipeline;
use crate::schedule::{POLICIES, SPAN};
use crate::training_sets;
use crate::value::{Dict, Value};

/// Detectors that have what fnet trains: an RPN, then heads on regions.
const DETECTORS: [&str; 3] = ["MaskRCNN", "FasterRCNN", "CascadeRCNN"];

/// Refuses configs of other detectors.
/// Errors: a usage error with the place of the type.
pub fn check_detector(values: &Dict) -> Result<()> {
    let Some(model) = first(values, "model") else {
        return match first(values, "data").or_else(|| first(values, "train_dataloader")) {
            Some(_) => Ok(()),
            None => Err(Error::usage(
                "the file sets neither `model` nor `data` (or `train_dataloader`); expected a config of MMDetection for Mask \
                 R-CNN or Faster R-CNN",
            )),
        };
    };
    let kind = type_of(&model.value);
    if kind.as_deref().is_some_and(|kind| DETECTORS.contains(&kind)) {
        return Ok(());
    }
    let place = model.value.get("type").map_or_else(|| model.place.clone(), |kind| kind.place);
    let unknown = model.value.get("type").filter(|kind| matches!(kind.value, Value::Unknown(_)));
    let found = match (&model.value, kind) {
        (Value::Unknown(what), _) => format!("is {what}"),
        (_, Some(kind)) => format!("has the type {kind}"),
        (_, None) => match &unknown {
            Some(kind) => format!("has a type that only Python knows: {}", kind.value.kind()),
            None => "has no type".to_owned(),
        },
    };
    let remedy = match (&model.value, unknown) {
        (Value::Unknown(_), _) | (_, Some(_)) => {
            "Where MMDetection is installed, write one file with all values and convert that: \
             Config.fromfile('FILE.py').dump('flat.py')"
        }
        _ => {
            "Convert such a config with your data set in it, for example with MMDetection's \
             configs/mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py as the base"
        }
    };
    Err(Error::usage(format!(
        "{place}: the model {found}; fnet trains Mask R-CNN and Faster R-CNN, so a config with model.type {} is expected. {remedy}",
        DETECTORS.join(", ")
    )))
}

/// Settles data folders, classes, color order, and metrics.
pub fn settle(values: &Dict, mapped: &mut Mapped) {
    backbone(values, mapped);
    masks(values, mapped);
    colors(mapped);
    folders(mapped);
    classes(mapped);
    pipeline::settle(values, mapped);
    schedule(values, mapped);
    steps(mapped);
    best(mapped);
    early_stop(values, mapped);
    training_sets::settle(mapped);
}

fn whole(mapped: &Mapped, name: &str, otherwise: usize) -> i64 {
    mapped.values.get(name).and_then(Toml::as_integer).unwrap_or(otherwise as i64)
}

fn epochs(mapped: &Mapped) -> i64 {
    whole(mapped, "train.epochs", Config::default().train.epochs)
}

fn string(mapped: &Mapped, name: &str) -> Option<String> {
    mapped.values.get(name).and_then(Toml::as_str).map(str::to_owned)
}

fn set(mapped: &mut Mapped, name: &str, value: impl Into<Toml>) {
    mapped.values.insert(name.to_owned(), value.into());
}

fn backbone(values: &Dict, mapped: &mut Mapped) {
    let is_set = |field: &str| {
        let found = first(values, &format!("model.backbone[fasternet*].{field}"));
        found.is_some_and(|item| matches!(item.value, Value::Int(0..) | Value::Bool(true)))
    };
    for field in ["frozen_stages", "norm_eval"].into_iter().filter(|field| is_set(field)) {
        mapped
            .assumed
            .push(format!("model.{field} has its default, because FasterNet's code ignores model.backbone.{field}"));
    }
    if !mapped.values.contains_key("model.backbone.embed_dim") {
        let why = match first(values, "model.backbone") {
            Some(backbone) => type_of(&backbone.value)
                .map_or_else(|| "the backbone has no type".to_owned(), |kind| format!("the config's is {kind}")),
            None => "the file has no model".to_owned(),
        };
        mapped.assumed.push(format!("model.backbone is FasterNet-S: {why}"));
        if mapped.values.contains_key("=mean") {
            mapped.assumed.push(
                "data.pipeline.mean and std are the config's; weights of FasterNet were trained with fnet's defaults"
                    .to_owned(),
            );
        }
    }
}

fn masks(values: &Dict, mapped: &mut Mapped) {
    let has = |pattern| first(values, pattern).is_some_and(|item| !matches!(item.value, Value::None));
    if has("model") && !has("model.roi_head.mask_head") {
        set(mapped, "model.mask", false);
        mapped.assumed.push("model.mask = false, as the config has no mask_head".to_owned());
    }
}

/// Images are RGB; means and deviations in the order BGR are reversed.
fn colors(mapped: &mut Mapped) {
    let is_bgr = mapped.values.get("=to_rgb").and_then(Toml::as_bool) == Some(false);
    for (from, to) in [("=mean", "data.pipeline.mean"), ("=std", "data.pipeline.std")] {
        let Some(Toml::Array(mut numbers)) = mapped.values.shift_remove(from) else { continue };
        if is_bgr {
            numbers.reverse();
        }
        set(mapped, to, numbers);
        mapped.carried.iter_mut().filter(|carried| carried.to == from).for_each(|carried| carried.to = to.to_owned());
    }
    if is_bgr {
        mapped.without.push(
            "to_rgb = False (images as BGR): images are RGB; the mean and std of each channel are kept, in the order RGB".to_owned(),
        );
    }
}

/// Paths become relative to `data.root`: the config's `data_root` if all are below it, else their common folder.
fn folders(mapped: &mut Mapped) {
    let joined = |name: &String| {
        let (set, field) = name.strip_prefix("data.")?.rsplit_once('.')?;
        let path = string(mapped, name).filter(|_| field == "ann_file" || field == "img_prefix")?;
        let path = match string(mapped, &format!("={set}.root")) {
            Some(root) if !path.starts_with('/') && !root.is_empty() => {
                format!("{}/{path}", root.trim_end_matches('/'))
            }
            _ => path,
        };
        Some((name.clone(), path))
    };
    let full: Vec<(String, String)> = mapped.values.keys().filter_map(joined).collect();
    if full.is_empty() {
        return;
    }
    let parts = |path: &str| -> Vec<String> { path.trim_end_matches('/').split('/').map(str::to_owned).collect() };
    let is_below = |root: &[String]| full.iter().all(|(_, path)| parts(path).starts_with(root));
    let root = string(mapped, "=root").map(|root| parts(&root)).filter(|root| is_below(root)).unwrap_or_else(|| {
        let folders = full.iter().map(|(name, path)| {
            let mut parts = parts(path);
            // The file itself is no folder.
            if name.ends_with("ann_file") {
                parts.pop();
            }
            parts
        });
        let common =
            |a: Vec<String>, b: Vec<String>| a.into_iter().zip(b).take_while(|(a, b)| a == b).map(|(a, _)| a).collect();
        folders.reduce(common).unwrap_or_default()
    });
    let shown = match root.as_slice() {
        [] => ".".to_owned(),
        [top] if top.is_empty() => "/".to_owned(),
        root => root.join("/"),
    };
    for (name, path) in full {
        let parts = parts(&path);
        let rest = if parts.starts_with(&root) { parts[root.len()..].join("/") } else { path };
        set(mapped, &name, rest);
    }
    mapped.assumed.push(format!("data.root = {shown:?}, the folder that the paths have in common"));
    set(mapped, "data.root", shown);
}

/// There are as many classes as names.
fn classes(mapped: &mut Mapped) {
    let Some(names) = mapped.values.get("data.classes").and_then(Toml::as_array).map(Vec::len) else {
        if mapped.values.keys().any(|name| name.starts_with("data.train") && name.ends_with(".ann_file")) {
            mapped
                .assumed
                .push("data.classes: the categories of the annotation files, as the config names none".to_owned());
        }
        return;
    };
    let (names, count) = (names as i64, whole(mapped, "model.num_classes", Config::default().model.num_classes));
    if names != count {
        let given = mapped.values.contains_key("model.num_classes");
        let given = if given { format!("; the config has num_classes = {count}") } else { String::new() };
        mapped.assumed.push(format!("model.num_classes = {names}, the number of data.classes{given}"));
        set(mapped, "model.num_classes", names);
    }
}

/// Settles what the policy is where no row found one, and reports what one policy over the whole training cannot do.
fn schedule(values: &Dict, mapped: &mut Mapped) {
    let is_there = |pattern: &str| first(values, pattern).is_some_and(|item| !matches!(item.value, Value::None));
    let is_known = |pattern: &str| first(values, pattern).is_none_or(|item| !matches!(item.value, Value::Unknown(_)));
    let source = ["lr_config", "param_scheduler"].into_iter().find(|name| is_there(name) && is_known(name));
    let Some(source) = source.filter(|_| is_known("lr_config.policy")) else { return };
    if !mapped.values.contains_key("schedule.policy") {
        mapped.values.insert("schedule.policy".to_owned(), Toml::String("constant".to_owned()));
        mapped.assumed.push(format!("schedule.policy = \"constant\": {source} has no policy that fnet has"));
    }
    if source == "param_scheduler" && !mapped.values.contains_key("schedule.warmup_iters") {
        mapped.values.insert("schedule.warmup_iters".to_owned(), Toml::Integer(0));
        mapped.assumed.push("schedule.warmup_iters = 0: param_scheduler has no warm-up that fnet has".to_owned());
    }
    let policies: Vec<&str> =
        POLICIES.into_iter().filter(|kind| is_there(&format!("param_scheduler[{kind}]"))).collect();
    if let [first, rest @ ..] = &policies[..] {
        for kind in rest {
            mapped.without.push(format!("param_scheduler[{kind}]: there is one policy, which is that of {first}"));
        }
        if !rest.is_empty() && first.contains("Step") {
            for name in SPAN.iter().chain(&["schedule.min_lr", "schedule.min_lr_ratio", "schedule.power"]) {
                mapped.values.shift_remove(*name);
            }
        }
    }
    let [begin, length, in_epochs] = SPAN.map(|name| mapped.values.shift_remove(name));
    let (Some(begin), Some(length)) = (begin.and_then(|it| it.as_integer()), length.and_then(|it| it.as_integer()))
    else {
        return;
    };
    let (end, kind) = (begin + length, policies.first().copied().unwrap_or_default());
    if kind == "PolyLR" && mapped.values.get("schedule.by_epoch").and_then(Toml::as_bool) == Some(true) {
        mapped.without.push(
            "param_scheduler[PolyLR] has its eta_min in the last epoch: schedule.min_lr is that of the end of the last epoch"
                .to_owned(),
        );
    }
    if in_epochs.and_then(|it| it.as_bool()) == Some(true) {
        let epochs = mapped.values.get("train.epochs").and_then(Toml::as_integer);
        let epochs = epochs.unwrap_or(Config::default().train.epochs as i64);
        if (begin, end) != (0, epochs) {
            mapped.without.push(format!(
                "param_scheduler[{kind}] from {begin} to {end} epochs: the policy lasts from the start to the end of the \
                 training, {epochs} epochs"
            ));
        }
    } else {
        mapped.without.push(format!(
            "param_scheduler[{kind}] from {begin} to {end} steps: the policy lasts from the start to the end of the training"
        ));
    }
}

/// `step=N` is a step after every N epochs.
fn steps(mapped: &mut Mapped) {
    let Some(every) = mapped.values.get("schedule.steps").and_then(Toml::as_integer) else { return };
    if mapped.values.get("schedule.by_epoch").and_then(Toml::as_bool) == Some(false) {
        mapped.without.push(format!("a change after every {every} steps: list the steps in schedule.steps"));
        return set(mapped, "schedule.steps", Vec::<i64>::new());
    }
    let epochs = epochs(mapped);
    let steps =
        (1..=10_000).map(|count: i64| every.saturating_mul(count)).take_while(|step| *step < epochs && every > 0);
    let steps: Vec<Toml> = steps.map(Toml::Integer).collect();
    set(mapped, "schedule.steps", steps);
}

/// `auto` is the mean AP of the first metric.
fn best(mapped: &mut Mapped) {
    if string(mapped, "checkpoint.save_best").as_deref() != Some("auto") {
        return;
    }
    let metrics = mapped.values.get("evaluation.metrics").and_then(Toml::as_array);
    let kind = metrics.and_then(|metrics| metrics.first()).and_then(Toml::as_str).unwrap_or("bbox").to_owned();
    mapped.assumed.push(format!("checkpoint.save_best = \"{kind}_mAP\", the first metric, for 'auto'"));
    set(mapped, "checkpoint.save_best", format!("{kind}_mAP"));
}

/// MMEngine's hook demands more than a higher value unless a config says otherwise.
fn early_stop(values: &Dict, mapped: &mut Mapped) {
    let hook = first(values, "custom_hooks[EarlyStoppingHook]");
    if hook.is_some_and(|hook| hook.value.get("min_delta").is_none()) {
        mapped.without.push(
            "custom_hooks[EarlyStoppingHook].min_delta = 0.1, its default: any higher value of the metric counts"
                .to_owned(),
        );
    }
}
