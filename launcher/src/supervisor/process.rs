//! Worker processes on Linux: each in its own process group, killed with the launcher, awaited by pidfd.

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

use crate::attempt::cause::ProcessExit;
use crate::plan::bind::Share;

/// How to start one worker.
pub struct Spawn<'a> {
    /// The program of the worker.
    pub program: &'a Path,
    /// Its arguments.
    pub arguments: &'a [std::ffi::OsString],
    /// Variables to add to the launcher's environment.
    pub variables: &'a [(String, String)],
    /// Variables of the launcher that the worker must not inherit.
    pub removed: &'a [&'a str],
    /// Descriptors that the worker inherits with the same numbers.
    pub inherited: Vec<OwnedFd>,
    /// Its CPUs and NUMA node, if it is bound.
    pub share: Option<&'a Share>,
}

/// A running worker.
pub struct Spawned {
    /// Sends signals.
    pub handle: ProcessHandle,
    /// Waits for its exit.
    pub waiter: Waiter,
    /// Its stdout.
    pub stdout: ChildStdout,
    /// Its stderr.
    pub stderr: ChildStderr,
}

/// Sends signals to a worker, until it was waited for: then its id may belong to another process.
#[derive(Clone)]
pub struct ProcessHandle {
    pid: Pid,
    reaped: Rc<Cell<bool>>,
}

/// Waits for the exit of a worker.
pub struct Waiter {
    child: Child,
    pidfd: AsyncFd<OwnedFd>,
    handle: ProcessHandle,
}

/// Starts a worker. Must be called on the main thread: the kernel sends the parent-death signal when the *thread* that
/// started the child ends.
pub fn spawn(spawn: Spawn<'_>) -> io::Result<Spawned> {
    let mut command = Command::new(spawn.program);
    command.args(spawn.arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    for name in spawn.removed {
        command.env_remove(name);
    }
    command.envs(spawn.variables.iter().map(|(name, value)| (name, value)));
    let entry = Entry {
        launcher: rustix::process::getpid(),
        placement: spawn.share.map(Placement::of),
        inherited: spawn.inherited.iter().map(AsRawFd::as_raw_fd).collect(),
    };
    // SAFETY: between fork and exec the closure makes only system calls; it neither allocates (errors are numbers) nor takes
    // locks. The descriptors are open: their owner, `spawn.inherited`, lives until after the fork.
    unsafe { command.pre_exec(move || entry.enter()) };
    let mut child = command.spawn()?;
    drop(spawn.inherited);
    let taken = (child.stdout.take(), child.stderr.take());
    let (Some(stdout), Some(stderr)) = taken else { return Err(io::Error::other("a pipe of the worker is missing")) };
    let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else {
        return Err(io::Error::other("the worker has no process id"));
    };
    let handle = ProcessHandle { pid, reaped: Rc::default() };
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from).and_then(|fd| {
        // SAFETY: the `AsyncFd` owns the descriptor, so it stays open and the same until it is deregistered.
        unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
    });
    match pidfd {
        Ok(pidfd) => Ok(Spawned { waiter: Waiter { child, pidfd, handle: handle.clone() }, handle, stdout, stderr }),
        Err(error) => {
            handle.kill_group();
            let _ = child.wait();
            Err(error)
        }
    }
}

/// What a child process does before it executes the program.
struct Entry {
    launcher: Pid,
    placement: Option<Placement>,
    /// Open descriptors.
    inherited: Vec<i32>,
}

impl Entry {
    /// Runs between fork and exec, so it must not allocate: another thread may have held the allocator's lock.
    fn enter(&self) -> io::Result<()> {
        if let Some(placement) = &self.placement {
            placement.apply();
        }
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The launcher may have died before the line above; then the signal never comes.
        if rustix::process::getppid() != Some(self.launcher) {
            return Err(rustix::io::Errno::SRCH.into());
        }
        for &fd in &self.inherited {
            // SAFETY: the creator of this entry keeps the descriptors open.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
        }
        Ok(())
    }
}

/// A share in the form of system calls, prepared before the fork.
struct Placement {
    cpus: CpuSet,
    node: Option<u64>,
}

impl Placement {
    fn of(share: &Share) -> Self {
        let mut cpus = CpuSet::new();
        share.cpus.iter().filter(|&cpu| cpu < CpuSet::MAX_CPU).for_each(|cpu| cpus.set(cpu));
        let node = share.node.filter(|&node| node < 64).map(|node| 1 << node);
        Self { cpus, node }
    }

    /// Binds the calling process. This affects speed only: if a sandbox forbids it, the worker runs unbound, and the head of
    /// its log shows its CPUs.
    fn apply(&self) {
        let _ = rustix::thread::sched_setaffinity(None, &self.cpus);
        if let Some(nodes) = self.node {
            // SAFETY: the mask is one word, which outlives the call; the kernel reads `maxnode - 1` bits of it.
            unsafe { libc::syscall(libc::SYS_set_mempolicy, libc::MPOL_PREFERRED, &raw const nodes, 65_u64) };
        }
    }
}

impl ProcessHandle {
    /// Id of the process and its group.
    pub fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Sends SIGTERM to the worker, but not to its children.
    pub fn terminate(&self) {
        if !self.reaped.get() {
            let _ = rustix::process::kill_process(self.pid, Signal::TERM);
        }
    }

    /// Sends a signal to the worker and its children.
    pub fn signal_group(&self, signal: Signal) {
        if !self.reaped.get() {
            let _ = rustix::process::kill_process_group(self.pid, signal);
        }
    }

    /// Sends SIGKILL to the worker and its children.
    pub fn kill_group(&self) {
        self.signal_group(Signal::KILL);
    }
}

impl Waiter {
    /// Waits for the exit of the worker and kills its remaining children. Also returns the text of its /proc/PID/cgroup.
    pub async fn wait(mut self) -> io::Result<(ProcessExit, String)> {
        self.pidfd.readable().await?.retain_ready();
        // A process stays in its control groups until it is waited for.
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", self.handle.id())).unwrap_or_default();
        // Until then, the id of its process group cannot be reused.
        self.handle.kill_group();
        self.handle.reaped.set(true);
        let status = self.child.wait()?;
        let exit = match (status.code(), status.signal()) {
            (Some(code), _) => ProcessExit::Code(code),
            (None, signal) => ProcessExit::Signal(signal.unwrap_or(0)),
        };
        Ok((exit, groups))
    }
}

/// A pair of connected sockets: the launcher's end and the worker's.
pub fn control_pair() -> io::Result<(tokio::net::UnixStream, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((tokio::net::UnixStream::from_std(ours)?, theirs.into()))
}

/// An anonymous file of `bytes` zeros: the launcher's descriptor and the worker's.
pub fn shared_page(bytes: usize) -> io::Result<(OwnedFd, OwnedFd)> {
    let ours = rustix::fs::memfd_create("fnet-status", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&ours, bytes as u64)?;
    let theirs = ours.try_clone()?;
    Ok((ours, theirs))
}

/// A duplicate for a worker to inherit.
pub fn duplicate(socket: &impl AsFd) -> io::Result<OwnedFd> {
    socket.as_fd().try_clone_to_owned()
}

/// Opens a log for appending.
pub fn open_log(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

#[cfg(test)]
mod tests {
    use std::alloc::{GlobalAlloc, Layout, System};

    use rustix::io::Errno;

    use super::*;

    /// The system's allocator, with a counter per thread.
    struct Counting;

    thread_local! {
        static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    }

    // SAFETY: the system allocator does all the work; counting in a cell without a destructor does not allocate.
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
        const ALLOCATED: Errno = Errno::DOM;
        let share = Share { cpus: [0].into_iter().collect(), node: Some(0) };
        let (ours, _theirs) = shared_page(8).unwrap();
        let us = rustix::process::getpid();
        // Success, a launcher that is gone, an invalid descriptor.
        for (launcher, fd, expected) in [
            (us, ours.as_raw_fd(), None),
            (Pid::INIT, ours.as_raw_fd(), Some(Errno::SRCH)),
            (us, i32::MAX, Some(Errno::BADF)),
        ] {
            let entry = Entry { launcher, placement: Some(Placement::of(&share)), inherited: vec![fd] };
            let counted = move || {
                let before = ALLOCATIONS.get();
                let entered = entry.enter();
                if ALLOCATIONS.get() == before { entered } else { Err(ALLOCATED.into()) }
            };
            let mut command = Command::new("/bin/true");
            // SAFETY: as in `spawn`.
            unsafe { command.pre_exec(counted) };
            let ended = command.status().map(|status| status.success());
            assert_eq!(
                ended.map_err(|error| Errno::from_io_error(&error)),
                expected.map_or(Ok(true), |code| Err(Some(code)))
            );
        }
    }
}
