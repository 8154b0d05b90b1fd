//! What the tests of this module share.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use tch::Tensor;

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

/// Every tensor of a safetensors file by name.
pub(crate) fn tensors(path: &Path) -> HashMap<String, Tensor> {
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}
