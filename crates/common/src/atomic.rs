//! Atomic file replacement: a file is either the old or the new one, even after a crash.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::AtFlags;
use tempfile::TempPath;

use fnet_protocol::work_dir::{TEMPORARY, Writer, temporary_prefix};

use crate::error::{Context, Error, Result};

/// The mode of new files before the umask, so that other users may read checkpoints and results.
const MODE: u32 = 0o666;

/// Writes a file of about `size` bytes with `content`, and replaces `path` with it when it is durable.
pub fn write(path: &Path, size: u64, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    write_if(path, size, content, || Ok(()))
}

/// The same if `permit`, which is called when the content is durable, allows the replacement.
pub fn write_if(
    path: &Path,
    size: u64,
    content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    permit: impl FnOnce() -> io::Result<()>,
) -> Result<()> {
    let folder = folder_of(path);
    replace_if(path, content, permit).map_err(|error| {
        let free = free_bytes(folder).map_or_else(|_| String::new(), |free| format!(", {} are free", megabytes(free)));
        let advice = match error.kind() {
            io::ErrorKind::StorageFull => "the disk is full; free some space or set checkpoint.keep_last",
            io::ErrorKind::QuotaExceeded => "the disk quota is exceeded; free some space or set checkpoint.keep_last",
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                "the folder is not writable; choose another --work-dir"
            }
            io::ErrorKind::NotFound => "the folder is gone",
            _ => "the file could not be written",
        };
        Error::environment(format!(
            "cannot write {}: {error}: {advice} (it needs {}{free}); an existing file there is unchanged",
            path.display(),
            megabytes(size)
        ))
    })
}

/// Writes a file and creates its folder if necessary. Readers never see a partial file.
pub fn create(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let failed = |error: std::io::Error| {
        Error::environment(format!("cannot write {}: {error}. Choose a writable folder", path.display()))
    };
    std::fs::create_dir_all(folder_of(path)).map_err(failed)?;
    let mut of_content = None;
    let written = replace(path, |out| {
        write(out).map_err(|error| {
            of_content = Some(error);
            std::io::Error::other("the content could not be written")
        })
    });
    match of_content {
        Some(error) => Err(error).with_context(|| format!("writing {}", path.display())),
        None => written.map_err(failed),
    }
}

/// A function that writes the content of a file.
type Content<'c> = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + 'c>;

/// Writes a file and replaces `path` with it when it is durable.
/// Errors of `content` and of the disk; `path` is then unchanged.
pub fn replace(path: &Path, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    replace_if(path, content, || Ok(()))
}

fn replace_if(
    path: &Path,
    content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    permit: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    let folder = folder_of(path);
    let prefix = prefix(path)?;
    let mut names = tempfile::Builder::new();
    names.prefix(&prefix).suffix(TEMPORARY).permissions(Permissions::from_mode(MODE));
    let named = |content: Content<'_>| {
        let mut temporary = names.tempfile_in(folder)?;
        fill(temporary.as_file_mut(), content)?;
        io::Result::Ok(temporary.into_temp_path())
    };
    let temporary = match unnamed(folder) {
        Some(mut file) => {
            fill(&mut file, Box::new(content))?;
            match names.make_in(folder, |path| link(&file, path)) {
                Ok(linked) => linked.into_temp_path(),
                Err(_) => {
                    file.rewind()?;
                    named(Box::new(move |to| io::copy(&mut file, to).map(drop)))?
                }
            }
        }
        None => named(Box::new(content))?,
    };
    permit()?;
    put(temporary, path)
}

/// Replaces `path` with the link that `make` creates at a temporary path.
/// Errors of `make` and of the disk; `path` is then unchanged.
pub fn replace_by_link(path: &Path, make: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    let link = tempfile::Builder::new().prefix(&prefix(path)?).suffix(TEMPORARY).make_in(folder_of(path), make)?;
    put(link.into_temp_path(), path)
}

/// The prefix of temporary files that will replace `path`.
fn prefix(path: &Path) -> io::Result<String> {
    let name = path.file_name().ok_or_else(|| io::Error::other("the path has no file name"))?;
    Ok(temporary_prefix(&name.to_string_lossy(), &Writer::this()))
}

/// Renames a file and waits until that is durable. Renaming one link onto another link to the same file leaves both; dropping
/// the temporary one removes it.
fn put(temporary: TempPath, path: &Path) -> io::Result<()> {
    fs::rename(&temporary, path)?;
    drop(temporary);
    sync_folder(folder_of(path))
}

/// Writes the content and waits until it is durable.
fn fill(file: &mut File, content: Content<'_>) -> io::Result<()> {
    let mut buffered = BufWriter::with_capacity(1 << 20, &mut *file);
    content(&mut buffered)?;
    buffered.flush()?;
    drop(buffered);
    file.sync_all()
}

/// A file without a name, of which nothing remains if the writer is killed; `None` if the file system does not support it.
fn unnamed(folder: &Path) -> Option<File> {
    File::options().read(true).write(true).mode(MODE).custom_flags(libc::O_TMPFILE).open(folder).ok()
}

/// Gives a file of [`unnamed`] a name.
fn link(file: &File, path: &Path) -> io::Result<()> {
    let descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(rustix::fs::CWD, descriptor, rustix::fs::CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

/// Makes renames and removals in a folder durable, if the file system supports it.
fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOTSUP)) => Ok(()),
        other => other,
    }
}

/// The folder of a file.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Bytes that are free for this user on the file system of `folder`.
pub fn free_bytes(folder: &Path) -> io::Result<u64> {
    let statistics = rustix::fs::statvfs(folder)?;
    Ok(statistics.f_bavail.saturating_mul(statistics.f_frsize))
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn a_full_disk_keeps_the_old_file_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("epoch_1.ckpt");
        write(&path, 3, |file| file.write_all(b"old")).unwrap();
        let error = write(&path, 2_000_000, |file| {
            file.write_all(&[0; 100_000])?;
            Err(io::Error::from_raw_os_error(libc::ENOSPC))
        })
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Environment);
        let text = error.to_string();
        assert!(text.contains("the disk is full") && text.contains("needs 2.0 MB"), "{text}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_is_not_visible_before_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let entries = || fs::read_dir(folder.path()).unwrap().count();
        if unnamed(folder.path()).is_none() {
            println!("SKIPPED: the file system of {} has no files without a name", folder.path().display());
            return;
        }
        let path = folder.path().join("epoch_1.ckpt");
        for content in [b"old", b"new"] {
            let before = entries();
            write(&path, 3, |file| {
                file.write_all(content)?;
                file.flush()?;
                // The state if the writer is killed here.
                assert_eq!(entries(), before);
                Ok(())
            })
            .unwrap();
            assert_eq!((fs::read(&path).unwrap().as_slice(), entries()), (content.as_slice(), 1));
        }
    }

    #[test]
    fn a_link_replaces_another_one_to_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let (path, best) = (folder.path().join("epoch_1.ckpt"), folder.path().join("best.ckpt"));
        fs::write(&path, "x").unwrap();
        for _ in 0..2 {
            replace_by_link(&best, |link| fs::hard_link(&path, link)).unwrap();
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        }
        replace_by_link(&best, |link| fs::hard_link("none", link)).unwrap_err();
        assert_eq!(fs::read(&best).unwrap(), b"x");
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gone/epoch_1.ckpt");
        let text = write(&path, 1, |file| file.write_all(b"x")).unwrap_err().to_string();
        assert!(text.contains("gone/epoch_1.ckpt") && text.contains("the folder is gone"), "{text}");
    }
}
