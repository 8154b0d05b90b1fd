//! What users read at the start and at the end of a training.

use std::fmt::Write;
use std::path::Path;

use indexmap::IndexMap;

use fnet_checkpoint::native::{Best, TrainProgress};
use fnet_common::text::count;
use fnet_config::{Amp, Resolved};
use fnet_data::Dataset;
use fnet_distributed::Communicator;
use fnet_model::Parameters;
use fnet_protocol::work_dir::LATEST;

use super::memory;
use super::progress::TrainSchedule;
use super::validation::Validation;

/// What a job is about to do.
pub struct StartSummary<'a> {
    pub resolved: &'a Resolved,
    pub communicator: &'a Communicator,
    pub parameters: &'a Parameters,
    pub training_set: &'a Dataset,
    pub validation: Option<&'a Validation>,
    pub schedule: &'a TrainSchedule,
    pub progress: TrainProgress,
    /// The checkpoint that it resumes from.
    pub source: Option<&'a Path>,
    pub work_dir: &'a Path,
    pub log: &'a Path,
}

impl StartSummary<'_> {
    /// One screen of text.
    pub fn text(&self) -> String {
        let Self { resolved, communicator, schedule, progress, .. } = *self;
        let config = &resolved.config;
        let (backbone, world_size) = (&config.model.backbone, communicator.world_size());
        let mut out = format!("Training {}", resolved.name);
        let mut row = |name: &str, value: String| {
            // Writing to a string does not fail.
            let _ = write!(out, "\n  {name:<14} {value}");
        };
        let detector = if config.model.mask { "Mask R-CNN" } else { "Faster R-CNN" };
        let depths: Vec<String> = backbone.depths.iter().map(ToString::to_string).collect();
        let parameters = self.parameters.count() as f64 / 1e6;
        row(
            "model",
            format!(
                "{detector}, {} with {} channels and {} blocks, {parameters:.2} M parameters",
                backbone.kind,
                backbone.embed_dim,
                depths.join("-")
            ),
        );
        let checked = self.validation.map_or_else(
            || "no validation".to_owned(),
            |validation| format!("{} for validation", count(validation.image_count(), "image")),
        );
        let classes = count(self.training_set.categories().len(), "class");
        row("data", format!("{} for training, {checked}, {classes}", count(self.training_set.len(), "image")));
        let total = schedule.total_steps(progress);
        let done = if progress.step > 0 { format!(", {} done", progress.step) } else { String::new() };
        let steps = count(schedule.steps_per_epoch, "step");
        row("steps", format!("{} of {steps}, {total} in all{done}", count(schedule.epochs, "epoch")));
        let accumulate = match config.train.accumulate {
            0 | 1 => String::new(),
            number => format!(", {number} steps per update"),
        };
        let per_worker = count(config.data.samples_per_gpu, "image");
        row(
            "batch",
            format!(
                "{} per update ({}, {per_worker} each{accumulate})",
                count(config.effective_batch(world_size), "image"),
                count(world_size, "worker")
            ),
        );
        let (number, (unit, length)) = match (config.schedule.warmup_iters, config.schedule.warmup_by_epoch) {
            (number, true) => (number, ("epoch", number * schedule.steps_per_epoch)),
            (number, false) => (number, ("step", number)),
        };
        let mut warmup = if number > 0 { format!(", warm-up of {}", count(number, unit)) } else { String::new() };
        if length >= total {
            warmup += ": the whole training (schedule.warmup_iters)";
        }
        let kind = format!("{:?}", config.optimizer.kind).to_lowercase();
        let policy = format!("{:?}", config.schedule.policy).to_lowercase();
        row("learning rate", format!("{} ({kind}), policy {policy}{warmup}", config.optimizer.lr));
        row(
            "precision",
            match config.train.amp {
                Amp::Off => "float32",
                Amp::Bf16 => "bfloat16 and float32",
                Amp::Fp16 => "float16 and float32",
            }
            .to_owned(),
        );
        let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1);
        let device = if communicator.device().is_cuda() { "GPU".to_owned() } else { "CPU".to_owned() };
        row(
            "devices",
            format!("{world_size} x {device}, {} each, {}", count(threads, "thread"), communicator.backend()),
        );
        if let Ok(estimate) = memory::of_training(config, self.parameters) {
            let size = match estimate.total as f64 / f64::from(1 << 20) {
                megabytes if megabytes < 1024.0 => format!("{megabytes:.0} MiB"),
                megabytes => format!("{:.1} GiB", megabytes / 1024.0),
            };
            row("memory", format!("about {size} per worker (estimate)"));
        }
        if let Some(source) = self.source {
            row("resumes from", source.display().to_string());
        }
        let save = match config.checkpoint.interval.to_string().strip_prefix("1 ") {
            Some(unit) => unit.trim_end_matches('s').to_owned(),
            None => config.checkpoint.interval.to_string(),
        };
        row("outputs", format!("{}, a checkpoint every {save}", self.work_dir.display()));
        row("log", format!("{} (with the config)", self.log.display()));
        out
    }
}

/// The result of a finished job in one line: the metrics with their change since the evaluation before, the best evaluation,
/// and the last checkpoint. It is all that `--quiet` shows.
pub fn end(
    work_dir: &Path,
    epochs: usize,
    best: Option<&Best>,
    evaluations: &[(usize, IndexMap<String, f64>)],
) -> String {
    let numbers = metrics(evaluations, epochs, best);
    let numbers = if numbers.is_empty() { String::new() } else { format!(": {}", numbers.join(", ")) };
    format!("trained {}{numbers}; {}", count(epochs, "epoch"), work_dir.join(LATEST).display())
}

fn metrics(evaluations: &[(usize, IndexMap<String, f64>)], epochs: usize, best: Option<&Best>) -> Vec<String> {
    let (last, before) = match evaluations {
        [.., before, (epoch, last)] if *epoch == epochs => (Some(last), Some(before)),
        [.., (epoch, last)] if *epoch == epochs => (Some(last), None),
        _ => (None, None),
    };
    let is_main = |name: &str, value: f64| name.ends_with("_mAP") && value >= 0.0;
    let of_last = last.into_iter().flatten().filter(|(name, value)| is_main(name, **value));
    let mut numbers: Vec<String> = of_last
        .map(|(name, value)| {
            let change = before.and_then(|(epoch, before)| Some((*epoch, value - *before.get(name)?)));
            let change =
                change.map_or_else(String::new, |(epoch, change)| format!(" ({change:+.4} since epoch {epoch})"));
            format!("{name} {value:.4}{change}")
        })
        .collect();
    // Of several kinds of metrics, the last one is the most demanding.
    let found = evaluations.iter().flat_map(|(epoch, metrics)| {
        let main = metrics.iter().rev().find(|(name, value)| is_main(name, **value));
        main.map(|(name, &value)| Best { metric: name.clone(), value, epoch: *epoch })
    });
    let best = best.cloned().or_else(|| {
        found.reduce(|best, next| if next.value > best.value { next } else { best }).filter(|_| evaluations.len() > 1)
    });
    numbers.extend(best.map(|best| format!("best {} {:.4} after epoch {}", best.metric, best.value, best.epoch)));
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(epoch: usize, bbox: f64, segm: f64) -> (usize, IndexMap<String, f64>) {
        let values = [("bbox_mAP", bbox), ("bbox_mAP_50", 0.9), ("segm_mAP", segm)];
        (epoch, values.map(|(name, value)| (name.to_owned(), value)).into())
    }

    #[test]
    fn the_result_says_what_changed_and_what_was_best() {
        let two = [at(1, 0.1, 0.3), at(2, 0.25, 0.2)];
        let expected = [
            "bbox_mAP 0.2500 (+0.1500 since epoch 1)",
            "segm_mAP 0.2000 (-0.1000 since epoch 1)",
            "best segm_mAP 0.3000 after epoch 1",
        ];
        assert_eq!(metrics(&two, 2, None), expected);
        let best = Best { metric: "bbox_mAP".into(), value: 0.25, epoch: 2 };
        assert_eq!(metrics(&two, 2, Some(&best))[2], "best bbox_mAP 0.2500 after epoch 2");
        assert_eq!(metrics(&two[..1], 1, None), ["bbox_mAP 0.1000", "segm_mAP 0.3000"]);
        // The last epochs were not evaluated, or what was measured is undefined.
        assert_eq!(metrics(&two, 3, None), ["best segm_mAP 0.3000 after epoch 1"]);
        assert_eq!(metrics(&[at(1, -1.0, -1.0)], 1, None), Vec::<String>::new());
    }
}
