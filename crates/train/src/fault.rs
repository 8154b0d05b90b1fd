//! Fault injection: makes a worker fail on purpose at a chosen rank, step and phase (`train --fault`).

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fnet_common::process;
use fnet_common::{Error, Result};
use fnet_protocol::client::Client;
use fnet_protocol::fault::{EXIT_CODE, Fault, Kind, control_group};
use fnet_protocol::message::WorkerStatus;
use fnet_protocol::outlet;

/// A collective without arguments.
pub type Collective = Box<dyn Fn() -> Result<()> + Send + Sync>;

/// Memory limit of the control group in which a worker runs out of memory.
const MEMORY_LIMIT: usize = 64 << 20;

/// The faults of this rank.
pub struct FaultInjector {
    faults: Vec<Fault>,
    rank: usize,
    attempt: u64,
    barrier: OnceLock<Collective>,
}

impl FaultInjector {
    /// Arms the faults: each one happens when its rank enters its phase. `attempt` counts the restarts of the job.
    pub fn arm(faults: &[Fault], rank: usize, attempt: u64, control: &Client) -> Arc<Self> {
        let injector = Arc::new(Self { faults: faults.to_vec(), rank, attempt, barrier: OnceLock::new() });
        if faults.iter().any(|fault| fault.rank == rank) {
            let armed = Arc::clone(&injector);
            control.on_phase(move |state| armed.enter(state));
        }
        injector
    }

    /// Sets the collective that the fault `collective` calls out of order.
    pub fn set_barrier(&self, barrier: Collective) {
        let _ = self.barrier.set(barrier);
    }

    fn enter(&self, state: &WorkerStatus) {
        let due = self.faults.iter().find(|fault| fault.is_due(self.rank, self.attempt, state));
        if let Some(fault) = due {
            outlet::stderr(format!("fault injection: {fault}\n"));
            outlet::flush_all();
            if let Err(error) = self.inject(fault.kind) {
                outlet::stderr(format!("fault injection: {error}\n"));
                process::end(error.exit_code());
            }
        }
    }

    #[expect(clippy::panic, reason = "the fault is a panic")]
    fn inject(&self, kind: Kind) -> Result<()> {
        match kind {
            Kind::Panic => panic!("fault injection"),
            Kind::Exit => process::end(EXIT_CODE),
            Kind::Abort => std::process::abort(),
            Kind::Kill => raise(libc::SIGKILL),
            Kind::Stop => raise(libc::SIGSTOP),
            Kind::Sleep => loop {
                std::thread::sleep(Duration::from_secs(3600));
            },
            Kind::Read => read_forever().map_err(|error| Error::environment(format!("creating a pipe: {error}"))),
            Kind::OutOfMemory => exhaust_memory(),
            Kind::Terminate => raise(libc::SIGTERM),
            Kind::Collective => self.barrier.get().map_or(Ok(()), |barrier| barrier()),
        }
    }
}

fn raise(signal: libc::c_int) -> Result<()> {
    // SAFETY: sends a signal to this process; no memory is passed.
    unsafe { libc::kill(libc::getpid(), signal) };
    Ok(())
}

/// Reads from a pipe that nobody writes to.
fn read_forever() -> io::Result<()> {
    let path = std::env::temp_dir().join(format!("fnet-fault-{}", std::process::id()));
    let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: the path ends with a null byte.
    if unsafe { libc::mkfifo(name.as_ptr(), 0o600) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Also opened for writing, so that opening does not block; the name is no longer needed afterwards.
    let opened = fs::File::options().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(&path);
    fs::remove_file(&path)?;
    opened?.read_exact(&mut [0])
}

/// Joins a new control group with little memory, and allocates more.
fn exhaust_memory() -> Result<()> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    join_small_group(&groups, Path::new("/sys/fs/cgroup")).map_err(|error| {
        Error::environment(format!("cannot create a control group with a memory limit, which needs root: {error}"))
    })?;
    let mut taken: Vec<Vec<u8>> = Vec::new();
    while taken.len() < 1024 {
        // Pages count only after they are written to.
        taken.push(vec![1; MEMORY_LIMIT / 8]);
    }
    Err(Error::environment("the memory limit of the control group had no effect"))
}

fn join_small_group(groups: &str, root: &Path) -> io::Result<()> {
    let (folder, limits) = control_group(groups, root, std::process::id())
        .ok_or_else(|| io::Error::other("no memory controller in /proc/self/cgroup"))?;
    fs::create_dir(&folder)?;
    for name in limits {
        let value = if name.contains("swap") { "0".to_owned() } else { MEMORY_LIMIT.to_string() };
        match fs::write(folder.join(name), value) {
            // Without swap there is no swap limit.
            Err(error) if !name.contains("swap") => return Err(error),
            _ => {}
        }
    }
    fs::write(folder.join("cgroup.procs"), std::process::id().to_string())
}
