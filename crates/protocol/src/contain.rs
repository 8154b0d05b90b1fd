//! Panics of third-party code as errors: [`run`] catches them, and panic hooks that check [`is_active`] ignore them.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    /// Nested calls of [`run`] on this thread.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Whether this thread is in [`run`], so that a panic becomes an error.
pub(crate) fn is_active() -> bool {
    DEPTH.get() > 0
}

/// Runs `work`, which must not leave half-changed state behind if it panics.
/// Errors: the message of a panic.
pub fn run<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    DEPTH.set(DEPTH.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(work));
    DEPTH.set(DEPTH.get() - 1);
    result.map_err(|panic| text(&*panic).to_owned())
}

/// The message of a panic.
pub fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// Makes the panic hook ignore panics that [`run`] turns into errors.
pub fn silence() {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !is_active() {
            previous(info);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_and_only_inside() {
        assert_eq!(run(|| 7), Ok(7));
        let inner = || {
            assert!(is_active());
            let empty: &[u8] = &[];
            empty[std::hint::black_box(3)]
        };
        assert!(run(inner).unwrap_err().contains("index out of bounds"));
        assert!(!is_active());
        assert_eq!(run(|| run(is_active).and_then(|inner| run(move || inner))), Ok(Ok(true)));
    }
}
