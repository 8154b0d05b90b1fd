//! The metadata of a checkpoint.

use std::path::Path;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use fnet_common::{Error, Result};
use fnet_config::Config;
use fnet_data::ShardSegment;

/// The metadata of a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CheckpointMeta {
    /// The resolved config as TOML; [`CheckpointMeta::config`] reads it.
    #[serde(skip)]
    pub config: String,
    /// Class names in the order of the labels.
    pub classes: Vec<String>,
    /// The position of the job.
    pub progress: TrainProgress,
    /// Number of ranks of the job that wrote it.
    pub world_size: usize,
    /// Seed of the job.
    pub seed: u64,
    /// How the current epoch was sharded; `None` in files of older versions.
    #[serde(default, rename = "dealt")]
    pub sharding: Option<EpochSharding>,
    /// The best evaluation so far.
    pub best: Option<Best>,
    /// Further state of the training loop.
    #[serde(default)]
    pub state: State,
}

/// Further state of the training loop. All fields are optional; an invalid one is an error.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// The model must be evaluated before training continues.
    pub evaluation_due: bool,
    /// The checkpoint was written only because its job was stopped or aborted. The next regular checkpoint replaces it.
    pub transient: bool,
    /// The generation of the work folder that the attempt had which wrote it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Steps of the whole job, as planned when the checkpoint was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_steps: Option<usize>,
    /// How long the metric of `train.early_stop` has not become better.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stop: Option<EarlyStopState>,
    /// Updates of the moving average.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema_updates: Option<u64>,
    /// The loss scale of float16 training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScaleState>,
    /// Identifies the images that `data.val.fraction` took from the training set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_part: Option<String>,
    /// The folder in which the job ran, for relative paths of its config.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_folder: Option<String>,
    /// The values for the next log line. If they cannot be read, the job continues with a warning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_window: Option<serde_json::Value>,
}

/// The loss scale of float16 training, and when it last changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LossScaleState {
    /// The factor of the loss.
    #[serde(deserialize_with = "sound_scale")]
    pub scale: f64,
    /// Updates since the scale changed.
    pub steps_since_change: usize,
    /// Updates skipped in the whole job.
    #[serde(default)]
    pub skipped: u64,
}

impl LossScaleState {
    /// Below this, overflows have another cause than the scale.
    pub const MINIMUM: f64 = 1.0;
}

/// Accepts only scales that a job can have.
fn sound_scale<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    let scale = f64::deserialize(from)?;
    match (LossScaleState::MINIMUM..=f64::from(f32::MAX)).contains(&scale) {
        true => Ok(scale),
        false => Err(D::Error::custom(format!("the scale is {scale}, expected a number of at least 1"))),
    }
}

/// The position of a training job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TrainProgress {
    /// Finished epochs.
    pub epoch: usize,
    /// Steps since the end of the last finished epoch.
    pub step_in_epoch: usize,
    /// Steps since the start of training. Compared last, because it is recounted in whole epochs of the new length after the
    /// number of ranks changes.
    pub step: usize,
}

/// How an epoch is sharded over the ranks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochSharding {
    /// Images of the training set.
    #[serde(rename = "pictures")]
    pub images: usize,
    /// Images of each rank in a step.
    pub samples_per_gpu: usize,
    /// Gradient accumulation steps of an update.
    pub accumulate: usize,
    /// Earlier parts of the epoch that were sharded differently.
    #[serde(default, rename = "legs")]
    pub segments: Vec<ShardSegment>,
}

/// The best evaluation of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Name of the metric, for example `bbox_mAP`.
    pub metric: String,
    /// Its value.
    pub value: f64,
    /// Finished epochs at that evaluation.
    pub epoch: usize,
}

/// How long a metric has not become better.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EarlyStopState {
    /// The best evaluation by this metric.
    pub best: Best,
    /// Evaluations since then.
    pub since: usize,
}

impl CheckpointMeta {
    /// Checks for numbers that no job can have.
    pub(super) fn check(&self) -> Result<()> {
        let mut counts = vec![("world_size".to_owned(), self.world_size)];
        if let Some(sharding) = &self.sharding {
            counts.push(("dealt.samples_per_gpu".to_owned(), sharding.samples_per_gpu));
            counts.push(("dealt.accumulate".to_owned(), sharding.accumulate));
            for (index, segment) in sharding.segments.iter().enumerate() {
                for (name, value) in [
                    ("world_size", segment.world_size),
                    ("samples_per_gpu", segment.samples_per_gpu),
                    ("accumulate", segment.accumulate),
                ] {
                    counts.push((format!("dealt.legs[{index}].{name}"), value));
                }
            }
            let within = self.progress.step_in_epoch;
            let steps = sharding.segments.iter().try_fold(0_usize, |all, segment| all.checked_add(segment.steps));
            if steps.is_none_or(|steps| steps > within) {
                return Err(Error::data(format!("dealt.legs has more steps than progress.step_in_epoch ({within})")));
            }
        }
        match counts.into_iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(Error::data(format!("{name} is 0, expected a number of at least 1"))),
            None => Ok(()),
        }
    }

    /// The stored config.
    /// Errors: a usage error if this version of fnet does not know a field or value.
    pub fn config(&self, path: &Path) -> Result<Config> {
        Ok(Config::from_toml(&self.config, &format!("config inside {}", path.display()))?)
    }
}
