//! The key-value store through which ranks find each other.

use std::ffi::c_char;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::time::Duration;

use super::{c_string, milliseconds};
use crate::error::{RawError, Result, check};
use crate::ffi::{RawStore, new_object};

unsafe extern "C" {
    fn fnet_store_new(
        host: *const c_char,
        port: u16,
        is_server: bool,
        timeout_ms: i64,
        listen_fd: i32,
        out: *mut *mut RawStore,
    ) -> *mut RawError;
    fn fnet_store_prefixed(store: *mut RawStore, prefix: *const c_char, out: *mut *mut RawStore) -> *mut RawError;
    fn fnet_store_set(store: *mut RawStore, key: *const c_char, data: *const u8, size: usize) -> *mut RawError;
    fn fnet_store_get(
        store: *mut RawStore,
        key: *const c_char,
        timeout_ms: i64,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> *mut RawError;
    fn fnet_store_add(store: *mut RawStore, key: *const c_char, amount: i64, out: *mut i64) -> *mut RawError;
    fn fnet_bytes_free(data: *mut u8);
    fn fnet_store_free(store: *mut RawStore) -> *mut RawError;
}

/// Where a [`TcpStore`] is and who serves it.
#[derive(Debug)]
pub struct StoreOptions {
    /// Host of the server.
    pub host: String,
    /// Port of the server.
    pub port: u16,
    /// Whether this process serves the store.
    pub is_server: bool,
    /// Deadline of the connection and of every request.
    pub timeout: Duration,
    /// A bound and listening socket for the server to take over, so that no port is raced for.
    pub listener: Option<OwnedFd>,
}

/// A connection to a key-value store; the server runs in one of the processes.
pub struct TcpStore {
    raw: *mut RawStore,
}

// SAFETY: c10d's stores guard their connection with a lock and are not bound to a thread.
unsafe impl Send for TcpStore {}

impl TcpStore {
    /// Serves or connects.
    /// Errors: if the port cannot be bound, or the server does not answer before the deadline.
    pub fn new(options: StoreOptions) -> Result<Self> {
        let host = c_string(&options.host)?;
        let listener = options.listener.map_or(-1, IntoRawFd::into_raw_fd);
        let timeout = milliseconds(options.timeout);
        // SAFETY: a valid C string and out-pointer; the socket's ownership passes to the store.
        let raw = new_object(|out| unsafe {
            fnet_store_new(host.as_ptr(), options.port, options.is_server, timeout, listener, out)
        });
        let raw = raw.map_err(|error| {
            let role = if options.is_server { "serving" } else { "connecting to" };
            error.context(&format!("{role} the store at {}:{}", options.host, options.port))
        })?;
        Ok(Self { raw })
    }

    /// The same store with `prefix` before every key.
    /// Errors: if the prefix holds a NUL character.
    pub fn prefixed(&self, prefix: &str) -> Result<Self> {
        let prefix = c_string(prefix)?;
        // SAFETY: all pointers are valid for the call.
        let raw = new_object(|out| unsafe { fnet_store_prefixed(self.raw, prefix.as_ptr(), out) })?;
        Ok(Self { raw })
    }

    /// Stores a value.
    /// Errors: if the server is lost.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        let key = c_string(key)?;
        // SAFETY: all pointers are valid for the call with the length beside them.
        check(unsafe { fnet_store_set(self.raw, key.as_ptr(), value.as_ptr(), value.len()) })
    }

    /// Waits until the key is set, and returns its value.
    /// Errors: if the server is lost or the deadline passes.
    pub fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>> {
        let c_key = c_string(key)?;
        let (mut data, mut size) = (std::ptr::null_mut(), 0);
        // SAFETY: all pointers are valid for the call.
        check(unsafe { fnet_store_get(self.raw, c_key.as_ptr(), milliseconds(timeout), &raw mut data, &raw mut size) })
            .map_err(|error| error.context(&format!("waiting for the key {key:?}")))?;
        // SAFETY: on success `data` is an allocation of at least `size` bytes, read before it is freed once.
        unsafe {
            let value = std::slice::from_raw_parts(data, size).to_vec();
            fnet_bytes_free(data);
            Ok(value)
        }
    }

    /// Adds to a counter, which starts at 0, and returns its new value.
    /// Errors: if the server is lost.
    pub fn add(&self, key: &str, amount: i64) -> Result<i64> {
        let key = c_string(key)?;
        let mut value = 0;
        // SAFETY: all pointers are valid for the call.
        check(unsafe { fnet_store_add(self.raw, key.as_ptr(), amount, &raw mut value) })?;
        Ok(value)
    }

    pub(super) fn raw(&self) -> *mut RawStore {
        self.raw
    }
}

impl Drop for TcpStore {
    fn drop(&mut self) {
        // SAFETY: the handle is live and freed once; groups made from it hold references of their own.
        // An error while a connection closes has nobody left to tell.
        let _ = check(unsafe { fnet_store_free(self.raw) });
    }
}
