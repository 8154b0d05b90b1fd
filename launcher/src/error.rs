//! Errors that end the launcher, with the exit code that they mean.

use std::fmt;

use fnet_protocol::exit;

use crate::cause;

/// What went wrong, the remedy, and the exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// One of [`fnet_protocol::exit`].
    pub code: i32,
    message: String,
}

/// Result of the launcher's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with an exit code; `message` says what was found, what was expected, and the remedy. Without one, what the
    /// code means is said: no error is without a text.
    pub fn new(code: i32, message: impl Into<String>) -> Self {
        let message: String = message.into();
        let message = match message.trim() {
            "" => format!("ended with code {code} ({}), and nobody says why", cause::meaning(code)),
            text if text.len() < message.len() => text.to_owned(),
            _ => message,
        };
        Self { code, message }
    }

    /// The command line is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(exit::USAGE, message)
    }

    /// The machine is not able.
    pub fn environment(message: impl Into<String>) -> Self {
        Self::new(exit::ENVIRONMENT, message)
    }

    /// A fault of fnet itself.
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(exit::BUG, message)
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
