//! Inference over a data set, COCO metrics, painted pictures.

pub mod inference;
pub mod metrics;
pub mod paint;
pub mod paste;
pub mod results;
