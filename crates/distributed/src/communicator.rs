//! The communicator of a rank: its rank, its device, and the collectives.

use std::net::ToSocketAddrs;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tch::{Device, Kind, Tensor};
use torch_ext::cuda;
use torch_ext::distributed::{ProcessGroup, Reduction, StoreOptions, TcpStore, Work};

use fnet_common::{Context, Error, Result};
use fnet_protocol::listen::listen_as;
use fnet_protocol::message::Operation;
use fnet_protocol::{env, status};

use super::breaker::Breaker;
use super::device::choose_device;
use super::dial::wait_for_server;
use super::endpoint::gloo_options;
use super::mpi::{self, Mpi};
use super::placement::{RankPlacement, Rendezvous};
use super::starter::Launch;

/// How long a rank waits for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// For the rendezvous of all ranks.
    pub rendezvous: Duration,
    /// For every collective. A rank may be slower than another by this much in one phase.
    pub collective: Duration,
}

impl Default for Deadlines {
    /// 5 minutes for the rendezvous, 30 minutes for a collective. A killed peer is noticed immediately.
    fn default() -> Self {
        Self { rendezvous: Duration::from_secs(300), collective: Duration::from_secs(1800) }
    }
}

impl Deadlines {
    /// Under a launcher, one day: the launcher knows which rank is late and ends the job by its own deadlines. Otherwise
    /// the default.
    fn from_environment() -> Self {
        const DAY: Duration = Duration::from_secs(86_400);
        match std::env::var_os(env::CONTROL) {
            Some(_) => Self { rendezvous: DAY, collective: DAY },
            None => Self::default(),
        }
    }
}

/// This rank's number in the job, its device, and the collectives.
///
/// All ranks must call the same collectives in the same order. After an error, end the process with
/// [`process::end`](fnet_common::process::end); after success, call [`Communicator::leave`].
pub struct Communicator {
    rank: usize,
    local_rank: usize,
    world_size: usize,
    local_world_size: usize,
    device: Device,
    deadlines: Deadlines,
    phase: Mutex<String>,
    backend: &'static str,
    /// The connections; dropped before the store.
    group: Option<Arc<Mutex<ProcessGroup>>>,
    /// Aborts the collectives.
    breaker: Arc<Breaker>,
    store: Option<TcpStore>,
}

/// Sums a tensor over the ranks; its gradient is the sum of the ranks' gradients.
pub type DifferentiableSum = Box<dyn Fn(&Tensor) -> Result<Tensor> + Send>;

impl Communicator {
    /// [`Communicator::connect`] with deadlines that depend on whether a launcher started this rank.
    pub fn from_environment() -> Result<Self> {
        Self::connect(Deadlines::from_environment())
    }

    /// Joins the job that the environment describes, on the device of FNET_DEVICE; see [`Launch`] and [`choose_device`].
    /// Without variables, the job has one rank and no socket.
    /// Errors: a usage error for an invalid variable, an environment error if the device or the port is not available,
    /// a distributed error if the rendezvous does not complete before the deadline.
    pub fn connect(deadlines: Deadlines) -> Result<Self> {
        let variable = |name: &str| std::env::var(name).ok();
        let (place, by) = match Launch::find(variable, mpi::library().is_some())? {
            Launch::Placement(place) => (place, Transport::Gloo),
            Launch::Mpi { ranks } => {
                let (place, mpi) = mpi::join(ranks, deadlines.rendezvous)?;
                (place, Transport::Mpi(mpi))
            }
        };
        let device = choose_device(variable(env::DEVICE).as_deref(), place.local_rank)?;
        Self::join_by(by, &place, device, deadlines)
    }

    /// A job of one rank.
    pub fn alone(device: Device) -> Self {
        Self {
            rank: 0,
            local_rank: 0,
            world_size: 1,
            local_world_size: 1,
            device,
            deadlines: Deadlines::default(),
            phase: Mutex::new(String::new()),
            backend: "none",
            group: None,
            breaker: Breaker::of_one_rank(),
            store: None,
        }
    }

    /// Joins the job with a given placement.
    pub fn join(place: &RankPlacement, device: Device, deadlines: Deadlines) -> Result<Self> {
        Self::join_by(Transport::Gloo, place, device, deadlines)
    }

    fn join_by(by: Transport, place: &RankPlacement, device: Device, deadlines: Deadlines) -> Result<Self> {
        let mut communicator = Self::alone(device);
        (communicator.deadlines, communicator.local_rank) = (deadlines, place.local_rank);
        let Some(rendezvous) = &place.rendezvous else { return Ok(communicator) };
        (communicator.rank, communicator.world_size) = (place.rank, place.world_size);
        communicator.local_world_size = place.local_world_size.unwrap_or(1);

        let doing = format!("rank {} of {}, rendezvous", place.rank, place.world_size);
        let _waiting = status::page().collective(Operation::Rendezvous);
        let store = open_store(rendezvous, deadlines.rendezvous).context(doing.as_str())?;
        // The store may still have keys of earlier attempts.
        let store = store.prefixed(&format!("fnet/attempt_{}", rendezvous.attempt))?;
        let (rank, size) = (place.rank, place.world_size);
        communicator.backend = by.name();
        let mut group = match by {
            Transport::Gloo => {
                let options = gloo_options(place, rendezvous);
                ProcessGroup::gloo(&store.prefixed("gloo")?, rank, size, deadlines.rendezvous, &options)
                    .with_context(|| format!("{doing} over Gloo at {}", options.address()))?
            }
            Transport::Mpi(mpi) => ProcessGroup::carried(&store, "MPI", mpi, rank, size, deadlines.rendezvous)?,
        };
        if let Device::Cuda(index) = device {
            group.add_nccl(&store, index, deadlines.rendezvous).context(doing)?;
            communicator.backend = "nccl";
        }
        group.set_timeout(deadlines.collective)?;
        communicator.breaker = Breaker::of(group.aborter()?);
        communicator.group = Some(Arc::new(Mutex::new(group)));
        communicator.store = Some(store);
        Ok(communicator)
    }

    /// This process's rank in the job, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// This process's rank on its node, from 0.
    pub fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// Number of ranks in the job.
    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// Number of ranks on this node.
    pub fn local_world_size(&self) -> usize {
        self.local_world_size
    }

    /// The device of this rank.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The backend for tensors on [`Communicator::device`]: `gloo`, `nccl`, `mpi`, or `none` in a job of one rank.
    pub fn backend(&self) -> &'static str {
        self.backend
    }

    /// Whether this is rank 0, which writes files and reports for the job.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// Sets what the job is doing, for the error messages of collectives; for example "training, epoch 3, step 120".
    pub fn set_phase(&self, phase: impl Into<String>) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase.into();
    }

    /// Sums the tensor over the ranks, in place.
    pub fn all_reduce_sum(&self, tensor: &Tensor) -> Result<()> {
        self.all_reduce(tensor, Reduction::Sum)
    }

    fn all_reduce(&self, tensor: &Tensor, how: Reduction) -> Result<()> {
        self.run(Operation::AllReduce, "all-reduce", |group, deadline| {
            wait(vec![group.all_reduce(tensor, how, deadline)?], tensor.device(), deadline)
        })
    }

    /// Copies rank `root`'s values into the tensor of every rank.
    pub fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<()> {
        self.broadcast_all(std::slice::from_ref(tensor), root)
    }

    /// Like [`Communicator::broadcast`], but on a GPU only work that is queued afterwards waits for it, not the host.
    pub fn enqueue_broadcast(&self, tensor: &Tensor, root: usize) -> Result<()> {
        self.run(Operation::Broadcast, "broadcast", |group, deadline| {
            let work = group.broadcast(tensor, root, deadline)?;
            if tensor.device().is_cuda() { work.wait_on_stream() } else { work.wait(deadline) }
        })
    }

    /// Copies rank `root`'s values into the tensors of every rank.
    pub fn broadcast_all(&self, tensors: &[Tensor], root: usize) -> Result<()> {
        self.run(Operation::Broadcast, "broadcast", |group, deadline| {
            let started: Vec<Work<'_>> = tensors
                .iter()
                .map(|tensor| group.broadcast(tensor, root, deadline))
                .collect::<Result<_, torch_ext::Error>>()?;
            wait(started, tensors.first().map_or(Device::Cpu, Tensor::device), deadline)
        })
    }

    /// The bytes of each rank, in the order of ranks; their lengths may differ.
    pub fn all_gather_bytes(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        if self.group.is_none() {
            return Ok(vec![bytes.to_vec()]);
        }
        let length = Tensor::from_slice(&[bytes.len() as i64]);
        let lengths =
            self.all_gather(&length)?.iter().map(|length| Ok(i64::try_from(length)?)).collect::<Result<Vec<i64>>>()?;
        let longest = lengths.iter().copied().max().unwrap_or(0);
        if longest == 0 {
            return Ok(vec![Vec::new(); self.world_size]);
        }
        let mut padded = bytes.to_vec();
        padded.resize(usize::try_from(longest).unwrap_or(bytes.len()), 0);
        let gathered = self.all_gather(&Tensor::from_slice(&padded))?;
        gathered
            .iter()
            .zip(lengths)
            .map(|(row, length)| Ok(Vec::<u8>::try_from(row.f_narrow(0, 0, length)?)?))
            .collect()
    }

    /// Rank `root`'s bytes, on every rank.
    pub fn broadcast_bytes(&self, bytes: &[u8], root: usize) -> Result<Vec<u8>> {
        let length = Tensor::from_slice(&[bytes.len() as i64]);
        self.broadcast(&length, root)?;
        if self.rank == root || self.group.is_none() {
            if !bytes.is_empty() {
                self.broadcast(&Tensor::from_slice(bytes), root)?;
            }
            return Ok(bytes.to_vec());
        }
        let length = i64::try_from(&length)?;
        let buffer = Tensor::f_zeros([length], (Kind::Uint8, Device::Cpu))?;
        if length > 0 {
            self.broadcast(&buffer, root)?;
        }
        Ok(Vec::<u8>::try_from(&buffer)?)
    }

    /// Whether `yes` is true on any rank.
    pub fn any(&self, yes: bool) -> Result<bool> {
        let flag = Tensor::from_slice(&[i64::from(yes)]);
        self.all_reduce(&flag, Reduction::Max)?;
        Ok(i64::try_from(&flag)? != 0)
    }

    /// Waits for all ranks.
    pub fn barrier(&self) -> Result<()> {
        self.run(Operation::Barrier, "barrier", |group, deadline| group.barrier(deadline)?.wait(deadline))
    }

    /// [`Communicator::barrier`] as a function that does not borrow the communicator.
    pub fn detached_barrier(&self) -> Box<dyn Fn() -> Result<()> + Send + Sync> {
        let (group, deadline) = (self.group.clone(), self.deadlines.collective);
        Box::new(move || match &group {
            Some(group) => in_collective(Operation::Barrier, || Ok(lock(group).barrier(deadline)?.wait(deadline)?)),
            None => Ok(()),
        })
    }

    /// A differentiable sum of a tensor over the ranks, for synchronized BatchNorm; its gradient is summed, too.
    pub fn differentiable_sum(&self) -> DifferentiableSum {
        let Some(group) = self.group.clone() else { return Box::new(|tensor| Ok(tensor.shallow_clone())) };
        Box::new(move |tensor| {
            let sum = lock(&group).all_reduce_sum_differentiable(tensor, account_for_statistics);
            sum.context("sum of BatchNorm's statistics over the ranks")
        })
    }

    /// Aborts all collectives after an error. On the CPU they have ended when it returns. On a GPU they may still run, and
    /// nothing should wait for the device any more.
    /// Errors: if collectives on the CPU do not end before a deadline. The process should then end.
    pub fn abort(&self) -> Result<()> {
        if self.device.is_cuda() {
            self.breaker.answer();
            return Ok(());
        }
        self.breaker.abort().with_context(|| self.doing("abort"))
    }

    /// Returns an error if the collectives have been aborted: even one that ended without an error may have left wrong
    /// values in its tensor.
    pub fn check_unbroken(&self) -> Result<()> {
        match self.breaker.has_begun() {
            true => Err(Error::distributed(self.doing("aborted because a peer is lost"))),
            false => Ok(()),
        }
    }

    /// A function that aborts all collectives, does not block, and does not borrow the communicator: for a thread that is
    /// notified of a lost peer while this one waits in a collective, which then fails.
    pub fn detached_abort(&self) -> Box<dyn Fn() + Send + Sync> {
        let breaker = Arc::clone(&self.breaker);
        Box::new(move || breaker.begin(None))
    }

    /// Leaves the job after all ranks and their GPUs are done.
    /// Errors: if a peer is lost before it is done.
    pub fn leave(mut self) -> Result<()> {
        self.run(Operation::Barrier, "last barrier", |group, deadline| {
            cuda::wait(self.device)?;
            group.barrier(deadline)?.wait(deadline)?;
            group.shutdown()
        })?;
        drop(self.group.take());
        Ok(())
    }

    /// Runs `action` with the group, if this job has more than one rank. Shows the launcher meanwhile that this rank waits
    /// for the others, and adds to an error what the rank was doing.
    pub(super) fn run(
        &self,
        operation: Operation,
        what: &str,
        action: impl FnOnce(&ProcessGroup, Duration) -> Result<(), torch_ext::Error>,
    ) -> Result<()> {
        match &self.group {
            Some(group) => in_collective(operation, || {
                let done = action(&lock(group), self.deadlines.collective).map_err(|error| match self.breaker.why() {
                    // The error of an aborted collective says less.
                    Some(why) => Error::distributed(why),
                    None => error.into(),
                });
                done.with_context(|| self.doing(what))
            }),
            None => Ok(()),
        }
    }

    /// Describes what this rank was doing, for messages.
    pub(super) fn doing(&self, what: &str) -> String {
        let phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        let during = if phase.is_empty() { String::new() } else { format!(" during {phase}") };
        format!("rank {} of {}, {what}{during}", self.rank, self.world_size)
    }

    /// Gathers one tensor on the CPU from each rank.
    fn all_gather(&self, input: &Tensor) -> Result<Vec<Tensor>> {
        let outputs = (0..self.world_size).map(|_| Ok(input.f_zeros_like()?)).collect::<Result<Vec<_>>>()?;
        self.run(Operation::AllGather, "all-gather", |group, deadline| {
            group.all_gather(&outputs, input, deadline)?.wait(deadline)
        })?;
        Ok(outputs)
    }
}

impl Drop for Communicator {
    /// Without [`Communicator::leave`] the job has failed. The process group's destructor would wait for collectives that
    /// may never end before the error is reported, so the connections stay open until the process ends.
    fn drop(&mut self) {
        std::mem::forget(self.group.take());
    }
}

/// Waits for collectives on tensors of `device`. On a GPU it waits for an event, because no other wait can be aborted.
fn wait(started: Vec<Work<'_>>, device: Device, deadline: Duration) -> Result<(), torch_ext::Error> {
    if !device.is_cuda() {
        return started.into_iter().try_for_each(|work| work.wait(deadline));
    }
    started.into_iter().try_for_each(Work::wait_on_stream)?;
    cuda::wait(device)
}

/// Shows the launcher that this rank waits for the others in a sum of synchronized BatchNorm, forward or backward, or that
/// the wait is over.
extern "C" fn account_for_statistics(begins: bool) {
    match begins {
        true => std::mem::forget(status::page().collective(Operation::Statistics)),
        false => status::page().end_collective(),
    }
}

/// Shows the launcher that this rank waits for the others while `action` runs.
pub(super) fn in_collective(operation: Operation, action: impl FnOnce() -> Result<()>) -> Result<()> {
    let waiting = status::page().collective(operation);
    let done = action();
    if done.is_err() {
        // The status page keeps showing the operation that failed.
        std::mem::forget(waiting);
    }
    done
}

/// The transport of tensors on the CPU.
enum Transport {
    Gloo,
    Mpi(Mpi),
}

impl Transport {
    fn name(&self) -> &'static str {
        match self {
            Transport::Gloo => "gloo",
            Transport::Mpi(_) => "mpi",
        }
    }
}

fn lock(group: &Mutex<ProcessGroup>) -> MutexGuard<'_, ProcessGroup> {
    group.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open_store(rendezvous: &Rendezvous, timeout: Duration) -> Result<TcpStore> {
    // SAFETY: the launcher opened the socket for this rank alone, and this function takes it only once.
    let listener = rendezvous.listener.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let Rendezvous { host, port, is_server, .. } = rendezvous;
    let listener = listener.or_else(|| if *is_server { own_listener(host, *port) } else { None });
    let timeout = if *is_server { timeout } else { wait_for_server(host, *port, timeout)? };
    TcpStore::new(StoreOptions { host: host.clone(), port: *port, is_server: *is_server, timeout, listener }).map_err(
        |error| match error.message().to_lowercase().contains("address already in use") {
            true => Error::environment(format!(
                "port {port} is used by another program: choose another MASTER_PORT ({})",
                first_line(error.message())
            )),
            false => Error::distributed(first_line(error.message())),
        },
    )
}

/// A socket at the address of this rank alone. c10d itself would listen at all addresses, as it does, and reports why it
/// cannot, if there is no such socket: the port is taken, or this rank has several addresses.
fn own_listener(host: &str, port: u16) -> Option<OwnedFd> {
    let found = (host, port).to_socket_addrs().into_iter().flatten();
    let mut sockets = listen_as(host, found, port).ok()?;
    if sockets.len() == 1 { sockets.pop().map(OwnedFd::from) } else { None }
}

/// c10d may append a stack trace to its messages.
fn first_line(message: &str) -> &str {
    message.lines().next().unwrap_or(message)
}
