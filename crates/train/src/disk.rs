//! Estimates the disk space that the checkpoints of a job need, and checks that it is free.

use std::path::Path;

use tch::Tensor;

use fnet_checkpoint::native::TrainProgress;
use fnet_common::atomic::free_bytes;
use fnet_common::{Error, Result};
use fnet_config::{CheckpointPolicy, Config, Interval, OptimizerKind};
use fnet_model::{Parameters, Role};
use fnet_protocol::estimate::DiskEstimate;

use super::progress::TrainSchedule;

/// Header bytes per tensor, without its name, which appears twice.
const HEADER_PER_TENSOR: u64 = 150;
/// Bytes of the rest of the header: config, counters, checksums.
const HEADER: u64 = 8 << 10;

/// Bytes of one checkpoint: tensors exactly, the header approximately. The tensors are those after the first update:
/// parameters and buffers, the optimizer's state, the moving average, and the buffers of each further rank.
pub(crate) fn checkpoint_bytes(config: &Config, parameters: &Parameters, ranks: usize) -> u64 {
    let mut total = HEADER;
    let mut add = |name: &str, bytes: u64| total += bytes + 2 * name.len() as u64 + HEADER_PER_TENSOR;
    for (name, role, tensor) in parameters.iter() {
        let bytes = bytes(tensor);
        add(name, bytes);
        if role == Role::Buffer {
            (1..ranks).for_each(|_| add(name, bytes));
        }
        if role == Role::Buffer || parameters.is_frozen(name) {
            continue;
        }
        match config.optimizer.kind {
            OptimizerKind::AdamW => [bytes, bytes, 4].into_iter().for_each(|state| add(name, state)),
            OptimizerKind::Sgd if config.optimizer.momentum > 0.0 => add(name, bytes),
            OptimizerKind::Sgd => {}
        }
        if config.train.ema > 0.0 {
            add(name, bytes);
        }
    }
    total
}

/// Bytes of a tensor's data.
pub fn bytes(tensor: &Tensor) -> u64 {
    (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64
}

/// The maximum number of checkpoints on the disk at the same time in the rest of a job, with the one being written. An
/// interval in minutes counts as one checkpoint per epoch.
pub(crate) fn most_at_once(policy: &CheckpointPolicy, schedule: &TrainSchedule, progress: TrainProgress) -> u64 {
    let epochs = schedule.epochs.saturating_sub(progress.epoch);
    let written = match policy.interval {
        Interval::Epochs(interval) => epochs.div_ceil(interval),
        Interval::Steps(interval) => schedule.total_steps(progress).saturating_sub(progress.step).div_ceil(interval),
        Interval::Minutes(_) => epochs,
    } as u64;
    match policy.keep_last as u64 {
        0 => written,
        // The best one may not be among the last; the oldest is deleted after the new one is written.
        kept => written.min(kept + 1 + u64::from(!policy.save_best.is_empty())),
    }
}

/// The disk space that the rest of a job needs in `folder`.
/// Errors: an environment error if the free space cannot be read.
pub fn estimate(
    folder: &Path,
    checkpoint: u64,
    policy: &CheckpointPolicy,
    schedule: &TrainSchedule,
    progress: TrainProgress,
) -> Result<DiskEstimate> {
    let existing = folder.ancestors().find(|folder| folder.is_dir()).filter(|folder| !folder.as_os_str().is_empty());
    let existing = existing.unwrap_or(Path::new("."));
    let free = free_bytes(existing)
        .map_err(|error| Error::environment(format!("reading the free space of {}: {error}", existing.display())))?;
    let count = most_at_once(policy, schedule, progress);
    // With `keep_last`, existing checkpoints will be replaced.
    let reusable = if policy.keep_last > 0 { count_checkpoints(folder)?.min(count.saturating_sub(1)) } else { 0 };
    let needed = checkpoint.saturating_mul(count - reusable.min(count));
    Ok(DiskEstimate { checkpoint, count, needed, free })
}

/// The number of checkpoints of epochs and steps in the folder.
fn count_checkpoints(folder: &Path) -> Result<u64> {
    let found = fnet_protocol::work_dir::checkpoints(folder)
        .map_err(|error| Error::environment(format!("reading {}: {error}", folder.display())))?;
    let numbered = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("epoch_") || name.starts_with("iter_")
    };
    Ok(found.iter().filter(|file| numbered(&file.path)).count() as u64)
}

/// Whether there is room: a warning if not all checkpoints of the job fit.
/// Errors: an environment error if not even one fits.
pub fn judge(disk: &DiskEstimate, folder: &Path) -> Result<Option<String>> {
    let DiskEstimate { checkpoint, count, needed, free } = *disk;
    let remedy = "free some space, set --work-dir to another disk, or keep fewer with checkpoint.keep_last";
    let gib = |bytes: u64| format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30));
    if count > 0 && free < checkpoint {
        return Err(Error::environment(format!(
            "a checkpoint needs {}, but only {} are free for {}; {remedy}",
            gib(checkpoint),
            gib(free),
            folder.display()
        )));
    }
    Ok((free < needed).then(|| {
        format!(
            "{count} checkpoints of {} in {} need {} more, but only {} are free; {remedy}",
            gib(checkpoint),
            folder.display(),
            gib(needed),
            gib(free)
        )
    }))
}

#[cfg(test)]
mod tests {
    use fnet_common::ErrorKind;

    use super::*;

    fn policy(interval: usize, keep_last: usize, save_best: &str) -> CheckpointPolicy {
        let interval = Interval::Epochs(interval);
        CheckpointPolicy { interval, keep_last, save_best: save_best.into(), ..CheckpointPolicy::default() }
    }

    fn at(epoch: usize) -> TrainProgress {
        TrainProgress { epoch, step_in_epoch: 0, step: 0 }
    }

    #[test]
    fn only_the_checkpoints_of_the_rest_of_a_job_are_counted() {
        let schedule = TrainSchedule::new(12, 10, 1);
        let count = |policy: &CheckpointPolicy, epoch| most_at_once(policy, &schedule, at(epoch));
        assert_eq!(count(&policy(1, 0, ""), 0), 12);
        assert_eq!(count(&policy(5, 0, ""), 0), 3, "after 5, 10 and 12 epochs");
        assert_eq!(count(&policy(1, 0, ""), 9), 3);
        assert_eq!(count(&policy(1, 2, ""), 0), 3, "the oldest is deleted after the new one is written");
        assert_eq!(count(&policy(1, 2, "bbox_mAP"), 0), 4);
        assert_eq!(count(&policy(1, 2, "bbox_mAP"), 11), 1);
        assert_eq!(count(&policy(1, 2, ""), 12), 0);
        let by = |interval| count(&CheckpointPolicy { interval, ..policy(1, 0, "") }, 2);
        assert_eq!((by(Interval::Steps(30)), by(Interval::Minutes(5))), (4, 10));
    }

    #[test]
    fn existing_checkpoints_reduce_the_needed_space() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["epoch_1.ckpt", "epoch_2.ckpt", "best_bbox_mAP.ckpt", "notes.txt"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let schedule = TrainSchedule::new(12, 10, 1);
        let needed = |policy: &CheckpointPolicy, folder: &Path| {
            let disk = estimate(folder, 100, policy, &schedule, at(2)).unwrap();
            assert!(disk.free > 0);
            disk.needed
        };
        assert_eq!(needed(&policy(1, 2, ""), folder.path()), 100);
        assert_eq!(needed(&policy(1, 0, ""), folder.path()), 1000);
        assert_eq!(needed(&policy(1, 2, ""), &folder.path().join("new/folder")), 300);
    }

    #[test]
    fn no_room_for_one_checkpoint_is_an_error_and_for_all_a_warning() {
        // https://github.com/open-mmlab/mmdetection/issues/12069: the disk fills up hours into a job.
        let disk = |free| DiskEstimate { checkpoint: 1 << 30, count: 12, needed: 12 << 30, free };
        let folder = Path::new("work_dirs/a");
        assert_eq!(judge(&disk(13 << 30), folder).unwrap(), None);
        let warning = judge(&disk(5 << 30), folder).unwrap().unwrap();
        assert!(warning.contains("12 checkpoints of 1.00 GiB") && warning.contains("keep_last"), "{warning}");
        let error = judge(&disk(1 << 29), folder).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Environment);
        assert!(error.to_string().contains("0.50 GiB are free for work_dirs/a"), "{error}");
    }
}
