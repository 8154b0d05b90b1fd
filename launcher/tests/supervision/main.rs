//! Black-box tests of the real launcher with a script as its worker, which fails on request.

// clippy.toml lets functions marked as tests do these; their helpers are the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod hosts;
#[path = "../../../tests/blackbox/messages.rs"]
mod messages;
mod nodes;
mod placement;
#[path = "../../../tests/blackbox/processes.rs"]
mod processes;
mod secrets;
mod stalled;
mod starting;
mod status;
mod supervision;
mod support;
