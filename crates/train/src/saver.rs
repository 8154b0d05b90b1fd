//! The rules of `[checkpoint]`: when and where checkpoints are written, and which one is the best.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indexmap::IndexMap;

use fnet_checkpoint::native::{Best, Checkpoint, CheckpointFolder, Save, TrainProgress, Writer, file_name};
use fnet_common::Result;
use fnet_config::{CheckpointPolicy, Interval};
use fnet_protocol::client::Client;
use fnet_protocol::generation::{self, Fence};

use super::progress::StepIndex;

/// Writes a job's checkpoints: regular ones on rank 0, an emergency checkpoint on any rank.
pub struct Saver {
    writer: Writer,
    keep_last: usize,
    minutes: Option<u64>,
    /// When the last checkpoint was started.
    newest: Instant,
}

impl Saver {
    /// Rank 0's saver for its [`folders`]. Also removes incomplete files of killed writers.
    /// Errors: an environment error if the work folder cannot be used.
    pub fn create(folders: &[PathBuf], policy: &CheckpointPolicy, control: &Client) -> Result<Self> {
        for (index, folder) in folders.iter().enumerate().filter(|(index, folder)| *index == 0 || folder.is_dir()) {
            match CheckpointFolder::create(folder) {
                Err(error) if index > 0 => log::warn!("{error}"),
                created => drop(created?),
            }
        }
        Self::beside_others(folders, policy, control)
    }

    /// A saver for folders that another process may be writing to.
    pub fn beside_others(folders: &[PathBuf], policy: &CheckpointPolicy, control: &Client) -> Result<Self> {
        // The first one is the work folder.
        let fence = folders.first().zip(generation::own()).map(|(folder, own)| Fence { folder: folder.clone(), own });
        let folders = folders.iter().map(CheckpointFolder::shared).collect();
        let control = control.clone();
        let on_saved = move |path: &Path, step| control.saved(path, step);
        Ok(Self {
            writer: Writer::start(folders, fence, Box::new(on_saved))?,
            keep_last: policy.keep_last,
            minutes: match policy.interval {
                Interval::Minutes(minutes) => Some(minutes as u64),
                _ => None,
            },
            newest: Instant::now(),
        })
    }

    /// Copies a checkpoint to host memory and writes it while training continues. `since` is when training paused for it.
    /// Errors: for lack of memory, or because a newer attempt of the job writes to the folder.
    pub fn save(&mut self, checkpoint: &Checkpoint, since: Instant) -> Result<()> {
        let snapshot = checkpoint.snapshot()?;
        let is_transient = checkpoint.meta.state.transient;
        self.newest = since;
        self.writer.save(Save {
            snapshot,
            file: file_name(checkpoint.meta.progress),
            pause: since.elapsed(),
            keep_last: if is_transient { 0 } else { self.keep_last },
            replaces_transient: !is_transient,
        })
    }

    /// Keeps the checkpoint at `progress` as the best one by `metric`.
    pub fn keep_best(&self, progress: TrainProgress, metric: &str) {
        self.writer.keep_best(file_name(progress), metric.to_owned());
    }

    /// Waits until everything is on the disk; calls `progress_of` while writing makes progress.
    /// Errors: an environment error if no folder accepts the newest checkpoint within `timeout`.
    pub fn finish(&self, timeout: Duration, progress_of: &dyn Fn()) -> Result<()> {
        self.writer.finish(timeout, progress_of)
    }

    /// Whether a checkpoint is due by `checkpoint.interval` in minutes.
    pub fn time_is_up(&self) -> bool {
        self.minutes.is_some_and(|minutes| self.newest.elapsed() >= Duration::from_secs(60 * minutes))
    }
}

/// The folders of a job's checkpoints: its work folder, then the job's subfolder of each fallback folder.
pub fn folders(work_dir: &Path, policy: &CheckpointPolicy) -> Vec<PathBuf> {
    let whole = std::path::absolute(work_dir).unwrap_or_else(|_| work_dir.to_path_buf());
    let own = name_of(&whole);
    let fallbacks = policy.fallback.iter().map(|folder| folder.join(&own));
    std::iter::once(work_dir.to_path_buf()).chain(fallbacks).collect()
}

/// A name for an absolute path that no other path has: its parts with `_` between them, and `%5F` for a `_` of their own.
fn name_of(path: &Path) -> String {
    let parts: Vec<String> =
        path.iter().skip(1).map(|part| part.to_string_lossy().replace('%', "%25").replace('_', "%5F")).collect();
    parts.join("_")
}

/// Whether a checkpoint is due by the number of steps after the update that ended with the step at `index`; `before` is the
/// progress after the previous update.
pub(crate) fn due_by_steps(interval: Interval, before: TrainProgress, index: StepIndex) -> bool {
    match interval {
        Interval::Steps(steps) => before.step / steps < (index.step + 1) / steps,
        _ => false,
    }
}

/// Whether a checkpoint is due at the end of an epoch.
pub(crate) fn due_by_epochs(interval: Interval, finished: usize, epochs: usize) -> bool {
    let by_interval = matches!(interval, Interval::Epochs(interval) if finished.is_multiple_of(interval));
    by_interval || finished == epochs
}

/// The evaluation after `finished` epochs if it is better than `best`. The first one is, unless it is undefined (-1).
pub fn better(policy: &str, metrics: &IndexMap<String, f64>, finished: usize, best: Option<&Best>) -> Option<Best> {
    let (name, value) = chosen(policy, metrics)?;
    let is_better = best.map_or(value >= 0.0, |best| value > best.value);
    is_better.then(|| Best { metric: name.to_owned(), value, epoch: finished })
}

/// The metric that `checkpoint.save_best` names; `auto` is the first one.
fn chosen<'m>(policy: &str, metrics: &'m IndexMap<String, f64>) -> Option<(&'m str, f64)> {
    let entry = if policy == "auto" { metrics.first() } else { metrics.get_key_value(policy) };
    entry.filter(|_| !policy.is_empty()).map(|(name, &value)| (name.as_str(), value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::TrainSchedule;

    #[test]
    fn work_folders_never_share_a_name_in_a_fallback_folder() {
        let paths = ["/a_/b", "/a/_b", "/a__b", "/a_b", "/a/b", "/a%5Fb", "/a%5F/b", "/a%255Fb"];
        let names: std::collections::HashSet<String> = paths.iter().map(|path| name_of(Path::new(path))).collect();
        assert_eq!(names.len(), paths.len(), "{names:?}");
        assert_eq!(name_of(Path::new("/data/job-1")), "data_job-1");
    }

    #[test]
    fn the_best_metric_is_the_named_or_first_one_and_must_exceed_all_previous_ones() {
        let metrics: IndexMap<String, f64> = [("bbox_mAP".into(), 0.3), ("segm_mAP".into(), 0.2)].into_iter().collect();
        assert_eq!(chosen("auto", &metrics), Some(("bbox_mAP", 0.3)));
        assert_eq!(chosen("segm_mAP", &metrics), Some(("segm_mAP", 0.2)));
        assert_eq!(chosen("", &metrics), None);
        assert_eq!(chosen("AR", &metrics), None);
        let best = better("segm_mAP", &metrics, 3, None).unwrap();
        assert_eq!((best.metric.as_str(), best.value, best.epoch), ("segm_mAP", 0.2, 3));
        assert_eq!(better("segm_mAP", &metrics, 4, Some(&best)), None);
        let of = |value: f64| -> IndexMap<String, f64> { [("segm_mAP".into(), value)].into_iter().collect() };
        let zero = better("segm_mAP", &of(0.0), 1, None).unwrap();
        assert_eq!((zero.value, zero.epoch), (0.0, 1), "the first evaluation is the best so far");
        assert_eq!(better("segm_mAP", &of(0.0), 2, Some(&zero)), None);
        assert_eq!(better("segm_mAP", &of(-1.0), 1, None), None, "undefined");
        assert_eq!(better("segm_mAP", &of(f64::NAN), 1, None), None);
    }

    #[test]
    fn an_interval_in_steps_counts_steps_of_the_job_and_waits_for_an_update() {
        let schedule = TrainSchedule::new(2, 5, 2);
        let (mut progress, mut updated, mut due) = (TrainProgress::default(), TrainProgress::default(), Vec::new());
        while progress.epoch < 2 {
            let index = schedule.next(progress);
            progress = schedule.after(index);
            if index.updates {
                if due_by_steps(Interval::Steps(3), updated, index) {
                    due.push(progress.step);
                }
                updated = progress;
            }
        }
        assert_eq!(due, [4, 7, 9], "after 3, 6 and 9 steps or the update that follows");
        assert!(!due_by_steps(Interval::Epochs(1), TrainProgress::default(), schedule.next(TrainProgress::default())));
    }

    #[test]
    fn the_last_epoch_is_always_saved() {
        let due = |interval| (1..=5).filter(|&epoch| due_by_epochs(interval, epoch, 5)).collect::<Vec<_>>();
        assert_eq!(due(Interval::Epochs(2)), [2, 4, 5]);
        assert_eq!(due(Interval::Steps(2)), [5]);
        assert_eq!(due(Interval::Minutes(2)), [5]);
    }

    #[test]
    fn each_job_has_its_own_subfolder_in_a_fallback_folder() {
        let policy = CheckpointPolicy { fallback: vec!["/spare".into()], ..CheckpointPolicy::default() };
        let found = folders(Path::new("/home/a/work_dirs/cfg"), &policy);
        assert_eq!(found, [Path::new("/home/a/work_dirs/cfg"), Path::new("/spare/home_a_work%5Fdirs_cfg")]);
    }
}
