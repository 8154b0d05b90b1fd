//! The output folder of a job, as both programs must find it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::file_kind::FileKind;

/// Name of the newest checkpoint.
pub const LATEST: &str = "latest.ckpt";
/// Folder with one log per rank.
pub const LOGS: &str = "logs";
/// The status of a training, which its launcher keeps.
pub const STATUS: &str = "status.json";
/// The same in the text format of Prometheus.
pub const METRICS: &str = "metrics.prom";
/// Extension of files that are being written.
pub const TEMPORARY: &str = ".tmp";

/// The output folder of a job: `flag` if given, else `work_dirs/<config name without extension>`.
pub fn work_dir(config: &Path, flag: Option<&Path>) -> PathBuf {
    match flag {
        Some(folder) => folder.to_path_buf(),
        None => Path::new("work_dirs").join(config.file_stem().unwrap_or(config.as_os_str())),
    }
}

/// The output folder of a command on a checkpoint: the checkpoint's if a job wrote it (it contains a `config.toml`), else
/// `work_dirs/<name of the config or the checkpoint>`.
pub fn work_dir_of_checkpoint(checkpoint: &Path, config: Option<&Path>) -> PathBuf {
    match checkpoint.parent() {
        Some(folder) if folder.join("config.toml").is_file() => folder.to_path_buf(),
        _ => work_dir(config.unwrap_or(checkpoint), None),
    }
}

/// Whether a file is from PyTorch, by its content: a zip archive, or a pickle.
pub fn is_pytorch_file(path: &Path) -> bool {
    FileKind::of_content(path).is_ok_and(|kind| kind == FileKind::PyTorch)
}

/// A checkpoint file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointFile {
    /// Its path.
    pub path: PathBuf,
    /// Time of the last modification.
    pub modified: SystemTime,
}

/// The checkpoints (`*.ckpt`) in a folder, newest first; of files of equal age, aliases such as [`LATEST`] come last. A
/// folder that does not exist has none.
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
            // Skip dangling links and files that were just removed.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            if metadata.is_file() {
                found.push(CheckpointFile { path, modified: metadata.modified()? });
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

/// A process that writes temporary files. Process ids are not unique on a shared folder, so it is identified together with
/// its host, PID namespace and start time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    host: String,
    process: u32,
    /// Start time in kernel ticks since boot.
    started: u64,
}

impl Writer {
    /// This process.
    pub fn this() -> Self {
        let process = std::process::id();
        Self::of(process).unwrap_or_else(|| Self { host: host().to_owned(), process, started: 0 })
    }

    /// A process of this host; `None` if it has ended.
    pub fn of(process: u32) -> Option<Self> {
        Some(Self { host: host().to_owned(), process, started: start_of(process)? })
    }

    /// The process that writes the temporary file with this name.
    fn of_file(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix('.')?.strip_suffix(TEMPORARY)?.rsplitn(3, '.');
        let (_random, writer, name) = (parts.next()?, parts.next()?, parts.next()?);
        let mut parts = writer.rsplitn(3, '-');
        let (started, process, host) = (parts.next()?, parts.next()?, parts.next()?);
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let is_one = is_number(started) && is_number(process) && !host.is_empty() && !name.is_empty();
        is_one.then(|| {
            Some(Self { host: host.to_owned(), process: process.parse().ok()?, started: started.parse().ok()? })
        })?
    }

    /// Whether it is a process of this host that has ended; unknown for other hosts.
    pub fn is_gone(&self) -> bool {
        self.is_of_this_host() && start_of(self.process) != Some(self.started)
    }

    /// Whether it is a process of this host.
    pub fn is_of_this_host(&self) -> bool {
        self.host == host()
    }

    /// Its process id.
    pub fn process(&self) -> u32 {
        self.process
    }
}

/// Prefix of the temporary file with which a process replaces `name` in the same folder; a random part without a dot and
/// [`TEMPORARY`] follow.
pub fn temporary_prefix(name: &str, writer: &Writer) -> String {
    format!(".{name}.{}-{}-{}.", writer.host, writer.process, writer.started)
}

/// Host name and PID namespace, in characters that are safe in file names.
fn host() -> &'static str {
    static HOST: OnceLock<String> = OnceLock::new();
    HOST.get_or_init(|| {
        let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let text = format!("{}_{}", name.trim(), namespace.display());
        text.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '_' }).collect()
    })
}

/// Start time of a process of this host in kernel ticks since boot; `None` if it has ended.
fn start_of(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name of the program, in parentheses, may contain spaces; state and start time are the first and twentieth field
    // after it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let started = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(started)
}

/// A temporary file of another host is abandoned after this time without a change.
const ABANDONED: Duration = Duration::from_secs(86_400);

/// Removes abandoned temporary files from a folder, which may not exist: files of ended processes of this host, and files
/// of other hosts without a change for a day.
/// Errors: the folder cannot be read, or some files cannot be removed; the others are removed.
pub fn remove_leftovers(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let mut result = Ok(());
    for entry in entries {
        let entry = entry?;
        let Some(writer) = Writer::of_file(&entry.file_name().to_string_lossy()) else { continue };
        let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        let is_left = writer.is_gone() || writer.host != host() && age().is_some_and(|age| age > ABANDONED);
        if is_left
            && let Err(error) = fs::remove_file(entry.path())
            && error.kind() != io::ErrorKind::NotFound
        {
            result = Err(error);
        }
    }
    result
}

/// Name of the lock file in the work folder of a training.
pub(crate) const LOCK: &str = ".fnet.lock";

/// The result of locking a work folder.
#[derive(Debug)]
pub enum Lock {
    /// Locked until this is dropped or the process exits in any way.
    Held(File),
    /// Another training has locked it.
    Busy,
    /// The file system does not support locks, or the lock file cannot be created.
    Impossible(io::Error),
}

/// Locks an existing work folder for a training; two trainings would replace each other's checkpoints.
pub fn lock(folder: &Path) -> Lock {
    // A file, because network drives cannot lock folders.
    let opened = File::options().create(true).truncate(false).write(true).open(folder.join(LOCK));
    let file = match opened {
        Ok(file) => file,
        Err(error) => return Lock::Impossible(error),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Lock::Held(file),
        Err(Errno::WOULDBLOCK) => Lock::Busy,
        Err(error) => Lock::Impossible(error.into()),
    }
}

/// The message for [`Lock::Busy`].
pub fn busy(folder: &Path) -> String {
    format!("another job trains into {}; wait until it has ended, or choose another --work-dir", folder.display())
}

/// The message for [`Lock::Impossible`], which occurs on some network and parallel file systems.
pub fn unlocked(folder: &Path, error: &io::Error) -> String {
    let kind = file_system(folder).map(|name| format!(" on a file system of type {name}")).unwrap_or_default();
    format!(
        "{}{kind} cannot be locked ({error}), so a second job in it would go unnoticed: make sure that no other job \
         trains into it",
        folder.display()
    )
}

/// The type of a folder's file system, for example `nfs4`.
fn file_system(folder: &Path) -> Option<String> {
    let device = fs::metadata(folder).ok()?.dev();
    let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    type_of(&fs::read_to_string("/proc/self/mountinfo").ok()?, &device)
}

/// The file system type of a device, from lines such as `36 35 98:0 / /mnt rw shared:1 - ext3 /dev/root rw`.
fn type_of(mounts: &str, device: &str) -> Option<String> {
    let mount = mounts.lines().find(|line| line.split_whitespace().nth(2) == Some(device))?;
    mount.split_once(" - ")?.1.split_whitespace().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_cannot_be_locked_is_named() {
        let mounts = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n\
                      40 35 0:51 / /home rw shared:7 - nfs4 server:/home rw\n";
        assert_eq!(type_of(mounts, "0:51").as_deref(), Some("nfs4"));
        assert_eq!(type_of(mounts, "0:5"), None);
        let text = unlocked(Path::new("/proc"), &Errno::NOLCK.into());
        assert!(text.starts_with("/proc on a file system of type proc cannot be locked (No locks available"), "{text}");
    }

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
    fn leftovers_of_processes_that_have_ended_are_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let this = Writer::this();
        assert_eq!(Writer::of(std::process::id()).as_ref(), Some(&this));
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let other = Writer::of(child.id()).unwrap();
        let elsewhere = |host: &str| Writer { host: host.into(), ..other.clone() };
        let temporary = |name: &str, writer: &Writer, rest: &str| temporary_prefix(name, writer) + rest + TEMPORARY;
        // The same number, of a process before this one.
        let former = Writer { started: this.started.wrapping_sub(1), ..this.clone() };
        let gone = [temporary("a.b.ckpt", &former, "a1b2c3"), temporary(LATEST, &former, "123456")];
        let left = [temporary("epoch_1.ckpt", &other, "a1b2c3"), temporary("epoch_1.ckpt", &other, "d4e5f6")];
        let abandoned = temporary("epoch_1.ckpt", &elsewhere("node-2"), "a1b2c3");
        let kept = [
            temporary("epoch_2.ckpt", &this, "a1b2c3"),
            // The same process number on another host, and in another container of this one.
            temporary("epoch_2.ckpt", &elsewhere("node-2"), "a1b2c3"),
            temporary("epoch_2.ckpt", &elsewhere(&format!("{}1", this.host)), "a1b2c3"),
            "epoch_1.ckpt".to_owned(),
            "notes.h-17-3.a.tmp".to_owned(),
            ".h-17-3.a.tmp".to_owned(),
            "..h-17-3.a.tmp".to_owned(),
            ".notes.h-+17-3.a.tmp".to_owned(),
            ".notes.-17-3.a.tmp".to_owned(),
            ".notes.17.a.tmp".to_owned(),
            ".notes..a.tmp".to_owned(),
            ".tmp".to_owned(),
            ".hidden".to_owned(),
        ];
        for name in gone.iter().chain(&left).chain([&abandoned]).chain(&kept) {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        let is_there = |name: &String| folder.path().join(name).exists();
        remove_leftovers(folder.path()).unwrap();
        assert!(!gone.iter().any(is_there) && left.iter().chain(&kept).all(is_there) && is_there(&abandoned));
        child.kill().unwrap();
        // Nobody has waited for it yet: a zombie writes nothing.
        while Writer::of(child.id()).is_some() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let file = File::options().write(true).open(folder.path().join(&abandoned)).unwrap();
        file.set_modified(SystemTime::now() - ABANDONED * 2).unwrap();
        remove_leftovers(folder.path()).unwrap();
        assert!(!left.iter().chain([&abandoned]).any(is_there) && kept.iter().all(is_there));
        child.wait().unwrap();
        remove_leftovers(&folder.path().join("none")).unwrap();
    }

    #[test]
    fn a_folder_is_locked_once_until_the_lock_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let Lock::Held(held) = lock(folder.path()) else { panic!("not locked") };
        assert!(matches!(lock(folder.path()), Lock::Busy));
        drop(held);
        assert!(matches!(lock(folder.path()), Lock::Held(_)));
        let Lock::Impossible(error) = lock(&folder.path().join("none")) else { panic!("there is no such folder") };
        assert!(unlocked(folder.path(), &error).contains("cannot be locked (No such file"), "{error}");
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
