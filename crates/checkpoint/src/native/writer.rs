//! Checkpoints written by a thread of their own, while training goes on.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use fnet_common::atomic;
use fnet_common::{Error, Result};

use super::Snapshot;
use super::folder::CheckpointFolder;

/// The first pause after a failed attempt; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The longest pause once somebody waits for the file.
const PAUSE_WHEN_AWAITED: Duration = Duration::from_secs(1);
/// An attempt that has written nothing for so long does not get on.
const STANDSTILL: Duration = Duration::from_secs(10);
/// How often who waits looks whether bytes were written.
const LOOK: Duration = Duration::from_millis(100);

/// What is called with the file and the number of updates in it, once it is durable.
pub type OnSaved = dyn Fn(&std::path::Path, u64) + Send;

/// Writes checkpoints to the first of some folders that takes them. When none does, it says so and tries again with the
/// newest one until it succeeds; what lies there already is kept.
pub struct Writer {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Grows with every portion written.
    written: AtomicU64,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Task>,
    busy: bool,
    /// Why the newest checkpoint could not be written so far.
    trouble: Option<String>,
    /// Somebody waits for the end of the work.
    awaited: bool,
    /// Nobody will hand anything over any more.
    ended: bool,
}

enum Task {
    Save(Box<Save>),
    KeepBest { file: String, metric: String },
}

/// A checkpoint on its way to the disk.
pub struct Save {
    /// The state.
    pub snapshot: Snapshot,
    /// Name of the file.
    pub file: String,
    /// How long training stood still for the copy.
    pub pause: Duration,
    /// Checkpoints to keep, as [`CheckpointFolder::keep_last`]; 0 for all.
    pub keep_last: usize,
    /// Whether older checkpoints that were only written because a job broke off have done their service.
    pub replaces_transient: bool,
}

impl Writer {
    /// A writer to the first of `folders` that works.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(folders: Vec<CheckpointFolder>, on_saved: Box<OnSaved>) -> Result<Self> {
        let shared =
            Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new(), written: AtomicU64::default() });
        let work = Work { shared: Arc::clone(&shared), folders, on_saved, told: None, written: None };
        thread::Builder::new()
            .name("checkpoint".into())
            .spawn(move || work.run())
            .map_err(|error| Error::environment(format!("cannot start the thread that writes checkpoints: {error}")))?;
        Ok(Self { shared })
    }

    /// Hands a checkpoint over. One that still waits for its turn is given up for it.
    pub fn save(&self, save: Save) {
        let mut queue = self.shared.lock();
        let given_up: Vec<String> = queue.waiting.iter().filter_map(|task| task.file_to_save()).collect();
        if !given_up.is_empty() {
            queue.waiting.retain(|task| !task.needs(&given_up));
            log::warn!(
                "{} is not written: the disk is not done with the one before, and {} is newer",
                given_up.join(", "),
                save.file
            );
        }
        queue.waiting.push_back(Task::Save(Box::new(save)));
        self.shared.changed.notify_all();
    }

    /// Makes `best_<metric>.ckpt` the same as `file`, once that is written.
    pub fn keep_best(&self, file: String, metric: String) {
        self.shared.lock().waiting.push_back(Task::KeepBest { file, metric });
        self.shared.changed.notify_all();
    }

    /// Waits until everything handed over is durable, and calls `progress_of` whenever bytes were written.
    ///
    /// # Errors
    /// An environment error that says what is wrong with the disk, if for `timeout` no attempt has succeeded and none
    /// gets on; or for ten times that.
    pub fn finish(&self, timeout: Duration, progress_of: &dyn Fn()) -> Result<()> {
        let mut queue = self.shared.lock();
        queue.awaited = true;
        self.shared.changed.notify_all();
        let mut troubled_since: Option<Instant> = None;
        let (mut seen, mut seen_at) = (self.shared.written.load(Ordering::Relaxed), None::<Instant>);
        while queue.busy || !queue.waiting.is_empty() {
            queue = self.shared.changed.wait_timeout(queue, LOOK).unwrap_or_else(PoisonError::into_inner).0;
            let written = self.shared.written.load(Ordering::Relaxed);
            if written != seen {
                (seen, seen_at) = (written, Some(Instant::now()));
                progress_of();
            }
            let Some(what) = queue.trouble.clone() else {
                troubled_since = None;
                continue;
            };
            let troubled = troubled_since.get_or_insert_with(Instant::now).elapsed();
            let gets_on = seen_at.is_some_and(|at| at.elapsed() < STANDSTILL);
            if troubled >= timeout * 10 || troubled >= timeout && !gets_on {
                queue.awaited = false;
                return Err(Error::environment(what));
            }
        }
        queue.awaited = false;
        Ok(())
    }
}

impl Drop for Writer {
    /// What was handed over is still tried, once.
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
    }
}

impl Task {
    fn file_to_save(&self) -> Option<String> {
        match self {
            Task::Save(save) => Some(save.file.clone()),
            Task::KeepBest { .. } => None,
        }
    }

    /// Whether it makes no sense without one of these files.
    fn needs(&self, files: &[String]) -> bool {
        match self {
            Task::Save(save) => files.contains(&save.file),
            Task::KeepBest { file, .. } => files.contains(file),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread's side.
struct Work {
    shared: Arc<Shared>,
    folders: Vec<CheckpointFolder>,
    on_saved: Box<OnSaved>,
    /// The trouble that was last told.
    told: Option<String>,
    /// The file that was last written.
    written: Option<PathBuf>,
}

impl Work {
    fn run(mut self) {
        while let Some(task) = self.next() {
            match task {
                Task::Save(save) => self.save(&save),
                Task::KeepBest { file, metric } => self.keep_best(&file, &metric),
            }
            self.shared.lock().busy = false;
            self.shared.changed.notify_all();
        }
    }

    fn next(&self) -> Option<Task> {
        let mut queue = self.shared.lock();
        loop {
            if let Some(task) = queue.waiting.pop_front() {
                queue.busy = true;
                return Some(task);
            }
            if queue.ended {
                return None;
            }
            queue = self.shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Tries until it succeeds or a newer checkpoint waits.
    fn save(&mut self, save: &Save) {
        let mut pause = FIRST_PAUSE;
        self.shared.lock().trouble = None;
        loop {
            let started = Instant::now();
            let Err(what) = self.write_somewhere(save) else { break };
            self.tell(&what);
            self.shared.lock().trouble = Some(what);
            self.shared.changed.notify_all();
            if self.newer_comes_within(pause.saturating_sub(started.elapsed())) {
                return;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.told = None;
        self.shared.lock().trouble = None;
    }

    /// Says what is wrong with the disk, once for each kind of trouble.
    fn tell(&mut self, what: &str) {
        // Numbers change from attempt to attempt; the rest does not.
        let kind: String = what.chars().filter(|character| !character.is_ascii_digit()).collect();
        if self.told.as_ref() != Some(&kind) {
            log::warn!("no checkpoint can be written; training goes on and this is tried again: {what}");
            self.told = Some(kind);
        }
    }

    /// Waits; `true` once this checkpoint is out of date, for another one is there or the job is over.
    fn newer_comes_within(&self, pause: Duration) -> bool {
        let started = Instant::now();
        let mut queue = self.shared.lock();
        loop {
            if queue.ended || queue.waiting.iter().any(|task| task.file_to_save().is_some()) {
                return true;
            }
            let pause = if queue.awaited { pause.min(PAUSE_WHEN_AWAITED) } else { pause };
            let left = pause.saturating_sub(started.elapsed());
            if left.is_zero() {
                return false;
            }
            queue = self.shared.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn write_somewhere(&mut self, save: &Save) -> Result<(), String> {
        let mut reasons: Vec<String> = Vec::new();
        for folder in &self.folders {
            let started = Instant::now();
            match self.write(save, folder) {
                Ok(path) => {
                    if !reasons.is_empty() {
                        log::warn!("{}; written to {} instead", reasons.join("; "), path.display());
                    }
                    log::info!(
                        "Saved {} (training stood still for {:.3} s, written in {:.3} s)",
                        path.display(),
                        save.pause.as_secs_f64(),
                        started.elapsed().as_secs_f64()
                    );
                    (self.on_saved)(&path, save.snapshot.meta().progress.step as u64);
                    self.written = Some(path);
                    return Ok(());
                }
                Err(error) => reasons.push(error.to_string()),
            }
        }
        Err(reasons.join("; "))
    }

    fn write(&self, save: &Save, folder: &CheckpointFolder) -> Result<PathBuf> {
        let path = folder.file(&save.file);
        folder.make();
        save.snapshot.write(&path, &self.shared.written)?;
        // The checkpoint is safe; what follows is order.
        let progress = save.snapshot.meta().progress;
        let tidied = folder
            .publish_latest(&path)
            .and_then(|()| if save.replaces_transient { folder.remove_transient(progress) } else { Ok(()) })
            .and_then(|()| folder.keep_last(save.keep_last));
        if let Err(error) = tidied {
            log::warn!("{} is written, but {error}", path.display());
        }
        Ok(path)
    }

    fn keep_best(&self, file: &str, metric: &str) {
        // Where it was written now, not where a former job may have left one of the same name.
        let path = match &self.written {
            Some(path) if path.ends_with(file) => Some(path.clone()),
            _ => self.folders.iter().map(|folder| folder.file(file)).find(|path| path.is_file()),
        };
        let kept = path.map(|path| CheckpointFolder::shared(atomic::folder_of(&path)).keep_best(&path, metric));
        match kept {
            Some(Ok(path)) => log::info!("{file} is kept as {}", path.display()),
            Some(Err(error)) => log::warn!("the best checkpoint is not kept: {error}"),
            None => log::warn!("the best checkpoint is not kept: {file} could not be written"),
        }
    }
}

#[cfg(test)]
mod tests;
