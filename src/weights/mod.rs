//! Files of weights from elsewhere: PyTorch and MMDetection checkpoints, ImageNet backbones, safetensors.

pub mod lazy;
mod pickle;
pub mod pth;
pub mod value;

pub use lazy::LazyTensor;
pub use value::Value;
