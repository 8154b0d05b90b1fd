//! The allocator of the worker: jemalloc, also for libtorch, whose `malloc` the linker resolves to this program's.
//!
//! Training allocates the same tensors in every step, with long-lived small pieces between them (oneDNN's prepared
//! convolutions). glibc's heap grows around these pieces as images change their size; jemalloc keeps sizes apart and
//! stays flat. docs/performance.md has the figures.

use std::ptr::null_mut;

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// jemalloc's settings, which it reads from a symbol of this name; MALLOC_CONF in the environment changes them.
///
/// The next step needs the same memory again, so nothing is returned to the system and mapped once more: large tensors
/// stay in the common arenas (0 is no threshold), without decay. Huge pages save faults and page walks.
#[unsafe(export_name = "malloc_conf")]
static SETTINGS: &[u8; 68] = b"oversize_threshold:0,dirty_decay_ms:-1,muzzy_decay_ms:-1,thp:always\0";

/// Returns all free memory to the system.
pub fn return_memory() {
    // SAFETY: the name ends with a zero byte; a control of all arenas (4096) that takes and gives no value has null pointers.
    unsafe { tikv_jemalloc_sys::mallctl(c"arena.4096.purge".as_ptr(), null_mut(), null_mut(), null_mut(), 0) };
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    /// A statistic or setting of jemalloc.
    fn read<T: Default>(name: &std::ffi::CStr) -> T {
        let mut value = T::default();
        let mut size = size_of::<T>();
        // SAFETY: `value` has the size that is passed, and jemalloc writes nothing if its own value has another one.
        let code =
            unsafe { tikv_jemalloc_sys::mallctl(name.as_ptr(), (&raw mut value).cast(), &raw mut size, null_mut(), 0) };
        assert_eq!(code, 0, "{name:?}");
        value
    }

    #[test]
    fn tensors_are_allocated_by_jemalloc_with_these_settings() {
        assert_eq!(read::<isize>(c"opt.dirty_decay_ms"), -1);
        let before: usize = read(c"thread.allocated");
        let tensor = Tensor::zeros([4 << 20], (Kind::Float, Device::Cpu));
        assert!(read::<usize>(c"thread.allocated") >= before + (16 << 20));
        drop(tensor);
        return_memory();
    }
}
