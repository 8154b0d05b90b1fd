//! Mask R-CNN with a backbone (FasterNet) and a feature pyramid.
//!
//! [`MaskRcnn`] is the way in: [`MaskRcnn::forward_train`] gives the losses of a batch and [`MaskRcnn::predict`] the
//! [`Detections`] of images. Its tensors are in [`Parameters`], under the reference's names. The numerical rules are
//! MMDetection 2.25's, and the parts follow the way of a batch: backbone, pyramid (`fpn`), region proposals (`rpn`,
//! [`anchors`], [`assign`], [`sample`]), RoI features, box head and mask head.
//!
//! Tensors are channels-last in memory throughout. Losses are computed in float32, whatever autocast does before.

pub mod anchors;
pub mod assign;
pub mod backbones;
pub mod bbox_head;
pub mod boxes;
mod detections;
pub mod flops;
pub mod fpn;
mod init;
pub mod layers;
mod losses;
pub mod mask_head;
mod mask_rcnn;
pub mod nms;
pub mod ops;
mod pack;
mod parameters;
pub mod roi_extract;
pub mod roi_head;
pub mod rpn;
pub mod sample;

pub use detections::Detections;
pub use layers::SumOverRanks;
pub use losses::{Loss, Losses};
pub use mask_rcnn::MaskRcnn;
pub use parameters::{LoadReport, Parameters, Role, ShapeConflict};
pub use sample::StepRandom;
