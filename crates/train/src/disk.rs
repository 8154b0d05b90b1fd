//! What the checkpoints of a job take on the disk, and whether there is room for them.

use std::path::Path;

use tch::Tensor;

use fnet_checkpoint::native::TrainProgress;
use fnet_common::atomic::free_bytes;
use fnet_common::{Error, Result};
use fnet_config::{CheckpointPolicy, Config, Interval, OptimizerKind};
use fnet_model::{Parameters, Role};
use fnet_protocol::estimate::DiskEstimate;

use super::progress::TrainSchedule;

/// What a tensor's entries in the header take beside its name, which stands there twice.
const HEADER_PER_TENSOR: u64 = 150;
/// What the rest of the header takes: config, counters, checksums.
const HEADER: u64 = 8 << 10;

/// Bytes of one checkpoint: its tensors to the byte, its header roughly. The tensors are those that a job writes after its
/// first update: parameters and buffers, the optimizer's state, the moving average, and each further rank's buffers.
pub fn checkpoint_bytes(config: &Config, parameters: &Parameters, ranks: usize) -> u64 {
    let mut total = HEADER;
    let mut add = |name: &str, bytes: u64| total += bytes + 2 * name.len() as u64 + HEADER_PER_TENSOR;
    for (name, role, tensor) in parameters.iter() {
        let bytes = bytes(tensor);
        add(name, bytes);
        if role == Role::Buffer {
            (1..ranks).for_each(|_| add(name, bytes));
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

/// Bytes of a tensor's values.
pub fn bytes(tensor: &Tensor) -> u64 {
    (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64
}

/// Checkpoints that lie on the disk at the same time, with the one that is being written, in the rest of a job. How many
/// an interval in minutes makes is not known; one for each epoch is counted.
pub fn most_at_once(policy: &CheckpointPolicy, schedule: &TrainSchedule, progress: TrainProgress) -> u64 {
    let epochs = schedule.epochs.saturating_sub(progress.epoch);
    let written = match policy.interval {
        Interval::Epochs(interval) => epochs.div_ceil(interval),
        Interval::Steps(interval) => schedule.total_steps(progress).saturating_sub(progress.step).div_ceil(interval),
        Interval::Minutes(_) => epochs,
    } as u64;
    match policy.keep_last as u64 {
        0 => written,
        // The best one may be none of the last; the old one goes when the new one is there.
        kept => written.min(kept + 1 + u64::from(!policy.save_best.is_empty())),
    }
}

/// What the rest of a job needs in `folder`, where `there` bytes of checkpoints lie already.
///
/// # Errors
/// An environment error if the disk cannot be asked.
pub fn estimate(
    folder: &Path,
    checkpoint: u64,
    policy: &CheckpointPolicy,
    schedule: &TrainSchedule,
    progress: TrainProgress,
) -> Result<DiskEstimate> {
    let there = folder.ancestors().find(|folder| folder.is_dir()).filter(|folder| !folder.as_os_str().is_empty());
    let there = there.unwrap_or(Path::new("."));
    let free = free_bytes(there)
        .map_err(|error| Error::environment(format!("asking for the free space in {}: {error}", there.display())))?;
    let count = most_at_once(policy, schedule, progress);
    // Those that lie there already will be replaced where only some are kept.
    let reusable = if policy.keep_last > 0 { lying(folder)?.min(count.saturating_sub(1)) } else { 0 };
    let needed = checkpoint.saturating_mul(count - reusable.min(count));
    Ok(DiskEstimate { checkpoint, count, needed, free })
}

/// Checkpoints of epochs and steps in the folder.
fn lying(folder: &Path) -> Result<u64> {
    let found = fnet_protocol::work_dir::checkpoints(folder)
        .map_err(|error| Error::environment(format!("reading {}: {error}", folder.display())))?;
    let numbered = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("epoch_") || name.starts_with("iter_")
    };
    Ok(found.iter().filter(|file| numbered(&file.path)).count() as u64)
}

/// Whether there is room: a warning if not all checkpoints of the job fit.
///
/// # Errors
/// An environment error if not even one fits.
pub fn judge(disk: &DiskEstimate, folder: &Path) -> Result<Option<String>> {
    let DiskEstimate { checkpoint, count, needed, free } = *disk;
    let remedy = "free some space, give --work-dir on another disk, or keep fewer with checkpoint.keep_last";
    let gib = |bytes: u64| format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30));
    if count > 0 && free < checkpoint {
        return Err(Error::environment(format!(
            "a checkpoint takes {}, and {} are free for {}; {remedy}",
            gib(checkpoint),
            gib(free),
            folder.display()
        )));
    }
    Ok((free < needed).then(|| {
        format!(
            "{count} checkpoints of {} will lie in {}, which needs {} more, and {} are free; {remedy}",
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
    fn the_rest_of_a_job_is_counted() {
        let schedule = TrainSchedule::new(12, 10, 1);
        let count = |policy: &CheckpointPolicy, epoch| most_at_once(policy, &schedule, at(epoch));
        assert_eq!(count(&policy(1, 0, ""), 0), 12);
        assert_eq!(count(&policy(5, 0, ""), 0), 3, "after 5, 10 and 12 epochs");
        assert_eq!(count(&policy(1, 0, ""), 9), 3);
        assert_eq!(count(&policy(1, 2, ""), 0), 3, "the old one goes when the new one is there");
        assert_eq!(count(&policy(1, 2, "bbox_mAP"), 0), 4);
        assert_eq!(count(&policy(1, 2, "bbox_mAP"), 11), 1);
        assert_eq!(count(&policy(1, 2, ""), 12), 0);
        let by = |interval| count(&CheckpointPolicy { interval, ..policy(1, 0, "") }, 2);
        assert_eq!((by(Interval::Steps(30)), by(Interval::Minutes(5))), (4, 10));
    }

    #[test]
    fn what_lies_there_already_makes_room() {
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
    fn no_room_for_one_is_an_error_and_for_all_a_warning() {
        // https://github.com/open-mmlab/mmdetection/issues/12069: the disk is full, hours later.
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
