//! Backbones: from images to feature maps of falling resolution.
//!
//! A backbone is a file of this folder with a [`BackboneKind`], which is listed in [`KINDS`]. `model.backbone.kind` chooses
//! one by its name; the other fields of `[model.backbone]` mean what the kind says.

pub mod fasternet;

use std::fmt::Debug;

use tch::Tensor;

use fnet_common::random::Generator;
use fnet_common::{Error, Result};
use fnet_config as config;

use super::Parameters;
use super::flops::{Layers, Map};
use super::layers::Statistics;

pub(crate) const KINDS: &[BackboneKind] = &[fasternet::KIND];

/// A backbone with its tensors.
pub trait Backbone: Debug + Send {
    /// The outputs, finest first, for `images` `[n, 3, h, w]`. `drop_path` holds what [`Backbone::draw_factors`] gave for a
    /// training step.
    fn forward(&self, images: &Tensor, statistics: Statistics<'_>, drop_path: Option<&Tensor>) -> Result<Vec<Tensor>>;

    /// Height and width of each output for images of this height and width.
    fn output_sizes(&self, image: (usize, usize)) -> Vec<(usize, usize)>;

    /// The random factors of a training step of `images` images, for example those of stochastic depth. `forward` gets them in
    /// this order as a one-dimensional tensor, which is empty if there are none; in inference it gets `None`.
    fn draw_factors(&self, _generator: &mut Generator, _images: usize) -> Vec<f32> {
        Vec::new()
    }

    /// Refuses a config that can only be used for inference.
    /// Errors: a usage error that names the field.
    fn check_trainable(&self) -> Result<()> {
        Ok(())
    }

    /// From now on, training leaves the patch embedding and the first `stages` stages as they are: their BatchNorm uses the
    /// running statistics, and they drop no branch. Their parameters get no gradient.
    /// Errors: if libtorch fails. Unless a kind implements it, a usage error.
    fn freeze(&mut self, _stages: usize) -> Result<()> {
        Err(Error::usage("model.frozen_stages: this kind of backbone has no stages to freeze; set it to -1"))
    }

    /// Folds each BatchNorm that follows a convolution into it.
    fn fuse(&mut self) -> Result<()> {
        Ok(())
    }
}

/// What is known of a kind of backbone before it is built.
#[derive(Debug)]
pub struct BackboneKind {
    /// Value of `model.backbone.kind`.
    pub name: &'static str,
    /// Refuses values of `[model.backbone]` that do not fit together, with the name of the field.
    pub check: fn(&config::Backbone) -> Result<()>,
    /// Channels of each output; their strides are 4, 8, 16 and 32.
    pub channels: fn(&config::Backbone) -> [i64; 4],
    /// Builds it and adds its tensors to the parameters, below the prefix.
    pub build: fn(&mut Parameters, &str, &config::Backbone) -> Result<Box<dyn Backbone>>,
    /// The part that a tensor belongs to, by its name without the prefix: 0 for the patch embedding, n for the n-th stage with
    /// its output norm. `model.frozen_stages` freezes by it.
    pub stage_of: fn(&str) -> Option<usize>,
    /// Adds its layers for an image, named as its tensors, and returns its outputs: FLOPs and memory are counted from them.
    pub layers: fn(&config::Backbone, Map, &mut Layers) -> Vec<Map>,
}

/// The kind of this name.
/// Errors: a usage error if there is none.
pub fn find(name: &str) -> Result<&'static BackboneKind> {
    KINDS.iter().find(|kind| kind.name == name).ok_or_else(|| {
        let names: Vec<String> = KINDS.iter().map(|kind| format!("{:?}", kind.name)).collect();
        Error::usage(format!("model.backbone.kind is {name:?}; expected {}", names.join(" or ")))
    })
}

#[cfg(test)]
mod tests {
    use fnet_common::ErrorKind;
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn a_kind_that_nobody_wrote_is_refused_with_those_that_exist() {
        let error = find("no-such-kind").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("\"no-such-kind\"; expected "), "{error}");
    }

    #[test]
    fn every_tensor_of_every_kind_belongs_to_a_stage() {
        for kind in KINDS {
            let config = config::Backbone { kind: kind.name.into(), ..config::Backbone::default() };
            let mut parameters = Parameters::new();
            (kind.build)(&mut parameters, "backbone", &config).unwrap();
            let mut seen = [0; 5];
            for (name, ..) in parameters.iter() {
                let stage = (kind.stage_of)(name.strip_prefix("backbone.").unwrap());
                seen[stage.unwrap_or_else(|| panic!("{}: {name}", kind.name))] += 1;
            }
            assert!(seen.iter().all(|&count| count > 0), "{}: {seen:?}", kind.name);
        }
    }

    #[test]
    fn outputs_and_layers_of_every_kind_agree() {
        for kind in KINDS {
            let config = config::Backbone { kind: kind.name.into(), ..config::Backbone::default() };
            let mut parameters = Parameters::new();
            let backbone = (kind.build)(&mut parameters, "backbone", &config).unwrap();
            // Images are padded to multiples of 32.
            for (height, width) in [(64, 96), (32, 32)] {
                let images = Tensor::zeros([1, 3, height, width], (Kind::Float, Device::Cpu));
                let outputs = tch::no_grad(|| backbone.forward(&images, Statistics::Running, None).unwrap());
                let made: Vec<_> = outputs.iter().map(|output| output.size4().unwrap()).collect();
                let image = Map { channels: 3, height: height as u64, width: width as u64 };
                let mut layers = Layers::default();
                let maps = (kind.layers)(&config, image, &mut layers);
                let counted: Vec<_> =
                    maps.iter().map(|map| (1, map.channels as i64, map.height as i64, map.width as i64)).collect();
                assert_eq!(counted, made, "{}: outputs of layers() and forward()", kind.name);
                let sizes: Vec<_> = backbone.output_sizes((height as usize, width as usize));
                let sizes: Vec<_> = sizes.into_iter().map(|(height, width)| (height as i64, width as i64)).collect();
                assert_eq!(sizes, made.iter().map(|size| (size.2, size.3)).collect::<Vec<_>>(), "{}", kind.name);
                assert_eq!((kind.channels)(&config).to_vec(), made.iter().map(|size| size.1).collect::<Vec<_>>());
                let mut counted: Vec<(String, u64)> =
                    layers.into_vec().into_iter().map(|layer| (layer.name, layer.params)).collect();
                counted.retain(|(_, params)| *params > 0);
                counted.sort();
                let mut built: std::collections::BTreeMap<String, u64> = std::collections::BTreeMap::new();
                for (name, tensor) in parameters.trainable() {
                    let layer = name.rsplit_once('.').unwrap().0;
                    *built.entry(layer.to_owned()).or_default() += tensor.numel() as u64;
                }
                assert_eq!(
                    counted,
                    built.into_iter().collect::<Vec<_>>(),
                    "{}: layers and their parameters",
                    kind.name
                );
            }
        }
    }
}
