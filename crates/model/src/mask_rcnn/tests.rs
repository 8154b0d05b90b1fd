//! The model on batches without input for a head. Numbers are compared with MMDetection in `tests/parity`.

mod boxes;
mod faults;

use super::*;
