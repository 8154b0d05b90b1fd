//! The layers of the model. Convolution weights are channels-last in memory.

use tch::{Device, Kind, Tensor};

use fnet_common::{Error, Result};
use fnet_config::Activation;

use super::Parameters;
use super::init::Init;

/// Added to the variance before the square root.
const EPSILON: f64 = 1e-5;
/// Weight of the newest batch in the running statistics.
const MOMENTUM: f64 = 0.1;

/// Sums a tensor over all ranks. Differentiable: the gradient is the sum of the ranks' gradients.
pub type SumOverRanks = Box<dyn Fn(&Tensor) -> Result<Tensor> + Send>;

/// The mean and variance that BatchNorm uses.
#[derive(Clone, Copy)]
pub enum Statistics<'a> {
    /// Running statistics, for inference.
    Running,
    /// Statistics of this rank's batch, which also update the running statistics.
    Batch,
    /// Statistics over the batches of all ranks.
    Synchronized(&'a SumOverRanks),
}

/// A two-dimensional convolution: `[n, in, h, w]` to `[n, out, h', w']`.
#[derive(Debug)]
pub struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    stride: i64,
    padding: i64,
}

/// Shape of a [`Conv2d`].
#[derive(Debug, Clone, Copy)]
pub struct ConvShape {
    /// Input channels.
    pub inputs: i64,
    /// Output channels.
    pub outputs: i64,
    /// Side of the kernel.
    pub kernel: i64,
    /// Stride in pixels.
    pub stride: i64,
    /// Zeros around the input, in pixels on each side.
    pub padding: i64,
    /// Whether a bias is added.
    pub bias: bool,
}

impl ConvShape {
    /// Stride 1, padded to keep the size.
    pub fn same(inputs: i64, outputs: i64, kernel: i64, bias: bool) -> Self {
        Self { inputs, outputs, kernel, stride: 1, padding: kernel / 2, bias }
    }

    /// Non-overlapping patches without bias: patch embedding and merging.
    pub fn patches(inputs: i64, outputs: i64, side: i64) -> Self {
        Self { inputs, outputs, kernel: side, stride: side, padding: 0, bias: false }
    }

    /// Inputs of one output value.
    pub fn fan_in(&self) -> i64 {
        self.inputs * self.kernel * self.kernel
    }

    /// Outputs of one input value.
    pub fn fan_out(&self) -> i64 {
        self.outputs * self.kernel * self.kernel
    }
}

impl Conv2d {
    /// The kernel for extracted channels-last windows: `[outputs, kernel * kernel * inputs]`.
    pub fn window_weight(&self) -> Result<Tensor> {
        let (outputs, inputs, height, width) = self.weight.size4()?;
        // The permutation gives the gradient the kernel's strides.
        Ok(self.weight.f_permute([0, 2, 3, 1])?.f_reshape([outputs, height * width * inputs])?)
    }

    /// The convolution of extracted windows, `[n, kernel * kernel * inputs]` to `[n, outputs]`.
    pub fn at_windows(&self, windows: &Tensor) -> Result<Tensor> {
        Ok(windows.f_linear(&self.window_weight()?, self.bias.as_ref())?)
    }

    /// The bias, if any.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// The kernel.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Adds its tensors to `parameters` as `name.weight` and `name.bias`.
    pub fn new(parameters: &mut Parameters, name: &str, shape: ConvShape, init: Init) -> Result<Self> {
        let ConvShape { inputs, outputs, kernel, stride, padding, bias } = shape;
        let weight = parameters.parameter(format!("{name}.weight"), &[outputs, inputs, kernel, kernel], init)?;
        let bias =
            bias.then(|| parameters.parameter(format!("{name}.bias"), &[outputs], Init::Constant(0.0))).transpose()?;
        Ok(Self { weight, bias, stride, padding })
    }

    /// `[n, in, h, w]` to `[n, out, h', w']`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        Ok(x.f_conv2d(&self.weight, self.bias.as_ref(), stride, padding, [1, 1], 1)?)
    }
}

/// A fully connected layer: `[n, in]` to `[n, out]`.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    /// Adds its tensors to `parameters` as `name.weight` and `name.bias`.
    pub fn new(parameters: &mut Parameters, name: &str, inputs: i64, outputs: i64, init: Init) -> Result<Self> {
        let weight = parameters.parameter(format!("{name}.weight"), &[outputs, inputs], init)?;
        let bias = parameters.parameter(format!("{name}.bias"), &[outputs], Init::Constant(0.0))?;
        Ok(Self { weight, bias })
    }

    /// `[n, in]` to `[n, out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_linear(&self.weight, Some(&self.bias))?)
    }

    /// The layer and a ReLU: in one call on a GPU, in two calls on the CPU.
    pub fn forward_rectified(&self, x: &Tensor) -> Result<Tensor> {
        if x.device() == Device::Cpu {
            return Ok(self.forward(x)?.f_relu_()?);
        }
        Ok(torch_ext::block::linear_relu(x, &self.weight, &self.bias)?)
    }
}

/// Batch normalization over `[n, c, h, w]` (Ioffe and Szegedy, 2015).
#[derive(Debug)]
pub struct BatchNorm2d {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
}

impl BatchNorm2d {
    /// Adds its tensors to `parameters` below `name`.
    pub fn new(parameters: &mut Parameters, name: &str, channels: i64) -> Result<Self> {
        let (zero, one, shape) = (Init::Constant(0.0), Init::Constant(1.0), [channels]);
        let norm = Self {
            weight: parameters.parameter(format!("{name}.weight"), &shape, one)?,
            bias: parameters.parameter(format!("{name}.bias"), &shape, zero)?,
            running_mean: parameters.buffer(format!("{name}.running_mean"), &shape, Kind::Float, zero)?,
            running_var: parameters.buffer(format!("{name}.running_var"), &shape, Kind::Float, one)?,
        };
        // The owner of several norms counts batches for all of them: [`Parameters::join_counters`].
        let _ = parameters.buffer(format!("{name}.num_batches_tracked"), &[], Kind::Int64, zero)?;
        Ok(norm)
    }

    /// Normalizes `x` with the given statistics.
    pub fn forward(&self, x: &Tensor, statistics: Statistics) -> Result<Tensor> {
        self.forward_activated(x, statistics, None)
    }

    /// The norm followed by an activation, in one pass if there is a fused kernel.
    fn forward_activated(&self, x: &Tensor, statistics: Statistics, activation: Option<Activation>) -> Result<Tensor> {
        match statistics {
            Statistics::Running => activate(activation, self.forward_libtorch(x, false)?),
            Statistics::Synchronized(sum) => activate(activation, self.forward_synchronized(x, sum)?),
            Statistics::Batch => {
                if x.device() != Device::Cpu || x.kind() != Kind::Float {
                    return activate(activation, self.forward_libtorch(x, true)?);
                }
                let rectify = activation == Some(Activation::Relu);
                let y = torch_ext::norm::batch_norm(x, &self.values(), rectify)?;
                if rectify { Ok(y) } else { activate(activation, y) }
            }
        }
    }

    fn values(&self) -> torch_ext::norm::BatchNorm<'_> {
        torch_ext::norm::BatchNorm {
            weight: &self.weight,
            bias: &self.bias,
            running_mean: &self.running_mean,
            running_variance: &self.running_var,
            momentum: MOMENTUM,
            epsilon: EPSILON,
        }
    }

    fn forward_libtorch(&self, x: &Tensor, batch: bool) -> Result<Tensor> {
        Ok(x.f_batch_norm(
            Some(&self.weight),
            Some(&self.bias),
            Some(&self.running_mean),
            Some(&self.running_var),
            batch,
            MOMENTUM,
            EPSILON,
            true,
        )?)
    }

    /// Uses one reduction of `2 c + 1` values: sums, sums of squares and the count. They are relative to the running
    /// mean, which is equal on all ranks, to avoid cancellation in float32.
    fn forward_synchronized(&self, x: &Tensor, sum: &SumOverRanks) -> Result<Tensor> {
        let (n, channels, height, width) = x.size4()?;
        let values = x.f_to_kind(Kind::Float)?;
        let center = self.running_mean.f_detach()?;
        let shifted = values.f_sub(&center.f_reshape([1, channels, 1, 1])?)?;
        let axes = [0_i64, 2, 3];
        let count = Tensor::f_full([1], (n * height * width) as f64, (Kind::Float, x.device()))?;
        let sums = shifted.f_sum_dim_intlist(&axes[..], false, Kind::Float)?;
        let squares = shifted.f_square()?.f_sum_dim_intlist(&axes[..], false, Kind::Float)?;
        let total = sum(&Tensor::f_cat(&[sums, squares, count], 0)?)?;
        let count = total.f_narrow(0, 2 * channels, 1)?.f_detach()?;
        let mean = total.f_narrow(0, 0, channels)?.f_div(&count)?;
        let variance =
            total.f_narrow(0, channels, channels)?.f_div(&count)?.f_sub(&mean.f_square()?)?.f_clamp_min(0.0)?;
        self.follow(&mean.f_add(&center)?, &variance, &count)?;
        let scale = self.weight.f_mul(&variance.f_add_scalar(EPSILON)?.f_rsqrt()?)?;
        let offset = self.bias.f_sub(&mean.f_mul(&scale)?)?;
        let scaled = shifted.f_mul(&scale.f_reshape([1, channels, 1, 1])?)?;
        Ok(scaled.f_add(&offset.f_reshape([1, channels, 1, 1])?)?.f_to_kind(x.kind())?)
    }

    /// Updates the running statistics with those of a batch, with the unbiased variance.
    fn follow(&self, mean: &Tensor, variance: &Tensor, count: &Tensor) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let unbiased = variance.f_mul(count)?.f_div(&count.f_sub_scalar(1.0)?.f_clamp_min(1.0)?)?;
        for (running, value) in [(&self.running_mean, mean), (&self.running_var, &unbiased)] {
            let _ = running.shallow_clone().f_lerp_(value, MOMENTUM)?;
        }
        Ok(())
    }
}

/// A convolution followed by batch normalization, or after fusion a single convolution.
#[derive(Debug)]
pub struct ConvNorm {
    conv: Conv2d,
    norm: Option<BatchNorm2d>,
}

impl ConvNorm {
    /// Adds the tensors of the convolution and the norm to `parameters`, below `conv` and `norm`.
    pub fn new(parameters: &mut Parameters, conv: &str, norm: &str, shape: ConvShape, init: Init) -> Result<Self> {
        Ok(Self {
            conv: Conv2d::new(parameters, conv, shape, init)?,
            norm: Some(BatchNorm2d::new(parameters, norm, shape.outputs)?),
        })
    }

    /// Convolution, then norm.
    pub fn forward(&self, x: &Tensor, statistics: Statistics) -> Result<Tensor> {
        self.forward_activated(x, statistics, None)
    }

    /// Convolution, norm and activation.
    pub fn forward_activated(
        &self,
        x: &Tensor,
        statistics: Statistics,
        activation: Option<Activation>,
    ) -> Result<Tensor> {
        let x = self.conv.forward(x)?;
        match (&self.norm, statistics) {
            (Some(norm), _) => norm.forward_activated(&x, statistics, activation),
            (None, Statistics::Running) => activate(activation, x),
            (None, _) => Err(Error::bug("a model with BatchNorm fused into its convolutions cannot be trained")),
        }
    }

    /// Fuses the running statistics into new convolution weights. The named parameters do not change.
    pub fn fuse(&mut self) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let Some(norm) = self.norm.take() else { return Ok(()) };
        let scale = norm.weight.f_div(&norm.running_var.f_add_scalar(EPSILON)?.f_sqrt()?)?;
        let mean = match &self.conv.bias {
            Some(bias) => norm.running_mean.f_sub(bias)?,
            None => norm.running_mean.shallow_clone(),
        };
        self.conv.bias = Some(norm.bias.f_sub(&mean.f_mul(&scale)?)?);
        self.conv.weight = self.conv.weight.f_mul(&scale.f_reshape([-1, 1, 1, 1])?)?;
        Ok(())
    }
}

/// Applies the activation, if any, in place if possible.
fn activate(activation: Option<Activation>, mut x: Tensor) -> Result<Tensor> {
    match activation {
        Some(Activation::Relu) => Ok(x.f_relu_()?),
        Some(Activation::Gelu) => Ok(x.f_gelu("none")?),
        None => Ok(x),
    }
}

#[cfg(test)]
mod tests;
