//! Switches of libtorch that hold for the whole process.

use crate::error::{RawError, Result, check};

unsafe extern "C" {
    fn fnet_set_deterministic(on: bool) -> *mut RawError;
    #[cfg(test)]
    fn fnet_is_deterministic() -> bool;
}

/// Whether libtorch takes deterministic algorithms where it has both kinds; operators that have none warn and go on,
/// as with MMDetection's `--deterministic`. To be called before CUDA starts and before a process group is made, which look
/// at it then; it sets CUBLAS_WORKSPACE_CONFIG, unless the user has.
pub fn set_deterministic(on: bool) -> Result<()> {
    // SAFETY: no pointer is passed.
    check(unsafe { fnet_set_deterministic(on) })
}

/// What [`set_deterministic`] was last set to.
#[cfg(test)]
fn is_deterministic() -> bool {
    // SAFETY: no pointer is passed.
    unsafe { fnet_is_deterministic() }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_switch_is_kept() {
        super::set_deterministic(true).unwrap();
        assert!(std::env::var_os("CUBLAS_WORKSPACE_CONFIG").is_some());
        assert!(super::is_deterministic());
        super::set_deterministic(false).unwrap();
        assert!(!super::is_deterministic());
    }
}
