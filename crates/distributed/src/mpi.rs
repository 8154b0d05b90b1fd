//! Ranks started by mpirun: MPI gives them their rank, and transports their tensors on the CPU.
//!
//! All calls of MPI are in a separate library, `crates/mpi`, which is loaded here at run time.

use std::ffi::{CStr, c_char};
use std::mem::ManuallyDrop;
use std::net::{IpAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::path::PathBuf;
use std::time::Duration;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};
use torch_ext::distributed::ByteTransport;

use fnet_common::{Context, Error, Result};
use fnet_protocol::env;

use super::address;
use super::orphan;
use super::placement::{RankPlacement, Rendezvous};

/// The file name of the library. [`library`] searches for it.
const LIBRARY: &str = "libfnet_mpi.so";
/// The version of its interface; `crates/mpi/src/abi.rs` has the same.
const VERSION: u32 = 1;

/// An error message that the caller must free; null on success.
type Message = *mut c_char;

/// The layout of `abi::Seat`.
#[repr(C)]
#[derive(Default)]
struct RawSeat {
    rank: i32,
    size: i32,
    local_rank: i32,
    local_size: i32,
}

/// The rank of this process according to MPI.
#[derive(Debug, Clone, Copy)]
struct Seat {
    rank: usize,
    size: usize,
    local_rank: usize,
    local_size: usize,
}

/// The functions of the library, which is never unloaded, after MPI was started.
pub(super) struct Mpi {
    join: Symbol<unsafe extern "C" fn(i64, *mut RawSeat) -> Message>,
    broadcast: Symbol<unsafe extern "C" fn(*mut u8, usize, i32, i64) -> Message>,
    all_gather: Symbol<unsafe extern "C" fn(*const u8, usize, *mut u8, i64) -> Message>,
    all_to_all: Symbol<unsafe extern "C" fn(*const u8, usize, *mut u8, i64) -> Message>,
    barrier: Symbol<unsafe extern "C" fn(i64) -> Message>,
    abort: Symbol<unsafe extern "C" fn()>,
    shutdown: Symbol<unsafe extern "C" fn() -> Message>,
}

/// Joins the job that mpirun started with `ranks` ranks. Returns this rank's placement and the byte transport of its
/// tensors. Rank 0 opens the port of the store and broadcasts its address.
/// Errors: if MPI does not start in time, sees another number of ranks, or rank 0 cannot be reached.
pub(super) fn join(ranks: usize, timeout: Duration) -> Result<(RankPlacement, Mpi)> {
    orphan::exit_with_launcher();
    let mpi = Mpi::load()?;
    let seat = mpi.start(timeout)?;
    if seat.size != ranks {
        return Err(Error::environment(format!(
            "mpirun started {ranks} ranks, but the MPI library of this program sees {}: they belong to different \
             installations; use the mpirun of the MPI that {LIBRARY} was built with, and check that LD_LIBRARY_PATH \
             names no other",
            seat.size
        )));
    }
    let who = format!("rank {} of {}, rendezvous over MPI", seat.rank, seat.size);
    let rendezvous = mpi.rendezvous(seat, timeout).context(who)?;
    let place = RankPlacement {
        rank: seat.rank,
        world_size: seat.size,
        local_rank: seat.local_rank,
        local_world_size: Some(seat.local_size),
        rendezvous: Some(rendezvous),
    };
    Ok((place, mpi))
}

/// The path of the library: [`env::MPI_LIBRARY`], beside the program, or in `../lib/fnet` of an installation.
pub(super) fn library() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os(env::MPI_LIBRARY).filter(|named| !named.is_empty()) {
        return Some(PathBuf::from(named)).filter(|path| path.is_file());
    }
    let program = std::env::current_exe().ok()?.canonicalize().ok()?;
    let folder = program.parent()?;
    [folder.join(LIBRARY), folder.join("../lib/fnet").join(LIBRARY)].into_iter().find(|path| path.is_file())
}

impl Mpi {
    fn load() -> Result<Self> {
        let path = library().ok_or_else(|| Error::environment(format!("{LIBRARY} does not exist")))?;
        let absent = |error: libloading::Error| {
            let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            Error::environment(format!("cannot load {}: {why}; `make mpi` builds it", path.display()))
        };
        // SAFETY: this runs the initializers of an MPI library and of Rust's standard library. RTLD_GLOBAL because the
        // components of older versions of Open MPI look for its symbols in the global scope.
        let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) }.map_err(absent)?;
        // SAFETY: the function has this signature in every version.
        let version = unsafe { library.get::<extern "C" fn() -> u32>(b"fnet_mpi_version\0") }.map_err(absent)?;
        let found = version();
        if found != VERSION {
            return Err(Error::environment(format!(
                "{} has version {found} of the interface, but this program needs version {VERSION}: run `make mpi` again",
                path.display()
            )));
        }
        // SAFETY: the functions have these signatures in this version.
        let mpi = unsafe {
            Self {
                join: library.get(b"fnet_mpi_join\0").map_err(absent)?,
                broadcast: library.get(b"fnet_mpi_broadcast\0").map_err(absent)?,
                all_gather: library.get(b"fnet_mpi_all_gather\0").map_err(absent)?,
                all_to_all: library.get(b"fnet_mpi_all_to_all\0").map_err(absent)?,
                barrier: library.get(b"fnet_mpi_barrier\0").map_err(absent)?,
                abort: library.get(b"fnet_mpi_abort\0").map_err(absent)?,
                shutdown: library.get(b"fnet_mpi_shutdown\0").map_err(absent)?,
            }
        };
        // The library must stay loaded: its functions are used from here on.
        std::mem::forget(library);
        Ok(mpi)
    }

    fn start(&self, timeout: Duration) -> Result<Seat> {
        let mut seat = RawSeat::default();
        // SAFETY: `seat` is valid during the call.
        let joined = result(unsafe { (self.join)(milliseconds(timeout), &raw mut seat) });
        joined.map_err(Error::environment)?;
        let number = |number: i32| usize::try_from(number).unwrap_or(0);
        Ok(Seat {
            rank: number(seat.rank),
            size: number(seat.size),
            local_rank: number(seat.local_rank),
            local_size: number(seat.local_size),
        })
    }

    /// The address of the store; rank 0 opens its port.
    fn rendezvous(&self, seat: Seat, timeout: Duration) -> Result<Rendezvous> {
        let mut message = vec![0; address::LENGTH];
        let is_one_machine = seat.local_size == seat.size;
        let mut listener = None;
        if seat.rank == 0 {
            let addresses = own_addresses();
            let at = if is_one_machine { address::loopback(&addresses) } else { address::every(&addresses) };
            let opened = TcpListener::bind((at, 0));
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
        let host = match is_one_machine {
            true => address::loopback(&addresses).to_string(),
            false => address::reachable(&addresses, port)?,
        };
        let listener = listener.map(IntoRawFd::into_raw_fd);
        Ok(Rendezvous { host, port, is_server: seat.rank == 0, listener, attempt: 0 })
    }
}

// SAFETY: the library's functions keep the promises of the trait.
unsafe impl ByteTransport for Mpi {
    fn broadcast(&self, bytes: &mut [u8], root: usize, timeout: Duration) -> Result<(), String> {
        let root = i32::try_from(root).map_err(|_| format!("there is no rank {root}"))?;
        // SAFETY: the trait guarantees that the buffers are valid as long as the library may use them.
        result(unsafe { (self.broadcast)(bytes.as_mut_ptr(), bytes.len(), root, milliseconds(timeout)) })
    }

    fn all_gather(&self, input: &[u8], output: &mut [u8], timeout: Duration) -> Result<(), String> {
        // SAFETY: see broadcast; the trait's lengths are the library's.
        result(unsafe { (self.all_gather)(input.as_ptr(), input.len(), output.as_mut_ptr(), milliseconds(timeout)) })
    }

    fn all_to_all(&self, input: &[u8], output: &mut [u8], timeout: Duration) -> Result<(), String> {
        // SAFETY: see broadcast; the trait's lengths are the library's.
        result(unsafe { (self.all_to_all)(input.as_ptr(), input.len(), output.as_mut_ptr(), milliseconds(timeout)) })
    }

    fn barrier(&self, timeout: Duration) -> Result<(), String> {
        // SAFETY: no buffers.
        result(unsafe { (self.barrier)(milliseconds(timeout)) })
    }

    fn abort(&self) {
        // SAFETY: no arguments.
        unsafe { (self.abort)() }
    }

    fn shutdown(&self) -> Result<(), String> {
        // SAFETY: no arguments.
        result(unsafe { (self.shutdown)() })
    }
}

/// Converts and frees the message that a function of the library returned.
fn result(message: Message) -> Result<(), String> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: the library returns null or a C string that the caller must pass to `free`.
    unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        libc::free(message.cast());
        Err(text)
    }
}

fn milliseconds(timeout: Duration) -> i64 {
    i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX)
}

/// The addresses at which other machines may reach this one; only those of GLOO_SOCKET_IFNAME, if it is set.
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
    // Only one family, because the listener has one: IPv4 if there is any.
    let has_ipv4 = addresses.iter().any(IpAddr::is_ipv4);
    addresses.retain(|address| address.is_ipv4() == has_ipv4);
    addresses
}
