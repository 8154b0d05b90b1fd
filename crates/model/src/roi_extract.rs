//! RoI features: assigns each RoI to a pyramid level and extracts its features.

use tch::{Device, Kind, Tensor};
use torch_ext::ErrorKind;
use torch_ext::ops::{RoisByLevel, roi_align, roi_align_by_level};

use fnet_common::{Error, Result};

use super::pack::{Pack, Sent, Table};

/// Extracts RoI features from the pyramid.
#[derive(Debug)]
pub struct RoiExtractor {
    finest_scale: f64,
    /// Strides of the levels with RoIs.
    strides: Vec<usize>,
    /// Side of the features.
    size: usize,
}

/// RoIs with assigned levels, to be sent to the device.
#[derive(Debug)]
pub enum PlacedRois {
    /// For the CPU: in the caller's order, with the level of each.
    Mixed {
        /// Image index and box.
        rois: Table,
        /// Index of the level.
        levels: Table,
    },
    /// Sorted by level, because the CUDA operator reads one level at a time.
    ByLevel {
        /// Image index and box, sorted by level.
        rois: Table,
        /// Index in the caller's order of each sorted row, and the inverse; `None` if both orders are the same.
        order: Option<[Table; 2]>,
        /// Number of RoIs of each level.
        counts: Vec<i64>,
    },
}

impl RoiExtractor {
    /// `size` is the side of the features, `strides` are the strides of the levels with RoIs.
    pub fn new(finest_scale: f64, strides: &[usize], size: usize) -> Self {
        Self { finest_scale, strides: strides.to_vec(), size }
    }

    /// Features `[k, c, size, size]` of `rois` (`[k, 5]` on the host: image index and box in pixels).
    pub fn forward(&self, levels: &[Tensor], rois: &Tensor) -> Result<Tensor> {
        let values = Vec::<f32>::try_from(rois.f_reshape([-1])?)?;
        let device = levels.first().map_or(Device::Cpu, Tensor::device);
        let mut pack = Pack::default();
        let placed = self.place(values.as_chunks().0, device, &mut pack)?;
        self.read(levels, &placed, &pack.send(device)?)
    }

    /// Adds the data to `pack` that [`RoiExtractor::read`] needs on `device`. The levels are assigned on the host,
    /// without waiting for the device.
    pub fn place(&self, rois: &[[f32; 5]], device: Device, pack: &mut Pack) -> Result<PlacedRois> {
        let count = rois.len() as i64;
        let levels = self.levels_of(rois)?;
        if device == Device::Cpu {
            let rois = pack.add(rois.as_flattened(), &[count, 5]);
            return Ok(PlacedRois::Mixed { rois, levels: pack.list(&levels) });
        }
        check(rois)?;
        let order = sorted(&levels);
        let mut back = vec![0_i64; rois.len()];
        (0..).zip(&order).for_each(|(now, &then)| back[then] = now);
        let mut counts = vec![0; self.strides.len()];
        levels.iter().for_each(|&level| counts[level as usize] += 1);
        let sorted: Vec<f32> = order.iter().flat_map(|&roi| rois[roi]).collect();
        let order: Vec<i64> = order.into_iter().map(|roi| roi as i64).collect();
        let rois = pack.add(&sorted, &[count, 5]);
        let order = (!levels.is_sorted()).then(|| [pack.list(&order), pack.list(&back)]);
        Ok(PlacedRois::ByLevel { rois, order, counts })
    }

    /// The RoIs by level, those of one level in the order given: what is placed in this order needs no other.
    pub fn level_order(&self, rois: &[[f32; 5]]) -> Result<Vec<usize>> {
        Ok(sorted(&self.levels_of(rois)?))
    }

    fn levels_of(&self, rois: &[[f32; 5]]) -> Result<Vec<i64>> {
        let all = Tensor::f_from_slice(rois.as_flattened())?.f_reshape([rois.len() as i64, 5])?;
        Ok(Vec::<i64>::try_from(self.assign_levels(&all)?)?)
    }

    /// Features of placed RoIs, in the caller's order.
    pub fn read(&self, levels: &[Tensor], placed: &PlacedRois, sent: &Sent) -> Result<Tensor> {
        let count = self.strides.len().min(levels.len());
        let (levels, strides) = (&levels[..count], &self.strides[..count]);
        match placed {
            PlacedRois::Mixed { rois, levels: of_rois } => {
                Ok(roi_align(levels, &sent.table(rois)?, &sent.table(of_rois)?, strides, self.size)?)
            }
            PlacedRois::ByLevel { rois, order, counts } => {
                let order = match order {
                    Some([order, back]) => Some([sent.table(order)?, sent.table(back)?]),
                    None => None,
                };
                let by_level = RoisByLevel { rois: sent.table(rois)?, order, counts: counts[..count].to_vec() };
                Ok(roi_align_by_level(levels, &by_level, strides, self.size)?)
            }
        }
    }

    /// The level of each RoI: the finest level up to twice `finest_scale` (square root of the area), one level coarser
    /// for each doubling (Lin et al., 2017).
    pub fn assign_levels(&self, rois: &Tensor) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        let extent = rois.f_narrow(1, 3, 2)?.f_sub(&rois.f_narrow(1, 1, 2)?)?;
        let scale = extent.f_select(1, 0)?.f_mul(&extent.f_select(1, 1)?)?.f_sqrt()?;
        let level = scale.f_div_scalar(self.finest_scale)?.f_add_scalar(1e-6)?.f_log2()?.f_floor()?;
        Ok(level.f_clamp(0.0, self.strides.len() as f64 - 1.0)?.f_to_kind(Kind::Int64)?)
    }
}

fn sorted(levels: &[i64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..levels.len()).collect();
    order.sort_by_key(|&roi| levels[roi]);
    order
}

/// Refuses what the operator for CUDA would take for an address or a number of samples.
fn check(rois: &[[f32; 5]]) -> Result<()> {
    const LARGEST: f32 = 1e6;
    let wrong =
        rois.iter().enumerate().find(|(_, roi)| roi.iter().any(|value| !value.is_finite() || value.abs() > LARGEST));
    wrong.map_or(Ok(()), |(number, roi)| {
        Err(Error::from(torch_ext::Error::new(
            ErrorKind::Invalid,
            format!("RoI {number} is {roi:?}; expected finite values within 1e6 pixels (has the training diverged?)"),
        )))
    })
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

    #[test]
    fn rois_for_a_gpu_are_sorted_by_level_and_can_be_reordered() {
        let extractor = RoiExtractor::new(56.0, &[4, 8, 16, 32], 7);
        let rois = [300.0f32, 10.0, 120.0, 20.0, 500.0].map(|side| [1.0, 5.0, 6.0, 5.0 + side, 6.0 + side]);
        let mut pack = Pack::default();
        let placed = extractor.place(&rois, Device::Cuda(0), &mut pack).unwrap();
        let PlacedRois::ByLevel { rois: sorted, order: Some([order, back]), counts } = &placed else {
            panic!("{placed:?}")
        };
        let sent = pack.send(Device::Cpu).unwrap();
        let given = Tensor::from_slice(rois.as_flattened()).reshape([5, 5]);
        let (order, back) = (sent.table(order).unwrap(), sent.table(back).unwrap());
        assert_eq!(sent.table(sorted).unwrap(), given.index_select(0, &order));
        assert_eq!(sent.table(sorted).unwrap().index_select(0, &back), given);
        assert_eq!((counts, Vec::<i64>::try_from(order).unwrap()), (&vec![2, 1, 1, 1], vec![1, 3, 2, 0, 4]));
        // Given in that order they need no way.
        let in_order: Vec<[f32; 5]> = extractor.level_order(&rois).unwrap().into_iter().map(|roi| rois[roi]).collect();
        let placed = extractor.place(&in_order, Device::Cuda(0), &mut Pack::default()).unwrap();
        assert!(matches!(placed, PlacedRois::ByLevel { order: None, .. }), "{placed:?}");
        let diverged = [[0.0, f32::NAN, 0.0, 4.0, 4.0]];
        let error = extractor.place(&diverged, Device::Cuda(0), &mut Pack::default()).unwrap_err();
        assert!(error.to_string().contains("RoI 0"), "{error}");
    }
}
