//! Elementary functions on the CPU that are exact from their first call on.
//!
//! libtorch computes `exp`, `sqrt` and others by MKL's vector library, which looks for the kernel of a function when it is
//! first called. Of several threads that make this call together, one may be given a kernel of 11 bits for its share
//! ([pytorch#188792](https://github.com/pytorch/pytorch/issues/188792)), and the boxes of a first image or a first step
//! of AdamW would differ from run to run. Every program with this crate makes the first calls while it is loaded, on one
//! thread.

use std::sync::atomic::{AtomicBool, Ordering};

use tch::{Device, Kind, TchError, Tensor};

type Function = fn(&Tensor) -> Result<Tensor, TchError>;

/// What libtorch leaves to MKL's vector library (ATen/cpu/vml.h).
const FUNCTIONS: [Function; 16] = [
    Tensor::f_acos,
    Tensor::f_asin,
    Tensor::f_atan,
    Tensor::f_cos,
    Tensor::f_erf,
    Tensor::f_erfc,
    Tensor::f_erfinv,
    Tensor::f_exp,
    Tensor::f_log,
    Tensor::f_log10,
    Tensor::f_log2,
    Tensor::f_sin,
    Tensor::f_sqrt,
    Tensor::f_tan,
    Tensor::f_tanh,
    Tensor::f_trunc,
];

/// Whether the first calls are made: always, unless libtorch failed while the program was loaded.
static WARMED_UP: AtomicBool = AtomicBool::new(false);

fn call_each() -> Result<(), TchError> {
    for kind in [Kind::Float, Kind::Double] {
        let half = Tensor::f_full([8], 0.5, (kind, Device::Cpu))?;
        for function in FUNCTIONS {
            let _value = function(&half)?;
        }
    }
    Ok(())
}

extern "C" fn settle() {
    // A function that fails here fails where it is needed too, and is reported there.
    WARMED_UP.store(call_each().is_ok(), Ordering::Relaxed);
}

// SAFETY: the section holds functions that are called once each before `main`. libtorch is loaded before the program that
// needs it, and `settle` needs nothing that Rust sets up there: it neither panics nor uses its input and output.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = settle;

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    #[test]
    fn the_first_calls_are_made_before_the_program_begins() {
        assert!(super::WARMED_UP.load(Ordering::Relaxed));
    }
}
