//! The model on batches that lack what a head needs. The reference's numbers are compared in `crate::parity`.

mod faults;

use super::*;
