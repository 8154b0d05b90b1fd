//! What libtorch and Gloo would print: in the log in place of stderr, where it would puzzle.

use std::sync::atomic::{AtomicU64, Ordering};

use torch_ext::diagnostics::{self, Diagnostic, Severity};

use fnet_common::Result;

static NOTES: AtomicU64 = AtomicU64::new(0);

/// From now on what libraries print goes into the log: warnings and remarks, numbered, for those who look for them (level
/// debug), and errors for all. To be called before other threads are started.
///
/// # Errors
/// For lack of memory.
pub fn take_messages_of_libraries() -> Result<()> {
    Ok(diagnostics::capture(tell)?)
}

fn tell(diagnostic: &Diagnostic<'_>) {
    match diagnostic.severity {
        Severity::Note => {
            let number = NOTES.fetch_add(1, Ordering::Relaxed) + 1;
            log::debug!("note {number} of libtorch: {}", diagnostic.line);
        }
        Severity::Error => log::warn!("libtorch reports: {}", diagnostic.text),
    }
}
