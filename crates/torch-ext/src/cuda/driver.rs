//! What the NVIDIA driver says about itself, asked without libtorch.

use std::ffi::CStr;
use std::path::Path;

use crate::dl::Library;
use crate::error::{Error, ErrorKind, Result};

/// The CUDA version that this build's libtorch is made for, as "13.0"; empty for a libtorch without CUDA.
pub const TORCH_CUDA_VERSION: &str = env!("FNET_TORCH_CUDA_VERSION");

/// A driver that this build can use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    /// The newest CUDA version that it supports, (major, minor).
    pub cuda: (i32, i32),
    /// Compute capability, (major, minor), of each device that this process sees (CUDA_VISIBLE_DEVICES considered);
    /// none where the driver does not tell.
    pub devices: Vec<Option<(i32, i32)>>,
}

/// Asks the driver for its version and its devices; creates no context and loads no part of libtorch.
/// Errors: [`ErrorKind::Environment`], with the remedy, if there is no driver, if it is older than this build's
/// libtorch needs, or if it has no device for this process.
pub fn probe_driver() -> Result<Driver> {
    probe(Path::new("libcuda.so.1"), TORCH_CUDA_VERSION)
}

/// Error codes of the driver that have a remedy of their own.
const NO_DEVICE: i32 = 100;
/// CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
const CAPABILITY: (i32, i32) = (75, 76);

pub(super) fn probe(library: &Path, required: &str) -> Result<Driver> {
    let fail = |message: String| Err(Error::new(ErrorKind::Environment, message));
    let Some(required) = parse_version(required) else {
        return fail("this libtorch was built without CUDA: install the wheel torch 2.11.0+cu130".into());
    };
    let library = Library::open(library, false).map_err(|error| {
        Error::new(
            ErrorKind::Environment,
            format!("no NVIDIA driver on this machine ({error}): install one, or run with `--device cpu --nproc N`"),
        )
    })?;
    let version = call_with_int(&library, c"cuDriverGetVersion")?;
    let cuda = (version / 1000, version % 1000 / 10);
    if cuda < required {
        let (major, minor) = required;
        return fail(format!(
            "the NVIDIA driver is too old: it supports CUDA {}.{}, this libtorch needs CUDA {major}.{minor}: \
             install a newer driver, or run with `--device cpu --nproc N`",
            cuda.0, cuda.1
        ));
    }
    match initialize(&library)? {
        0 => {}
        NO_DEVICE => return fail(no_device()),
        code => return fail(format!("the NVIDIA driver does not start (cuInit returned {code}): see `nvidia-smi`")),
    }
    match call_with_int(&library, c"cuDeviceGetCount")? {
        count if count > 0 => {
            Ok(Driver { cuda, devices: (0..count).map(|index| capability(&library, index)).collect() })
        }
        _ => fail(no_device()),
    }
}

/// The compute capability of a device, by its place among the visible ones.
fn capability(library: &Library, index: i32) -> Option<(i32, i32)> {
    let (get, ask) = (library.symbol(c"cuDeviceGet")?, library.symbol(c"cuDeviceGetAttribute")?);
    // SAFETY: the documented signatures: CUresult cuDeviceGet(CUdevice *, int), CUresult cuDeviceGetAttribute(int *,
    // CUdevice_attribute, CUdevice); CUresult, CUdevice and the enumeration are ints.
    let get: unsafe extern "C" fn(*mut i32, i32) -> i32 = unsafe { std::mem::transmute(get) };
    // SAFETY: as above.
    let ask: unsafe extern "C" fn(*mut i32, i32, i32) -> i32 = unsafe { std::mem::transmute(ask) };
    let mut device = 0;
    // SAFETY: the pointer is valid for the call.
    (unsafe { get(&raw mut device, index) } == 0).then_some(())?;
    let attribute = |which| {
        let mut value = 0;
        // SAFETY: the pointer is valid for the call.
        (unsafe { ask(&raw mut value, which, device) } == 0).then_some(value)
    };
    Some((attribute(CAPABILITY.0)?, attribute(CAPABILITY.1)?))
}

fn no_device() -> String {
    let visible = match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(value) => format!(" (CUDA_VISIBLE_DEVICES={value})"),
        Err(_) => String::new(),
    };
    format!("the NVIDIA driver sees no GPU{visible}: see `nvidia-smi`, or run with `--device cpu --nproc N`")
}

fn parse_version(text: &str) -> Option<(i32, i32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn missing(name: &CStr) -> Error {
    let message = format!("the NVIDIA driver lacks {}: install it again", name.to_string_lossy());
    Error::new(ErrorKind::Environment, message)
}

fn initialize(library: &Library) -> Result<i32> {
    let address = library.symbol(c"cuInit").ok_or_else(|| missing(c"cuInit"))?;
    // SAFETY: the driver's documented signature: CUresult cuInit(unsigned int flags), CUresult being an int.
    let function: unsafe extern "C" fn(u32) -> i32 = unsafe { std::mem::transmute(address) };
    // SAFETY: flags must be 0.
    Ok(unsafe { function(0) })
}

/// Calls a function of the form `CUresult f(int *)` and returns the number.
fn call_with_int(library: &Library, name: &CStr) -> Result<i32> {
    let address = library.symbol(name).ok_or_else(|| missing(name))?;
    // SAFETY: the documented signature of both functions that this is used for.
    let function: unsafe extern "C" fn(*mut i32) -> i32 = unsafe { std::mem::transmute(address) };
    let mut value = 0;
    // SAFETY: the pointer is valid for the call.
    let code = unsafe { function(&raw mut value) };
    if code == 0 {
        return Ok(value);
    }
    let message = format!("the NVIDIA driver does not answer ({} returned {code})", name.to_string_lossy());
    Err(Error::new(ErrorKind::Environment, message))
}
