//! MPI for the worker, as a library that it loads when mpirun has started it: the worker itself needs no MPI to be
//! built or to run.
//!
//! One thread speaks to MPI, so that MPI needs no threads of its own, and every wait of the callers has an end even
//! where a function of MPI has none. Collectives are MPI's immediate ones, tested until they are done or the deadline
//! has passed. A rank that is killed or ends with an error is for mpirun to notice: it ends the others.
//!
//! The functions of the module [`abi`] are the whole interface. `src/distributed/mpi.rs` of the worker declares them.

pub mod abi;

use std::ffi::c_int;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mpi::Threading;
use mpi::environment::Universe;
use mpi::ffi;
use mpi::traits::Communicator;

/// How much longer than a deadline a caller waits for the thread that keeps it.
const SLACK: Duration = Duration::from_secs(10);
/// For MPI's end, after all ranks have met for the last time.
const LEAVING: Duration = Duration::from_secs(60);

/// This rank's place in the job, as MPI says.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Seat {
    /// From 0.
    pub rank: i32,
    /// Number of ranks.
    pub size: i32,
    /// Rank on this node.
    pub local_rank: i32,
    /// Number of ranks on this node.
    pub local_size: i32,
}

/// Something for MPI's thread to do.
enum Order {
    Call(Box<dyn FnOnce(ffi::MPI_Comm) + Send>),
    /// Ends MPI and the thread.
    Finish(SyncSender<()>),
}

/// MPI as seen from the other threads.
struct Mpi {
    orders: Mutex<SyncSender<Order>>,
    aborted: Arc<AtomicBool>,
}

impl Mpi {
    fn start(timeout: Duration) -> Result<(Self, Seat), String> {
        let (seated, seat) = sync_channel(1);
        // At most one call, whose caller holds the lock, and the end.
        let (orders, received) = sync_channel(2);
        let thread = std::thread::Builder::new().name("mpi".into()).spawn(move || speak(&seated, &received));
        thread.map_err(|error| format!("starting the thread for MPI: {error}"))?;
        let seat = seat.recv_timeout(timeout).map_err(|error| match error {
            RecvTimeoutError::Timeout => format!(
                "MPI_Init did not end within {} s: a rank of the job has not come so far, or MPI cannot reach it",
                timeout.as_secs_f64()
            ),
            RecvTimeoutError::Disconnected => "MPI could not be started; its message is above".to_owned(),
        })?;
        Ok((Self { orders: Mutex::new(orders), aborted: Arc::default() }, seat))
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
        let (done, result) = sync_channel(1);
        let (end, aborted) = (Instant::now() + timeout, self.aborted.clone());
        let call = move |world: ffi::MPI_Comm| {
            // SAFETY: `request` is written by `start` where it returns success; a null handle until then.
            let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
            let result = check(start(world, &raw mut request)).and_then(|()| wait(request, end, &aborted));
            // The caller has given up if it is gone.
            let _ = done.send(result);
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

/// What the calls do. After a failure MPI may still use the buffers, which the interface allows.
impl Mpi {
    fn broadcast(&self, bytes: Buffer, length: usize, root: i32, timeout: Duration) -> Result<(), String> {
        let count = to_int(length)?;
        // SAFETY: `count` bytes, valid as the interface says; all ranks give the same count and root.
        self.call(timeout, move |world, request| unsafe {
            ffi::MPI_Ibcast(bytes.pointer(), count, ffi::RSMPI_UINT8_T, root, world, request)
        })
    }

    fn all_gather(&self, input: Buffer, length: usize, output: Buffer, timeout: Duration) -> Result<(), String> {
        let count = to_int(length)?;
        // SAFETY: `count` bytes to read and as many per rank to write, valid as the interface says.
        self.call(timeout, move |world, request| unsafe {
            let byte = ffi::RSMPI_UINT8_T;
            ffi::MPI_Iallgather(input.pointer(), count, byte, output.pointer(), count, byte, world, request)
        })
    }

    fn all_to_all(&self, input: Buffer, length: usize, output: Buffer, timeout: Duration) -> Result<(), String> {
        // SAFETY: `length` bytes to read and as many to write, in equal parts for the ranks, valid as the interface
        // says.
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
    let seat =
        Seat { rank: world.rank(), size: world.size(), local_rank: node.rank(), local_size: node.size() };
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
