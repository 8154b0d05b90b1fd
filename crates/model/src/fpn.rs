//! The feature pyramid (Lin et al., 2017).

use tch::Tensor;

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
            let (_, _, height, width) = merged[level - 1].size4()?;
            let upsampled = merged[level].f_upsample_nearest2d([height, width], None, None)?;
            // A convolution does not need its output in the backward pass: adding in place saves a copy.
            merged[level - 1] = merged[level - 1].f_add_(&upsampled)?;
        }
        let mut levels =
            merged.iter().zip(&self.smoothers).map(|(x, conv)| conv.forward(x)).collect::<Result<Vec<_>>>()?;
        while let Some(last) = levels.last().filter(|_| levels.len() < self.levels) {
            levels.push(last.f_max_pool2d([1, 1], [2, 2], [0, 0], [1, 1], false)?);
        }
        Ok(levels)
    }
}
