//! Black-box tests of the two real programs: what a user types, what comes back, what is left on the disk.
//!
//! Most jobs train a detector of a few thousand weights on generated images, so that each takes about a second. Each
//! worker has one thread. [`slots`] limits how many jobs run side by side.

// clippy.toml lets functions marked as tests do these; their helpers are the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod augment;
mod boxes;
mod chaos;
mod configs;
mod convert_config;
mod custom_data;
mod data;
mod demo_weights;
mod distributed;
mod documents;
mod dry_run;
mod elastic;
mod evaluation;
mod exact_resume;
mod failures;
mod fault_injection;
mod images;
mod install;
mod kubernetes;
mod masks;
mod memory;
mod messages;
mod mpi;
mod nodes;
mod options;
mod outputs;
mod parity_trained;
mod predict;
mod processes;
mod report;
mod resume;
mod sets;
mod simulated;
mod slots;
mod slurm;
mod starters;
mod status;
mod support;
mod train;
mod weights;
