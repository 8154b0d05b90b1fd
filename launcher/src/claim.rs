//! One training at a time in a work folder: two would replace each other's checkpoints.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use fnet_protocol::cli::WorkerCommand;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::{Doing, Error, Result};
use crate::plan::Plan;

/// A claimed work folder, until this is dropped or the process ends, however it does.
#[derive(Debug, Default)]
pub struct Claim {
    _lock: Option<File>,
    /// Why nothing could be claimed, where that should be known.
    pub warning: Option<String>,
}

/// Claims the work folder of a training. Nothing is claimed for other commands, and on further nodes, whose launchers may
/// share the first one's folder. A file system that has no locks (NFS without its lock service, some FUSE and parallel
/// file systems) is no reason not to train: a warning names it.
///
/// # Errors
/// A usage error if another launcher trains into the folder.
pub fn work_folder(plan: &Plan) -> Result<Claim> {
    let WorkerCommand::Train(train) = &plan.command else { return Ok(Claim::default()) };
    if plan.nodes.rank > 0 {
        return Ok(Claim::default());
    }
    let folder = train.folder();
    let opened = File::open(&folder).doing(|| format!("opening {}", folder.display()))?;
    let locked = rustix::io::retry_on_intr(|| rustix::fs::flock(&opened, FlockOperation::NonBlockingLockExclusive));
    Ok(Claim { warning: judge(&folder, locked, || file_system(&opened))?, _lock: Some(opened) })
}

/// What to warn of, if anything.
fn judge(
    folder: &Path,
    locked: Result<(), Errno>,
    file_system: impl FnOnce() -> Option<String>,
) -> Result<Option<String>> {
    let folder = folder.display();
    match locked {
        Ok(()) => Ok(None),
        Err(Errno::WOULDBLOCK) => Err(Error::usage(format!(
            "another fnet-launch trains into {folder} at this moment; wait until it has ended, or choose another \
             --work-dir",
        ))),
        Err(error) => {
            let kind =
                file_system().map_or_else(|| "the file system".to_owned(), |name| format!("the file system ({name})"));
            Ok(Some(format!(
                "{kind} of {folder} has no locks ({error}), so that two jobs in this folder would not notice each other: \
                 make sure that no other job trains into it"
            )))
        }
    }
}

/// The kind of file system on which a file lies, as `nfs4`.
fn file_system(file: &File) -> Option<String> {
    let device = file.metadata().ok()?.dev();
    let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    kind_of(&std::fs::read_to_string("/proc/self/mountinfo").ok()?, &number)
}

/// The kind of file system of a device, from lines such as `36 35 98:0 / /mnt rw shared:1 - ext3 /dev/root rw`.
fn kind_of(mounts: &str, device: &str) -> Option<String> {
    let mount = mounts.lines().find(|line| line.split_whitespace().nth(2) == Some(device))?;
    mount.split_once(" - ")?.1.split_whitespace().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use fnet_protocol::exit;

    use super::*;

    #[test]
    fn a_file_system_without_locks_is_named_and_does_not_stop_the_job() {
        let judge = |result| judge(Path::new("w"), result, || Some("nfs".to_owned()));
        assert_eq!(judge(Ok(())), Ok(None));
        assert_eq!(judge(Err(Errno::WOULDBLOCK)).unwrap_err().code, exit::USAGE);
        for error in [Errno::NOLCK, Errno::OPNOTSUPP, Errno::NOSYS, Errno::INVAL, Errno::IO, Errno::PERM] {
            let warning = judge(Err(error)).unwrap().unwrap();
            assert!(warning.starts_with("the file system (nfs) of w has no locks"), "{warning}");
        }
    }

    #[test]
    fn file_systems_are_known_by_their_device() {
        let mounts = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n\
                      40 35 0:51 / /home rw shared:7 - nfs4 server:/home rw\n";
        assert_eq!(kind_of(mounts, "0:51").as_deref(), Some("nfs4"));
        assert_eq!(kind_of(mounts, "0:5"), None);
        let folder = tempfile::tempdir().unwrap();
        assert!(file_system(&File::open(folder.path()).unwrap()).is_none_or(|name| !name.is_empty()));
    }

    #[test]
    fn a_folder_is_claimed_once() {
        let folder = tempfile::tempdir().unwrap();
        let lock = || {
            let opened = File::open(folder.path()).unwrap();
            rustix::fs::flock(&opened, FlockOperation::NonBlockingLockExclusive).map(|()| opened)
        };
        let first = lock().unwrap();
        assert_eq!(lock().unwrap_err(), Errno::WOULDBLOCK);
        drop(first);
        assert!(lock().is_ok());
    }
}
