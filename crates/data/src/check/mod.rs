//! Checks of whole data sets, before training and by `check-data`.

mod images;
mod splits;
#[cfg(test)]
mod tests;

use fnet_common::Result;
use fnet_config::{Config, Metric, OnError};

use super::coco::{Dataset, Split};
use super::diagnostics::{Code, Diagnostics, Severity};

/// How thorough a check is.
#[derive(Debug, Clone, Copy)]
pub struct Scope {
    /// Diagnostics of each code to keep.
    pub keep: usize,
    /// Read the header of every image.
    pub headers: bool,
    /// Decode every image; `headers` is then implied.
    pub decode: bool,
}

impl Scope {
    /// What is checked before every job: annotations, masks, and that the files exist; no image is opened.
    pub fn quick() -> Self {
        Self { keep: Diagnostics::KEPT_AT_START, headers: false, decode: false }
    }
}

/// What was checked of one set.
#[derive(Debug)]
pub struct Checked {
    /// Which set.
    pub split: Split,
    /// The set; `None` if its annotation file cannot be used.
    pub dataset: Option<Dataset>,
}

/// Checks the sets `splits` of `config`, each by itself and against the other and the model, for training with the
/// metrics of the config. `progress` hears of images done and in all.
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
            let (dataset, found) = Dataset::inspect(&config.data, split, scope.keep);
            diagnostics.append(found);
            Checked { split, dataset }
        })
        .collect();
    let readable: Vec<&Dataset> = sets.iter().filter_map(|set| set.dataset.as_ref()).collect();
    diagnostics.append(check_sets(config, &readable, &config.evaluation.metrics, scope, progress));
    (sets, diagnostics)
}

/// The checks before a job that evaluates `metrics`: those of [`Scope::quick`], on sets that are open.
///
/// # Errors
/// A data error with what [`Diagnostics::lines`] says of the errors; the rest is what the log should say.
pub fn check_before_job(config: &Config, sets: &[&Dataset], metrics: &[Metric]) -> Result<Vec<String>> {
    let diagnostics = check_sets(config, sets, metrics, Scope::quick(), &|_, _, _| {});
    diagnostics.refuse_errors()?;
    Ok(diagnostics.lines(Severity::Warning))
}

/// Checks that sets that are open have the classes of the model, and the same ones; every rank can afford it.
///
/// # Errors
/// A data error with what [`Diagnostics::lines`] says of the errors.
pub fn check_classes(config: &Config, sets: &[&Dataset]) -> Result<()> {
    let mut diagnostics = Diagnostics::default();
    splits::check_classes(config, sets, &mut diagnostics);
    diagnostics.refuse_errors()
}

/// Checks sets that are open: their masks and images, and how they fit together. What [`Dataset::diagnostics`] holds is
/// not repeated.
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
        if scope.headers || scope.decode {
            let report = |done| progress(dataset.split(), done, dataset.len());
            own.append(images::check(dataset, &config.data.pipeline, scope, &report));
        }
        diagnostics.append(own);
    }
    splits::check(config, sets, &mut diagnostics);
    if metrics.contains(&Metric::Segm) {
        diagnostics.rename(Code::MaskMissingEvaluated, Code::MaskNeeded);
    }
    if config.data.on_error == OnError::Skip {
        for code in [Code::ImageMissing, Code::ImageUnreadable] {
            diagnostics.rename(code, Code::ImageLeftOut);
        }
    }
    diagnostics
}
