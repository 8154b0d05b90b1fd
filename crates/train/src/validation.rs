//! Evaluation during training.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexMap;

use fnet_common::atomic;
use fnet_common::{Error, Result};
use fnet_config::Config;
use fnet_data::{Dataset, Split};
use fnet_distributed::Communicator;
use fnet_evaluate::inference::{Done, Found, RankResult, evaluate};
use fnet_evaluate::metrics::Metrics;
use fnet_evaluate::results::ImageResult;
use fnet_protocol::client::Client;
use fnet_protocol::message::{Phase, Progress, StopReason};
use fnet_protocol::stop;

use super::after_evaluation::{AfterEvaluation, FinishedEvaluation};
use super::train_state::TrainState;

/// The folder of what evaluations write, in the work folder.
const RESULTS: &str = "results";

/// The validation set and its evaluation.
pub struct Validation {
    config: Config,
    dataset: Arc<Dataset>,
    work_dir: PathBuf,
    after: AfterEvaluation,
}

/// The result of an evaluation during training.
pub enum Validated {
    /// It finished; `Some` on rank 0.
    Measured(Option<Box<Measured>>),
    /// It was aborted by a stop request. The weights are saved, so it can be repeated.
    Stopped(StopReason),
}

/// Metrics of an evaluation during training.
pub struct Measured {
    /// The numbers.
    pub metrics: Metrics,
    /// The images that could not be read and were skipped, as `data.on_error` allows.
    pub left_out: Vec<String>,
    /// The detections.
    pub results: Vec<ImageResult>,
}

impl Validation {
    /// Opens the validation set.
    /// Errors: a data error if it cannot be used.
    pub fn open(config: &Config, work_dir: &Path) -> Result<Self> {
        let dataset = Arc::new(Dataset::open(&config.data, Split::Val)?);
        let folder = config.evaluation.keep_results.then(|| work_dir.join(RESULTS));
        let after = AfterEvaluation::new(folder, Arc::clone(&dataset));
        Ok(Self { config: config.clone(), work_dir: work_dir.to_path_buf(), after, dataset })
    }

    /// Number of images.
    pub fn image_count(&self) -> usize {
        self.dataset.len()
    }

    /// The validation set.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// Evaluates the current weights on all ranks together. Rank 0 writes the metrics to `results/epoch_N.metrics.json`.
    /// Errors: if an image cannot be read, a rank is lost, or the metrics cannot be written.
    pub fn run(
        &self,
        train_state: &TrainState<'_>,
        communicator: &Communicator,
        control: &Client,
        epoch: usize,
    ) -> Result<Validated> {
        control.at(Phase::Evaluation, epoch as u64, 0);
        let mut on_image = |image: Done<'_>| {
            control.progress(Progress {
                phase: Phase::Evaluation,
                epoch: epoch as u64,
                epochs: self.config.train.epochs as u64,
                step: image.done as u64,
                total_steps: self.dataset.len() as u64,
                ..Progress::default()
            });
            // The next collective, which would notice a lost peer, may be far away.
            match stop::lost_peer() {
                Some(rank) => Err(Error::distributed(format!("rank {rank} is lost"))),
                None => Ok(()),
            }
        };
        let kinds = &self.config.evaluation.metrics;
        let outcome = evaluate(&train_state.model, &self.dataset, &self.config, kinds, communicator, &mut on_image)?;
        match outcome {
            RankResult::Stopped(reason) => Ok(Validated::Stopped(reason)),
            RankResult::Elsewhere => Ok(Validated::Measured(None)),
            RankResult::Here(evaluation) => {
                control.phase(Phase::Summary);
                if let Err(error) = self.write(&evaluation.metrics, epoch) {
                    log::warn!("the metrics of epoch {epoch} could not be written; training continues: {error}");
                }
                let Found { results, skipped: left_out } = evaluation.found;
                let measured = Measured { metrics: evaluation.metrics, left_out, results };
                Ok(Validated::Measured(Some(Box::new(measured))))
            }
        }
    }

    /// Keeps the detections of an evaluation and shows some of them in TensorBoard, while training goes on.
    pub fn keep(&mut self, evaluation: FinishedEvaluation) {
        self.after.start(evaluation);
    }

    /// Waits until that is done; calls `alive` meanwhile.
    pub fn finish(&mut self, timeout: Duration, alive: &dyn Fn()) {
        self.after.finish(timeout, alive);
    }

    fn write(&self, metrics: &Metrics, epoch: usize) -> Result<()> {
        let path = metrics_file(&self.work_dir, epoch);
        let values = metrics.to_json();
        atomic::create(&path, |out| {
            serde_json::to_writer_pretty(out, &values).map_err(|error| Error::environment(error.to_string()))
        })
    }
}

/// The stored metrics of `epoch`. `None` if the evaluation did not finish, if they are older than the checkpoint and so of
/// another run, or if they cannot be read; the job then evaluates again.
pub(crate) fn read_metrics(work_dir: &Path, epoch: usize, checkpoint: &Path) -> Option<IndexMap<String, f64>> {
    let path = metrics_file(work_dir, epoch);
    let modified = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    if modified(&path)? < modified(checkpoint)? {
        return None;
    }
    stored_metrics(work_dir, epoch)
}

/// The metrics that were stored after `epoch`, of whichever run.
pub(crate) fn stored_metrics(work_dir: &Path, epoch: usize) -> Option<IndexMap<String, f64>> {
    let text = std::fs::read(metrics_file(work_dir, epoch)).ok()?;
    let values: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&text).ok()?;
    values.into_iter().map(|(name, value)| Some((name, value.as_f64()?))).collect()
}

/// The file with the metrics of an evaluation during training. It exists only if the evaluation finished.
fn metrics_file(work_dir: &Path, epoch: usize) -> PathBuf {
    work_dir.join(RESULTS).join(format!("epoch_{epoch}.metrics.json"))
}
