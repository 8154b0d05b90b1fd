//! Errors of data set generation.

use std::path::PathBuf;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a data set was not generated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option is out of its range.
    #[error("{option} is {value}, but must be {expected}")]
    Option {
        /// Name of the option as in [`Options`](crate::Options).
        option: &'static str,
        /// The given value.
        value: String,
        /// The expected value.
        expected: &'static str,
    },
    /// The output folder contains files that are not a generated set.
    #[error("{} is not empty and contains no generated set (no {manifest} in it); choose another folder for --out", .folder.display())]
    Foreign {
        /// The output folder.
        folder: PathBuf,
        /// Name of the file that marks a generated set.
        manifest: &'static str,
    },
    /// The output folder contains a set that was generated with other options.
    #[error("{} contains a set generated with other options ({found}; requested: {wanted}); remove it or choose another folder for --out", .folder.display())]
    Different {
        /// The output folder.
        folder: PathBuf,
        /// The options of the set in the folder.
        found: String,
        /// The requested options.
        wanted: String,
    },
    /// The manifest of a generated set is invalid.
    #[error("{}: {reason}; remove the folder or choose another one for --out", .path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An error of the operating system.
    #[error("cannot {action} {}: {source}; check that the folder is writable and the disk has free space", .path.display())]
    Io {
        /// The action that failed.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The error of the OS.
        source: std::io::Error,
    },
    /// An image could not be encoded.
    #[error("cannot encode {}: {reason}", .path.display())]
    Encode {
        /// The image.
        path: PathBuf,
        /// The encoder's reason.
        reason: String,
    },
    /// A mask could not be converted.
    #[error("cannot create the annotations of image {image}: {reason}")]
    Mask {
        /// Number of the image.
        image: u64,
        /// The mask library's reason.
        reason: String,
    },
}

impl Error {
    /// For `map_err` on a file system operation.
    pub(crate) fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_path_buf(), source }
    }
}
