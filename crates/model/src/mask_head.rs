//! The mask head (He et al., 2017): predicts a mask for the class of every RoI.

use tch::{Device, Tensor};
use torch_ext::block::linear_relu;

use fnet_common::Result;
use fnet_config as config;

use super::Parameters;
use super::init::Init;
use super::layers::{Conv2d, ConvShape};
use super::losses::{Loss, mean_binary_cross_entropy};

/// 3x3 convolutions, a transposed convolution that doubles the size, and one logit per class and pixel.
#[derive(Debug)]
pub struct MaskHead {
    convs: Vec<Conv2d>,
    upsample_weight: Tensor,
    upsample_bias: Tensor,
    logits_weight: Tensor,
    logits_bias: Tensor,
}

impl MaskHead {
    /// Adds its tensors to `parameters` below `prefix`; `inputs` are the channels of the features.
    pub fn new(parameters: &mut Parameters, prefix: &str, inputs: i64, model: &config::Model) -> Result<Self> {
        let (head, classes) = (&model.roi_head, model.num_classes as i64);
        let width = head.mask_channels as i64;
        let mut convs = Vec::with_capacity(head.mask_convs);
        let mut channels = inputs;
        for index in 0..head.mask_convs {
            let shape = ConvShape::same(channels, width, 3, true);
            let init = Init::kaiming_normal(shape.fan_out());
            convs.push(Conv2d::new(parameters, &format!("{prefix}.convs.{index}.conv"), shape, init)?);
            channels = width;
        }
        // MMDetection computes the fan-out of a transposed convolution from its first axis, the inputs.
        let init = Init::kaiming_normal(channels * 4);
        let mut add = |name: &str, shape: &[i64], init| parameters.parameter(format!("{prefix}.{name}"), shape, init);
        let zero = Init::Constant(0.0);
        Ok(Self {
            convs,
            upsample_weight: add("upsample.weight", &[channels, width, 2, 2], init)?,
            upsample_bias: add("upsample.bias", &[width], zero)?,
            logits_weight: add("conv_logits.weight", &[classes, width, 1, 1], Init::kaiming_normal(classes))?,
            logits_bias: add("conv_logits.bias", &[classes], zero)?,
        })
    }

    /// Logits `[k, 2 s, 2 s]` of the masks of RoI features `[k, c, s, s]`, each of the class in `labels` (`[k]`).
    ///
    /// MMDetection computes all classes and selects one; this computes only the selected class. The transposed
    /// convolution has kernel 2 and stride 2, so it maps every pixel to four independently. It is therefore a matrix
    /// product, like the logit layer, and the pixels are reordered at the end, when each has one value.
    pub fn forward(&self, features: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let logits = self.logits(features, labels, features.device() != Device::Cpu)?;
        let (rois, height, _, width, _) = logits.size5()?;
        Ok(logits.f_reshape([rois, 2 * height, 2 * width])?)
    }

    /// The loss of the masks that [`MaskHead::forward`] would give, against `targets` `[k, 2 s, 2 s]`
    /// ([`super::losses::binary_targets`]).
    pub fn loss_of(&self, features: &Tensor, labels: &Tensor, targets: &Tensor) -> Result<Loss> {
        if features.device() == Device::Cpu {
            return mean_binary_cross_entropy(&self.forward(features, labels)?, targets);
        }
        // The loss does not depend on the pixel order, so the pixels are not reordered.
        let logits = self.logits(features, labels, true)?;
        mean_binary_cross_entropy(&logits, &targets.f_reshape(&logits.size()[..])?)
    }

    /// Logits `[k, s, 2, s, 2]`: rows, rows in a window, columns, columns in a window. `few_calls` is the fast path for
    /// GPUs. The CPU path keeps its order of operations, because another order rounds differently.
    fn logits(&self, features: &Tensor, labels: &Tensor, few_calls: bool) -> Result<Tensor> {
        let mut x = features.shallow_clone();
        for conv in &self.convs {
            x = conv.forward(&x)?.f_relu_()?;
        }
        let (rois, channels, height, width) = x.size4()?;
        let pixels = x.f_permute([0, 2, 3, 1])?.f_reshape([rois * height * width, channels])?;
        // In the right factor, rows are inputs and columns are (row in the window, column in the window, output).
        let outputs = self.upsample_weight.size4()?.1;
        let weight = self.upsample_weight.f_permute([0, 2, 3, 1])?.f_reshape([channels, 4 * outputs])?;
        let upsampled = match few_calls {
            true => linear_relu(&pixels, &weight.f_transpose(0, 1)?, &self.upsample_bias)?,
            false => self.upsample_bias.f_repeat([4])?.f_addmm(&pixels, &weight)?.f_relu_()?,
        };
        let upsampled = upsampled.f_reshape([rois, height * width * 4, outputs])?;
        // The permutation gives the gradient the kernel's strides.
        let weight = self.logits_weight.f_permute([0, 2, 3, 1])?.f_flatten(1, 3)?;
        let own = weight.f_index_select(0, labels)?.f_unsqueeze(2)?;
        let bias = self.logits_bias.f_index_select(0, labels)?.f_reshape([rois, 1, 1])?;
        let logits = match few_calls {
            true => bias.f_baddbmm(&upsampled, &own, 1.0, 1.0)?,
            false => upsampled.f_bmm(&own)?.f_add(&bias)?,
        };
        Ok(logits.f_reshape([rois, height, width, 2, 2])?.f_permute([0, 1, 3, 2, 4])?)
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    /// The layers as in MMDetection: computes all classes, then selects one.
    fn all_classes(head: &MaskHead, features: &Tensor, labels: &Tensor) -> Tensor {
        let mut x = features.shallow_clone();
        for conv in &head.convs {
            x = conv.forward(&x).unwrap().relu();
        }
        let x = x.conv_transpose2d(&head.upsample_weight, Some(&head.upsample_bias), [2, 2], [0, 0], [0, 0], 1, [1, 1]);
        let x = x.relu().conv2d(&head.logits_weight, Some(&head.logits_bias), [1, 1], [0, 0], [1, 1], 1);
        let rows = Tensor::arange(labels.size()[0], (Kind::Int64, Device::Cpu));
        x.index(&[Some(rows), Some(labels.shallow_clone())])
    }

    #[test]
    fn logits_and_gradients_equal_those_selected_from_all_classes() {
        let mut parameters = Parameters::new();
        let mut model = config::Model { num_classes: 3, ..Default::default() };
        (model.roi_head.mask_convs, model.roi_head.mask_channels) = (1, 6);
        let head = MaskHead::new(&mut parameters, "m", 5, &model).unwrap();
        parameters.initialize(1).unwrap();
        tch::no_grad(|| {
            for name in ["m.upsample.bias", "m.conv_logits.bias"] {
                let _ = parameters.get(name).unwrap().shallow_clone().uniform_(-1.0, 1.0);
            }
        });
        let features = Tensor::randn([4, 5, 3, 3], (Kind::Float, Device::Cpu));
        let labels = Tensor::from_slice(&[2i64, 0, 2, 1]);
        let gradients = |logits: Tensor| {
            let tensors: Vec<&Tensor> = parameters.trainable().map(|(_, tensor)| tensor).collect();
            Tensor::run_backward(&[logits.square().sum(Kind::Float)], &tensors, false, false)
        };
        let expected = all_classes(&head, &features, &labels);
        let expected_gradients = gradients(expected.shallow_clone());
        for few_calls in [false, true] {
            let logits = head.logits(&features, &labels, few_calls).unwrap();
            let actual = logits.reshape([4, 6, 6]);
            assert!(actual.allclose(&expected, 1e-5, 1e-5, false));
            assert!(few_calls || actual == head.forward(&features, &labels).unwrap());
            // The loss does not depend on the order of the pixels.
            let targets = expected.gt(0.0).to_kind(Kind::Float);
            let loss = mean_binary_cross_entropy(&logits, &targets.reshape([4, 3, 2, 3, 2])).unwrap().value;
            let plain = mean_binary_cross_entropy(&expected, &targets).unwrap().value;
            assert!(loss.allclose(&plain, 1e-5, 1e-6, false));
            for (actual, expected) in gradients(actual).iter().zip(&expected_gradients) {
                assert!(actual.allclose(expected, 1e-4, 1e-4, false));
            }
        }
    }

    #[test]
    fn without_rois_the_loss_is_zero_and_every_parameter_has_a_gradient() {
        let mut parameters = Parameters::new();
        let head = MaskHead::new(&mut parameters, "m", 4, &config::Model::default()).unwrap();
        let features = Tensor::zeros([0, 4, 14, 14], (Kind::Float, Device::Cpu));
        let logits = head.forward(&features, &Tensor::zeros([0], (Kind::Int64, Device::Cpu))).unwrap();
        assert_eq!(logits.size(), [0, 28, 28]);
        let loss = mean_binary_cross_entropy(&logits, &logits.detach()).unwrap().value;
        assert_eq!(f64::try_from(&loss).unwrap(), 0.0);
        loss.backward();
        for (name, tensor) in parameters.trainable() {
            assert!(tensor.grad().defined(), "{name} has no gradient");
        }
    }
}
