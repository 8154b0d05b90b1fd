//! Errors of the bridge.

use std::ffi::{CStr, c_char};

use crate::device_fault;
pub use crate::error_kind::ErrorKind;

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

    /// An error of libtorch of which only the message is known, as `tch` hands it over.
    pub fn from_text(message: &str) -> Self {
        Self::classified(ErrorKind::Torch, 0, message)
    }

    /// An error of libtorch by CUDA's number (0: none), then by its message: errors of a device, of an allocation and of
    /// the network come under many types.
    fn classified(kind: ErrorKind, code: i32, message: &str) -> Self {
        if !matches!(kind, ErrorKind::Torch | ErrorKind::Collective) {
            return Self::new(kind, message);
        }
        if let Some((kind, message)) = device_fault::classify(code, message) {
            return Self { kind, message };
        }
        // Gloo's exceptions are declared in no installed header; their messages carry the path of the source.
        if message.contains("gloo/") {
            let in_words = in_words_of_gloo(message);
            return Self::new(ErrorKind::Collective, in_words.unwrap_or_else(|| message.to_owned()));
        }
        Self::new(if message.contains("NCCL") { ErrorKind::Collective } else { kind }, message)
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

/// A message of Gloo, such as `[/src/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.1]:4321`, without the
/// place in its source, and a closed connection in words.
fn in_words_of_gloo(message: &str) -> Option<String> {
    let (before, after) = message.split_once("gloo/")?;
    let (before, after) = (&before[..before.rfind('[')?], after[after.find(']')? + 1..].trim_start());
    let is_closed = ["closed by peer", "reset by peer", "Broken pipe"].iter().any(|words| after.contains(words));
    let Some(address) = after.find('[').map(|at| &after[at..]).filter(|_| is_closed) else {
        return Some(format!("{before}{after}")).filter(|text| !text.is_empty());
    };
    let length = address.find("]:").map_or(address.len(), |at| at + 2);
    let port = address[length..].find(|letter: char| !letter.is_ascii_digit()).unwrap_or(address.len() - length);
    Some(format!("{before}the rank at {} has closed its connection: it is lost or has left", &address[..length + port]))
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        match error {
            // Without tch's own word that libtorch has failed.
            tch::TchError::Torch(text) => Self::from_text(&text),
            other => Self::from_text(&other.to_string()),
        }
    }
}

/// An error as C++ hands it over.
#[repr(C)]
pub(crate) struct RawError {
    kind: i32,
    device_code: i32,
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
    let (kind, code, message) = unsafe {
        let RawError { kind, device_code, message } = *error;
        let message = match message.is_null() {
            true => "an error without a message (out of memory)".to_owned(),
            false => CStr::from_ptr(message).to_string_lossy().into_owned(),
        };
        fnet_error_free(error);
        (kind, device_code, message)
    };
    let kind = match kind {
        1 => ErrorKind::Invalid,
        2 => ErrorKind::OutOfMemory,
        3 => ErrorKind::Collective,
        4 => ErrorKind::Environment,
        _ => ErrorKind::Torch,
    };
    Err(Error::classified(kind, code, &message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_of_gloo_that_was_closed_is_said_in_words() {
        let closed = "the rank at [127.0.0.1]:4321 has closed its connection: it is lost or has left";
        for (raw, words) in [
            ("[/src/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4321", closed.to_owned()),
            (
                "x: [/a/gloo/gloo/pair.cc:1] Read error [127.0.0.1]:4321: Connection reset by peer",
                format!("x: {closed}"),
            ),
            ("[/src/gloo/buffer.cc:9] Timed out waiting 10ms for recv", "Timed out waiting 10ms for recv".to_owned()),
        ] {
            let error = Error::from_text(raw);
            assert_eq!((error.kind(), error.message()), (ErrorKind::Collective, words.as_str()));
        }
        for raw in ["gloo/", "[gloo/]", "[gloo/] Broken pipe [", "[gloo/] Broken pipe [é]:9é"] {
            let error = Error::from_text(raw);
            assert!(error.kind() == ErrorKind::Collective && !error.message().is_empty(), "{raw}");
        }
    }
}
