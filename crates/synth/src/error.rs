//! What can go wrong while a data set is made.

use std::path::PathBuf;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a data set was not made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option is out of its range.
    #[error("{option} is {value}, but must be {expected}")]
    Option {
        /// Name of the option as in [`Options`](crate::Options).
        option: &'static str,
        /// What was given.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// The output folder holds files that are not a generated set.
    #[error("{} is not empty and holds no generated set (no {manifest} in it); choose another folder for --out", .folder.display())]
    Foreign {
        /// The output folder.
        folder: PathBuf,
        /// Name of the file that marks a generated set.
        manifest: &'static str,
    },
    /// The output folder holds a set that was made with other options.
    #[error("{} holds a set made with other options ({found}; asked for: {wanted}); remove it or choose another folder for --out", .folder.display())]
    Different {
        /// The output folder.
        folder: PathBuf,
        /// The options of the set in the folder.
        found: String,
        /// The options asked for.
        wanted: String,
    },
    /// The mark of a generated set cannot be understood.
    #[error("{}: {reason}; remove the folder or choose another one for --out", .path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}; check that the folder is writable and the disk has room", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
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
    #[error("cannot make the annotations of image {image}: {reason}")]
    Mask {
        /// Number of the image.
        image: u64,
        /// The mask library's reason.
        reason: String,
    },
}

impl Error {
    /// For `map_err` on an operation of the file system.
    pub(crate) fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_path_buf(), source }
    }
}
