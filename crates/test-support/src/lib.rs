//! Shared code of the unit tests: test data, Python, small data sets.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod small_set;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

pub use small_set::SmallSet;
use tempfile::TempDir;

/// A file or folder of the test data. `None`, with a SKIPPED line, if FNET_TEST_DATA is unset. The empty path is the whole
/// folder.
///
/// # Panics
/// If FNET_TEST_DATA is set but the file does not exist.
pub fn fixture(path: &str) -> Option<PathBuf> {
    let Some(root) = std::env::var_os("FNET_TEST_DATA").filter(|root| !root.is_empty()) else {
        skip("FNET_TEST_DATA is unset");
        return None;
    };
    let path = Path::new(&root).join(path);
    assert!(path.exists(), "{} is missing from FNET_TEST_DATA", path.display());
    Some(path)
}

/// A temporary folder with these files, by their paths in it.
///
/// # Panics
/// If the disk fails.
pub fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    folder
}

/// Prints that the running test, or a part of it, is skipped. The line is not captured by the test harness.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let line = format!("SKIPPED {}: {reason}\n", test.rsplit("::").next().unwrap_or(test));
    // Write the line in one piece, because other tests print too. A closed stderr must not fail the test.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// The Python of `.venv`. `None`, with a SKIPPED line, if it does not exist.
pub fn python() -> Option<PathBuf> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.venv/bin/python");
    if !python.exists() {
        skip(".venv/bin/python does not exist");
        return None;
    }
    Some(python)
}

/// Runs a script in `folder` with the Python of `.venv`, which has PyTorch; `false` if it does not exist.
///
/// # Panics
/// If the script fails.
pub fn run_python(folder: &Path, script: &str) -> bool {
    let Some(python) = python() else { return false };
    let run = Command::new(python).arg("-c").arg(script).current_dir(folder).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    true
}
