//! Shared libraries loaded on demand, for the life of the process.

use std::ffi::{CStr, CString, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};

/// A loaded library; never unloaded, so that its functions stay valid.
pub(crate) struct Library(*mut c_void);

impl Library {
    /// Loads a library by path or by soname.
    pub(crate) fn open(name: &Path, global: bool) -> Result<Self> {
        let failed = |why: &str| Error::new(ErrorKind::Environment, format!("cannot load {}: {why}", name.display()));
        let path = CString::new(name.as_os_str().as_bytes()).map_err(|_| failed("the name holds a NUL byte"))?;
        let scope = if global { libc::RTLD_GLOBAL } else { libc::RTLD_LOCAL };
        // SAFETY: a valid C string. The libraries' initializers are those of libtorch, CUDA and this crate.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | scope) };
        if handle.is_null() { Err(failed(&last_error())) } else { Ok(Self(handle)) }
    }

    /// The address of a symbol; none if the library lacks it.
    pub(crate) fn symbol(&self, name: &CStr) -> Option<*mut c_void> {
        // SAFETY: the handle is open for the life of the process, the name is a valid C string.
        let address = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        (!address.is_null()).then_some(address)
    }
}

/// The loader's message of the last failure on this thread.
fn last_error() -> String {
    // SAFETY: dlerror returns null or a C string that is valid until this thread's next dl call.
    unsafe {
        let message = libc::dlerror();
        match message.is_null() {
            true => "unknown error".to_owned(),
            false => CStr::from_ptr(message).to_string_lossy().into_owned(),
        }
    }
}
