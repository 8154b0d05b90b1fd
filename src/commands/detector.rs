//! The environment of `test` and `predict`, and the detector that they load.

use std::path::Path;

use tch::Device;

use fnet_checkpoint::{Need, TrainedFile};
use fnet_common::{Error, Result};
use fnet_config::{Config, Tta};
use fnet_distributed::Communicator;
use fnet_model::{MaskRcnn, Parameters};
use fnet_protocol::cli;

/// Where a command runs and how it reports progress.
pub struct Host<'a> {
    /// The ranks of the job.
    pub ranks: &'a Communicator,
    /// Device of this rank.
    pub device: Device,
    /// Called after every image with the number of images that this rank has finished, and that of the whole job.
    pub progress: &'a mut dyn FnMut(usize, usize),
    /// Tells the user something besides the results, which go to stdout; called only on rank 0.
    pub say: &'a mut dyn FnMut(&str),
}

/// A trained detector.
pub struct Trained {
    pub model: MaskRcnn,
    /// Its parameters and buffers by name.
    pub parameters: Parameters,
    pub config: Config,
    /// Class names in the order of the labels.
    pub classes: Vec<String>,
    /// See [`TrainedFile::validation_part`].
    pub validation_part: Option<String>,
    /// The load report of third-party weights.
    pub load_report: Option<String>,
}

/// A checkpoint and the options for loading it.
pub struct Wanted<'a> {
    pub checkpoint: &'a Path,
    pub config: Option<&'a Path>,
    pub overrides: &'a [String],
    pub allow_partial: bool,
    /// Whether `evaluation.tta` is on whatever the config says.
    pub tta: bool,
}

impl<'a> Wanted<'a> {
    /// The checkpoint of `test`.
    pub fn of_test(arguments: &'a cli::Test) -> Self {
        Self {
            checkpoint: &arguments.checkpoint,
            config: arguments.config.as_deref(),
            overrides: &arguments.set,
            allow_partial: arguments.allow_partial,
            tta: arguments.tta,
        }
    }
}

/// Builds the model of a checkpoint, and prints the load report of third-party weights.
pub fn load(wanted: &Wanted<'_>, host: &mut Host<'_>) -> Result<Trained> {
    let trained = build(wanted, host.device)?;
    if let (0, Some(report)) = (host.ranks.rank(), &trained.load_report) {
        (host.say)(report);
    }
    Ok(trained)
}

/// Builds the model of a checkpoint with the given config, else with the one stored in it, and applies the overrides.
/// Errors: if the checkpoint or the config is wrong, or memory runs out.
pub fn build(wanted: &Wanted<'_>, device: Device) -> Result<Trained> {
    let path = wanted.checkpoint;
    let file = TrainedFile::open(path)?;
    let mut config = match (wanted.config, file.config()) {
        (Some(config), _) => fnet_data::load_config(config, wanted.overrides)?.config,
        (None, Some(stored)) => {
            let origin = format!("config inside {}", path.display());
            let folders: Vec<_> = file.job_folder().into_iter().chain(fnet_config::folders_above(path)).collect();
            fnet_data::parse_config(stored, &origin, wanted.overrides, &folders)?.config
        }
        (None, None) => {
            return Err(Error::usage(format!(
                "{} does not contain a config: give the config of the model with --config=CONFIG.toml",
                path.display()
            )));
        }
    };
    if wanted.tta {
        config.evaluation.tta = Tta::Flip;
    }
    config.validate()?;
    let mut parameters = Parameters::new();
    let model = MaskRcnn::new(&config.model, &mut parameters, device, 0)?;
    let summary = file.fill(&parameters, Need::unless_partial(wanted.allow_partial, Need::All))?;
    let is_reported = wanted.allow_partial || matches!(file, TrainedFile::ThirdParty(_));
    let classes = if file.classes().is_empty() { &config.data.classes } else { file.classes() };
    let load_report = is_reported.then(|| summary.to_string());
    let validation_part = file.validation_part().map(str::to_owned);
    Ok(Trained { classes: classes.to_vec(), model, parameters, config, validation_part, load_report })
}
