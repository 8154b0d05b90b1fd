//! Images per update in a job whose nodes come and go (`fnet-launch --nnodes MIN:MAX`).

use fnet_common::{Error, Result, text};
use fnet_config::{Config, ElasticBatch};
use fnet_protocol::env;

/// What was changed so that an update has the images that it would have with all nodes.
#[derive(Debug, Clone, PartialEq)]
pub struct ElasticUpdate {
    /// Images per update with all nodes.
    pub planned: usize,
    /// Images per update.
    pub images: usize,
    pub workers: usize,
    pub accumulate: usize,
    pub learning_rate: f64,
}

/// Number of workers if all nodes were there; `None` unless nodes may come and go.
pub fn full_world_size() -> Option<usize> {
    std::env::var(env::FULL_WORLD_SIZE).ok()?.parse().ok().filter(|&count| count > 0)
}

/// Changes `train.accumulate` so that an update on `workers` has as many images as on `full` workers. Where that is impossible,
/// `train.elastic_batch` decides.
/// Errors: a usage error if it is impossible and the job shall stop then.
pub fn keep_batch(config: &mut Config, workers: usize, full: usize) -> Result<ElasticUpdate> {
    let planned = config.effective_batch(full);
    let per_step = config.data.samples_per_gpu * workers;
    if planned.is_multiple_of(per_step) {
        config.train.accumulate = planned / per_step;
    } else {
        match config.train.elastic_batch {
            ElasticBatch::KeepOrStop => {
                return Err(Error::usage(format!(
                    "the {planned} images per update of {} cannot be kept on {}, which have {per_step} in a step: start again \
                     with all nodes, or set train.elastic_batch to \"scale-lr\" or \"as-is\"",
                    text::count(full, "worker"),
                    text::count(workers, "worker")
                )));
            }
            ElasticBatch::ScaleLr => {
                config.train.accumulate = ((planned + per_step / 2) / per_step).max(1);
                config.optimizer.lr *= config.effective_batch(workers) as f64 / planned as f64;
            }
            ElasticBatch::AsIs => {}
        }
    }
    Ok(ElasticUpdate {
        planned,
        images: config.effective_batch(workers),
        workers,
        accumulate: config.train.accumulate,
        learning_rate: config.optimizer.lr,
    })
}

impl ElasticUpdate {
    /// The line of the log.
    pub fn line(&self) -> String {
        let Self { planned, images, workers, accumulate, learning_rate } = self;
        let workers = text::count(*workers, "worker");
        format!(
            "{images} images per update on {workers} ({planned} with all nodes): train.accumulate = {accumulate}, \
             optimizer.lr = {learning_rate}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_batch_is_kept_exactly_or_as_the_config_says() {
        use ElasticBatch::{AsIs, KeepOrStop, ScaleLr};
        for (policy, workers, full, expected) in [
            (KeepOrStop, 4, 4, Some((4, 1, 0.1))),
            (KeepOrStop, 2, 4, Some((4, 2, 0.1))),
            (KeepOrStop, 3, 4, None),
            (ScaleLr, 1, 4, Some((4, 4, 0.1))),
            (ScaleLr, 3, 4, Some((3, 1, 0.1 * (3.0 / 4.0)))),
            (ScaleLr, 3, 8, Some((9, 3, 0.1 * (9.0 / 8.0)))),
            (AsIs, 3, 8, Some((3, 1, 0.1))),
            // A node with more workers than node 0 came.
            (ScaleLr, 5, 1, Some((5, 1, 0.1 * 5.0))),
        ] {
            let mut config = Config::default();
            (config.data.samples_per_gpu, config.optimizer.lr, config.train.elastic_batch) = (1, 0.1, policy);
            let update = keep_batch(&mut config, workers, full).ok();
            let found = update.as_ref().map(|update| (update.images, update.accumulate, update.learning_rate));
            assert_eq!(found, expected, "{policy:?}, {workers} of {full}");
        }
    }
}
