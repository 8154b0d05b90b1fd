//! Trained detectors in files of any maker.

use std::path::{Path, PathBuf};

use fnet_common::{Context, Result};
use fnet_model::Parameters;

use super::apply::{Need, Summary};
use super::load::Weights;
use super::native::{self, Checkpoint, MODEL};

/// A file with a trained detector, to be evaluated.
#[derive(Debug)]
pub enum TrainedFile {
    /// A checkpoint of this program, which says what model it is of.
    Fnet(PathBuf, Box<Checkpoint>),
    /// A PyTorch file, or a safetensors file of another maker.
    ThirdParty(Weights),
}

impl TrainedFile {
    /// Opens `path`. Of a checkpoint of this program every byte is checked.
    ///
    /// # Errors
    /// If the file cannot be read, is of no known format, holds no tensors, or is damaged or hostile.
    pub fn open(path: &Path) -> Result<Self> {
        if native::is_third_party(path) {
            return Weights::open(path).map(Self::ThirdParty);
        }
        Ok(Self::Fnet(path.to_owned(), Box::new(Checkpoint::load(path)?)))
    }

    /// The config inside, as TOML.
    pub fn config(&self) -> Option<&str> {
        match self {
            Self::Fnet(_, checkpoint) => Some(&checkpoint.meta.config),
            Self::ThirdParty(_) => None,
        }
    }

    /// Class names in the order of the labels; empty if the file does not tell.
    pub fn classes(&self) -> &[String] {
        match self {
            Self::Fnet(_, checkpoint) => &checkpoint.meta.classes,
            Self::ThirdParty(weights) => &weights.meta().classes,
        }
    }

    /// Fills the model. The moving average of the weights is taken, where there is one.
    ///
    /// # Errors
    /// As [`Weights::load_detector`].
    pub fn fill(&self, parameters: &Parameters, need: Need) -> Result<Summary> {
        let (path, checkpoint) = match self {
            Self::ThirdParty(weights) => return weights.load_detector(parameters, need),
            Self::Fnet(path, checkpoint) => (path, checkpoint),
        };
        let fill = || -> Result<Summary> {
            let mut report = parameters.load(checkpoint.section(MODEL))?;
            // The average holds what is trained; the buffers stay those of the model.
            let average = parameters.load(checkpoint.averages()?)?;
            report.conflicts.extend(average.conflicts);
            report.unexpected.extend(average.unexpected);
            if need != Need::Any {
                report.require_complete()?;
            }
            Ok(Summary { path: path.clone(), report })
        };
        fill().with_context(|| path.display().to_string())
    }
}
