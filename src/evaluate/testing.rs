//! What the tests of this module share.

use std::path::{Path, PathBuf};

/// A file or folder of the test data, or `None`, with a visible line, where FNET_TEST_DATA is unset.
pub(crate) fn fixture(path: &str) -> Option<PathBuf> {
    let Some(root) = std::env::var_os("FNET_TEST_DATA") else {
        eprintln!("SKIPPED {}: FNET_TEST_DATA is unset", std::thread::current().name().unwrap_or("a test"));
        return None;
    };
    let path = Path::new(&root).join(path);
    assert!(path.exists(), "{} is missing from FNET_TEST_DATA", path.display());
    Some(path)
}
