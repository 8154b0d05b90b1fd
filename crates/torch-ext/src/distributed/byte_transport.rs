//! Process groups over a library that c10d knows nothing of: Rust moves the bytes, the bridge does the rest.

use std::ffi::{CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::group::{ProcessGroup, to_int};
use super::store::TcpStore;
use super::{c_string, milliseconds};
use crate::error::{RawError, Result};
use crate::ffi::{RawGroup, RawStore, new_object};

/// Moves bytes between the ranks of a group.
///
/// All ranks make the same calls with the same lengths in the same order, one at a time; every call waits until its
/// own part is done, `timeout` at most. An error is a message that says why; the group adds the operation, its number,
/// the rank and the deadline.
///
/// # Safety
/// The buffers of a call are valid until it returns, and for ever after one that failed: a transport may give up on a
/// transfer that it cannot take back. After a call that succeeded it must not touch its buffers any more.
pub unsafe trait ByteTransport: Send + Sync {
    /// Copies rank `root`'s bytes into those of every rank.
    /// Errors: if a peer is lost or the deadline passes; so for all functions.
    fn broadcast(&self, bytes: &mut [u8], root: usize, timeout: Duration) -> Result<(), String>;

    /// Collects every rank's `input` in the order of ranks; `output` is as long as all of them together.
    fn all_gather(&self, input: &[u8], output: &mut [u8], timeout: Duration) -> Result<(), String>;

    /// Sends part r of `input` to rank r; part r of `output` comes from rank r. There are as many parts as ranks.
    fn all_to_all(&self, input: &[u8], output: &mut [u8], timeout: Duration) -> Result<(), String>;

    /// Waits for all ranks.
    fn barrier(&self, timeout: Duration) -> Result<(), String>;

    /// Makes a call that waits in another thread, and every later one, fail soon.
    fn abort(&self);

    /// Leaves the other ranks in good order.
    fn shutdown(&self) -> Result<(), String>;
}

/// A transport as C++ calls it; the layout of `FnetByteTransport` in cpp/byte_transport.h.
#[repr(C)]
struct RawByteTransport {
    state: *mut c_void,
    broadcast: unsafe extern "C" fn(*mut c_void, *mut u8, usize, i32, i64) -> *mut c_char,
    all_gather: unsafe extern "C" fn(*mut c_void, *const u8, usize, *mut u8, i64) -> *mut c_char,
    all_to_all: unsafe extern "C" fn(*mut c_void, *const u8, usize, *mut u8, i64) -> *mut c_char,
    barrier: unsafe extern "C" fn(*mut c_void, i64) -> *mut c_char,
    abort: unsafe extern "C" fn(*mut c_void),
    shutdown: unsafe extern "C" fn(*mut c_void) -> *mut c_char,
    free: unsafe extern "C" fn(*mut c_void),
}

unsafe extern "C" {
    fn fnet_byte_transport_group_new(
        store: *mut RawStore,
        name: *const c_char,
        transport: *const RawByteTransport,
        rank: i32,
        size: i32,
        timeout_ms: i64,
        out: *mut *mut RawGroup,
    ) -> *mut RawError;
}

impl ProcessGroup {
    /// A group whose tensors on the CPU travel by `transport`, called `name` in messages. Its collectives are done when
    /// the call that starts them returns. An all-reduce adds up in the order of ranks, whatever the transport does, so
    /// equal inputs give equal bits. `timeout` is the deadline of collectives that are given none.
    pub fn carried<C: ByteTransport + 'static>(
        store: &TcpStore,
        name: &str,
        transport: C,
        rank: usize,
        size: usize,
        timeout: Duration,
    ) -> Result<Self> {
        let name = c_string(name)?;
        let state = Box::into_raw(Box::new(Seat { transport, size }));
        let table = RawByteTransport {
            state: state.cast(),
            broadcast: broadcast::<C>,
            all_gather: all_gather::<C>,
            all_to_all: all_to_all::<C>,
            barrier: barrier::<C>,
            abort: abort::<C>,
            shutdown: shutdown::<C>,
            free: free::<C>,
        };
        // SAFETY: valid for the call, which copies the table; the state passes to the group and is freed by it. The
        // functions of the table take the state of this very type.
        let raw = new_object(|out| unsafe {
            fnet_byte_transport_group_new(
                store.raw(),
                name.as_ptr(),
                &raw const table,
                to_int(rank),
                to_int(size),
                milliseconds(timeout),
                out,
            )
        })?;
        Ok(Self::from_raw(raw, rank, size))
    }
}

/// A transport with the number of ranks, which gives the lengths of its buffers.
struct Seat<C> {
    transport: C,
    size: usize,
}

/// Runs a call of the transport; null or its message, allocated for C.
fn message_of(call: impl FnOnce() -> Result<(), String>) -> *mut c_char {
    let result = catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| Err("the transport panicked".to_owned()));
    let Err(message) = result else { return std::ptr::null_mut() };
    let message = CString::new(message.replace('\0', " ")).unwrap_or_default();
    // SAFETY: a valid C string; the copy is C's own, freed there.
    unsafe { libc::strdup(message.as_ptr()) }
}

fn duration(milliseconds: i64) -> Duration {
    Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0))
}

/// # Safety
/// `state` is that of a living group with a transport of this type.
unsafe fn seat<'a, C>(state: *mut c_void) -> &'a Seat<C> {
    // SAFETY: as the caller promises; byte transports are shared between threads.
    unsafe { &*state.cast::<Seat<C>>() }
}

unsafe extern "C" fn broadcast<C: ByteTransport>(
    state: *mut c_void,
    bytes: *mut u8,
    length: usize,
    root: i32,
    timeout_ms: i64,
) -> *mut c_char {
    // SAFETY: C++ passes its state and a buffer of `length` bytes that nobody else touches during the call.
    let (seat, bytes) = unsafe { (seat::<C>(state), std::slice::from_raw_parts_mut(bytes, length)) };
    let root = usize::try_from(root).unwrap_or(usize::MAX);
    message_of(|| seat.transport.broadcast(bytes, root, duration(timeout_ms)))
}

unsafe extern "C" fn all_gather<C: ByteTransport>(
    state: *mut c_void,
    input: *const u8,
    length: usize,
    output: *mut u8,
    timeout_ms: i64,
) -> *mut c_char {
    // SAFETY: C++ passes its state, `length` bytes to read and as many per rank to write, apart from each other.
    let (seat, input, output) = unsafe {
        let seat = seat::<C>(state);
        let output = std::slice::from_raw_parts_mut(output, length * seat.size);
        (seat, std::slice::from_raw_parts(input, length), output)
    };
    message_of(|| seat.transport.all_gather(input, output, duration(timeout_ms)))
}

unsafe extern "C" fn all_to_all<C: ByteTransport>(
    state: *mut c_void,
    input: *const u8,
    length: usize,
    output: *mut u8,
    timeout_ms: i64,
) -> *mut c_char {
    // SAFETY: C++ passes its state, `length` bytes per rank to read and to write, apart from each other.
    let (seat, input, output) = unsafe {
        let seat = seat::<C>(state);
        let all = length * seat.size;
        (seat, std::slice::from_raw_parts(input, all), std::slice::from_raw_parts_mut(output, all))
    };
    message_of(|| seat.transport.all_to_all(input, output, duration(timeout_ms)))
}

unsafe extern "C" fn barrier<C: ByteTransport>(state: *mut c_void, timeout_ms: i64) -> *mut c_char {
    // SAFETY: C++ passes its state.
    let seat = unsafe { seat::<C>(state) };
    message_of(|| seat.transport.barrier(duration(timeout_ms)))
}

unsafe extern "C" fn abort<C: ByteTransport>(state: *mut c_void) {
    // SAFETY: C++ passes its state.
    let seat = unsafe { seat::<C>(state) };
    // A panic must not cross into C++; there is nobody to tell.
    let _ = catch_unwind(AssertUnwindSafe(|| seat.transport.abort()));
}

unsafe extern "C" fn shutdown<C: ByteTransport>(state: *mut c_void) -> *mut c_char {
    // SAFETY: C++ passes its state.
    let seat = unsafe { seat::<C>(state) };
    message_of(|| seat.transport.shutdown())
}

unsafe extern "C" fn free<C: ByteTransport>(state: *mut c_void) {
    // SAFETY: called once, at the end of the group that owns the box.
    let seat = unsafe { Box::from_raw(state.cast::<Seat<C>>()) };
    let _ = catch_unwind(AssertUnwindSafe(move || drop(seat)));
}
