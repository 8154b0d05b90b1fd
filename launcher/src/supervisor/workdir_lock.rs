//! The lock of the work folder: one training at a time. Workers with a control channel rely on their launcher for it.

use std::fs::File;
use std::time::{Duration, Instant};

use fnet_protocol::cli::WorkerCommand;
use fnet_protocol::work_dir::{self, Lock};

use crate::console::Console;
use crate::error::{Error, Result};
use crate::plan::Plan;

/// Locks the existing work folder of a training until the result is dropped or this process exits. `None` for other
/// commands, on nodes other than 0, which may share its folder, and with a warning if the folder cannot be locked.
/// Errors: another job trains into the folder (exit code 2).
pub fn lock(plan: &Plan, console: &Console) -> Result<Option<File>> {
    let WorkerCommand::Train(train) = &plan.command else { return Ok(None) };
    if plan.nodes.rank > 0 {
        return Ok(None);
    }
    let folder = train.folder();
    match work_dir::lock(&folder) {
        Lock::Held(file) => Ok(Some(file)),
        Lock::Busy => Err(Error::usage(work_dir::busy(&folder))),
        Lock::Impossible(error) => {
            console.error(&format!("warning: {}", work_dir::unlocked(&folder, &error)));
            Ok(None)
        }
    }
}

/// The same at the start of a job. What starts a job again when a node is lost may do so before the part that was cut off has
/// ended, so that is waited for as long as for nodes.
pub async fn wait(plan: &Plan, seconds: f64, console: &Console) -> Result<Option<File>> {
    let (began, mut is_said) = (Instant::now(), false);
    let may_wait = plan.nodes.count > 1 && plan.starts_again();
    loop {
        match lock(plan, console) {
            Err(error) if may_wait && began.elapsed().as_secs_f64() < seconds => {
                if !std::mem::replace(&mut is_said, true) {
                    console.say(&format!("{}; waiting at most {seconds} s (--join-timeout)", error.message()));
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            locked => return locked,
        }
    }
}
