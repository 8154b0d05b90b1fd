//! The lock of the work folder: one training at a time. Workers with a control channel rely on their launcher for it.

use std::collections::BTreeMap;
use std::fs::File;
use std::time::{Duration, Instant};

use fnet_protocol::cli::{LaunchOptions, WorkerCommand};
use fnet_protocol::work_dir::{self, Lock};

use super::disk;
use crate::console::Console;
use crate::error::{Error, Result};
use crate::nodes::{self, Cluster, Token};
use crate::plan::Plan;
use crate::signals::Signals;

/// Locks the existing work folder of a training until the result is dropped or this process exits. `None` for other
/// commands, on nodes other than 0, which may share its folder, and with a warning if the folder cannot be locked.
/// Errors: another job trains into the folder (exit code 2), or the folder does not answer for this time.
pub async fn lock(plan: &Plan, time: Duration, console: &Console) -> Result<Option<File>> {
    let WorkerCommand::Train(train) = &plan.command else { return Ok(None) };
    if plan.nodes.rank > 0 {
        return Ok(None);
    }
    let folder = train.folder();
    let (path, doing) = (folder.clone(), format!("locking {}", folder.display()));
    match disk::within(time, doing, move || work_dir::lock(&path)).await? {
        Lock::Held(file) => Ok(Some(file)),
        Lock::Busy => Err(Error::usage(work_dir::busy(&folder))),
        Lock::Impossible(error) => {
            console.error(&format!("warning: {}", work_dir::unlocked(&folder, &error)));
            Ok(None)
        }
    }
}

/// Whether a job waits for a folder that another one has. What starts a job again when a node is lost may do so before the
/// part that was cut off has ended, so that is waited for as long as for nodes.
pub fn may_wait(plan: &Plan) -> bool {
    plan.nodes.count > 1 && plan.starts_again()
}

/// Waits on node 0 for a folder that is `busy`, and tells the other nodes that have joined meanwhile; they must also hear of
/// the end.
pub async fn wait(
    options: &LaunchOptions,
    plan: &Plan,
    config: &BTreeMap<String, String>,
    token: &mut Option<Token>,
    busy: &Error,
    console: &Console,
    signals: &mut Signals,
) -> (Result<Option<File>>, Option<Cluster>) {
    let seconds = options.join_timeout;
    let text = format!("{busy}; waiting at most {seconds} s (--join-timeout)");
    console.say(&text);
    let (began, mut cluster) = (Instant::now(), None);
    loop {
        // The port may still be that of the other job.
        if cluster.is_none()
            && let Ok(Ok(joined)) = nodes::join(options, plan, config, token, console, signals).await
        {
            joined.wait_for(&text).await;
            cluster = Some(joined);
        }
        if let Err(reason) = signals.unless_stopped(tokio::time::sleep(Duration::from_secs(1))).await {
            return (Err(Error::stopped(reason)), cluster);
        }
        match lock(plan, Duration::from_secs_f64(options.node_timeout), console).await {
            Err(_) if began.elapsed().as_secs_f64() < seconds => {}
            locked => return (locked, cluster),
        }
    }
}
