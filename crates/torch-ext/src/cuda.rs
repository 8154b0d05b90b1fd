//! CUDA, loaded only on demand: a process that computes on the CPU never maps libtorch_cuda.
//!
//! [`load_libraries`] must come before anything else here and before any tensor on a CUDA device, also before
//! `tch::Cuda`'s functions: libtorch remembers its first answer to whether CUDA is there.

mod driver;
mod stream;

use std::ffi::{CStr, OsStr, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::dl::Library;
use crate::error::{Error, ErrorKind, RawError, Result, check};

pub use driver::{Driver, TORCH_CUDA_VERSION, probe_driver};
pub use stream::{Download, Downloader, Event, STAGING_BYTES, break_off, to_host, wait};

unsafe extern "C" {
    fn fnet_libtorch_path() -> *const c_char;
    fn fnet_cuda_device_count(out: *mut i32) -> *mut RawError;
    fn fnet_cuda_set_device(device: i32) -> *mut RawError;
    fn fnet_cuda_memory(device: i32, out: *mut MemoryStatistics) -> *mut RawError;
}

/// Memory of one CUDA device that this process uses, in bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryStatistics {
    /// In tensors now.
    pub allocated: i64,
    /// The most in tensors since the start.
    pub allocated_peak: i64,
    /// Held by libtorch's allocator now, in tensors or ready for them.
    pub reserved: i64,
    /// The most held since the start.
    pub reserved_peak: i64,
}

static LOADED: Mutex<bool> = Mutex::new(false);

/// Whether this process has loaded CUDA: only then may libtorch be asked about devices.
pub fn is_loaded() -> bool {
    *LOADED.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Checks the driver, then loads libtorch's CUDA part and torchvision's operators. Later calls do nothing.
/// Errors: [`ErrorKind::Environment`] if there is no driver, no device, the driver is too old, or a library is missing.
pub fn load_libraries() -> Result<()> {
    let mut loaded = LOADED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if *loaded {
        return Ok(());
    }
    probe_driver()?;
    load_torch_cuda(&libtorch_folder()?)?;
    *loaded = true;
    Ok(())
}

/// Loads libtorch_cuda and what registers CUDA operators, without a look at the driver.
pub(crate) fn load_torch_cuda(folder: &Path) -> Result<()> {
    let with_remedy = |error: Error| {
        Error::new(error.kind(), format!("{error}; CUDA needs the libtorch of the wheel torch 2.11.0+cu130"))
    };
    // libtorch.so is an empty library, but torchvision's asks for it and does not say where it lies.
    for name in ["libtorch_cuda.so", "libtorch.so"] {
        Library::open(&folder.join(name), true).map_err(with_remedy)?;
    }
    // torchvision's library asks for libtorch_python by name but uses nothing of it; a loaded library of that name
    // satisfies the loader without Python.
    Library::open(&find_own_object("libfnet_python_stand_in.so")?, false)?;
    Library::open(&find_torchvision(folder)?, false).map_err(with_remedy)?;
    Ok(())
}

/// Loads everything that a job on GPUs loads, without a look at the driver, and returns the version of NCCL, as "2.28.9".
/// For a process that only tells whether the libraries are there: it must not compute with CUDA afterwards.
/// Errors: [`ErrorKind::Environment`] that names the library that is missing.
pub fn check_libraries() -> Result<String> {
    load_torch_cuda(&libtorch_folder()?)?;
    Library::open(&find_own_object("libfnet_nccl.so")?, false)?;
    let nccl = Library::open(Path::new("libnccl.so.2"), false)?;
    let absent = || Error::new(ErrorKind::Environment, "libnccl.so.2 has no ncclGetVersion");
    let symbol = nccl.symbol(c"ncclGetVersion").ok_or_else(absent)?;
    // SAFETY: the symbol is NCCL's function of this signature since its first version.
    let get_version: extern "C" fn(*mut i32) -> i32 = unsafe { std::mem::transmute(symbol) };
    let mut version = 0;
    get_version(&raw mut version);
    Ok(format!("{}.{}.{}", version / 10_000, version % 10_000 / 100, version % 100))
}

fn find_torchvision(libtorch: &Path) -> Result<PathBuf> {
    let candidates = [libtorch.join("../../torchvision/_C.so"), libtorch.join("torchvision/_C.so")];
    candidates.iter().find(|path| path.is_file()).cloned().ok_or_else(|| {
        let looked = candidates.map(|path| path.display().to_string()).join(" and ");
        let message = format!("torchvision's operators are missing, looked for {looked}: install torchvision 0.26.0");
        Error::new(ErrorKind::Environment, message)
    })
}

/// The folder of the libtorch that this process uses.
/// Errors: if the loader cannot tell.
pub fn libtorch_folder() -> Result<PathBuf> {
    // SAFETY: returns null or a C string that is valid as long as the process runs.
    let path = unsafe {
        let path = fnet_libtorch_path();
        (!path.is_null()).then(|| PathBuf::from(OsStr::from_bytes(CStr::from_ptr(path).to_bytes())))
    };
    let resolved = path.and_then(|path| path.canonicalize().ok());
    resolved
        .and_then(|path| path.parent().map(Path::to_path_buf))
        .ok_or_else(|| Error::new(ErrorKind::Environment, "cannot tell where libtorch was loaded from"))
}

/// A shared object of this crate: beside the program, in `../lib/fnet` of an installation, or where it was built.
pub(crate) fn find_own_object(name: &str) -> Result<PathBuf> {
    let program = std::env::current_exe().ok().and_then(|path| path.canonicalize().ok());
    let beside = program.as_deref().and_then(Path::parent);
    let folders: Vec<PathBuf> = beside
        .iter()
        .flat_map(|folder| [folder.to_path_buf(), folder.join("../lib/fnet")])
        .chain([PathBuf::from(env!("FNET_OBJECTS"))])
        .collect();
    find_in(name, &folders)
}

fn find_in(name: &str, folders: &[PathBuf]) -> Result<PathBuf> {
    folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file()).ok_or_else(|| {
        let looked: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        let message = format!(
            "the library {name} is absent, looked in {}: build with the CUDA headers in the environment \
             (`make setup`) or install again (`make install`)",
            looked.join(", ")
        );
        Error::new(ErrorKind::Environment, message)
    })
}

/// Number of CUDA devices that libtorch can use.
pub fn device_count() -> Result<usize> {
    let mut count = 0;
    // SAFETY: the pointer is valid for the call.
    check(unsafe { fnet_cuda_device_count(&raw mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Makes `device` the one that this thread allocates on and launches kernels on.
/// Errors: if the device is not there.
pub fn set_device(device: usize) -> Result<()> {
    // SAFETY: a plain value.
    check(unsafe { fnet_cuda_set_device(number(device)) })
}

/// Memory of a device as libtorch's allocator counts it; the driver is not asked, which would take time in every step.
/// Errors: if the device is not there.
pub fn memory(device: usize) -> Result<MemoryStatistics> {
    let mut statistics = MemoryStatistics::default();
    // SAFETY: the pointer is valid for the call; the struct has the layout of FnetMemoryStatistics.
    check(unsafe { fnet_cuda_memory(number(device), &raw mut statistics) })?;
    Ok(statistics)
}

fn number(device: usize) -> i32 {
    i32::try_from(device).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests;
