//! Checkpoints in every format that fnet reads or writes: its own ([`native`]), those of PyTorch and MMDetection, ImageNet
//! backbones, and safetensors.
//!
//! ```no_run
//! # fn main() -> fnet_common::Result<()> {
//! # let parameters = fnet_model::Parameters::new();
//! use std::path::Path;
//! use fnet_checkpoint::{MmdetCheckpoint, Need, Weights, export};
//!
//! let summary = Weights::open(Path::new("fasternet_s.pth"))?.load_backbone(&parameters, Need::Most)?;
//! eprintln!("{summary}");
//! let checkpoint = MmdetCheckpoint::open(Path::new("epoch_12.pth"))?;
//! export::write(Path::new("epoch_12.safetensors"), &checkpoint)?;
//! # Ok(())
//! # }
//! ```

mod apply;
mod bytes;
mod classes;
pub mod export;
mod lazy;
mod load;
mod meta;
mod mmdet;
pub mod native;
mod pickle;
pub mod pth;
mod safetensors;
mod trained;
mod value;
mod variant;

pub use apply::{Need, Summary};
pub use classes::Classes;
pub use lazy::{LazyTensor, Storage};
pub use load::Weights;
pub use meta::{Format, Meta};
pub use mmdet::{MmdetCheckpoint, Moments, OptimizerState, ParameterGroup};
pub use trained::TrainedFile;
pub use value::Value;
pub use variant::Variant;
