//! The contract between `fnet-launch` and `fnet-worker`.

pub mod exit;
