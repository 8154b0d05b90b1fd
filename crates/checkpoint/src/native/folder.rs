//! The checkpoints of a work folder: their names, which is the newest valid one, which are kept.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use fnet_common::atomic;
use fnet_common::{Error, Result};
use fnet_protocol::work_dir::{LATEST, remove_leftovers};

use super::{CheckpointMeta, TrainProgress, verify};

/// First line of a `latest.ckpt` that is no symbolic link but names the file in its second line.
const POINTER: &str = "fnet checkpoint pointer 1\n";

/// The folder that a job writes its checkpoints to.
#[derive(Debug, Clone)]
pub struct CheckpointFolder {
    path: PathBuf,
}

/// The newest valid checkpoint of a folder.
#[derive(Debug)]
pub struct Latest {
    /// Its file and what its header says; `None` if there is no valid one.
    pub found: Option<(PathBuf, CheckpointMeta)>,
    /// Files that were passed over.
    pub skipped: Vec<Skipped>,
}

/// A checkpoint that cannot be used.
#[derive(Debug)]
pub struct Skipped {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

impl CheckpointFolder {
    /// Makes the folder if it is not there, and removes what killed writers left in it.
    ///
    /// # Errors
    /// An environment error if the folder cannot be made or read.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        fs::create_dir_all(&path).and_then(|()| remove_leftovers(&path)).map_err(|error| unusable(&path, &error))?;
        Ok(Self { path })
    }

    /// A folder as it is, where another process may be writing; it is made when something is written to it.
    pub fn shared(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The file of this name.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes the folder if it is not there but the one that it lies in is: a drive that is gone does not come back by
    /// making folders where it was.
    pub(super) fn make(&self) {
        // What is wrong is told by the write that follows.
        let _ = fs::create_dir(&self.path);
    }

    /// Removes the checkpoints before `progress` that were written only because a job was stopped or broken off.
    ///
    /// # Errors
    /// An environment error if the folder cannot be read or a file cannot be removed.
    pub fn remove_transient(&self, progress: TrainProgress) -> Result<()> {
        for path in candidates(&self.path)?.into_iter().filter(|path| !is_best(path)) {
            let old = CheckpointMeta::read(&path).is_ok_and(|meta| meta.state.transient && meta.progress < progress);
            if old {
                fs::remove_file(&path).map_err(|error| unusable(&path, &error))?;
            }
        }
        Ok(())
    }

    /// `best_<metric>.ckpt`.
    pub fn best(&self, metric: &str) -> PathBuf {
        self.path.join(format!("best_{metric}.ckpt"))
    }

    /// Lets `latest.ckpt` name a checkpoint of this folder: a relative symbolic link, or a small file that names it
    /// where the file system has no links.
    ///
    /// # Errors
    /// An environment error if neither can be written.
    pub fn publish_latest(&self, checkpoint: &Path) -> Result<()> {
        let name = checkpoint.file_name().ok_or_else(|| Error::bug("a checkpoint without a file name"))?;
        let link = self.path.join(LATEST);
        atomic::replace_by_link(&link, |link| std::os::unix::fs::symlink(name, link))
            .or_else(|_| write_pointer(&link, &name.to_string_lossy()))
    }

    /// Makes `best_<metric>.ckpt` the same as a checkpoint that was just written, without copying where hard links
    /// are possible.
    ///
    /// # Errors
    /// An environment error if it cannot be written; the former best one is then still there.
    pub fn keep_best(&self, checkpoint: &Path, metric: &str) -> Result<PathBuf> {
        let best = self.best(metric);
        let checkpoint = resolve(checkpoint);
        if atomic::replace_by_link(&best, |link| fs::hard_link(&checkpoint, link)).is_err() {
            let mut source = fs::File::open(&checkpoint).map_err(|error| unusable(&checkpoint, &error))?;
            let size = source.metadata().map(|metadata| metadata.len()).unwrap_or(0);
            atomic::write(&best, size, |file| std::io::copy(&mut source, file).map(drop))?;
        }
        Ok(best)
    }

    /// Removes all but the newest `count` checkpoints of epochs and steps (0 keeps all) and returns what it removed.
    ///
    /// Only files whose header and length are sound count, so that damaged ones never push out a good one;
    /// best checkpoints are left alone.
    ///
    /// # Errors
    /// An environment error if the folder cannot be read or a file cannot be removed.
    pub fn keep_last(&self, count: usize) -> Result<Vec<PathBuf>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let mut sound: Vec<(TrainProgress, PathBuf)> = candidates(&self.path)?
            .into_iter()
            .filter(|path| !is_best(path))
            .filter_map(|path| Some((CheckpointMeta::read(&path).ok()?.progress, path)))
            .collect();
        sound.sort();
        let named = resolve(&self.path.join(LATEST));
        let old = sound.iter().rev().skip(count).map(|(_, path)| path.clone());
        let removed: Vec<PathBuf> = old.filter(|path| *path != named).collect();
        for path in &removed {
            fs::remove_file(path).map_err(|error| unusable(path, &error))?;
        }
        Ok(removed)
    }
}

/// The name of the checkpoint of a place in training: `epoch_N.ckpt` after N finished epochs, `iter_N.ckpt` after N steps
/// within an epoch.
pub fn file_name(progress: TrainProgress) -> String {
    match progress.step_in_epoch {
        0 => format!("epoch_{}.ckpt", progress.epoch),
        _ => format!("iter_{}.ckpt", progress.step),
    }
}

/// Finds the newest checkpoint of some folders that is sound to the last byte, by the progress in its header; of equal
/// ones, that of the first folder.
///
/// Best checkpoints count too: they are good for going on when nothing newer is left. A folder that does not exist
/// holds none.
///
/// # Errors
/// An environment error if there is none in the others and a folder is there but cannot be read.
pub fn latest(folders: &[impl AsRef<Path>]) -> Result<Latest> {
    let mut skipped = Vec::new();
    let mut headers = Vec::new();
    let mut paths = Vec::new();
    let mut unreadable = None;
    for folder in folders.iter().rev() {
        match candidates(folder.as_ref()) {
            Ok(found) => paths.extend(found),
            Err(error) => {
                skipped.push(Skipped { path: folder.as_ref().to_path_buf(), reason: error.to_string() });
                unreadable = Some(error);
            }
        }
    }
    for (place, path) in paths.into_iter().enumerate() {
        match CheckpointMeta::read(&path) {
            Ok(meta) => headers.push((meta.progress, !is_best(&path), place, path)),
            Err(error) => skipped.push(Skipped { path, reason: error.to_string() }),
        }
    }
    headers.sort();
    while let Some((.., path)) = headers.pop() {
        match verify(&path) {
            Ok(meta) => return Ok(Latest { found: Some((path, meta)), skipped }),
            Err(error) => skipped.push(Skipped { path, reason: error.to_string() }),
        }
    }
    match unreadable {
        Some(error) => Err(error),
        None => Ok(Latest { found: None, skipped }),
    }
}

/// Sets the checkpoints aside that are of a later place in the epochs than `progress`, for a job that goes back to it and
/// would else go on from them after the next restart: they get the ending `.superseded`. Returns what they were called.
///
/// # Errors
/// An environment error if a folder cannot be read or a file cannot be renamed.
pub fn set_aside_later(folders: &[impl AsRef<Path>], progress: TrainProgress) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in folders {
        for path in candidates(folder.as_ref())? {
            let place = |progress: TrainProgress| (progress.epoch, progress.step_in_epoch);
            if CheckpointMeta::read(&path).is_ok_and(|meta| place(meta.progress) > place(progress)) {
                let mut name = path.clone().into_os_string();
                name.push(".superseded");
                fs::rename(&path, name).map_err(|error| unusable(&path, &error))?;
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// What a path stands for: the target of `latest.ckpt`, whether link or pointer file; any other path itself.
pub fn resolve(path: &Path) -> PathBuf {
    if let Ok(target) = fs::read_link(path) {
        return atomic::folder_of(path).join(target);
    }
    match pointed(path) {
        Some(name) => atomic::folder_of(path).join(name),
        None => path.to_owned(),
    }
}

/// The name inside a pointer file; it must be a plain file name, so that it cannot lead out of the folder.
fn pointed(path: &Path) -> Option<String> {
    let mut text = String::new();
    fs::File::open(path).ok()?.take(512).read_to_string(&mut text).ok()?;
    let name = text.strip_prefix(POINTER)?.trim_end();
    let plain = !name.is_empty() && name != LATEST && Path::new(name).file_name() == Some(name.as_ref());
    plain.then(|| name.to_owned())
}

fn write_pointer(path: &Path, name: &str) -> Result<()> {
    let text = format!("{POINTER}{name}\n");
    atomic::write(path, text.len() as u64, |file| file.write_all(text.as_bytes()))
}

/// The files of a folder that bear the name of a checkpoint, without `latest.ckpt`.
fn candidates(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| unusable(folder, &error))?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| unusable(folder, &error))?.path();
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let numbered = |prefix| stem.strip_prefix(prefix).is_some_and(|rest: &str| rest.parse::<u64>().is_ok());
        let named = numbered("epoch_") || numbered("iter_") || stem.starts_with("best_");
        if named && path.extension().is_some_and(|extension| extension == "ckpt") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn is_best(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("best_"))
}

fn unusable(path: &Path, error: &std::io::Error) -> Error {
    Error::environment(format!("cannot use {}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
