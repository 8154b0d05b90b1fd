//! Errors of data set generation.

use std::path::Path;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a data set was not generated, with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option is out of its range, or the folder has other contents.
    #[error("{0}")]
    Usage(String),
    /// A file cannot be read or written.
    #[error("{0}")]
    Disk(String),
    /// An image or a mask cannot be encoded.
    #[error("{0}")]
    Bug(String),
}

impl Error {
    /// For `map_err` on a file system operation.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.display().to_string();
        move |error| {
            let remedy = "check that the folder is writable and the disk has free space";
            Self::Disk(format!("cannot {action} {path}: {error}; {remedy}"))
        }
    }

    /// For `map_err` on the manifest of a generated set.
    pub(crate) fn manifest(path: &Path) -> impl FnOnce(serde_json::Error) -> Self {
        let path = path.display().to_string();
        move |error| Self::Usage(format!("{path}: {error}; remove the folder or choose another one for --out"))
    }
}
