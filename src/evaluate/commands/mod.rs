//! The commands `test` and `predict`.

mod predict;
mod test;
#[cfg(test)]
mod tests;

use std::path::Path;

use tch::Device;

pub use predict::predict;
pub use test::test;

use super::inference::Ranks;
use super::paint::Object;
use super::results::{Detection, ImageResult};
use crate::config::{self, Config, Resolved};
use crate::error::{Error, Result};
use crate::model::{MaskRcnn, Parameters};
use crate::train::checkpoint::{Checkpoint, EMA, MODEL};

/// Where a command runs, and how it tells people about its headway.
pub struct Host<'a> {
    /// The ranks of the job.
    pub ranks: &'a dyn Ranks,
    /// Device of this rank.
    pub device: Device,
    /// Called after every picture with the pictures done on this rank, and those that it has.
    pub progress: &'a mut dyn FnMut(usize, usize),
    /// Takes text for people; called on rank 0 only.
    pub say: &'a mut dyn FnMut(&str),
}

/// A trained detector.
struct Trained {
    model: MaskRcnn,
    config: Config,
    /// Class names in the order of the labels.
    classes: Vec<String>,
}

/// Builds the model that a checkpoint holds: by `config`, else by the config stored in it, with `overrides` laid on.
/// The moving average of the weights is taken, where there is one.
fn load(checkpoint: &Path, config: Option<&Path>, overrides: &[String], device: Device) -> Result<Trained> {
    let stored = Checkpoint::load(checkpoint)?;
    let config = match config {
        Some(path) => config::load(path, overrides)?.config,
        None => {
            let origin = format!("config inside {}", checkpoint.display());
            Resolved::from_toml(&stored.meta.config, &origin, overrides)?.config
        }
    };
    config.validate()?;
    let mut parameters = Parameters::new();
    let model = MaskRcnn::new(&config.model, &mut parameters, device, 0)?;
    let mut report = parameters.load(stored.section(MODEL))?;
    if report.is_complete() && stored.section(EMA).next().is_some() {
        // The average holds what is trained; the buffers stay those of the model.
        let average = parameters.load(stored.section(EMA))?;
        report.conflicts = average.conflicts;
        report.unexpected = average.unexpected;
    }
    if !report.is_complete() {
        return Err(Error::data(format!(
            "{}: its weights do not fit the model of the config: {report}. Use the config that it was trained with: \
             leave out --config and overrides of [model]",
            checkpoint.display()
        )));
    }
    Ok(Trained { model, config, classes: stored.meta.classes })
}

/// The detections with a score of at least `least`, ready to be painted.
fn to_paint(result: &ImageResult, classes: &[String], least: f64) -> Result<Vec<Object>> {
    let shown = result.detections.iter().filter(|detection| f64::from(detection.score) >= least);
    shown
        .map(|detection| {
            Ok(Object {
                label: detection.label as usize,
                name: name_of(detection, classes),
                score: Some(detection.score),
                bbox: detection.bbox,
                mask: Some(result.mask(detection)?),
                crowd: false,
            })
        })
        .collect()
}

fn name_of(detection: &Detection, classes: &[String]) -> String {
    let label = detection.label as usize;
    classes.get(label).cloned().unwrap_or_else(|| format!("class {label}"))
}
