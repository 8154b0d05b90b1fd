//! Weights from elsewhere: PyTorch and MMDetection checkpoints, ImageNet backbones, safetensors; and the way back.
//!
//! ```no_run
//! # fn main() -> fnet::Result<()> {
//! # let parameters = fnet::model::Parameters::new();
//! use std::path::Path;
//! use fnet::weights::{MmdetCheckpoint, Need, Weights, export};
//!
//! let summary = Weights::open(Path::new("fasternet_s.pth"))?.load_backbone(&parameters, Need::Most)?;
//! eprintln!("{summary}");
//! let checkpoint = MmdetCheckpoint::open(Path::new("epoch_12.pth"))?;
//! export::write(Path::new("epoch_12.safetensors"), &checkpoint)?;
//! # Ok(())
//! # }
//! ```

mod apply;
pub mod export;
mod lazy;
mod load;
mod mmdet;
mod pickle;
pub mod pth;
mod safetensors;
#[cfg(test)]
mod testing;
mod trained;
mod value;
mod variant;

pub use apply::{Need, Summary};
pub use lazy::{LazyTensor, Storage};
pub use load::{Format, Meta, Weights};
pub use mmdet::{MmdetCheckpoint, Moments, OptimizerState, ParameterGroup};
pub use trained::TrainedFile;
pub use value::Value;
pub use variant::Variant;
