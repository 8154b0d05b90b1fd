//! Ends a rank when its mpirun is killed; Open MPI would leave it running in the background.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, getppid, pidfd_open};

use fnet_common::process;
use fnet_protocol::{exit, outlet};

/// Programs that start ranks on a machine.
const LAUNCHERS: [&str; 8] =
    ["mpirun", "mpiexec", "prterun", "prted", "orted", "hydra_pmi_proxy", "pmi_proxy", "slurmstepd"];

/// An ancestor of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ancestor {
    id: i32,
    name: String,
}

/// Ends this process when the launcher of the ranks on this machine, or a script in between, ends.
pub(super) fn exit_with_launcher() {
    let ancestors = ancestors();
    let watched = watched(&ancestors);
    let open = |one: &Ancestor| Pid::from_raw(one.id).and_then(|id| pidfd_open(id, PidfdFlags::empty()).ok());
    let handles: Vec<OwnedFd> = watched.iter().filter_map(open).collect();
    // The kernel has no pidfds, so nothing can be watched.
    if handles.is_empty() || handles.len() < watched.len() {
        return;
    }
    let spawned = std::thread::Builder::new().name("orphan".into()).spawn(move || {
        wait_for_one(&handles);
        outlet::stderr("error: the mpirun of this rank has ended, so this rank exits, too\n");
        process::end(exit::WORKER_LOST);
    });
    // Without a thread nothing is watched, either.
    drop(spawned);
}

/// The processes from the parent up to the launcher; only the parent if no ancestor is a known launcher.
fn watched(ancestors: &[Ancestor]) -> &[Ancestor] {
    let launcher = ancestors.iter().position(|ancestor| LAUNCHERS.contains(&ancestor.name.as_str()));
    &ancestors[..ancestors.len().min(launcher.unwrap_or(0) + 1)]
}

/// The ancestors of this process, the parent first, without process 1.
fn ancestors() -> Vec<Ancestor> {
    let mut found = Vec::new();
    let mut next = getppid().map_or(0, |parent| parent.as_raw_nonzero().get());
    while next > 1 {
        let Some((name, parent)) = std::fs::read_to_string(format!("/proc/{next}/stat")).ok().and_then(|t| parse(&t))
        else {
            break;
        };
        found.push(Ancestor { id: next, name });
        next = parent;
    }
    found
}

/// Name and parent in the text of /proc/ID/stat. The name is in parentheses and may contain parentheses and spaces.
fn parse(stat: &str) -> Option<(String, i32)> {
    let (before, after) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_owned();
    Some((name, after.split_whitespace().nth(1)?.parse().ok()?))
}

/// Returns when one of the processes has ended.
fn wait_for_one(handles: &[OwnedFd]) {
    let entry = |handle: &OwnedFd| libc::pollfd { fd: handle.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut entries: Vec<libc::pollfd> = handles.iter().map(entry).collect();
    // SAFETY: the length is that of the list, and the descriptors stay open while `handles` is borrowed.
    while unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, -1) } < 1 {
        // Interrupted by a signal.
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn chain(names: &[&str]) -> Vec<Ancestor> {
        names.iter().zip(10..).map(|(name, id)| Ancestor { id, name: (*name).to_owned() }).collect()
    }

    #[test]
    fn all_ancestors_up_to_the_launcher_are_watched() {
        for (names, count) in [
            (&["prterun", "bash", "sshd"][..], 1),
            (&["run.sh", "numactl", "prted", "systemd"], 3),
            (&["bash", "tmux"], 1),
            (&[], 0),
        ] {
            let all = chain(names);
            assert_eq!(watched(&all), &all[..count], "{names:?}");
        }
    }

    #[test]
    fn a_process_name_may_contain_parentheses() {
        assert_eq!(parse("7 (a) b (c)) S 42 7 7").unwrap(), ("a) b (c)".to_owned(), 42));
        assert!(parse("").is_none());
        let parent = &ancestors()[0];
        assert_eq!(Some(parent.id), getppid().map(|id| id.as_raw_nonzero().get()));
    }

    #[test]
    fn the_end_of_one_of_several_processes_is_noticed() {
        let start = |seconds: &str| Command::new("sleep").arg(seconds).stdin(Stdio::null()).spawn().unwrap();
        let mut children = [start("60"), start("0.1")];
        let open = |id: u32| pidfd_open(Pid::from_raw(id as i32).unwrap(), PidfdFlags::empty()).unwrap();
        let handles: Vec<OwnedFd> = children.iter().map(|child| open(child.id())).collect();
        wait_for_one(&handles);
        assert!(children[0].try_wait().unwrap().is_none());
        children[0].kill().unwrap();
        children.iter_mut().for_each(|child| drop(child.wait()));
    }
}
