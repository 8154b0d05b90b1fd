//! The NCCL part of the bridge: a shared object of its own, because it links libtorch_cuda.

use std::path::Path;

use super::group::RawGroup;
use super::store::RawStore;
use crate::cuda;
use crate::dl::Library;
use crate::error::{Error, ErrorKind, RawError, Result, check};

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
