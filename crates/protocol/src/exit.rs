//! Exit codes. Shells and batch systems rely on them; both programs use the same ones.

/// Done.
pub const SUCCESS: i32 = 0;
/// A fault of fnet itself: a panic or an internal error in any process.
pub const BUG: i32 = 1;
/// The command line or the config is wrong.
pub const USAGE: i32 = 2;
/// The data or a checkpoint is wrong or missing.
pub const DATA: i32 = 3;
/// A worker ended for any other reason: killed, lost, out of memory of its own, a kernel that failed on its GPU.
pub const WORKER_LOST: i32 = 4;
/// A worker hung.
pub const HANG: i32 = 5;
/// The machine is not able: no GPU, a damaged one, no driver, port, disk or memory.
pub const ENVIRONMENT: i32 = 6;
/// Stopped on request after saving; run again with `--resume`.
pub const STOPPED: i32 = 75;
/// Stopped by Ctrl-C after saving.
pub const INTERRUPTED: i32 = 130;
