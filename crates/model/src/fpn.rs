//! The feature pyramid (Lin et al., 2017).

use tch::{Device, Tensor};

use fnet_common::{Error, Result};
use fnet_config::Neck;

use super::Parameters;
use super::init::Init;
use super::layers::{Conv2d, ConvShape};

/// Projects the backbone's outputs to one width, adds each coarser level to the next finer one, and smooths them.
#[derive(Debug)]
pub struct Fpn {
    laterals: Vec<Conv2d>,
    smoothers: Vec<Conv2d>,
    levels: usize,
}

impl Fpn {
    /// Adds its tensors to `parameters` below `prefix`; `inputs` are the channels of the backbone's outputs.
    pub fn new(parameters: &mut Parameters, prefix: &str, inputs: &[i64], config: &Neck) -> Result<Self> {
        if config.num_outs < inputs.len() {
            return Err(Error::usage(format!(
                "model.neck.num_outs is {}; expected at least {}, one for each output of the backbone",
                config.num_outs,
                inputs.len()
            )));
        }
        let outputs = config.out_channels as i64;
        let mut convs = |group: &str, kernel: i64, inputs: &[i64]| -> Result<Vec<Conv2d>> {
            let shapes = inputs.iter().map(|&input| ConvShape::same(input, outputs, kernel, true));
            shapes
                .enumerate()
                .map(|(level, shape)| {
                    let init = Init::xavier_uniform(shape.fan_in(), shape.fan_out());
                    Conv2d::new(parameters, &format!("{prefix}.{group}.{level}.conv"), shape, init)
                })
                .collect()
        };
        let laterals = convs("lateral_convs", 1, inputs)?;
        let smoothers = convs("fpn_convs", 3, &vec![outputs; inputs.len()])?;
        Ok(Self { laterals, smoothers, levels: config.num_outs })
    }

    /// Heights and widths of the levels for features of these sizes.
    pub fn level_sizes(&self, mut sizes: Vec<(usize, usize)>) -> Vec<(usize, usize)> {
        while let Some(&(height, width)) = sizes.last().filter(|_| sizes.len() < self.levels) {
            sizes.push((height.div_ceil(2), width.div_ceil(2)));
        }
        sizes
    }

    /// The levels from fine to coarse. Levels beyond the inputs subsample the previous level by 2.
    pub fn forward(&self, features: &[Tensor]) -> Result<Vec<Tensor>> {
        let mut merged =
            features.iter().zip(&self.laterals).map(|(x, conv)| conv.forward(x)).collect::<Result<Vec<_>>>()?;
        for level in (1..merged.len()).rev() {
            merged[level - 1] = match merged[level].device() {
                Device::Cpu => add_upsampled(merged[level - 1].shallow_clone(), &merged[level])?,
                _ => add_doubled(merged[level - 1].shallow_clone(), &merged[level])?,
            };
        }
        let mut levels =
            merged.iter().zip(&self.smoothers).map(|(x, conv)| conv.forward(x)).collect::<Result<Vec<_>>>()?;
        while let Some(last) = levels.last().filter(|_| levels.len() < self.levels) {
            levels.push(last.f_max_pool2d([1, 1], [2, 2], [0, 0], [1, 1], false)?);
        }
        Ok(levels)
    }
}

/// `fine` and `coarse` in its size, each value for its part of the places. Changes `fine`: a convolution does not need its
/// output in the backward pass.
fn add_upsampled(mut fine: Tensor, coarse: &Tensor) -> Result<Tensor> {
    let (_, _, height, width) = fine.size4()?;
    Ok(fine.f_add_(&coarse.f_upsample_nearest2d([height, width], None, None)?)?)
}

/// The same in one call, where the size doubles: each value is added to four.
fn add_doubled(fine: Tensor, coarse: &Tensor) -> Result<Tensor> {
    let (images, channels, height, width) = coarse.size4()?;
    if fine.size4()? != (images, channels, 2 * height, 2 * width) {
        return add_upsampled(fine, coarse);
    }
    let sum = fine
        .f_reshape([images, channels, height, 2, width, 2])?
        .f_add(&coarse.f_reshape([images, channels, height, 1, width, 1])?)?;
    Ok(sum.f_reshape([images, channels, 2 * height, 2 * width])?)
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn a_level_is_added_to_one_of_double_size_in_one_call() {
        let random = |shape: [i64; 4]| {
            let values = Tensor::randn(shape, (Kind::Float, Device::Cpu));
            torch_ext::memory::channels_last(&values).unwrap().set_requires_grad(true)
        };
        for size in [[2, 3, 8, 12], [2, 3, 7, 11]] {
            let (fine, coarse) = (random(size), random([2, 3, 4, 6]));
            let gradients =
                |sum: &Tensor| Tensor::run_backward(&[(sum * sum).sum(Kind::Float)], &[&fine, &coarse], false, false);
            let (expected, found) =
                (add_upsampled(&fine + 0.0, &coarse).unwrap(), add_doubled(&fine + 0.0, &coarse).unwrap());
            assert_eq!(found, expected);
            assert_eq!(found.stride(), fine.stride(), "channels last");
            assert!(gradients(&found).iter().zip(&gradients(&expected)).all(|(a, b)| a.allclose(b, 1e-6, 1e-6, false)));
        }
    }
}
