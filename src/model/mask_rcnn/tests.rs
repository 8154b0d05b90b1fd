//! The model against the reference's numbers, and on batches that have no objects.

mod faults;
mod fixtures;
mod inference;
mod operators;
mod training;

use super::*;
