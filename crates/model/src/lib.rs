//! Mask R-CNN with a backbone (FasterNet) and a feature pyramid.
//!
//! [`MaskRcnn`] is the entry point: [`MaskRcnn::forward_train`] computes the losses of a batch and
//! [`MaskRcnn::predict`] the [`Detections`] of images. Its tensors are in [`Parameters`], under MMDetection's names.
//! The numerical rules are those of [MMDetection 2.25](https://github.com/open-mmlab/mmdetection/tree/v2.25.0). The
//! modules in the order of processing: backbone, pyramid (`fpn`), region proposals (`rpn`, [`anchors`], [`assign`],
//! [`sample`]), RoI features, box head and mask head.
//!
//! All tensors are channels-last in memory. Losses are always computed in float32.

pub mod anchors;
pub mod assign;
pub mod backbones;
pub mod bbox_head;
pub mod boxes;
mod counted_layers;
mod detections;
pub mod flops;
pub mod fpn;
mod init;
pub mod layers;
mod losses;
pub mod mask_head;
mod mask_rcnn;
pub mod nms;
mod pack;
mod parameters;
pub mod roi_extract;
pub mod roi_head;
pub mod rpn;
pub mod sample;
mod tta;

pub use detections::Detections;
pub use layers::SumOverRanks;
pub use losses::{Loss, Losses};
pub use mask_rcnn::{MaskRcnn, is_frozen};
pub use parameters::{LoadReport, Parameters, Role, ShapeConflict};
pub use sample::StepRandom;
pub use tta::View;
