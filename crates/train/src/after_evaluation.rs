//! What follows an evaluation while training goes on: its detections are kept in the work folder for `report`, those of the last
//! evaluation and of the best one, and TensorBoard gets painted images.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fnet_common::{Error, Result, atomic};
use fnet_data::{Dataset, load_image};
use fnet_evaluate::paint::{Painter, jpeg, objects};
use fnet_evaluate::results::{ImageResult, WrittenIds, write_file};

use crate::run_log::tensorboard::TensorBoard;

/// How long a job that ends waits for the disk.
pub const END_TIMEOUT: Duration = Duration::from_secs(60);
/// The same after a request to stop.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Of files with masks and without.
const ENDINGS: [&str; 2] = ["segm.json", "bbox.json"];
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Images of each evaluation for TensorBoard, and the lowest score of a prediction on them.
const PAINTED_IMAGES: usize = 8;
const PAINTED_SCORE: f64 = 0.3;

/// An evaluation during training.
pub struct FinishedEvaluation {
    /// Epochs before it.
    pub epoch: usize,
    /// The detections.
    pub results: Vec<ImageResult>,
    /// The metric by which it is the best so far.
    pub best: Option<String>,
    /// TensorBoard's file for painted images.
    pub board: Option<TensorBoard>,
}

/// Does this on a thread, because the training thread never waits for a disk.
pub struct AfterEvaluation {
    /// For kept detections, if they are kept.
    folder: Option<PathBuf>,
    dataset: Arc<Dataset>,
    running: Option<JoinHandle<()>>,
}

impl AfterEvaluation {
    /// Keeps detections in `folder`, if there is one.
    pub fn new(folder: Option<PathBuf>, dataset: Arc<Dataset>) -> Self {
        Self { folder, dataset, running: None }
    }

    /// Starts what follows an evaluation. A problem is logged.
    pub fn start(&mut self, evaluation: FinishedEvaluation) {
        if self.running.as_ref().is_some_and(|running| !running.is_finished()) {
            log::warn!(
                "the detections of this evaluation are not kept: the disk is still writing those of the last one"
            );
            // They would be those of another checkpoint than the best one.
            if let (Some(folder), Some(metric)) = (&self.folder, evaluation.best) {
                ENDINGS.iter().for_each(|ending| remove(&folder.join(format!("best_{metric}.{ending}"))));
            }
            return;
        }
        let (folder, dataset) = (self.folder.clone(), Arc::clone(&self.dataset));
        let work = move || {
            let FinishedEvaluation { epoch, results, best, board } = evaluation;
            if let Some(folder) = folder
                && let Err(error) = write(&folder, &dataset, &results, best.as_deref())
            {
                log::warn!(
                    "the detections of an evaluation could not be kept for `report`; training continues: {error}"
                );
            }
            if let Some(mut board) = board
                && let Err(error) = paint(&mut board, epoch, &dataset, &results)
            {
                log::warn!("TensorBoard has no images of the evaluation after epoch {epoch}: {error}");
            }
        };
        match thread::Builder::new().name("results".into()).spawn(work) {
            Ok(thread) => self.running = Some(thread),
            Err(error) => log::warn!("the detections of an evaluation are not kept: no thread can be started: {error}"),
        }
    }

    /// Waits until all of it is done, at most for `timeout`; calls `alive` meanwhile.
    pub fn finish(&mut self, timeout: Duration, alive: &dyn Fn()) {
        let started = Instant::now();
        while self.running.as_ref().is_some_and(|running| !running.is_finished()) && started.elapsed() < timeout {
            thread::sleep(POLL_INTERVAL);
            alive();
        }
    }
}

/// Adds ground truth beside predictions to TensorBoard: at every evaluation of the same images, with names that begin with the
/// place.
fn paint(board: &mut TensorBoard, epoch: usize, dataset: &Dataset, results: &[ImageResult]) -> Result<()> {
    let painter = Painter::small()?;
    let classes: Vec<String> = dataset.categories().iter().map(|category| category.name.clone()).collect();
    let title = format!("scores from {PAINTED_SCORE}");
    let count = dataset.len().min(PAINTED_IMAGES);
    for place in 0..count {
        let index = place * dataset.len() / count;
        let id = dataset.image_id(index);
        // An image that could not be read has no result.
        let Some(result) = results.iter().find(|result| result.image_id == id) else { continue };
        let image = objects::into_image(load_image(dataset, index)?)?;
        let truth = objects::of_truth(dataset, index)?;
        let found = objects::of_result(result, &classes, PAINTED_SCORE)?;
        let painted = painter.panels(&image, &[(&truth, "ground truth"), (&found, &title)])?;
        let tag = format!("images/{place}_{}", dataset.image(index).file_name);
        board.image(&tag, epoch as u64, painted.dimensions(), jpeg(&painted)?);
        board.flush();
    }
    Ok(())
}

/// Removes a file if it is there.
fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}

/// The names of `test`'s results for the same checkpoints. Those with masks have the boxes, too.
fn write(folder: &Path, dataset: &Dataset, results: &[ImageResult], best: Option<&str>) -> Result<()> {
    let ids = WrittenIds::of(dataset);
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
