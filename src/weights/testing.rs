//! What the tests of this module share.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// The folder of reference data, or `None` with a visible line that the test is skipped.
pub(super) fn reference(test: &str) -> Option<PathBuf> {
    match std::env::var_os("FNET_TEST_DATA") {
        Some(folder) => Some(Path::new(&folder).join("reference")),
        None => {
            eprintln!("SKIPPED {test}: FNET_TEST_DATA is unset");
            None
        }
    }
}

/// Runs a script with the environment's Python, in which PyTorch is installed, inside `folder`; `false` with a
/// visible line if there is no such Python.
pub(super) fn python(test: &str, folder: &Path, script: &str) -> bool {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    if !python.exists() {
        eprintln!("SKIPPED {test}: there is no .venv/bin/python");
        return false;
    }
    let run = Command::new(python).arg("-c").arg(script).current_dir(folder).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    true
}

/// A folder that goes away with the test.
pub(super) fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}
