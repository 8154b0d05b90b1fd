//! The functions that the worker looks up by name. Each returns null, or a message that the caller frees with `free`.
//!
//! All ranks make the same calls with the same lengths in the same order, one at a time; every call waits until its own
//! part is done, `timeout_ms` at most. After a call that failed, its buffers must stay valid for as long as the process
//! runs.

use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::time::Duration;

use crate::{Buffer, Mpi, Seat};

/// The version of this interface; a worker refuses a library of another one.
pub const VERSION: u32 = 1;

static MPI: OnceLock<Mpi> = OnceLock::new();

/// [`VERSION`].
#[unsafe(no_mangle)]
pub extern "C" fn fnet_mpi_version() -> u32 {
    VERSION
}

/// Starts MPI, once in a process, and tells this rank's place in the job.
///
/// # Safety
/// `seat` is valid for the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fnet_mpi_join(timeout_ms: i64, seat: *mut Seat) -> *mut c_char {
    message(|| {
        let (mpi, found) = Mpi::start(duration(timeout_ms))?;
        MPI.set(mpi).map_err(|_| "MPI was started before")?;
        // SAFETY: as the caller promises.
        unsafe { *seat = found };
        Ok(())
    })
}

/// Copies the bytes of rank `root` into those of every rank.
///
/// # Safety
/// `bytes` are `length` bytes that may be written; see the module on how long.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fnet_mpi_broadcast(bytes: *mut u8, length: usize, root: i32, timeout_ms: i64) -> *mut c_char {
    message(|| mpi()?.broadcast(Buffer(bytes), length, root, duration(timeout_ms)))
}

/// Collects every rank's `input` in the order of ranks.
///
/// # Safety
/// `input` are `length` bytes, `output` as many for each rank; see the module on how long.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fnet_mpi_all_gather(
    input: *const u8,
    length: usize,
    output: *mut u8,
    timeout_ms: i64,
) -> *mut c_char {
    message(|| mpi()?.all_gather(Buffer(input.cast_mut()), length, Buffer(output), duration(timeout_ms)))
}

/// Sends part r of `input` to rank r; part r of `output` comes from rank r.
///
/// # Safety
/// `input` and `output` are `length` bytes, in as many parts as there are ranks; see the module on how long.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fnet_mpi_all_to_all(
    input: *const u8,
    length: usize,
    output: *mut u8,
    timeout_ms: i64,
) -> *mut c_char {
    message(|| mpi()?.all_to_all(Buffer(input.cast_mut()), length, Buffer(output), duration(timeout_ms)))
}

/// Waits for all ranks.
#[unsafe(no_mangle)]
pub extern "C" fn fnet_mpi_barrier(timeout_ms: i64) -> *mut c_char {
    message(|| mpi()?.barrier(duration(timeout_ms)))
}

/// Makes a call that waits in another thread, and every later one, fail soon.
#[unsafe(no_mangle)]
pub extern "C" fn fnet_mpi_abort() {
    if let Some(mpi) = MPI.get() {
        mpi.abort();
    }
}

/// Leaves the other ranks in good order.
#[unsafe(no_mangle)]
pub extern "C" fn fnet_mpi_shutdown() -> *mut c_char {
    message(|| mpi()?.shutdown())
}

fn mpi() -> Result<&'static Mpi, String> {
    MPI.get().ok_or_else(|| "MPI has not been started".to_owned())
}

fn duration(milliseconds: i64) -> Duration {
    Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0))
}

/// Runs a call; null or its message, allocated for C.
fn message(call: impl FnOnce() -> Result<(), String>) -> *mut c_char {
    let result = catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| Err("the MPI part panicked".to_owned()));
    let Err(message) = result else { return std::ptr::null_mut() };
    let message = CString::new(message.replace('\0', " ")).unwrap_or_default();
    // SAFETY: a valid C string; the copy is C's own, freed there.
    unsafe { libc::strdup(message.as_ptr()) }
}
