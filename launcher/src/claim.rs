//! One training at a time in a work folder: two would replace each other's checkpoints.

use std::fs::File;

use fnet_protocol::cli::WorkerCommand;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::{Doing, Error, Result};
use crate::plan::Plan;

/// Claims the work folder of a training, until the result is dropped or this process ends, however it does. `None` where
/// nothing is claimed: for other commands, on further nodes, whose launchers may share the first one's folder, and on
/// file systems without locks.
///
/// # Errors
/// A usage error if another launcher trains into the folder.
pub fn work_folder(plan: &Plan) -> Result<Option<File>> {
    let WorkerCommand::Train(train) = &plan.command else { return Ok(None) };
    if plan.nodes.rank > 0 {
        return Ok(None);
    }
    let folder = train.folder();
    let opened = File::open(&folder).doing(|| format!("opening {}", folder.display()))?;
    match rustix::fs::flock(&opened, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(opened)),
        Err(Errno::WOULDBLOCK) => Err(Error::usage(format!(
            "another fnet-launch trains into {} at this moment; wait until it has ended, or choose another --work-dir",
            folder.display()
        ))),
        Err(_) => Ok(None),
    }
}
