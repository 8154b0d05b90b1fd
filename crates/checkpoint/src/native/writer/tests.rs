use std::path::Path;

use tch::Tensor;

use fnet_common::ErrorKind;

use super::*;
use crate::native::{Checkpoint, CheckpointMeta, State, TrainProgress, latest, verify};

const TIMEOUT: Duration = Duration::from_secs(60);

fn snapshot(step: usize, transient: bool) -> Snapshot {
    let meta = CheckpointMeta {
        progress: TrainProgress { step, ..TrainProgress::default() },
        world_size: 1,
        state: State { transient, ..State::default() },
        ..CheckpointMeta::default()
    };
    let tensors = [("model.a".to_owned(), Tensor::from(step as i64))].into_iter().collect();
    Checkpoint { tensors, meta }.snapshot().unwrap()
}

fn save(step: usize) -> Save {
    Save {
        snapshot: snapshot(step, false),
        file: format!("iter_{step}.ckpt"),
        pause: Duration::ZERO,
        keep_last: 0,
        replaces_transient: true,
    }
}

fn writer(folders: &[&Path]) -> Writer {
    Writer::start(folders.iter().map(|path| CheckpointFolder::shared(*path)).collect(), None, Box::new(|_, _| {}))
        .unwrap()
}

#[test]
fn queued_checkpoints_are_durable_after_finish() {
    let folder = tempfile::tempdir().unwrap();
    let saved = Arc::new(Mutex::new(Vec::new()));
    let reported = Arc::clone(&saved);
    let on_saved = Box::new(move |_: &Path, step| reported.lock().unwrap().push(step as usize));
    let writer = Writer::start(vec![CheckpointFolder::shared(folder.path())], None, on_saved).unwrap();
    for step in 1..=3 {
        writer.save(save(step)).unwrap();
        writer.finish(TIMEOUT, &|| {}).unwrap();
        assert_eq!(verify(folder.path().join("latest.ckpt")).unwrap().progress.step, step);
    }
    writer.keep_best("iter_3.ckpt".into(), "bbox_mAP".into());
    writer.finish(TIMEOUT, &|| {}).unwrap();
    assert!(folder.path().join("best_bbox_mAP.ckpt").is_file());
    assert_eq!(*saved.lock().unwrap(), [1, 2, 3]);
}

#[test]
fn an_attempt_that_was_cut_off_replaces_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let start = || {
        let own = fnet_protocol::generation::take(folder, None).unwrap().unwrap();
        let fence = Fence { folder: folder.to_owned(), own };
        Writer::start(vec![CheckpointFolder::shared(folder)], Some(fence), Box::new(|_, _| {})).unwrap()
    };
    let cut_off = start();
    cut_off.save(save(1)).unwrap();
    cut_off.finish(TIMEOUT, &|| {}).unwrap();
    let newer = start();
    newer.save(save(2)).unwrap();
    newer.finish(TIMEOUT, &|| {}).unwrap();
    let bytes = std::fs::read(folder.join("iter_2.ckpt")).unwrap();
    for step in [2, 3] {
        let saved = cut_off.save(Save { snapshot: snapshot(7, false), ..save(step) });
        let error = saved.and_then(|()| cut_off.finish(TIMEOUT, &|| {})).unwrap_err();
        assert!(error.to_string().contains("generation 2"), "{error}");
    }
    cut_off.keep_best("iter_2.ckpt".into(), "bbox_mAP".into());
    let _ = cut_off.finish(TIMEOUT, &|| {});
    assert_eq!(std::fs::read(folder.join("iter_2.ckpt")).unwrap(), bytes);
    assert_eq!(latest(&[folder]).unwrap().found.unwrap().1.progress.step, 2);
    let names = |ending: &str| {
        let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.contains(ending)).collect::<Vec<_>>()
    };
    assert!(names("iter_3").is_empty() && names("best").is_empty() && names(".tmp").is_empty());
}

#[test]
fn a_failing_folder_is_retried_and_the_newest_checkpoint_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let gone = folder.path().join("drive/job");
    let writer = writer(&[&gone]);
    writer.save(save(1)).unwrap();
    let error = writer.finish(Duration::from_millis(200), &|| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment);
    assert!(error.to_string().contains("the folder is gone"), "{error}");
    writer.save(save(2)).unwrap();
    std::fs::create_dir(folder.path().join("drive")).unwrap();
    writer.finish(TIMEOUT, &|| {}).unwrap();
    assert_eq!(verify(gone.join("iter_2.ckpt")).unwrap().progress.step, 2);
}

#[test]
fn a_fallback_folder_is_used_if_given() {
    let folder = tempfile::tempdir().unwrap();
    let (gone, other) = (folder.path().join("drive/job"), folder.path().join("other"));
    let writer = writer(&[&gone, &other]);
    writer.save(save(1)).unwrap();
    writer.keep_best("iter_1.ckpt".into(), "m".into());
    writer.finish(TIMEOUT, &|| {}).unwrap();
    assert!(other.join("best_m.ckpt").is_file());
    let found = latest(&[gone, other.clone()]).unwrap().found.unwrap();
    assert_eq!(found.0, other.join("iter_1.ckpt"));
}

#[test]
fn the_best_checkpoint_that_is_being_written_is_kept_when_a_later_one_is_dropped() {
    // No thread takes tasks from the queue: the writer is busy with epoch_6.
    let shared = Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new(), written: AtomicU64::default() });
    let writer = Writer { shared };
    writer.keep_best("epoch_6.ckpt".into(), "bbox_mAP".into());
    writer.save(save(10)).unwrap();
    writer.keep_best("iter_10.ckpt".into(), "bbox_mAP".into());
    writer.save(save(20)).unwrap();
    let files: Vec<String> = writer
        .shared
        .lock()
        .waiting
        .iter()
        .map(|task| match task {
            Task::Save(save) => save.file.clone(),
            Task::KeepBest { file, .. } => format!("best {file}"),
        })
        .collect();
    assert_eq!(files, ["best epoch_6.ckpt", "iter_20.ckpt"]);
}

#[test]
fn transient_checkpoints_replace_no_regular_ones_and_end_with_the_next_of_these() {
    let folder = tempfile::tempdir().unwrap();
    let writer = writer(&[folder.path()]);
    for (step, transient, left) in [
        (1, false, [1].as_slice()),
        (2, false, &[1, 2]),
        (3, true, &[1, 2, 3]),
        (4, true, &[2, 3, 4]),
        (5, false, &[2, 5]),
    ] {
        let snapshot = snapshot(step, transient);
        writer.save(Save { snapshot, keep_last: 3, replaces_transient: !transient, ..save(step) }).unwrap();
        writer.finish(TIMEOUT, &|| {}).unwrap();
        let there = (1..=5).filter(|step| folder.path().join(format!("iter_{step}.ckpt")).exists());
        assert_eq!(there.collect::<Vec<_>>(), left);
        assert_eq!(latest(&[folder.path()]).unwrap().found.unwrap().1.progress.step, step);
    }
}
