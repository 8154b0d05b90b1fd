//! The ranks that `test` and `predict` run on, and the detector that they load.

use std::path::Path;

use tch::Device;

use fnet_checkpoint::{Need, TrainedFile};
use fnet_common::{Error, Result};
use fnet_config::Config;
use fnet_evaluate::inference::Ranks;
use fnet_evaluate::paint::Object;
use fnet_evaluate::results::{Detection, ImageResult};
use fnet_model::{MaskRcnn, Parameters};
use fnet_protocol::cli;

/// Where a command runs, and how it tells people about its headway.
pub struct Host<'a> {
    /// The ranks of the job.
    pub ranks: &'a dyn Ranks,
    /// Device of this rank.
    pub device: Device,
    /// Called after every image with the images done on this rank, and those that it has.
    pub progress: &'a mut dyn FnMut(usize, usize),
    /// Takes text for people; called on rank 0 only.
    pub say: &'a mut dyn FnMut(&str),
}

/// A trained detector.
pub struct Trained {
    pub model: MaskRcnn,
    /// Its parameters and buffers by name.
    pub parameters: Parameters,
    /// Its config.
    pub config: Config,
    /// Class names in the order of the labels.
    pub classes: Vec<String>,
    /// What became of weights of another maker.
    pub told: Option<String>,
}

/// A checkpoint, and how it is to be read.
pub struct Wanted<'a> {
    pub checkpoint: &'a Path,
    pub config: Option<&'a Path>,
    pub overrides: &'a [String],
    pub allow_partial: bool,
}

impl<'a> Wanted<'a> {
    /// What `test` reads.
    pub fn of_test(arguments: &'a cli::Test) -> Self {
        Self {
            checkpoint: &arguments.checkpoint,
            config: arguments.config.as_deref(),
            overrides: &arguments.set,
            allow_partial: arguments.allow_partial,
        }
    }
}

/// Builds the model that a checkpoint holds, and says what became of weights of another maker.
pub fn load(wanted: &Wanted<'_>, host: &mut Host<'_>) -> Result<Trained> {
    let trained = build(wanted, host.device)?;
    if let (0, Some(told)) = (host.ranks.rank(), &trained.told) {
        (host.say)(told);
    }
    Ok(trained)
}

/// Builds the model that a checkpoint holds: by the config given, else by the one stored in it, with the overrides laid on.
///
/// # Errors
/// The checkpoint or the config are wrong, or memory ran out.
pub fn build(wanted: &Wanted<'_>, device: Device) -> Result<Trained> {
    let path = wanted.checkpoint;
    let file = TrainedFile::open(path)?;
    let config = match (wanted.config, file.config()) {
        (Some(config), _) => fnet_data::load_config(config, wanted.overrides)?.config,
        (None, Some(stored)) => {
            fnet_data::parse_config(stored, &format!("config inside {}", path.display()), wanted.overrides)?.config
        }
        (None, None) => {
            return Err(Error::usage(format!(
                "{} does not say what model it is of: give the config of the model with --config=CONFIG.toml",
                path.display()
            )));
        }
    };
    config.validate()?;
    let mut parameters = Parameters::new();
    let model = MaskRcnn::new(&config.model, &mut parameters, device, 0)?;
    let summary = file.fill(&parameters, Need::unless_partial(wanted.allow_partial, Need::All))?;
    let is_told = wanted.allow_partial || matches!(file, TrainedFile::ThirdParty(_));
    let classes = if file.classes().is_empty() { &config.data.classes } else { file.classes() };
    Ok(Trained { classes: classes.to_vec(), model, parameters, config, told: is_told.then(|| summary.to_string()) })
}

/// The detections with a score of at least `least`, ready to be painted.
pub fn to_paint(result: &ImageResult, classes: &[String], least: f64) -> Result<Vec<Object>> {
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

pub fn name_of(detection: &Detection, classes: &[String]) -> String {
    let label = detection.label as usize;
    classes.get(label).cloned().unwrap_or_else(|| format!("class {label}"))
}
