//! Features of regions of interest: which pyramid level each RoI is read from, and the reading.

use tch::{Kind, Tensor};

use super::ops;
use crate::error::Result;

/// Reads RoI features from the pyramid.
#[derive(Debug)]
pub(crate) struct RoiExtractor {
    finest_scale: f64,
    /// Strides of the levels that RoIs are read from.
    strides: Vec<usize>,
    /// Side of the features.
    size: usize,
}

impl RoiExtractor {
    pub(crate) fn new(finest_scale: f64, strides: &[usize], size: usize) -> Self {
        Self { finest_scale, strides: strides.to_vec(), size }
    }

    /// Features `[k, c, size, size]` of `rois` (`[k, 5]`: image index and box in pixels).
    pub(crate) fn forward(&self, levels: &[Tensor], rois: &Tensor) -> Result<Tensor> {
        let count = self.strides.len().min(levels.len());
        let assigned = self.assign_levels(rois)?;
        ops::roi_align(&levels[..count], rois, &assigned, &self.strides[..count], self.size)
    }

    /// The level of each RoI: the finest up to twice `finest_scale` (square root of the area), one coarser for each
    /// doubling (Lin et al., 2017).
    pub(crate) fn assign_levels(&self, rois: &Tensor) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        let extent = rois.f_narrow(1, 3, 2)?.f_sub(&rois.f_narrow(1, 1, 2)?)?;
        let scale = extent.f_select(1, 0)?.f_mul(&extent.f_select(1, 1)?)?.f_sqrt()?;
        let level = scale.f_div_scalar(self.finest_scale)?.f_add_scalar(1e-6)?.f_log2()?.f_floor()?;
        Ok(level.f_clamp(0.0, self.strides.len() as f64 - 1.0)?.f_to_kind(Kind::Int64)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rois_go_one_level_coarser_with_each_doubling() {
        let extractor = RoiExtractor::new(56.0, &[4, 8, 16, 32], 7);
        let sides = [0.0f32, 1.0, 111.9, 112.0, 224.0, 447.0, 448.0, 2000.0];
        let rois: Vec<f32> = sides.iter().flat_map(|&side| [0.0, 10.0, 20.0, 10.0 + side, 20.0 + side]).collect();
        let levels = extractor.assign_levels(&Tensor::from_slice(&rois).reshape([-1, 5])).unwrap();
        assert_eq!(Vec::<i64>::try_from(levels).unwrap(), [0, 0, 0, 1, 2, 2, 3, 3]);
    }
}
