//! Errors that end the launcher, with their exit code.

use std::fmt;

use fnet_protocol::exit;
use fnet_protocol::message::StopReason;

/// How a job ends that was stopped before its first attempt.
pub const BEFORE_START: &str = " before anything was started; run the same command again";

/// An error message with its exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// One of [`fnet_protocol::exit`].
    pub code: i32,
    message: String,
}

/// The result of the launcher's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error whose `message` says what happened, what was expected, and the remedy. A blank message is replaced by the
    /// meaning of the code.
    pub fn new(code: i32, message: impl Into<String>) -> Self {
        let message: String = message.into();
        let message = match message.trim() {
            "" => format!("failed without a message, with code {code} ({})", exit::meaning(code)),
            text if text.len() < message.len() => text.to_owned(),
            _ => message,
        };
        Self { code, message }
    }

    /// A mistake in the command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(exit::USAGE, message)
    }

    /// A problem of the machine.
    pub fn environment(message: impl Into<String>) -> Self {
        Self::new(exit::ENVIRONMENT, message)
    }

    /// A bug in fnet.
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(exit::BUG, message)
    }

    /// A stop before the first attempt.
    pub fn stopped(reason: StopReason) -> Self {
        Self::new(reason.exit_code(), format!("stopped on request{BEFORE_START}"))
    }

    /// Never empty.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Adds what was being done to an error of the operating system.
pub trait Doing<T> {
    /// An environment error that starts with `what`.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: fmt::Display> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::environment(format!("{}: {error}", what())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_error_is_without_a_text() {
        for blank in ["", " ", "\n\n"] {
            let errors = [Error::usage(blank), Error::environment(blank), Error::bug(blank)].into_iter();
            for error in errors.chain((-1..=256).map(|code| Error::new(code, blank))) {
                let text = error.to_string();
                assert!(text.contains(&format!("code {}", error.code)) && !text.contains("()"), "{text}");
            }
        }
        assert_eq!(Error::usage("no\n").message(), "no");
    }
}
