//! Generator of synthetic COCO data sets.
//!
//! [`generate()`] draws textured scenes with overlapping objects of several classes and writes them as JPEG images with
//! COCO annotation files: visible masks as polygons (of several parts where an object is cut in two), run-length codes
//! where a mask has holes, crowd regions, images without objects, portrait and landscape. Every image is a
//! function of the seed and its number alone, so a set is the same on any number of threads.
//!
//! The objects are made to tell a good model from a bad one: a mask fills its box poorly, and differs from its mirror
//! image ([`shape`]), so neither a box nor a mirrored mask passes for the right one; some classes differ in texture or
//! color only, so labels must be learnt too.
//!
//! With [`Options::annotations_only`] it writes an annotation file of any size without images, in bounded memory.

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

/// Version of the drawing rules: sets made with different versions differ, even for equal options.
pub const FORMAT_VERSION: u32 = 1;
