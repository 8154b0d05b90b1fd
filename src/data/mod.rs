//! From annotation files and pictures to batches.

mod batch;

pub use batch::{Batch, ImageMeta, InstanceMask, Target};
