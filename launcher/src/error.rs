//! Errors that end the launcher, with the exit code that they mean.

use std::fmt;

use fnet_protocol::exit;

/// What went wrong, the remedy, and the exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// One of [`fnet_protocol::exit`].
    pub code: i32,
    /// What was found, what was expected, and the remedy.
    pub message: String,
}

/// Result of the launcher's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The command line is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: exit::USAGE, message: message.into() }
    }

    /// The machine is not able.
    pub fn environment(message: impl Into<String>) -> Self {
        Self { code: exit::ENVIRONMENT, message: message.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Says what was being done when the system refused.
pub trait Doing<T> {
    /// An environment error that starts with `what`.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: fmt::Display> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::environment(format!("{}: {error}", what())))
    }
}
