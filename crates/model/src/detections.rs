//! The detections of one image.

use tch::{Device, Kind, Tensor};

use fnet_common::Result;

/// The objects found in one image, best first, on the CPU.
#[derive(Debug)]
pub struct Detections {
    /// `[k, 4]` float32: `[x1, y1, x2, y2]` in pixels of the original image.
    pub boxes: Tensor,
    /// `[k]` float32: probability of the class, falling.
    pub scores: Tensor,
    /// `[k]` int64: class from 0.
    pub labels: Tensor,
    /// `[k, 28, 28]` float32: probability that each part of the box belongs to the object; `None` if the model has no masks.
    pub masks: Option<Tensor>,
}

impl Detections {
    /// Number of objects.
    pub fn len(&self) -> usize {
        self.scores.numel()
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// No detections, with masks of `mask_size` pixels.
    pub fn none(mask_size: usize) -> Result<Self> {
        let zeros = |shape: &[i64], kind| Tensor::f_zeros(shape, (kind, Device::Cpu));
        let side = mask_size as i64;
        Ok(Self {
            boxes: zeros(&[0, 4], Kind::Float)?,
            scores: zeros(&[0], Kind::Float)?,
            labels: zeros(&[0], Kind::Int64)?,
            masks: Some(zeros(&[0, side, side], Kind::Float)?),
        })
    }
}
