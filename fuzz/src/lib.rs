//! What the fuzz targets share.

use std::path::{Path, PathBuf};

/// A folder in memory that goes with the process's name; its files are written anew for every input.
pub struct Scratch {
    folder: PathBuf,
}

impl Scratch {
    /// Makes the folder.
    pub fn new() -> Self {
        let folder = Path::new("/dev/shm").join(format!("fnet-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder in /dev/shm");
        Self { folder }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes `bytes` to the file `name`.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.join(name);
        std::fs::write(&path, bytes).expect("a file in /dev/shm");
        path
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}
