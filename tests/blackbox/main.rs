//! Black-box tests of the two real programs: what a user types, what comes back, what is left on the disk.
//!
//! Every job trains a detector of a few thousand weights on generated pictures, so that it takes about a second. The
//! jobs run one after the other, each worker with one thread.

// clippy.toml lets functions marked as tests do these; their helpers are the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod chaos;
mod custom_data;
mod data;
mod drill;
mod dry_run;
mod evaluation;
mod exact_resume;
mod failures;
mod mpi;
mod nodes;
mod options;
mod outputs;
mod pictures;
mod resume;
mod starters;
mod support;
mod train;
mod weights;
