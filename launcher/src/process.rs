//! Worker processes on Linux: started in groups of their own, ended with their launcher, waited for by pidfd.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::rc::Rc;

use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::CpuSet;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::bind::Share;
use crate::cause::Ending;

/// How to start one worker.
pub struct Start<'a> {
    /// The worker's program.
    pub program: &'a Path,
    /// Its arguments.
    pub arguments: &'a [std::ffi::OsString],
    /// Variables to set, on top of the launcher's.
    pub variables: &'a [(String, String)],
    /// Variables that the launcher has and the worker must not.
    pub removed: &'a [&'a str],
    /// Sockets that the worker inherits under the same numbers.
    pub inherited: Vec<OwnedFd>,
    /// Its CPUs and memory node, if it is bound.
    pub share: Option<&'a Share>,
}

/// A started worker with the ends of its pipes.
pub struct Started {
    /// To signal it.
    pub handle: Handle,
    /// To wait for it.
    pub waiter: Waiter,
    /// Its output.
    pub stdout: ChildStdout,
    /// Its error output.
    pub stderr: ChildStderr,
}

/// Signals a worker; after it was waited for its number may be another process's, and nothing is sent any more.
#[derive(Clone)]
pub struct Handle {
    pid: Pid,
    reaped: Rc<Cell<bool>>,
}

/// Waits for a worker.
pub struct Waiter {
    child: Child,
    pidfd: AsyncFd<OwnedFd>,
    handle: Handle,
}

/// Starts a worker. Must be called on the main thread: the kernel sends the parent-death signal when the *thread* that
/// started the child ends.
///
/// # Errors
/// If the program cannot be started.
pub fn start(start: Start<'_>) -> io::Result<Started> {
    let mut command = Command::new(start.program);
    command.args(start.arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    for name in start.removed {
        command.env_remove(name);
    }
    command.envs(start.variables.iter().map(|(name, value)| (name, value)));
    let entry = Entry {
        launcher: rustix::process::getpid(),
        place: start.share.map(Place::of),
        inherited: start.inherited.iter().map(AsRawFd::as_raw_fd).collect(),
    };
    // SAFETY: between fork and exec the closure makes system calls only; it neither allocates (an error is a number) nor
    // takes locks. The descriptors are open: their owner, `start.inherited`, lives until after the fork.
    unsafe { command.pre_exec(move || entry.enter()) };
    let mut child = command.spawn()?;
    drop(start.inherited);
    let taken = (child.stdout.take(), child.stderr.take());
    let (Some(stdout), Some(stderr)) = taken else { return Err(io::Error::other("a pipe of the worker is missing")) };
    let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else {
        return Err(io::Error::other("the worker has no process id"));
    };
    let handle = Handle { pid, reaped: Rc::default() };
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from).and_then(|fd| {
        // SAFETY: the `AsyncFd` owns the descriptor, so it stays open and the same until it is deregistered.
        unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
    });
    match pidfd {
        Ok(pidfd) => Ok(Started { waiter: Waiter { child, pidfd, handle: handle.clone() }, handle, stdout, stderr }),
        Err(error) => {
            handle.kill_group();
            let _ = child.wait();
            Err(error)
        }
    }
}

/// What a worker's process does before the worker's program begins.
struct Entry {
    launcher: Pid,
    place: Option<Place>,
    /// Open descriptors.
    inherited: Vec<i32>,
}

impl Entry {
    /// Between fork and exec: nothing is allocated here, for another thread may have held the allocator's lock.
    fn enter(&self) -> io::Result<()> {
        if let Some(place) = &self.place {
            place.take();
        }
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The launcher may have died before the line above; then the signal will never come.
        if rustix::process::getppid() != Some(self.launcher) {
            return Err(rustix::io::Errno::SRCH.into());
        }
        for &fd in &self.inherited {
            // SAFETY: whoever made this keeps the descriptors open.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
        }
        Ok(())
    }
}

/// A share in the form that system calls take; made before the fork, for nothing may be allocated after it.
struct Place {
    cpus: CpuSet,
    node: Option<u64>,
}

impl Place {
    fn of(share: &Share) -> Self {
        let mut cpus = CpuSet::new();
        share.cpus.iter().filter(|&cpu| cpu < CpuSet::MAX_CPU).for_each(|cpu| cpus.set(cpu));
        let node = share.node.filter(|&node| node < 64).map(|node| 1 << node);
        Self { cpus, node }
    }

    /// Makes it the calling process's. It is a matter of speed only: where a sandbox forbids it, the worker runs unbound,
    /// and the head of its log shows which CPUs it has.
    fn take(&self) {
        let _ = rustix::thread::sched_setaffinity(None, &self.cpus);
        if let Some(nodes) = self.node {
            // SAFETY: the mask is one word, which outlives the call; the kernel reads `maxnode - 1` bits of it.
            unsafe { libc::syscall(libc::SYS_set_mempolicy, libc::MPOL_PREFERRED, &raw const nodes, 65_u64) };
        }
    }
}

impl Handle {
    /// Number of the process and of its group.
    pub fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Sends SIGTERM to the worker alone; its helpers are its own affair.
    pub fn terminate(&self) {
        if !self.reaped.get() {
            // It may have ended a moment ago.
            let _ = rustix::process::kill_process(self.pid, Signal::TERM);
        }
    }

    /// Sends a signal to the worker and everything it has started.
    pub fn signal_group(&self, signal: Signal) {
        if !self.reaped.get() {
            let _ = rustix::process::kill_process_group(self.pid, signal);
        }
    }

    /// Sends SIGKILL to the worker and everything it has started.
    pub fn kill_group(&self) {
        self.signal_group(Signal::KILL);
    }
}

impl Waiter {
    /// Waits until the worker has ended, and ends what it has left behind in its group. Returns its control groups too, as
    /// the text of its /proc/PID/cgroup.
    ///
    /// # Errors
    /// If the system refuses to wait.
    pub async fn wait(mut self) -> io::Result<(Ending, String)> {
        self.pidfd.readable().await?.retain_ready();
        // A process that has ended is in its groups until it is waited for.
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", self.handle.id())).unwrap_or_default();
        // Until it is waited for, the dead worker keeps the group's number from being used again.
        self.handle.kill_group();
        self.handle.reaped.set(true);
        let status = self.child.wait()?;
        let ending = match (status.code(), status.signal()) {
            (Some(code), _) => Ending::Code(code),
            (None, signal) => Ending::Signal(signal.unwrap_or(0)),
        };
        Ok((ending, groups))
    }
}

/// A pair of connected sockets: the launcher's end and the worker's.
///
/// # Errors
/// If the system is out of descriptors.
pub fn control_pair() -> io::Result<(tokio::net::UnixStream, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((tokio::net::UnixStream::from_std(ours)?, theirs.into()))
}

/// An anonymous file of `bytes` zeroes for a worker to share: the launcher's end and the worker's.
///
/// # Errors
/// If the system is out of descriptors or memory.
pub fn shared_page(bytes: usize) -> io::Result<(OwnedFd, OwnedFd)> {
    let ours = rustix::fs::memfd_create("fnet-state", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&ours, bytes as u64)?;
    let theirs = ours.try_clone()?;
    Ok((ours, theirs))
}

/// A duplicate for a worker to inherit; the original stays with the caller.
///
/// # Errors
/// If the system is out of descriptors.
pub fn duplicate(socket: &impl AsFd) -> io::Result<OwnedFd> {
    socket.as_fd().try_clone_to_owned()
}

/// Opens a log for appending.
///
/// # Errors
/// If the folder is not writable.
pub fn open_log(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

#[cfg(test)]
mod tests {
    use std::alloc::{GlobalAlloc, Layout, System};

    use super::*;

    /// The system's allocator, which counts for each thread.
    struct Counting;

    thread_local! {
        static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    }

    // SAFETY: everything is the system allocator's; counting a cell without a destructor allocates nothing.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            ALLOCATIONS.with(|count| count.set(count.get() + 1));
            // SAFETY: as the caller's.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
            // SAFETY: as the caller's.
            unsafe { System.dealloc(pointer, layout) }
        }
    }

    #[global_allocator]
    static COUNTING: Counting = Counting;

    #[test]
    fn nothing_is_allocated_between_fork_and_exec() {
        const ALLOCATED: i32 = libc::EDOM;
        let share = Share { cpus: [0].into_iter().collect(), node: Some(0) };
        let (ours, _theirs) = shared_page(8).unwrap();
        let us = rustix::process::getpid();
        // In turn: all is well, the launcher is gone, a descriptor is none.
        for (launcher, fd, expected) in [
            (us, ours.as_raw_fd(), None),
            (Pid::INIT, ours.as_raw_fd(), Some(libc::ESRCH)),
            (us, i32::MAX, Some(libc::EBADF)),
        ] {
            let entry = Entry { launcher, place: Some(Place::of(&share)), inherited: vec![fd] };
            let counted = move || {
                let before = ALLOCATIONS.get();
                let entered = entry.enter();
                if ALLOCATIONS.get() == before { entered } else { Err(io::Error::from_raw_os_error(ALLOCATED)) }
            };
            let mut command = Command::new("/bin/true");
            // SAFETY: as in `start`.
            unsafe { command.pre_exec(counted) };
            let ended = command.status().map(|status| status.success());
            assert_eq!(ended.map_err(|error| error.raw_os_error()), expected.map_or(Ok(true), |code| Err(Some(code))));
        }
    }
}
