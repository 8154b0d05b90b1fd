//! Keeps the detections of evaluations in the work folder, for `report`: those of the last one, and of the best one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fnet_common::{Error, Result, atomic};
use fnet_data::Dataset;
use fnet_evaluate::results::{ImageResult, WrittenIds, write_file};

/// How long a job that ends waits for the disk.
pub const END_TIMEOUT: Duration = Duration::from_secs(60);
/// The same after a request to stop.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Of files with masks and without.
const ENDINGS: [&str; 2] = ["segm.json", "bbox.json"];
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Writes the detections of evaluations on a thread, because the training thread never waits for a disk.
pub struct KeptResults {
    folder: PathBuf,
    dataset: Arc<Dataset>,
    writing: Option<JoinHandle<()>>,
}

impl KeptResults {
    /// Results in `folder`.
    pub fn new(folder: PathBuf, dataset: Arc<Dataset>) -> Self {
        Self { folder, dataset, writing: None }
    }

    /// Writes the detections of an evaluation, which is the best one by the metric `best`. A problem is logged.
    pub fn keep(&mut self, results: Vec<ImageResult>, best: Option<&str>) {
        if self.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            log::warn!(
                "the detections of this evaluation are not kept: the disk is still writing those of the last one"
            );
            // They would be those of another checkpoint than the best one.
            if let Some(metric) = best {
                ENDINGS.iter().for_each(|ending| remove(&self.folder.join(format!("best_{metric}.{ending}"))));
            }
            return;
        }
        let (folder, dataset, best) = (self.folder.clone(), Arc::clone(&self.dataset), best.map(str::to_owned));
        let write = move || {
            if let Err(error) = write(&folder, &dataset, &results, best.as_deref()) {
                log::warn!(
                    "the detections of an evaluation could not be kept for `report`; training continues: {error}"
                );
            }
        };
        match thread::Builder::new().name("results".into()).spawn(write) {
            Ok(thread) => self.writing = Some(thread),
            Err(error) => log::warn!("the detections of an evaluation are not kept: no thread can be started: {error}"),
        }
    }

    /// Waits until the detections are on the disk, at most for `timeout`; calls `alive` meanwhile.
    pub fn finish(&mut self, timeout: Duration, alive: &dyn Fn()) {
        let started = Instant::now();
        while self.writing.as_ref().is_some_and(|writing| !writing.is_finished()) && started.elapsed() < timeout {
            thread::sleep(POLL_INTERVAL);
            alive();
        }
    }
}

/// Removes a file if it is there.
fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}

/// The names of `test`'s results for the same checkpoints. Those with masks have the boxes, too.
fn write(folder: &Path, dataset: &Dataset, results: &[ImageResult], best: Option<&str>) -> Result<()> {
    let categories = dataset.categories().iter().map(|category| dataset.written_category_id(category.id)).collect();
    let ids = WrittenIds { image: &|id| dataset.written_image_id(id), categories };
    let with_masks = dataset.has_masks();
    let [ending, other] = if with_masks { ENDINGS } else { [ENDINGS[1], ENDINGS[0]] };
    // Of an earlier job with another kind of model.
    remove(&folder.join(format!("latest.{other}")));
    let latest = folder.join(format!("latest.{ending}"));
    write_file(results, &ids, &latest, with_masks)?;
    let Some(metric) = best else { return Ok(()) };
    remove(&folder.join(format!("best_{metric}.{other}")));
    let path = folder.join(format!("best_{metric}.{ending}"));
    // A file system without links gets a copy.
    let link = |to: &Path| std::fs::hard_link(&latest, to).or_else(|_| std::fs::copy(&latest, to).map(drop));
    atomic::replace_by_link(&path, link).map_err(|error| Error::environment(format!("{}: {error}", path.display())))
}
