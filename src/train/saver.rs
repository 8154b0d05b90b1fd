//! Rank 0's checkpoints: where they are written, which are kept, and which is the best.

use std::path::PathBuf;

use indexmap::IndexMap;

use super::checkpoint::{Best, Checkpoint, CheckpointFolder};
use super::place::Position;
use crate::config::CheckpointPolicy;
use crate::error::Result;

/// Writes checkpoints by the rules of `[checkpoint]`.
#[derive(Debug)]
pub struct Saver {
    folder: CheckpointFolder,
    policy: CheckpointPolicy,
    best: Option<Best>,
}

impl Saver {
    /// A saver for `work_dir`; `best` is the best evaluation of the run that is resumed.
    pub fn new(folder: CheckpointFolder, policy: &CheckpointPolicy, best: Option<Best>) -> Self {
        Self { folder, policy: policy.clone(), best }
    }

    /// The best evaluation so far.
    pub fn best(&self) -> Option<&Best> {
        self.best.as_ref()
    }

    /// The file that holds `position`.
    pub fn path(&self, position: Position) -> PathBuf {
        if position.iteration == 0 { self.folder.epoch(position.epoch) } else { self.folder.iter(position.step as u64) }
    }

    /// Writes a checkpoint, lets `latest.ckpt` name it, and removes those that are no longer kept.
    ///
    /// # Errors
    /// An environment error when the disk is full or the folder cannot be written.
    pub fn save(&self, checkpoint: &Checkpoint, position: Position) -> Result<PathBuf> {
        let path = self.path(position);
        checkpoint.save(&path)?;
        self.folder.publish_latest(&path)?;
        if self.policy.keep_last > 0 {
            self.folder.keep_last(self.policy.keep_last)?;
        }
        Ok(path)
    }

    /// Keeps the checkpoint at `position` as the best one if its metric is above all before.
    ///
    /// A metric of 0 or below is never the best, as in the reference.
    ///
    /// # Errors
    /// An environment error when it cannot be written.
    pub fn keep_best(&mut self, metrics: &IndexMap<String, f64>, position: Position) -> Result<()> {
        let Some((name, value)) = chosen(&self.policy.save_best, metrics) else { return Ok(()) };
        if value <= self.best.as_ref().map_or(0.0, |best| best.value) {
            return Ok(());
        }
        let kept = self.folder.keep_best(&self.path(position), name)?;
        self.best = Some(Best { metric: name.to_owned(), value, epoch: position.epoch });
        log::info!("Best {name} is {value:.4} at {} epoch, kept as {}", position.epoch, kept.display());
        Ok(())
    }
}

/// The metric that `checkpoint.save_best` names; `auto` is the first one.
fn chosen<'m>(policy: &str, metrics: &'m IndexMap<String, f64>) -> Option<(&'m str, f64)> {
    let entry = if policy == "auto" { metrics.first() } else { metrics.get_key_value(policy) };
    entry.filter(|_| !policy.is_empty()).map(|(name, &value)| (name.as_str(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_metric_is_the_one_named_or_the_first() {
        let metrics: IndexMap<String, f64> = [("bbox_mAP".into(), 0.3), ("segm_mAP".into(), 0.2)].into_iter().collect();
        assert_eq!(chosen("auto", &metrics), Some(("bbox_mAP", 0.3)));
        assert_eq!(chosen("segm_mAP", &metrics), Some(("segm_mAP", 0.2)));
        assert_eq!(chosen("", &metrics), None);
        assert_eq!(chosen("AR", &metrics), None);
    }
}
