//! The checkpoints of a work folder: names, the newest valid one, and which ones are kept.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use fnet_common::atomic;
use fnet_common::{Context, Error, Result};
use fnet_protocol::work_dir::{LATEST, remove_leftovers};

use super::format;
use super::meta::{CheckpointMeta, TrainProgress};

/// First line of a `latest.ckpt` that is not a symbolic link; the second line names the file.
const POINTER: &str = "fnet checkpoint pointer 1\n";

/// The folder that a job writes its checkpoints to.
#[derive(Debug, Clone)]
pub struct CheckpointFolder {
    path: PathBuf,
}

/// The newest valid checkpoint of a folder.
#[derive(Debug)]
pub struct Latest {
    /// Its path and metadata; `None` if there is no valid one.
    pub found: Option<(PathBuf, CheckpointMeta)>,
    /// Files that were skipped.
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
    /// Creates the folder if necessary, and removes incomplete files of killed writers.
    /// Errors: an environment error if the folder cannot be created or read.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        fs::create_dir_all(&path).and_then(|()| remove_leftovers(&path)).map_err(|error| unusable(&path, &error))?;
        Ok(Self { path })
    }

    /// A folder that another process may be writing to. It is created by the first write.
    pub fn shared(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The path of a file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Creates the folder if its parent exists. A missing parent may be an unmounted drive and is not created.
    pub(super) fn make(&self) {
        // The write that follows reports an error.
        let _ = fs::create_dir(&self.path);
    }

    /// Removes transient checkpoints before `progress`, which were written only because a job was stopped or aborted.
    /// Errors: an environment error if the folder cannot be read or a file cannot be removed.
    pub fn remove_transient(&self, progress: TrainProgress) -> Result<()> {
        for path in candidates(&self.path)?.into_iter().filter(|path| !is_best(path)) {
            let old = CheckpointMeta::read(&path).is_ok_and(|meta| meta.state.transient && meta.progress < progress);
            if old {
                fs::remove_file(&path).map_err(|error| unusable(&path, &error))?;
            }
        }
        Ok(())
    }

    /// The path of `best_<metric>.ckpt`.
    pub fn best(&self, metric: &str) -> PathBuf {
        self.path.join(format!("best_{metric}.ckpt"))
    }

    /// Points `latest.ckpt` to a checkpoint of this folder: with a relative symbolic link, or a small file with its name if
    /// the file system has no links.
    /// Errors: an environment error if neither can be written.
    pub fn publish_latest(&self, checkpoint: &Path) -> Result<()> {
        let name = checkpoint.file_name().ok_or_else(|| Error::bug("a checkpoint without a file name"))?;
        let link = self.path.join(LATEST);
        atomic::replace_by_link(&link, |link| std::os::unix::fs::symlink(name, link))
            .or_else(|_| write_pointer(&link, &name.to_string_lossy()))
    }

    /// Makes `best_<metric>.ckpt` a hard link to a checkpoint, or a copy if hard links are not possible.
    /// Errors: an environment error if it cannot be written; the previous best one then still exists.
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

    /// Removes all but the newest `count` checkpoints of epochs and steps (0 keeps all). Returns the removed ones.
    ///
    /// Only files with a valid header and length count, so damaged files never replace good ones. Best checkpoints are not
    /// removed.
    /// Errors: an environment error if the folder cannot be read or a file cannot be removed.
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

/// The file name of a checkpoint: `epoch_N.ckpt` after N finished epochs, `iter_N.ckpt` after N steps if that is within an
/// epoch.
pub fn file_name(progress: TrainProgress) -> String {
    match progress.step_in_epoch {
        0 => format!("epoch_{}.ckpt", progress.epoch),
        _ => format!("iter_{}.ckpt", progress.step),
    }
}

/// Finds the newest completely valid checkpoint of some folders, by the progress in its header. The first folder has
/// priority among equal ones.
///
/// Best checkpoints count, too: they can be resumed from if there is nothing newer. A folder that does not exist has none.
/// Errors: an environment error if a folder exists but cannot be read, and the others have no checkpoint.
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

/// Renames the checkpoints that are later than `progress`, by epoch and step in the epoch, to `*.superseded`: a job that
/// goes back to `progress` must not resume from them after its next restart. Returns their previous paths.
/// Errors: an environment error if a folder cannot be read or a file cannot be renamed.
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

impl CheckpointMeta {
    /// Reads only the header of a checkpoint. Verifies its checksum and the length of the file, but not the tensors.
    /// Errors: a data error that says what is wrong with the file.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = resolve(path.as_ref());
        Ok(format::open(&path)
            .and_then(|file| file.fnet_meta())
            .with_context(|| format!("reading {}", path.display()))?
            .0)
    }
}

/// Reads a checkpoint and verifies every byte against the checksums, with little memory.
pub fn verify(path: impl AsRef<Path>) -> Result<CheckpointMeta> {
    let path = resolve(path.as_ref());
    let check = || -> Result<CheckpointMeta> {
        let mut file = format::open(&path)?;
        let (meta, entries) = file.fnet_meta()?;
        file.verify_tensors(&entries)?;
        Ok(meta)
    };
    check().with_context(|| format!("reading {}", path.display()))
}

/// The target of `latest.ckpt`, whether it is a link or a pointer file; any other path is returned unchanged.
pub fn resolve(path: &Path) -> PathBuf {
    if let Ok(target) = fs::read_link(path) {
        return atomic::folder_of(path).join(target);
    }
    match pointed(path) {
        Some(name) => atomic::folder_of(path).join(name),
        None => path.to_owned(),
    }
}

/// The name in a pointer file. It must be a plain file name, so that it cannot point outside the folder.
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

/// The files of a folder that are named like checkpoints, without `latest.ckpt`.
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
