//! Ranks that mpirun started: they learn their place from MPI, and their tensors on the CPU travel by it.
//!
//! One thread speaks to MPI, so that MPI needs no threads of its own, and every wait of the callers has an end even
//! where a function of MPI has none. Collectives are MPI's immediate ones, tested until they are done or the deadline
//! has passed. A rank that is killed or ends with an error is mpirun's to notice: it ends the others.

use std::ffi::c_int;
use std::mem::ManuallyDrop;
use std::net::{IpAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mpi::Threading;
use mpi::environment::Universe;
use mpi::ffi;
use mpi::traits::Communicator;
use torch_ext::distributed::Carrier;

use super::address;
use super::orphan;
use super::place::{Place, Rendezvous};
use crate::error::{Context, Error, Result};

/// How much longer than a deadline a caller waits for the thread that keeps it.
const SLACK: Duration = Duration::from_secs(10);
/// For MPI's end, after all ranks have met for the last time.
const LEAVING: Duration = Duration::from_secs(60);

/// What MPI says of this process.
#[derive(Debug, Clone, Copy)]
struct Seat {
    rank: usize,
    size: usize,
    local_rank: usize,
    local_size: usize,
}

/// Something for MPI's thread to do.
enum Order {
    Call(Box<dyn FnOnce(ffi::MPI_Comm) + Send>),
    /// Ends MPI and the thread.
    Finish(SyncSender<()>),
}

/// MPI as seen from the other threads.
pub(super) struct Mpi {
    orders: Mutex<Sender<Order>>,
    aborted: Arc<AtomicBool>,
}

/// Joins the job that mpirun started with `ranks` ranks: this rank's place in it, and the carrier of its tensors.
/// Rank 0 opens the port of the store, and tells the others where it is.
///
/// # Errors
/// If MPI does not start in time, sees another number of ranks, or rank 0 cannot be reached.
pub(super) fn meet(ranks: usize, timeout: Duration) -> Result<(Place, Mpi)> {
    orphan::end_with_starter();
    let (mpi, seat) = Mpi::start(timeout)?;
    if seat.size != ranks {
        return Err(Error::environment(format!(
            "mpirun started {ranks} ranks, but the MPI library of this program sees {}: they are of different \
             installations; use the mpirun of the MPI that the worker was built with, and see that LD_LIBRARY_PATH \
             names no other",
            seat.size
        )));
    }
    let who = format!("rank {} of {} meets the others by MPI", seat.rank, seat.size);
    let rendezvous = mpi.rendezvous(seat, timeout).context(who)?;
    let place = Place {
        rank: seat.rank,
        world_size: seat.size,
        local_rank: seat.local_rank,
        local_world_size: Some(seat.local_size),
        rendezvous: Some(rendezvous),
    };
    Ok((place, mpi))
}

impl Mpi {
    fn start(timeout: Duration) -> Result<(Self, Seat)> {
        let (seated, seat) = sync_channel(1);
        let (orders, received) = channel();
        let thread = std::thread::Builder::new().name("mpi".into()).spawn(move || speak(&seated, &received));
        thread.map_err(|error| Error::environment(format!("starting the thread for MPI: {error}")))?;
        let seat = seat.recv_timeout(timeout).map_err(|error| match error {
            RecvTimeoutError::Timeout => Error::distributed(format!(
                "MPI_Init did not end within {} s: a rank of the job has not come so far, or MPI cannot reach it",
                timeout.as_secs_f64()
            )),
            RecvTimeoutError::Disconnected => Error::environment("MPI could not be started; its message is above"),
        })?;
        Ok((Self { orders: Mutex::new(orders), aborted: Arc::default() }, seat))
    }

    /// Where the store is; rank 0 opens its port.
    fn rendezvous(&self, seat: Seat, timeout: Duration) -> Result<Rendezvous> {
        let mut message = vec![0; address::LENGTH];
        let mut listener = None;
        if seat.rank == 0 {
            let addresses = own_addresses();
            let opened = TcpListener::bind((address::every(&addresses), 0));
            let opened = opened.and_then(|socket| Ok((socket.local_addr()?.port(), socket)));
            let (port, socket) =
                opened.map_err(|error| Error::environment(format!("opening a port for the store: {error}")))?;
            let text = address::describe(port, &addresses);
            message[..text.len()].copy_from_slice(text.as_bytes());
            listener = Some(socket);
        }
        // A failed broadcast may still write to the message.
        let mut message = ManuallyDrop::new(message);
        self.broadcast(&mut message, 0, timeout)
            .map_err(Error::distributed)
            .context("broadcast of rank 0's address")?;
        let message = ManuallyDrop::into_inner(message);
        let (port, addresses) = address::parse(&message)?;
        let host = match seat.rank == 0 || seat.local_size == seat.size {
            true => address::loopback(&addresses).to_string(),
            false => address::reachable(&addresses, port)?,
        };
        let listener = listener.map(IntoRawFd::into_raw_fd);
        Ok(Rendezvous { host, port, is_server: seat.rank == 0, listener, attempt: 0 })
    }

    /// Has MPI's thread start an operation and waits for its end.
    fn call(
        &self,
        timeout: Duration,
        start: impl FnOnce(ffi::MPI_Comm, *mut ffi::MPI_Request) -> c_int + Send + 'static,
    ) -> Result<(), String> {
        if self.aborted.load(Ordering::Relaxed) {
            return Err("the group was aborted".into());
        }
        let (told, result) = sync_channel(1);
        let (end, aborted) = (Instant::now() + timeout, self.aborted.clone());
        let call = move |world: ffi::MPI_Comm| {
            // SAFETY: `request` is written by `start` where it returns success; a null handle until then.
            let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
            let result = check(start(world, &raw mut request)).and_then(|()| wait(request, end, &aborted));
            // The caller has given up if it is gone.
            let _ = told.send(result);
        };
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        orders.send(Order::Call(Box::new(call))).map_err(|_| "MPI has ended")?;
        let result = result.recv_timeout(timeout + SLACK).unwrap_or_else(|error| match error {
            RecvTimeoutError::Timeout => Err("MPI does not return".into()),
            RecvTimeoutError::Disconnected => Err("the thread for MPI has ended".into()),
        });
        // The ranks are out of step once one has given up.
        self.aborted.fetch_or(result.is_err(), Ordering::Relaxed);
        result
    }
}

// SAFETY: an operation is over when its call succeeds. After a failure MPI may still use the buffers, which the
// trait allows.
unsafe impl Carrier for Mpi {
    fn broadcast(&self, bytes: &mut [u8], root: usize, timeout: Duration) -> Result<(), String> {
        let (count, root) = (to_int(bytes.len())?, to_int(root)?);
        let bytes = Buffer(bytes.as_mut_ptr());
        // SAFETY: `count` bytes, valid as the trait says; all ranks give the same count and root.
        self.call(timeout, move |world, request| unsafe {
            ffi::MPI_Ibcast(bytes.pointer(), count, ffi::RSMPI_UINT8_T, root, world, request)
        })
    }

    fn all_gather(&self, input: &[u8], output: &mut [u8], timeout: Duration) -> Result<(), String> {
        let count = to_int(input.len())?;
        let (input, output) = (Buffer(input.as_ptr().cast_mut()), Buffer(output.as_mut_ptr()));
        // SAFETY: `count` bytes to read and as many per rank to write, valid as the trait says.
        self.call(timeout, move |world, request| unsafe {
            let byte = ffi::RSMPI_UINT8_T;
            ffi::MPI_Iallgather(input.pointer(), count, byte, output.pointer(), count, byte, world, request)
        })
    }

    fn all_to_all(&self, input: &[u8], output: &mut [u8], timeout: Duration) -> Result<(), String> {
        let length = input.len();
        let (input, output) = (Buffer(input.as_ptr().cast_mut()), Buffer(output.as_mut_ptr()));
        // SAFETY: `length` bytes to read and as many to write, in equal parts for the ranks, valid as the trait says.
        self.call(timeout, move |world, request| unsafe {
            let (mut size, byte) = (1, ffi::RSMPI_UINT8_T);
            ffi::MPI_Comm_size(world, &raw mut size);
            let count = c_int::try_from(length).unwrap_or(c_int::MAX) / size.max(1);
            ffi::MPI_Ialltoall(input.pointer(), count, byte, output.pointer(), count, byte, world, request)
        })
    }

    fn barrier(&self, timeout: Duration) -> Result<(), String> {
        // SAFETY: no buffers.
        self.call(timeout, |world, request| unsafe { ffi::MPI_Ibarrier(world, request) })
    }

    fn abort(&self) {
        self.aborted.store(true, Ordering::Relaxed);
    }

    fn shutdown(&self) -> Result<(), String> {
        let (done, finished) = sync_channel(1);
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        orders.send(Order::Finish(done)).map_err(|_| "MPI has ended before")?;
        let waited = finished.recv_timeout(LEAVING);
        waited.map_err(|_| format!("MPI_Finalize did not end within {} s", LEAVING.as_secs()))
    }
}

/// A buffer on its way to MPI's thread.
#[derive(Clone, Copy)]
struct Buffer(*mut u8);

// SAFETY: the caller waits while MPI's thread uses it, or gives it up for good.
unsafe impl Send for Buffer {}

impl Buffer {
    /// A method, so that a closure captures the whole buffer.
    fn pointer(self) -> *mut std::ffi::c_void {
        self.0.cast()
    }
}

/// MPI's thread: starts MPI, then carries out orders. MPI is ended only in good order: without the other ranks
/// MPI_Finalize would wait for them.
fn speak(seated: &SyncSender<Seat>, orders: &Receiver<Order>) {
    let Some((universe, seat)) = initialise() else { return };
    let universe = ManuallyDrop::new(universe);
    if seated.send(seat).is_err() {
        return;
    }
    // SAFETY: MPI is initialised.
    let world = unsafe { ffi::RSMPI_COMM_WORLD };
    while let Ok(order) = orders.recv() {
        match order {
            Order::Call(call) => call(world),
            Order::Finish(done) => {
                drop(ManuallyDrop::into_inner(universe));
                // Whoever asked has given up if it is gone.
                let _ = done.send(());
                return;
            }
        }
    }
}

/// None if MPI was initialised before.
fn initialise() -> Option<(Universe, Seat)> {
    let (universe, _) = mpi::initialize_with_threading(Threading::Funneled)?;
    let world = universe.world();
    let node = world.split_shared(world.rank());
    let number = |number: c_int| usize::try_from(number).unwrap_or(0);
    let seat = Seat {
        rank: number(world.rank()),
        size: number(world.size()),
        local_rank: number(node.rank()),
        local_size: number(node.size()),
    };
    // SAFETY: MPI is initialised. Until here errors ended the job, since the crate `mpi` does not look at them.
    unsafe { ffi::MPI_Comm_set_errhandler(ffi::RSMPI_COMM_WORLD, ffi::RSMPI_ERRORS_RETURN) };
    Some((universe, seat))
}

/// Waits for an operation without keeping a core busy for long.
fn wait(mut request: ffi::MPI_Request, end: Instant, aborted: &AtomicBool) -> Result<(), String> {
    let begin = Instant::now();
    loop {
        let mut done = 0;
        // SAFETY: a request of an operation that was started and has not ended, and a place for the answer.
        check(unsafe { ffi::MPI_Test(&raw mut request, &raw mut done, ffi::RSMPI_STATUS_IGNORE) })?;
        if done != 0 {
            return Ok(());
        }
        if aborted.load(Ordering::Relaxed) {
            return Err("the group was aborted".into());
        }
        if Instant::now() >= end {
            return Err("not all other ranks took part in time: one is lost, hangs, or does something else".into());
        }
        match begin.elapsed() {
            waited if waited < Duration::from_millis(2) => std::thread::yield_now(),
            waited if waited < Duration::from_secs(1) => std::thread::sleep(Duration::from_micros(50)),
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// MPI's own words for a code that is not success.
fn check(code: c_int) -> Result<(), String> {
    if code == 0 {
        return Ok(());
    }
    let mut text = vec![0u8; 4096];
    let mut length = 0;
    // SAFETY: room for more than MPI_MAX_ERROR_STRING characters.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &raw mut length) };
    text.truncate(usize::try_from(length).unwrap_or(0));
    Err(format!("MPI error {code}: {}", String::from_utf8_lossy(&text)))
}

fn to_int(number: usize) -> Result<c_int, String> {
    c_int::try_from(number).map_err(|_| format!("{number} bytes at once are more than MPI can count"))
}

/// This machine's addresses that others may know it by; those of GLOO_SOCKET_IFNAME alone, if that is set.
fn own_addresses() -> Vec<IpAddr> {
    let wanted = std::env::var("GLOO_SOCKET_IFNAME").ok().filter(|name| !name.is_empty());
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default().into_iter();
    let mut addresses: Vec<IpAddr> = interfaces
        .filter(|interface| match &wanted {
            Some(name) => interface.name == *name,
            None => !interface.is_loopback() && !interface.is_link_local(),
        })
        .map(|interface| interface.ip())
        .collect();
    // Of one family, as the port is: IPv4 where there is any.
    let has_ipv4 = addresses.iter().any(IpAddr::is_ipv4);
    addresses.retain(|address| address.is_ipv4() == has_ipv4);
    addresses
}
