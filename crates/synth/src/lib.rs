//! Generator of synthetic COCO data sets.
//!
//! [`generate()`] draws textured scenes with overlapping objects of several classes and writes them as JPEG images with
//! COCO annotation files. They contain polygons of visible masks (with several parts if an object is cut in two), RLE
//! for masks with holes, crowd regions, images without objects, and portrait and landscape images. Every image depends
//! only on the seed and its number, so a set is the same for any number of threads.
//!
//! The objects are designed to distinguish good models from bad ones. A mask covers little of its box and differs from
//! its mirror image ([`shape`]), so neither a box nor a mirrored mask is a good prediction. Some classes differ only in
//! texture or color.
//!
//! [`Options::annotations_only`] writes an annotation file of any size without images, in bounded memory.

mod contour;
mod error;
mod generate;
mod layout;
mod object;
mod options;
mod outline;
mod paint;
mod random;
mod records;
mod scene;
pub mod shape;
mod writer;

pub use error::{Error, Result};
pub use generate::{Progress, Summary, generate};
pub use layout::Layout;
pub use options::Options;

/// Version of the drawing rules. Sets of different versions differ, even with equal options.
pub const FORMAT_VERSION: u32 = 1;
