//! The parity suite: the same weights and inputs go into fnet as went into the reference, and every stage's outputs are
//! compared with the reference's. docs/parity.md has the stages, their bounds, what was measured, and how to run it.
//!
//! A stage is fed what the reference stored as its input, so that a fault shows in the stage that has it; where the
//! reference kept a part of a tensor only, the stage is fed what fnet's stage before gives. The numbers come from the
//! folder that `FNET_PARITY_FIXTURES` names, else from `reference/fixtures_tiny` below `FNET_TEST_DATA`, and nothing here
//! depends on which model, images or number of objects they are of.
//!
//! Every test's name begins with `parity_`: `cargo test --release --workspace parity` runs the suite, and the end-to-end
//! comparisons of the black-box tests with it.

// clippy.toml lets functions marked as tests do these; their helpers are the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod compare;
mod data_operators;
mod detections;
mod features;
mod fixtures;
mod heads;
mod history;
mod image_files;
mod images;
mod inputs;
mod operators;
mod precision;
mod proposals;
mod report;
mod samples;
mod training;
mod weights;
