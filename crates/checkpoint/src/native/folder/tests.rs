use super::super::Checkpoint;
use super::super::tests::sample;
use super::*;

impl CheckpointFolder {
    fn epoch(&self, finished: usize) -> PathBuf {
        self.file(&file_name(TrainProgress { epoch: finished, ..TrainProgress::default() }))
    }

    fn iter(&self, step: usize) -> PathBuf {
        self.file(&file_name(TrainProgress { step, step_in_epoch: 1, ..TrainProgress::default() }))
    }

    fn latest(&self) -> Result<Latest> {
        latest(&[&self.path])
    }
}

fn folder_with(steps: &[usize]) -> (tempfile::TempDir, CheckpointFolder) {
    let directory = tempfile::tempdir().unwrap();
    let folder = CheckpointFolder::create(directory.path().join("job")).unwrap();
    for &step in steps {
        sample(step).save(folder.iter(step)).unwrap();
    }
    (directory, folder)
}

fn damage(path: &Path) {
    let mut data = fs::read(path).unwrap();
    let last = data.len() - 1;
    data[last] ^= 1;
    fs::write(path, data).unwrap();
}

#[test]
fn the_newest_checkpoint_has_the_highest_step_regardless_of_names_and_times() {
    let (_directory, folder) = folder_with(&[9, 100, 20]);
    sample(30).save(folder.epoch(200)).unwrap();
    let (path, meta) = folder.latest().unwrap().found.unwrap();
    assert_eq!((path, meta.progress.step), (folder.iter(100), 100));
}

#[test]
fn damaged_checkpoints_are_skipped_with_a_reason() {
    let (_directory, folder) = folder_with(&[1, 2, 3, 4]);
    damage(&folder.iter(4));
    let data = fs::read(folder.iter(3)).unwrap();
    fs::write(folder.iter(3), &data[..data.len() / 2]).unwrap();
    let latest = folder.latest().unwrap();
    assert_eq!(latest.found.unwrap().0, folder.iter(2));
    let reasons: Vec<(PathBuf, bool)> =
        latest.skipped.into_iter().map(|skipped| (skipped.path, skipped.reason.contains("damaged"))).collect();
    assert_eq!(reasons, [(folder.iter(3), true), (folder.iter(4), true)]);
}

#[test]
fn a_best_checkpoint_is_used_when_nothing_newer_is_left() {
    let (_directory, folder) = folder_with(&[1]);
    let best = folder.keep_best(&folder.iter(1), "segm_mAP").unwrap();
    assert_eq!(folder.latest().unwrap().found.unwrap().0, folder.iter(1));
    fs::remove_file(folder.iter(1)).unwrap();
    assert_eq!(folder.latest().unwrap().found.unwrap().0, best);
}

#[test]
fn a_new_best_checkpoint_replaces_the_previous_one() {
    let (_directory, folder) = folder_with(&[1, 2]);
    folder.keep_best(&folder.iter(1), "bbox_mAP").unwrap();
    let best = folder.keep_best(&folder.iter(2), "bbox_mAP").unwrap();
    assert_eq!(Checkpoint::load(best).unwrap().meta.progress.step, 2);
}

#[test]
fn an_empty_or_missing_folder_has_no_checkpoint() {
    let (directory, folder) = folder_with(&[]);
    assert!(folder.latest().unwrap().found.is_none());
    assert!(latest(&[directory.path().join("missing")]).unwrap().found.is_none());
}

#[test]
fn the_latest_pointer_works_as_a_link_and_as_a_file() {
    let (_directory, folder) = folder_with(&[1, 2]);
    let pointer = folder.path.join(LATEST);
    folder.publish_latest(&folder.iter(1)).unwrap();
    assert_eq!(fs::read_link(&pointer).unwrap(), Path::new("iter_1.ckpt"));
    assert_eq!(Checkpoint::load(&pointer).unwrap().meta.progress.step, 1);
    folder.publish_latest(&folder.iter(2)).unwrap();
    assert_eq!(Checkpoint::load(&pointer).unwrap().meta.progress.step, 2);
    fs::remove_file(&pointer).unwrap();
    write_pointer(&pointer, "iter_1.ckpt").unwrap();
    assert_eq!(Checkpoint::load(&pointer).unwrap().meta.progress.step, 1);
    assert_eq!(verify(&pointer).unwrap().progress.step, 1);
}

#[test]
fn a_pointer_file_cannot_point_outside_its_folder() {
    let (_directory, folder) = folder_with(&[1]);
    let pointer = folder.path.join(LATEST);
    for name in ["../secret", "/etc/passwd", "", "latest.ckpt", ".."] {
        write_pointer(&pointer, name).unwrap();
        assert_eq!(resolve(&pointer), pointer, "{name}");
    }
}

#[test]
fn old_checkpoints_are_removed_and_damaged_ones_do_not_replace_good_ones() {
    let (_directory, folder) = folder_with(&[1, 2, 3, 4]);
    let best = folder.keep_best(&folder.iter(1), "bbox_mAP").unwrap();
    let data = fs::read(folder.iter(4)).unwrap();
    fs::write(folder.iter(4), &data[..20]).unwrap();
    assert_eq!(folder.keep_last(0).unwrap(), Vec::<PathBuf>::new());
    assert_eq!(folder.keep_last(2).unwrap(), [folder.iter(1)]);
    assert!(folder.iter(2).exists() && folder.iter(3).exists() && best.exists());
}

#[test]
fn the_target_of_latest_is_never_removed() {
    let (_directory, folder) = folder_with(&[1, 2, 3]);
    folder.publish_latest(&folder.iter(1)).unwrap();
    assert_eq!(folder.keep_last(1).unwrap(), [folder.iter(2)]);
}

#[test]
fn the_newest_checkpoint_is_the_one_furthest_in_its_epochs_even_if_steps_were_recounted() {
    // Two ranks wrote the end of epoch 2 as step 200; then four ranks continued with 50 steps per epoch.
    let directory = tempfile::tempdir().unwrap();
    let folder = CheckpointFolder::create(directory.path()).unwrap();
    for (step, epoch, step_in_epoch) in [(200, 2, 0), (110, 2, 10)] {
        let mut checkpoint = sample(step);
        checkpoint.meta.progress = TrainProgress { step, epoch, step_in_epoch };
        checkpoint.save(folder.iter(step)).unwrap();
    }
    assert_eq!(folder.latest().unwrap().found.unwrap().0, folder.iter(110));
    assert_eq!(folder.keep_last(1).unwrap(), [folder.iter(200)]);
}

#[test]
fn checkpoints_after_the_one_that_a_job_goes_back_to_are_renamed_and_not_resumed_from() {
    let directory = tempfile::tempdir().unwrap();
    let folder = CheckpointFolder::create(directory.path()).unwrap();
    let progress = |epoch, step_in_epoch, step| TrainProgress { epoch, step_in_epoch, step };
    for place in [progress(3, 0, 300), progress(3, 10, 310), progress(4, 0, 400)] {
        let mut checkpoint = sample(place.step);
        checkpoint.meta.progress = place;
        checkpoint.save(folder.iter(place.step)).unwrap();
    }
    folder.keep_best(&folder.iter(400), "bbox_mAP").unwrap();
    // The steps may have been recounted.
    let aside = set_aside_later(&[directory.path()], progress(3, 0, 150)).unwrap();
    assert_eq!(aside, [folder.best("bbox_mAP"), folder.iter(310), folder.iter(400)]);
    assert!(directory.path().join("iter_400.ckpt.superseded").is_file());
    assert_eq!(folder.latest().unwrap().found.unwrap().0, folder.iter(300));
}

#[test]
fn a_folder_that_cannot_be_read_does_not_hide_those_of_another() {
    let (_directory, folder) = folder_with(&[3]);
    let broken = folder.file("iter_3.ckpt").join("no_folder");
    let found = latest(&[folder.path.clone(), broken.clone()]).unwrap();
    assert_eq!((found.found.unwrap().0, found.skipped[0].path.clone()), (folder.iter(3), broken.clone()));
    assert!(latest(&[broken]).is_err());
}
