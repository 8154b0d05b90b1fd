//! What a kind of backbone has to offer.

use std::fmt::Debug;

use tch::Tensor;

use fnet_common::random::Generator;
use fnet_common::{Error, Result};
use fnet_config as config;

use crate::Parameters;
use crate::counted_layers::{Layers, Map};
use crate::layers::Statistics;

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
