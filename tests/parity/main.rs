//! The parity suite: fnet gets the same weights and inputs as [MMDetection
//! 2.25](https://github.com/open-mmlab/mmdetection/tree/v2.25.0), and the outputs of every stage are compared.
//! docs/parity.md describes the stages, their bounds, the measurements, and how to run the suite.
//!
//! The input of a stage is MMDetection's stored tensor, so that an error shows in the stage that has it. If only a part
//! of the tensor is stored, the input is the output of fnet's previous stage. The numbers come from the folder
//! `FNET_PARITY_FIXTURES`, or else from `reference/fixtures_tiny` below `FNET_TEST_DATA`. The tests do not depend on
//! the model, the images or the number of objects.
//!
//! Every test's name begins with `parity_`: `cargo test --release --workspace parity` runs the suite, and the end-to-end
//! comparisons of the black-box tests with it.

// clippy.toml allows these in test functions, but not in their helpers.
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
