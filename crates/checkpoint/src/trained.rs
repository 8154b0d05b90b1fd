//! Trained detectors in files of any supported format.

use std::path::{Path, PathBuf};

use fnet_common::{Context, Result};
use fnet_model::Parameters;

use super::apply::{Need, Summary};
use super::load::Weights;
use super::native::{self, Checkpoint, MODEL};

/// A file with a trained detector.
#[derive(Debug)]
pub enum TrainedFile {
    /// An fnet checkpoint, which includes its config.
    Fnet(PathBuf, Box<Checkpoint>),
    /// A PyTorch file or a third-party safetensors file.
    ThirdParty(Weights),
}

impl TrainedFile {
    /// Opens `path`. Every byte of an fnet checkpoint is verified.
    /// Errors: if the file cannot be read, has an unknown format, contains no tensors, or is damaged or hostile.
    pub fn open(path: &Path) -> Result<Self> {
        if native::is_third_party(path) {
            return Weights::open(path).map(Self::ThirdParty);
        }
        Ok(Self::Fnet(path.to_owned(), Box::new(Checkpoint::load(path)?)))
    }

    /// The config in the file, as TOML.
    pub fn config(&self) -> Option<&str> {
        match self {
            Self::Fnet(_, checkpoint) => Some(&checkpoint.meta.config),
            Self::ThirdParty(_) => None,
        }
    }

    /// The folder in which the job ran, if the file says so.
    pub fn job_folder(&self) -> Option<PathBuf> {
        match self {
            Self::Fnet(_, checkpoint) => checkpoint.meta.state.job_folder.as_deref().map(PathBuf::from),
            Self::ThirdParty(_) => None,
        }
    }

    /// Class names in the order of the labels; empty if the file does not say.
    pub fn classes(&self) -> &[String] {
        match self {
            Self::Fnet(_, checkpoint) => &checkpoint.meta.classes,
            Self::ThirdParty(weights) => &weights.meta().classes,
        }
    }

    /// Identifies the images that `data.val.fraction` took from the training set, if it did.
    pub fn validation_part(&self) -> Option<&str> {
        match self {
            Self::Fnet(_, checkpoint) => checkpoint.meta.state.validation_part.as_deref(),
            Self::ThirdParty(_) => None,
        }
    }

    /// Loads the model; the moving average of the weights, if there is one.
    pub fn fill(&self, parameters: &Parameters, need: Need) -> Result<Summary> {
        let (path, checkpoint) = match self {
            Self::ThirdParty(weights) => return weights.load_detector(parameters, need),
            Self::Fnet(path, checkpoint) => (path, checkpoint),
        };
        let fill = || -> Result<Summary> {
            let mut report = parameters.load(checkpoint.section(MODEL))?;
            // The average covers the trained parameters; buffers are those of the model.
            let average = parameters.load(checkpoint.averages()?)?;
            report.conflicts.extend(average.conflicts);
            report.unexpected.extend(average.unexpected);
            if need != Need::Any {
                report.require_complete()?;
            }
            Ok(Summary { path: path.clone(), report, note: None })
        };
        fill().with_context(|| path.display().to_string())
    }
}
