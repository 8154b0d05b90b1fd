//! Inference over a data set, COCO metrics, painted images.

pub mod inference;
pub mod metrics;
pub mod paint;
pub mod paste;
pub mod results;
