//! Errors of the bridge.

use std::ffi::{CStr, c_char};

/// What an [`Error`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Any other error of libtorch.
    Torch,
    /// An argument that the function does not accept.
    Invalid,
    /// Host or device memory is exhausted.
    OutOfMemory,
    /// A peer was lost, or the store or a collective failed or timed out.
    Collective,
    /// A library, a device or a driver is missing or too old.
    Environment,
}

/// An error of libtorch or of the bridge.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

/// Result of the bridge's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with a message for people.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// What it is about.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The message without its kind.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same error with what was being done before its message.
    #[must_use]
    pub fn context(self, what: &str) -> Self {
        Self { kind: self.kind, message: format!("{what}: {}", self.message) }
    }
}

/// An error as C++ hands it over.
#[repr(C)]
pub(crate) struct RawError {
    kind: i32,
    message: *mut c_char,
}

unsafe extern "C" {
    fn fnet_error_free(error: *mut RawError);
}

/// Turns what a function of the bridge returned into a result: null is success.
pub(crate) fn check(error: *mut RawError) -> Result<()> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: a non-null error is an allocation of `current_error` in cpp/error.cpp with a valid C string or null;
    // it is read before it is freed, and freed exactly once.
    let (kind, message) = unsafe {
        let RawError { kind, message } = *error;
        let message = match message.is_null() {
            true => "an error without a message (out of memory)".to_owned(),
            false => CStr::from_ptr(message).to_string_lossy().into_owned(),
        };
        fnet_error_free(error);
        (kind, message)
    };
    let kind = match kind {
        1 => ErrorKind::Invalid,
        2 => ErrorKind::OutOfMemory,
        3 => ErrorKind::Collective,
        4 => ErrorKind::Environment,
        _ => ErrorKind::Torch,
    };
    Err(Error::new(kind, message))
}
