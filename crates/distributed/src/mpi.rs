//! Ranks that mpirun started: they learn their place from MPI, and their tensors on the CPU travel by it.
//!
//! All that speaks to MPI is in a library of its own, `crates/mpi`, loaded here by the functions that it exports.

use std::ffi::{CStr, c_char};
use std::mem::ManuallyDrop;
use std::net::{IpAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::path::PathBuf;
use std::time::Duration;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};
use torch_ext::distributed::Carrier;

use fnet_common::{Context, Error, Result};
use fnet_protocol::env;

use super::address;
use super::orphan;
use super::placement::{RankPlacement, Rendezvous};

/// The library's file, beside the program, in `../lib/fnet` of an installation, or where the loader looks.
const LIBRARY: &str = "libfnet_mpi.so";
/// The version of its interface; `crates/mpi/src/abi.rs` has the same.
const VERSION: u32 = 1;

/// A message that is null or to be freed.
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

/// What MPI says of this process.
#[derive(Debug, Clone, Copy)]
struct Seat {
    rank: usize,
    size: usize,
    local_rank: usize,
    local_size: usize,
}

/// MPI, once it is started: the functions of the library, which is never unloaded.
pub(super) struct Mpi {
    join: Symbol<unsafe extern "C" fn(i64, *mut RawSeat) -> Message>,
    broadcast: Symbol<unsafe extern "C" fn(*mut u8, usize, i32, i64) -> Message>,
    all_gather: Symbol<unsafe extern "C" fn(*const u8, usize, *mut u8, i64) -> Message>,
    all_to_all: Symbol<unsafe extern "C" fn(*const u8, usize, *mut u8, i64) -> Message>,
    barrier: Symbol<unsafe extern "C" fn(i64) -> Message>,
    abort: Symbol<unsafe extern "C" fn()>,
    shutdown: Symbol<unsafe extern "C" fn() -> Message>,
}

/// Joins the job that mpirun started with `ranks` ranks: this rank's place in it, and the carrier of its tensors.
/// Rank 0 opens the port of the store, and tells the others where it is.
///
/// # Errors
/// If MPI does not start in time, sees another number of ranks, or rank 0 cannot be reached.
pub(super) fn meet(ranks: usize, timeout: Duration) -> Result<(RankPlacement, Mpi)> {
    orphan::end_with_starter();
    let mpi = Mpi::load()?;
    let seat = mpi.start(timeout)?;
    if seat.size != ranks {
        return Err(Error::environment(format!(
            "mpirun started {ranks} ranks, but the MPI library of this program sees {}: they are of different \
             installations; use the mpirun of the MPI that {LIBRARY} was built with, and see that LD_LIBRARY_PATH \
             names no other",
            seat.size
        )));
    }
    let who = format!("rank {} of {} meets the others by MPI", seat.rank, seat.size);
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

/// Where the library lies: as [`env::MPI_LIBRARY`] says, beside the program, or in `../lib/fnet` of an installation.
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
        let path = library().ok_or_else(|| Error::environment(format!("{LIBRARY} is not there")))?;
        let absent = |error: libloading::Error| {
            let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            Error::environment(format!("cannot load {}: {why}; `make mpi` builds it", path.display()))
        };
        // SAFETY: the initializers are those of an MPI library and of Rust's standard library. Open MPI's components of
        // older versions look for its symbols in the global scope.
        let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) }.map_err(absent)?;
        // SAFETY: a function of this signature in every version.
        let version = unsafe { library.get::<extern "C" fn() -> u32>(b"fnet_mpi_version\0") }.map_err(absent)?;
        let found = version();
        if found != VERSION {
            return Err(Error::environment(format!(
                "{} has version {found} of the interface, but this program needs {VERSION}: run `make mpi` again",
                path.display()
            )));
        }
        // SAFETY: functions of these signatures in this version.
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
        // Its functions stay in use.
        std::mem::forget(library);
        Ok(mpi)
    }

    fn start(&self, timeout: Duration) -> Result<Seat> {
        let mut seat = RawSeat::default();
        // SAFETY: the place is valid for the call.
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
}

// SAFETY: the library's functions have the promises of the trait.
unsafe impl Carrier for Mpi {
    fn broadcast(&self, bytes: &mut [u8], root: usize, timeout: Duration) -> Result<(), String> {
        let root = i32::try_from(root).map_err(|_| format!("there is no rank {root}"))?;
        // SAFETY: valid as the trait says, which is as long as the library may use them; so below.
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

/// Takes over what a function of the library returned.
fn result(message: Message) -> Result<(), String> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: the library returns null or a C string that is the caller's to free, by `free`.
    unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        libc::free(message.cast());
        Err(text)
    }
}

fn milliseconds(timeout: Duration) -> i64 {
    i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX)
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
