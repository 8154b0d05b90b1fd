//! Checks of whole data sets, before a job and for `check-data`.

mod images;
mod splits;
#[cfg(test)]
mod tests;

use fnet_common::Result;
use fnet_config::{Config, Metric, OnError, WithoutMask};

use super::coco::Split;
use super::dataset::Dataset;
use super::diagnostics::{Code, Diagnostics, Severity};

/// How thorough a check is.
#[derive(Debug, Clone, Copy)]
pub struct Scope {
    /// Number of diagnostics to keep per code.
    pub keep: usize,
    /// Read the header of every image.
    pub headers: bool,
    /// Decode every image; implies `headers`.
    pub decode: bool,
}

impl Scope {
    /// The checks before every job: annotations, masks and the existence of image files. No image is opened.
    pub fn quick() -> Self {
        Self { keep: Diagnostics::KEPT_AT_START, headers: false, decode: false }
    }
}

/// The result for one set.
#[derive(Debug)]
pub struct Checked {
    /// Which set.
    pub split: Split,
    /// The set; `None` if its annotation file cannot be used.
    pub dataset: Option<Dataset>,
}

/// Checks the sets `splits` of `config`, separately and against each other and the model, for training with the metrics
/// of the config. Calls `progress` with the number of images done and the total.
pub fn check(
    config: &Config,
    splits: &[Split],
    scope: Scope,
    progress: &(dyn Fn(Split, usize, usize) + Sync),
) -> (Vec<Checked>, Diagnostics) {
    let mut diagnostics = Diagnostics::keeping(scope.keep);
    let sets: Vec<Checked> = splits
        .iter()
        .map(|&split| {
            let (dataset, mut found) = Dataset::inspect(&config.data, split, scope.keep);
            if split == Split::Val && config.data.val_is_fraction() {
                // Its files are those of the training set, which has reported what is in both.
                let known = diagnostics.counts().into_iter().map(|(code, _)| code);
                known.for_each(|code| found.remove(code));
            }
            diagnostics.append(found);
            Checked { split, dataset }
        })
        .collect();
    let readable: Vec<&Dataset> = sets.iter().filter_map(|set| set.dataset.as_ref()).collect();
    diagnostics.append(check_sets(config, &readable, &config.evaluation.metrics, scope, progress));
    (sets, diagnostics)
}

/// The checks before a job that evaluates `metrics`: those of [`Scope::quick`], on open sets. Returns messages for the
/// log.
/// Errors: a data error with the [`Diagnostics::lines`] of the errors.
pub fn check_before_job(config: &Config, sets: &[&Dataset], metrics: &[Metric]) -> Result<Vec<String>> {
    let diagnostics = check_sets(config, sets, metrics, Scope::quick(), &|_, _, _| {});
    diagnostics.refuse_errors()?;
    Ok(diagnostics.lines(Severity::Warning))
}

/// Checks that open sets have the classes of the model and equal classes. It is cheap enough for every rank.
/// Errors: a data error with the [`Diagnostics::lines`] of the errors.
pub fn check_classes(config: &Config, sets: &[&Dataset]) -> Result<()> {
    let mut diagnostics = Diagnostics::default();
    splits::check_classes(config, sets, &mut diagnostics);
    diagnostics.refuse_errors()
}

/// Checks open sets: masks, images, and consistency between the sets. Does not repeat [`Dataset::diagnostics`].
fn check_sets(
    config: &Config,
    sets: &[&Dataset],
    metrics: &[Metric],
    scope: Scope,
    progress: &(dyn Fn(Split, usize, usize) + Sync),
) -> Diagnostics {
    let mut diagnostics = Diagnostics::keeping(scope.keep);
    for dataset in sets {
        let mut own = Diagnostics::keeping(scope.keep).of(dataset.split().name());
        dataset.check_masks(&mut own);
        dataset.check_files(&mut own);
        for (part, _) in dataset.parts().filter(|_| scope.headers || scope.decode) {
            let report = |done| progress(part.split(), done, part.len());
            images::check(part, &config.data.pipeline, scope.decode, &report, &mut own);
        }
        diagnostics.append(own);
    }
    splits::check(config, sets, &mut diagnostics);
    if metrics.contains(&Metric::Segm) {
        let code = match config.data.without_mask {
            WithoutMask::Error => Code::MaskNeeded,
            WithoutMask::Skip | WithoutMask::Box => Code::MaskMissingIgnored,
        };
        diagnostics.rename(Code::MaskMissingEvaluated, code);
    }
    if config.data.on_error == OnError::Skip {
        for code in [Code::ImageMissing, Code::ImageUnreadable] {
            diagnostics.rename(code, Code::ImageLeftOut);
        }
    }
    diagnostics
}
