//! Resuming a job with another number of ranks or another batch size.

use std::path::Path;

use fnet_checkpoint::native::{CheckpointMeta, EpochSharding, TrainProgress};
use fnet_common::{Result, text};
use fnet_config::Config;
use fnet_data::{ShardSegment, rest_of_epoch};

use super::elastic::full_world_size;
use super::progress::TrainSchedule;

/// Where a job resumes.
pub struct Continued {
    pub progress: TrainProgress,
    /// How other ranks trained the first part of the epoch.
    pub segments: Vec<ShardSegment>,
    /// Nothing of the epoch is left to train, but it was not ended.
    pub epoch_is_over: bool,
    pub warnings: Vec<String>,
}

/// Where `world_size` ranks with this config resume from a checkpoint. If other ranks began the epoch, `schedule` is changed
/// so that each image of the epoch is still seen once.
/// Errors: a usage error if the config in an old checkpoint, which holds its batch size, cannot be read.
pub(crate) fn go_on(
    meta: &CheckpointMeta,
    config: &Config,
    flags: &[u8],
    world_size: usize,
    schedule: &mut TrainSchedule,
    path: &Path,
) -> Result<Continued> {
    let sharding = match &meta.sharding {
        Some(sharding) => sharding.clone(),
        None => sharding_by_config(&meta.config(path)?, flags.len()),
    };
    let progress = meta.progress;
    let mut warnings: Vec<String> = other_batch(meta.world_size, &sharding, config, world_size).into_iter().collect();
    if progress.step_in_epoch == 0 {
        let progress = schedule.at_end_of_epoch(progress, meta.world_size, world_size);
        return Ok(Continued { progress, segments: Vec::new(), epoch_is_over: false, warnings });
    }
    if sharding.images != flags.len() {
        warnings.push(format!(
            "the training set had {} images and now has {}: the rest of epoch {} may repeat some and miss others",
            sharding.images,
            flags.len(),
            progress.epoch + 1
        ));
    }
    let samples = config.data.samples_per_gpu;
    let steps_of = |segments: &[ShardSegment]| segments.iter().map(|segment| segment.steps).sum::<usize>();
    let mut segments = sharding.segments;
    let same = (meta.world_size, sharding.samples_per_gpu, sharding.accumulate, sharding.images)
        == (world_size, samples, config.train.accumulate, flags.len());
    if !same {
        segments.push(ShardSegment {
            world_size: meta.world_size.max(1),
            samples_per_gpu: sharding.samples_per_gpu.max(1),
            accumulate: sharding.accumulate,
            steps: progress.step_in_epoch.saturating_sub(steps_of(&segments)),
        });
    }
    let before = steps_of(&segments);
    let steps = if segments.is_empty() {
        schedule.steps_per_epoch
    } else {
        let lists = rest_of_epoch(flags, progress.epoch as u64, config.train.seed, &segments, world_size, samples);
        before + lists.first().map_or(0, |list| list.len() / samples)
    };
    let rest = steps.saturating_sub(progress.step_in_epoch);
    let progress = schedule.within_epoch(progress, before, rest);
    Ok(Continued { progress, segments, epoch_is_over: rest == 0, warnings })
}

/// The sharding of checkpoints of older versions, which do not store it.
fn sharding_by_config(config: &Config, images: usize) -> EpochSharding {
    EpochSharding {
        images,
        samples_per_gpu: config.data.samples_per_gpu,
        accumulate: config.train.accumulate,
        segments: Vec::new(),
    }
}

/// A warning if the number of images per update has changed.
fn other_batch(then: usize, sharding: &EpochSharding, config: &Config, now: usize) -> Option<String> {
    let (before, after) = (then * sharding.samples_per_gpu * sharding.accumulate, config.effective_batch(now));
    let lr = config.optimizer.lr;
    // A job whose nodes come and go has said how many images an update has.
    if before == after || full_world_size().is_some() {
        return None;
    }
    let keeps = match before.is_multiple_of(now * config.data.samples_per_gpu) {
        true => format!("train.accumulate={} keeps {before}, ", before / (now * config.data.samples_per_gpu)),
        false => String::new(),
    };
    Some(format!(
        "the checkpoint was written by {} with {before} images per update, and this job has {} with {after}; optimizer.lr \
         is {lr}: {keeps}--auto-scale-lr scales the rate to the batch",
        text::count(then, "worker"),
        text::count(now, "worker")
    ))
}

#[cfg(test)]
mod tests {
    use fnet_checkpoint::native::TrainProgress;

    use super::*;

    fn meta(world_size: usize, step: usize, step_in_epoch: usize) -> CheckpointMeta {
        CheckpointMeta {
            progress: TrainProgress { step, epoch: 1, step_in_epoch },
            world_size,
            sharding: Some(EpochSharding { images: 48, samples_per_gpu: 1, accumulate: 1, segments: Vec::new() }),
            ..CheckpointMeta::default()
        }
    }

    fn config() -> Config {
        let mut config = Config::default();
        config.data.samples_per_gpu = 1;
        config
    }

    fn on(meta: &CheckpointMeta, config: &Config, world_size: usize) -> (Continued, TrainSchedule) {
        let mut schedule = TrainSchedule::new(3, 48 / world_size, config.train.accumulate);
        let continued = go_on(meta, config, &[0; 48], world_size, &mut schedule, Path::new("a.ckpt")).unwrap();
        (continued, schedule)
    }

    #[test]
    fn the_same_ranks_resume_without_changes() {
        let (continued, schedule) = on(&meta(4, 17, 5), &config(), 4);
        assert_eq!(continued.progress, TrainProgress { epoch: 1, step_in_epoch: 5, step: 17 });
        assert!(continued.segments.is_empty() && continued.warnings.is_empty() && schedule.changed.is_none());
    }

    #[test]
    fn half_the_ranks_need_twice_the_steps_and_a_warning_is_given() {
        let (continued, schedule) = on(&meta(4, 17, 5), &config(), 2);
        assert_eq!(continued.progress, TrainProgress { epoch: 1, step_in_epoch: 5, step: 17 });
        assert_eq!((schedule.steps_of(1), schedule.steps_before(1)), (5 + 14, 5));
        let [warning] = &continued.warnings[..] else { panic!("{:?}", continued.warnings) };
        for text in ["4 workers with 4 images", "2 workers? with 2", "train.accumulate=2 keeps 4", "--auto-scale-lr"] {
            assert!(warning.contains(&text.replace('?', "")), "{text}: {warning}");
        }
        let mut same_batch = config();
        same_batch.train.accumulate = 2;
        let (continued, schedule) = on(&meta(4, 17, 5), &same_batch, 2);
        assert!(continued.warnings.is_empty(), "{:?}", continued.warnings);
        assert!(schedule.next(TrainProgress { step_in_epoch: 6, ..continued.progress }).updates);
    }

    #[test]
    fn a_second_change_within_an_epoch_keeps_the_first() {
        let mut second = meta(2, 20, 8);
        let segment = ShardSegment { world_size: 4, samples_per_gpu: 1, accumulate: 1, steps: 5 };
        if let Some(sharding) = &mut second.sharding {
            sharding.segments.push(segment);
        }
        let (continued, schedule) = on(&second, &config(), 2);
        assert_eq!((continued.segments.len(), schedule.steps_of(1)), (1, 19), "the same two ranks");
        let (continued, schedule) = on(&second, &config(), 4);
        assert_eq!(continued.segments, [segment, ShardSegment { world_size: 2, steps: 3, ..segment }]);
        // 20 images of 4 ranks, 6 of 2, 22 are left.
        assert_eq!(schedule.steps_of(1), 8 + 6);
    }

    #[test]
    fn a_changed_data_set_is_a_warning() {
        let mut other = meta(4, 17, 5);
        if let Some(sharding) = &mut other.sharding {
            sharding.images = 50;
        }
        let (continued, _) = on(&other, &config(), 4);
        assert!(continued.warnings[0].contains("had 50 images and now has 48"), "{:?}", continued.warnings);
    }
}
