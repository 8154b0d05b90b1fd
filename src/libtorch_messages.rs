//! Redirects messages of libtorch and Gloo from stderr to the log.

use std::sync::atomic::{AtomicU64, Ordering};

use torch_ext::diagnostics::{self, Diagnostic, Severity};

use fnet_common::Result;

static NOTES: AtomicU64 = AtomicU64::new(0);

/// Captures messages of libraries in the log: warnings and notes, numbered, at level debug, and errors as warnings. Call this
/// before other threads are started.
pub fn take_messages_of_libraries() -> Result<()> {
    Ok(diagnostics::capture(log_diagnostic)?)
}

fn log_diagnostic(diagnostic: &Diagnostic<'_>) {
    match diagnostic.severity {
        Severity::Note => {
            let number = NOTES.fetch_add(1, Ordering::Relaxed) + 1;
            log::debug!("note {number} of libtorch: {}", diagnostic.line);
        }
        Severity::Error => log::warn!("libtorch reports: {}", diagnostic.text),
    }
}
