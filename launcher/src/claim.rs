//! One training at a time in a work folder. Its workers know by the control channel that their launcher sees to this.

use std::fs::File;

use fnet_protocol::cli::WorkerCommand;
use fnet_protocol::work_dir::{self, Lock};

use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::show::Show;

/// Claims the work folder of a training, which exists, until the result is dropped or this process ends, however it does.
/// `None` where nothing is claimed: for other commands, on further nodes, whose launchers may share the first one's
/// folder, and, with a warning, where it cannot be locked.
///
/// # Errors
/// A usage error if another job trains into the folder.
pub fn work_folder(plan: &Plan, show: &Show) -> Result<Option<File>> {
    let WorkerCommand::Train(train) = &plan.command else { return Ok(None) };
    if plan.nodes.rank > 0 {
        return Ok(None);
    }
    let folder = train.folder();
    match work_dir::lock(&folder) {
        Lock::Held(file) => Ok(Some(file)),
        Lock::Busy => Err(Error::usage(work_dir::busy(&folder))),
        Lock::Impossible(error) => {
            show.error(&format!("warning: {}", work_dir::unlocked(&folder, &error)));
            Ok(None)
        }
    }
}
