//! Inference on data sets, COCO metrics, and drawing of detections.

pub mod inference;
pub mod metrics;
pub mod paint;
pub mod paste;
pub mod report;
pub mod results;
pub mod results_file;
