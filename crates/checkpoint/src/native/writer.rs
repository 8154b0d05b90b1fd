//! Writes checkpoints on a background thread while training continues.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use fnet_common::atomic;
use fnet_common::{Error, Result};
use fnet_protocol::generation::Fence;

use super::Snapshot;
use super::folder::CheckpointFolder;

/// The first pause after a failed attempt; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The longest pause while [`Writer::finish`] waits.
const PAUSE_WHEN_AWAITED: Duration = Duration::from_secs(1);
/// An attempt that has written nothing for this long makes no progress.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often [`Writer::finish`] checks whether bytes were written.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Called with a durable file and the number of updates in it.
pub type OnSaved = dyn Fn(&std::path::Path, u64) + Send;

/// Writes checkpoints to the first of several folders that works. If none does, it logs a warning and retries with the newest
/// checkpoint until it succeeds. Existing files are kept.
pub struct Writer {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Bytes written so far.
    written: AtomicU64,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Task>,
    busy: bool,
    /// Why the newest checkpoint is not written yet, after a failed attempt.
    trouble: Option<String>,
    /// Why nothing is written any more.
    refusal: Option<String>,
    /// [`Writer::finish`] is waiting.
    awaited: bool,
    /// No more tasks will be added.
    ended: bool,
}

enum Task {
    Save(Box<Save>),
    KeepBest { file: String, metric: String },
}

/// A checkpoint to be written.
pub struct Save {
    /// The state.
    pub snapshot: Snapshot,
    /// File name.
    pub file: String,
    /// How long training paused for the copy.
    pub pause: Duration,
    /// Number of checkpoints to keep, as in [`CheckpointFolder::keep_last`]; 0 for all.
    pub keep_last: usize,
    /// Whether to remove older transient checkpoints.
    pub replaces_transient: bool,
}

impl Writer {
    /// Starts the thread, which writes to the first of `folders` that works, unless `fence` refuses it.
    pub fn start(folders: Vec<CheckpointFolder>, fence: Option<Fence>, on_saved: Box<OnSaved>) -> Result<Self> {
        let shared =
            Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new(), written: AtomicU64::default() });
        let work = Work { shared: Arc::clone(&shared), folders, fence, on_saved, logged: None, written: None };
        thread::Builder::new()
            .name("checkpoint".into())
            .spawn(move || work.run())
            .map_err(|error| Error::environment(format!("cannot start the thread that writes checkpoints: {error}")))?;
        Ok(Self { shared })
    }

    /// Queues a checkpoint. It replaces one that is still waiting.
    /// Errors: a newer attempt of the job writes to the folder.
    pub fn save(&self, save: Save) -> Result<()> {
        let mut queue = self.shared.lock();
        if let Some(refusal) = queue.refusal.clone() {
            return Err(Error::distributed(refusal));
        }
        let dropped: Vec<String> = queue.waiting.iter().filter_map(|task| task.file_to_save()).collect();
        if !dropped.is_empty() {
            queue.waiting.retain(|task| !task.needs(&dropped));
            log::warn!(
                "{} is not written: the previous checkpoint is still being written, and {} is newer",
                dropped.join(", "),
                save.file
            );
        }
        queue.waiting.push_back(Task::Save(Box::new(save)));
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Makes `best_<metric>.ckpt` the same as `file` after that is written.
    pub fn keep_best(&self, file: String, metric: String) {
        self.shared.lock().waiting.push_back(Task::KeepBest { file, metric });
        self.shared.changed.notify_all();
    }

    /// Waits until everything in the queue is durable, and calls `progress_of` whenever bytes were written.
    /// Errors: an environment error with the problem of the disk, if attempts have failed for `timeout` without
    /// progress, or for ten times as long with progress.
    pub fn finish(&self, timeout: Duration, progress_of: &dyn Fn()) -> Result<()> {
        let mut queue = self.shared.lock();
        queue.awaited = true;
        self.shared.changed.notify_all();
        let mut troubled_since: Option<Instant> = None;
        let (mut seen, mut seen_at) = (self.shared.written.load(Ordering::Relaxed), None::<Instant>);
        while queue.busy || !queue.waiting.is_empty() {
            queue = self.shared.changed.wait_timeout(queue, POLL_INTERVAL).unwrap_or_else(PoisonError::into_inner).0;
            let written = self.shared.written.load(Ordering::Relaxed);
            if written != seen {
                (seen, seen_at) = (written, Some(Instant::now()));
                progress_of();
            }
            if let Some(refusal) = queue.refusal.clone() {
                return Err(Error::distributed(refusal));
            }
            let Some(what) = queue.trouble.clone() else {
                troubled_since = None;
                continue;
            };
            let troubled = troubled_since.get_or_insert_with(Instant::now).elapsed();
            let makes_progress = seen_at.is_some_and(|at| at.elapsed() < STALL_TIMEOUT);
            if troubled >= timeout * 10 || troubled >= timeout && !makes_progress {
                queue.awaited = false;
                return Err(Error::environment(what));
            }
        }
        queue.awaited = false;
        queue.refusal.clone().map_or(Ok(()), |refusal| Err(Error::distributed(refusal)))
    }
}

impl Drop for Writer {
    /// Queued tasks are still tried, once each.
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

    /// Whether the task depends on one of these files.
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

/// The state of the thread.
struct Work {
    shared: Arc<Shared>,
    folders: Vec<CheckpointFolder>,
    fence: Option<Fence>,
    on_saved: Box<OnSaved>,
    /// The last problem that was logged.
    logged: Option<String>,
    /// The last file that was written.
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

    /// Tries until it succeeds or a newer checkpoint is waiting.
    fn save(&mut self, save: &Save) {
        let mut pause = FIRST_PAUSE;
        self.shared.lock().trouble = None;
        loop {
            let started = Instant::now();
            let Err(what) = self.write_somewhere(save) else { break };
            if let Some(refusal) = self.fence.as_ref().and_then(|fence| fence.permit().err()) {
                log::warn!("{refusal}");
                self.shared.lock().refusal = Some(refusal);
                return;
            }
            self.log_problem(&what);
            self.shared.lock().trouble = Some(what);
            self.shared.changed.notify_all();
            if self.newer_comes_within(pause.saturating_sub(started.elapsed())) {
                return;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.logged = None;
        self.shared.lock().trouble = None;
    }

    /// Logs a problem with the disk, once for each kind.
    fn log_problem(&mut self, what: &str) {
        // Only numbers differ between attempts.
        let kind: String = what.chars().filter(|character| !character.is_ascii_digit()).collect();
        if self.logged.as_ref() != Some(&kind) {
            log::warn!("cannot write the checkpoint; training continues and writing is retried: {what}");
            self.logged = Some(kind);
        }
    }

    /// Waits for `pause`; `true` if this checkpoint became obsolete because another one is waiting or the job ended.
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
                        "Saved {} (training paused for {:.3} s, written in {:.3} s)",
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
        // Held until everything that names the file is done.
        let mut permit = None;
        save.snapshot.write(&path, &self.shared.written, || {
            permit = self.fence.as_ref().map(Fence::permit).transpose().map_err(std::io::Error::other)?;
            Ok(())
        })?;
        // The checkpoint is safe; the rest is cleanup.
        let progress = save.snapshot.meta().progress;
        let tidied = folder
            .publish_latest(&path)
            .and_then(|()| if save.replaces_transient { folder.remove_transient(progress) } else { Ok(()) })
            .and_then(|()| folder.keep_last(save.keep_last));
        if let Err(error) = tidied {
            log::warn!("{} is written, but {error}", path.display());
        }
        drop(permit);
        Ok(path)
    }

    fn keep_best(&self, file: &str, metric: &str) {
        if self.shared.lock().refusal.is_some() {
            return;
        }
        // The file that was just written, not one of the same name that a previous job left in another folder.
        let path = match &self.written {
            Some(path) if path.ends_with(file) => Some(path.clone()),
            _ => self.folders.iter().map(|folder| folder.file(file)).find(|path| path.is_file()),
        };
        let kept = path.map(|path| CheckpointFolder::shared(atomic::folder_of(&path)).keep_best(&path, metric));
        match kept {
            Some(Ok(path)) => log::info!("{file} is kept as {}", path.display()),
            Some(Err(error)) => log::warn!("cannot keep the best checkpoint: {error}"),
            None => log::warn!("cannot keep the best checkpoint: {file} could not be written"),
        }
    }
}

#[cfg(test)]
mod tests;
