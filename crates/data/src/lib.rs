//! From annotation files and images to batches.
//!
//! [`Dataset`] reads the annotation files of a set, [`train_indices`] and [`evaluation_indices`] select the images of a rank and their
//! order, and [`Loader`] makes batches on background threads: decode, augment (resize, flip, ...), normalize, pad.

mod augment;
mod batch;
mod check;
mod class_balance;
mod coco;
mod dataset;
mod decode;
mod diagnostics;
mod epoch;
mod images;
mod job_config;
mod loader;
mod masks;
mod normalize;
mod resize;
mod same_data;
mod samplers;
mod split;
mod transform;

pub use batch::{Batch, ImageMeta, InstanceMask, Target};
pub use check::{Checked, Scope, check, check_before_job, check_classes};
pub use coco::{
    Category, CocoDataset, ImageInfo, Listed, Objects, Record, Segmentation, Split, TrueObject, category_names,
    data_root,
};
pub use dataset::Dataset;
pub use decode::{DecodedImage, ImageHeader};
pub use diagnostics::{Code, CodeDescription, Diagnostic, Diagnostics, Location, Severity};
pub use epoch::{ShardSegment, rest_of_epoch};
pub use images::{Images, Pixels};
pub use job_config::{load_config, load_config_for_check, parse_config};
pub use loader::{Loader, Skipped, StageTimes, TestOptions, TrainOptions, load_image, single_image};
pub use masks::{instance_mask, mask_targets, rasterize};
pub use resize::Bilinear;
pub use same_data::check_same_data;
pub use samplers::{evaluation_indices, train_batches_per_epoch, train_indices};
pub use transform::{Augmentation, Geometry, rescaled_size};
