//! `test`: evaluates a checkpoint on `data.val` or another set.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fnet_common::atomic;
use fnet_common::{Context, Error, Result};
use fnet_config::{Config, Metric};
use fnet_data::{Dataset, Severity, check_before_job, check_classes, check_same_data, load_image};
use fnet_evaluate::inference::{Done, Found, RankResult, detect_all, evaluate};
use fnet_evaluate::metrics::Metrics;
use fnet_evaluate::paint::{Painter, objects, painted_path, save, unused};
use fnet_evaluate::results::{ImageResult, WrittenIds, write_files};
use fnet_protocol::cli;

use super::detector::{Host, Wanted, load};
use super::stdout::print;

/// Evaluates a checkpoint. Rank 0 returns the metrics; `None` with `--format-only`.
/// Errors: if the checkpoint, the config or the data is wrong, a file cannot be written, a rank is lost, or memory runs
/// out.
pub fn test(arguments: &cli::Test, host: &mut Host<'_>) -> Result<RankResult<Option<Metrics>>> {
    let mut trained = load(&Wanted::of_test(arguments), host)?;
    if arguments.fuse_conv_bn {
        trained.model.fuse_conv_bn()?;
    }
    let dataset = Dataset::open(&trained.config.data, arguments.split)?;
    let dataset = Arc::new(dataset.without_repetitions());
    check_classes(&trained.config, &[&dataset])?;
    check_same_data(&[&dataset], host.ranks.world_size(), |own| host.ranks.all_gather_bytes(own))?;
    if !arguments.allow_partial {
        check_class_names(&trained.classes, &dataset)?;
    }
    let kinds: Vec<Metric> = match arguments.format_only {
        true => Vec::new(),
        false => measured(arguments, &trained.config)?,
    };
    let first = host.ranks.rank() == 0;
    if first {
        dataset.diagnostics().lines(Severity::Warning).iter().for_each(|warning| (host.say)(warning));
        let other = dataset.other_validation_part(trained.validation_part.as_deref());
        other.iter().for_each(|warning| (host.say)(&format!("Warning: {warning}")));
        check_before_job(&trained.config, &[&dataset], &kinds)?.iter().for_each(|warning| (host.say)(warning));
        if let Some(text) = other_names(&trained.classes, &dataset) {
            (host.say)(&text);
        }
    }
    let show = match &arguments.show_dir {
        Some(folder) => Some(Show::new(&dataset, folder, arguments.show_score_thr)?),
        None => None,
    };
    let (progress, all) = (&mut *host.progress, dataset.len());
    let mut on_image = |image: Done<'_>| {
        progress(image.done, all);
        show.as_ref().map_or(Ok(()), |show| show.paint(image.index, image.result))
    };
    let (model, config) = (&trained.model, &trained.config);
    let outcome = if arguments.format_only {
        detect_all(model, &dataset, config, host.ranks, &mut on_image)?.and_then(|found| Ok((found, None)))?
    } else {
        evaluate(model, &dataset, config, &kinds, host.ranks, &mut on_image)?
            .and_then(|evaluation| Ok((evaluation.found, Some(evaluation.metrics))))?
    };
    outcome.and_then(|(found, metrics)| {
        finish(&found, metrics.as_ref(), &dataset, arguments, host)?;
        Ok(metrics)
    })
}

/// The metrics of `--eval`, or those that the model allows.
/// Errors: a usage error if masks are asked for and the model has none.
pub(super) fn measured(arguments: &cli::Test, config: &Config) -> Result<Vec<Metric>> {
    let kinds = arguments.metrics_to_measure(config.model.mask).map_err(Error::usage)?;
    Ok(kinds.into_iter().map(Metric::from).collect())
}

/// Writes and prints the results of an evaluation.
fn finish(
    found: &Found,
    metrics: Option<&Metrics>,
    dataset: &Dataset,
    arguments: &cli::Test,
    host: &mut Host<'_>,
) -> Result<()> {
    if arguments.out.is_some() || arguments.format_only {
        let ids = WrittenIds::of(dataset);
        for path in write_files(&found.results, &ids, &results_prefix(arguments), dataset.has_masks())? {
            print(&format!("detections written to {}", path.display()))?;
        }
        if dataset.is_renumbered() {
            (host.say)(&format!(
                "image_id in the detections is the number of the image, from 1, because ids of {} are not unique",
                dataset.annotation_files()
            ));
        }
    }
    if let Some(folder) = &arguments.show_dir {
        print(&format!("images with detections are in {}", folder.display()))?;
    }
    metrics.map_or(Ok(()), |metrics| report(metrics, arguments.metrics.as_deref()))
}

fn report(metrics: &Metrics, file: Option<&Path>) -> Result<()> {
    print(&metrics.table())?;
    let Some(path) = file else { return Ok(()) };
    let text = serde_json::to_string_pretty(&metrics.to_json())
        .map_err(|error| Error::bug(format!("metrics as JSON: {error}")))?;
    atomic::create(path, |out| {
        writeln!(out, "{text}").map_err(|error| Error::environment(format!("cannot write {}: {error}", path.display())))
    })
}

/// The prefix of the results: `--out F.json` means `F.bbox.json` and for a model with masks `F.segm.json`; without it, they are
/// written to `results/` beside the checkpoint.
fn results_prefix(arguments: &cli::Test) -> PathBuf {
    match &arguments.out {
        Some(out) if out.extension().is_some_and(|extension| extension == "json") => out.with_extension(""),
        Some(out) => out.clone(),
        None => {
            let folder = arguments.checkpoint.parent().unwrap_or(Path::new("")).join("results");
            folder.join(arguments.checkpoint.file_stem().unwrap_or("test".as_ref()))
        }
    }
}

/// Refuses a data set with another number of classes than the checkpoint.
fn check_class_names(trained: &[String], dataset: &Dataset) -> Result<()> {
    let found = dataset.categories().len();
    if trained.is_empty() || trained.len() == found {
        return Ok(());
    }
    Err(Error::data(format!(
        "the checkpoint names {} classes, but {} has {found}: give an annotation file with the classes that it was trained \
         for, or use --allow-partial",
        trained.len(),
        dataset.annotation_files()
    )))
}

/// A warning if the annotation file has the same number of classes as the model, but with other names.
fn other_names(trained: &[String], dataset: &Dataset) -> Option<String> {
    let mut pairs = trained.iter().zip(dataset.categories()).enumerate();
    let (label, (trained, found)) = pairs.find(|(_, (trained, found))| **trained != found.name)?;
    Some(format!(
        "Warning: the model was trained for other classes: number {label} was {trained:?}, but is {:?} in {}. The metrics \
         are meaningful only if the classes are the same, in the same order",
        found.name,
        dataset.annotation_files()
    ))
}

/// Draws ground truth beside predictions.
struct Show<'a> {
    painter: Painter,
    dataset: &'a Dataset,
    classes: Vec<String>,
    /// The output file of each image of the set. They are unique, and the same on all ranks.
    paths: Vec<PathBuf>,
    least: f64,
}

impl<'a> Show<'a> {
    fn new(dataset: &'a Dataset, folder: &'a Path, least: f64) -> Result<Self> {
        let classes = dataset.categories().iter().map(|category| category.name.clone()).collect();
        Ok(Self { painter: Painter::new()?, dataset, classes, paths: painted_paths(dataset, folder), least })
    }

    fn paint(&self, index: usize, result: &ImageResult) -> Result<()> {
        let file_name = self.dataset.image(index).file_name;
        let paint = || {
            let image = objects::into_image(load_image(self.dataset, index)?)?;
            let truth = objects::of_truth(self.dataset, index)?;
            let found = objects::of_result(result, &self.classes, self.least)?;
            let title = format!("prediction, scores from {}", self.least);
            let panels = [(&truth[..], "ground truth"), (&found, &title)];
            save(&self.painter.panels(&image, &panels)?, &self.paths[index])
        };
        paint().with_context(|| format!("drawing {file_name}"))
    }
}

/// The output file in `folder` of each image of a set.
pub(super) fn painted_paths(dataset: &Dataset, folder: &Path) -> Vec<PathBuf> {
    let mut taken = HashSet::new();
    (0..dataset.len()).map(|index| unused(painted_path(folder, dataset.image(index).file_name), &mut taken)).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        test: cli::Test,
    }

    fn prefix(line: &[&str]) -> PathBuf {
        results_prefix(&Line::parse_from([&["test"], line].concat()).test)
    }

    #[test]
    fn results_are_written_to_out_or_beside_the_checkpoint() {
        assert_eq!(prefix(&["a/b.ckpt", "--format-only"]), Path::new("a/results/b"));
        assert_eq!(prefix(&["b.ckpt", "--format-only"]), Path::new("results/b"));
        assert_eq!(prefix(&["b.ckpt", "--out", "x/y.json"]), Path::new("x/y"));
        assert_eq!(prefix(&["b.ckpt", "--out", "x/y.v2"]), Path::new("x/y.v2"));
    }
}
