//! Exit codes of both programs, on which shells and batch systems rely.

/// Done.
pub const SUCCESS: i32 = 0;
/// A bug in fnet: a panic or an internal error in any process.
pub const BUG: i32 = 1;
/// The command line or the config is wrong.
pub const USAGE: i32 = 2;
/// The data or a checkpoint is wrong or missing.
pub const DATA: i32 = 3;
/// A worker was lost for any other reason: killed, unreachable, out of memory.
pub const WORKER_LOST: i32 = 4;
/// A worker hung.
pub const HANG: i32 = 5;
/// The machine cannot run the job: no GPU, driver, port, disk or memory.
pub const ENVIRONMENT: i32 = 6;
/// Stopped on request after saving; run again with `--resume`.
pub const STOPPED: i32 = 75;
/// Stopped by Ctrl-C after saving.
pub const INTERRUPTED: i32 = 130;

/// The meaning of an exit code.
pub fn meaning(code: i32) -> &'static str {
    match code {
        SUCCESS => "done",
        // Rust's exit code of a panicking process is 101.
        BUG | 101 => "a bug in fnet",
        USAGE => "the command line or the config is wrong",
        DATA => "the data or a checkpoint is wrong or missing",
        WORKER_LOST => "another rank was lost, or memory ran out",
        HANG => "a worker hung",
        ENVIRONMENT => "the machine cannot run it",
        126 => "the worker cannot be executed",
        127 => "the worker or one of its libraries was not found",
        STOPPED | INTERRUPTED => "stopped on request",
        _ => "not an exit code of fnet",
    }
}
