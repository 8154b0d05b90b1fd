//! Where the outputs of a job are, as both programs must find them.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Name of the checkpoint that always is the newest.
pub const LATEST: &str = "latest.ckpt";
/// Folder of the log per rank.
pub const LOGS: &str = "logs";
/// Ending of files that are being written.
pub const TEMPORARY: &str = ".tmp";

/// The folder a job writes to: `flag` if given, else `work_dirs/<name of the config without its ending>`.
pub fn work_dir(config: &Path, flag: Option<&Path>) -> PathBuf {
    match flag {
        Some(folder) => folder.to_path_buf(),
        None => Path::new("work_dirs").join(config.file_stem().unwrap_or(config.as_os_str())),
    }
}

/// The folder that a command about a checkpoint belongs to: that of the checkpoint if a job wrote it (it holds a
/// `config.toml`), else `work_dirs/<name of the config or the checkpoint>`.
pub fn work_dir_of_checkpoint(checkpoint: &Path, config: Option<&Path>) -> PathBuf {
    match checkpoint.parent() {
        Some(folder) if folder.join("config.toml").is_file() => folder.to_path_buf(),
        _ => work_dir(config.unwrap_or(checkpoint), None),
    }
}

/// Whether a file is one that PyTorch wrote, by its first bytes: a zip archive, or a pickle.
pub fn is_pytorch_file(path: &Path) -> bool {
    let mut start = [0; 2];
    // Only ordinary files: to open a pipe would wait for its writer.
    path.is_file()
        && fs::File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok()
        && matches!(start, [b'P', b'K'] | [0x80, 2..=5])
}

/// A file with a checkpoint's ending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointFile {
    /// Where it is.
    pub path: PathBuf,
    /// When it was last written.
    pub modified: SystemTime,
}

/// The checkpoints (`*.ckpt`) in a folder, the newest first; [`LATEST`] comes after a file of its own age, so that the
/// first is the one with the telling name. A folder that does not exist holds none.
///
/// # Errors
/// If the folder cannot be read.
pub fn checkpoints(folder: &Path) -> io::Result<Vec<CheckpointFile>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "ckpt") {
            // A dangling link or a file that was just removed is no checkpoint.
            let Ok(facts) = fs::metadata(&path) else { continue };
            if facts.is_file() {
                found.push(CheckpointFile { path, modified: facts.modified()? });
            }
        }
    }
    let is_alias = |file: &CheckpointFile| {
        file.path.file_name().is_some_and(|name| name == LATEST || name.to_string_lossy().starts_with("best_"))
    };
    found.sort_by(|a, b| {
        b.modified.cmp(&a.modified).then(is_alias(a).cmp(&is_alias(b))).then_with(|| b.path.cmp(&a.path))
    });
    Ok(found)
}

/// How the name begins under which a process writes what is to take the place of `name` in the same folder; something
/// without a dot and [`TEMPORARY`] follow.
pub fn temporary_prefix(name: &str, writer: u32) -> String {
    format!(".{name}.{writer}.")
}

/// The process that writes to a file with this name, if it is a temporary one.
fn writer_of(name: &str) -> Option<u32> {
    let mut parts = name.strip_prefix('.')?.strip_suffix(TEMPORARY)?.rsplitn(3, '.');
    let (_rest, writer, name) = (parts.next()?, parts.next()?, parts.next()?);
    let is_number = writer.bytes().all(|byte| byte.is_ascii_digit());
    (is_number && !name.is_empty()).then(|| writer.parse().ok())?
}

/// Removes the half-written files of processes that are gone from a folder, which may not exist.
///
/// # Errors
/// If the folder cannot be read or a file cannot be removed; the others have been removed nevertheless.
pub fn remove_leftovers(folder: &Path, is_gone: impl Fn(u32) -> bool) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let mut outcome = Ok(());
    for entry in entries {
        let entry = entry?;
        if writer_of(&entry.file_name().to_string_lossy()).is_some_and(&is_gone)
            && let Err(error) = fs::remove_file(entry.path())
            && error.kind() != io::ErrorKind::NotFound
        {
            outcome = Err(error);
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_the_name_of_the_config() {
        assert_eq!(work_dir(Path::new("configs/a.b.toml"), None), Path::new("work_dirs/a.b"));
        assert_eq!(work_dir(Path::new("a.toml"), Some(Path::new("out"))), Path::new("out"));
    }

    #[test]
    fn a_checkpoint_of_a_job_stays_with_its_job() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = folder.path().join("latest.ckpt");
        assert_eq!(work_dir_of_checkpoint(&checkpoint, None), Path::new("work_dirs/latest"));
        fs::write(folder.path().join("config.toml"), "").unwrap();
        assert_eq!(work_dir_of_checkpoint(&checkpoint, None), folder.path());
    }

    #[test]
    fn pytorch_files_are_known_by_their_first_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pth");
        assert!(!is_pytorch_file(&path) && !is_pytorch_file(folder.path()));
        let bytes: [(&[u8], bool); 6] = [
            (b"PK\x03\x04", true),
            (b"\x80\x02\x8a", true),
            (b"\x80\0\0\0\0\0\0\0{", false),
            (b"P", false),
            (b"", false),
            (b"{}", false),
        ];
        for (bytes, expected) in bytes {
            fs::write(&path, bytes).unwrap();
            assert_eq!(is_pytorch_file(&path), expected, "{bytes:?}");
        }
    }

    #[test]
    fn leftovers_of_writers_that_are_gone_are_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let temporary = |name, writer, rest| temporary_prefix(name, writer) + rest + TEMPORARY;
        let gone = [temporary("epoch_1.ckpt", 17, "a1b2c3"), temporary(LATEST, 17, "123456")];
        let kept = [
            temporary("epoch_2.ckpt", 18, "a1b2c3"),
            temporary("epoch_2.ckpt", 18, "17"),
            "epoch_1.ckpt".to_owned(),
            "notes.17.a.tmp".to_owned(),
            ".17.a.tmp".to_owned(),
            "..17.a.tmp".to_owned(),
            ".notes.+17.a.tmp".to_owned(),
            ".notes..a.tmp".to_owned(),
            ".tmp".to_owned(),
            ".hidden".to_owned(),
        ];
        for name in gone.iter().chain(&kept) {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        remove_leftovers(folder.path(), |writer| writer == 17).unwrap();
        let is_there = |name: &String| folder.path().join(name).exists();
        assert!(!gone.iter().any(is_there) && kept.iter().all(is_there));
        remove_leftovers(folder.path(), |_| true).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 8);
        remove_leftovers(&folder.path().join("none"), |_| true).unwrap();
    }

    #[test]
    fn the_newest_checkpoint_comes_first_by_its_own_name() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(checkpoints(&folder.path().join("none")).unwrap(), []);
        let day = std::time::Duration::from_secs(86_400);
        for (name, age) in [("epoch_1.ckpt", 2), ("epoch_2.ckpt", 1), ("latest.ckpt", 1), ("notes.txt", 0)] {
            let file = fs::File::create(folder.path().join(name)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + day * 100 - day * age).unwrap();
        }
        let found: Vec<_> = checkpoints(folder.path())
            .unwrap()
            .iter()
            .map(|file| file.path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(found, ["epoch_2.ckpt", "latest.ckpt", "epoch_1.ckpt"]);
    }
}
