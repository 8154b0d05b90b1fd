//! Elementary functions on the CPU that are exact from their first call on.
//!
//! libtorch computes `exp`, `sqrt` and others by MKL's vector library, which looks for the kernel of a function when it is
//! first called. Of several threads that make this call together, one may be given a kernel of 11 bits for its share
//! ([pytorch#188792](https://github.com/pytorch/pytorch/issues/188792)), and the boxes of a first picture or a first step
//! of AdamW would differ from run to run. Every program with this crate makes the first calls while it is loaded, on one
//! thread.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{RawError, check};

unsafe extern "C" {
    fn fnet_settle_vector_math() -> *mut RawError;
}

extern "C" fn settle() {
    // A function that fails here fails where it is needed too, and is told there.
    // SAFETY: no pointer is passed; libtorch is loaded before the program that needs it.
    if check(unsafe { fnet_settle_vector_math() }).is_ok() {
        SETTLED.store(true, Ordering::Relaxed);
    }
}

static SETTLED: AtomicBool = AtomicBool::new(false);

/// Whether the first calls are made: always, unless libtorch failed while the program was loaded.
pub fn is_settled() -> bool {
    SETTLED.load(Ordering::Relaxed)
}

// SAFETY: the section holds functions that are called once each before `main`. `settle` needs nothing that is set up there:
// it neither panics nor uses Rust's input and output.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = settle;

#[cfg(test)]
mod tests {
    #[test]
    fn the_first_calls_are_made_before_the_program_begins() {
        assert!(super::is_settled());
    }
}
