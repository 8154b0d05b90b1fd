//! The NCCL part of the bridge: a shared object of its own, because it links libtorch_cuda.

use std::path::Path;

use crate::cuda;
use crate::dl::Library;
use crate::error::{Error, ErrorKind, RawError, Result, check};
use crate::ffi::{RawGroup, RawStore};

const OBJECT: &str = "libfnet_nccl.so";

type Add = unsafe extern "C" fn(*mut RawGroup, *mut RawStore, i32, i32, i32, i64) -> *mut RawError;

/// Gives the group a NCCL backend for CUDA tensors.
pub(super) fn add(
    group: *mut RawGroup,
    store: *mut RawStore,
    rank: i32,
    size: i32,
    device: i32,
    timeout_ms: i64,
) -> Result<()> {
    cuda::load_libraries()?;
    let add = find(&cuda::find_own_object(OBJECT)?)?;
    // SAFETY: live handles; the function's signature is fnet_nccl_add's in cpp/nccl.cpp.
    check(unsafe { add(group, store, rank, size, device, timeout_ms) })
}

fn find(object: &Path) -> Result<Add> {
    let library = Library::open(object, false)?;
    let address = library.symbol(c"fnet_nccl_add").ok_or_else(|| {
        let message = format!("{} is no NCCL part of this build: install again", object.display());
        Error::new(ErrorKind::Environment, message)
    })?;
    // SAFETY: the object is built from cpp/nccl.cpp, whose function of this name has this signature.
    Ok(unsafe { std::mem::transmute::<*mut std::ffi::c_void, Add>(address) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs no GPU and no driver; in a process of its own, because the object brings libtorch_cuda along.
    #[test]
    fn the_object_of_this_build_loads_beside_libtorch_cuda() {
        if let Err(error) = cuda::find_own_object(OBJECT) {
            eprintln!("SKIPPED the_object_of_this_build_loads_beside_libtorch_cuda: {error}");
            return;
        }
        let body = "distributed::nccl::tests::body_loading_the_object";
        let program = std::env::current_exe().unwrap();
        let output = std::process::Command::new(program).args(["--exact", body, "--ignored"]).output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}");
    }

    #[test]
    #[ignore = "run by another test, in a process of its own"]
    fn body_loading_the_object() {
        cuda::load_torch_cuda(&cuda::libtorch_folder().unwrap()).unwrap();
        find(&cuda::find_own_object(OBJECT).unwrap()).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let copies: std::collections::BTreeSet<_> = maps
            .lines()
            .filter_map(|line| line.split_whitespace().last())
            .filter(|path| path.contains("libnccl.so"))
            .collect();
        assert_eq!(copies.len(), 1, "one NCCL for libtorch and for this object: {copies:?}");
    }

    #[test]
    fn an_object_that_is_no_library_is_refused_by_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(OBJECT);
        std::fs::write(&path, "not a library").unwrap();
        let error = find(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Environment);
        assert!(error.message().contains(path.to_str().unwrap()), "{error}");
    }
}
