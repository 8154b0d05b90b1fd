//! FasterNet (Chen et al., CVPR 2023): the backbone.

use tch::Tensor;
use torch_ext::block;

use fnet_common::random::Generator;
use fnet_common::{Error, Result};
use fnet_config::{self as config, Activation, PartialConv};

use super::kind::{Backbone, BackboneKind};
use crate::Parameters;
use crate::counted_layers::{Layers, Map};
use crate::init::Init;
use crate::layers::{BatchNorm2d, Conv2d, ConvNorm, ConvShape, Statistics};

/// `model.backbone.kind = "fasternet"`.
pub const KIND: BackboneKind = BackboneKind {
    name: "fasternet",
    check,
    channels: stage_channels,
    build: |parameters, prefix, config| Ok(Box::new(FasterNet::new(parameters, prefix, config)?)),
    stage_of,
    layers,
};

/// Size and stride of the patch embedding.
const PATCH: i64 = 4;
/// Size and stride of patch merging between stages.
const MERGE: i64 = 2;

/// `patch_embed` is 0; stage n is `stages.2n-3`, its patch merging, `stages.2n-2`, its blocks, and `norm2n-2`.
fn stage_of(name: &str) -> Option<usize> {
    let (module, rest) = name.split_once('.')?;
    match module {
        "patch_embed" => Some(0),
        "stages" => rest.split('.').next()?.parse().ok().map(|index: usize| index.div_ceil(2) + 1),
        norm => norm.strip_prefix("norm")?.parse().ok().map(|index: usize| index / 2 + 1),
    }
}

/// Channels of each stage.
fn stage_channels(config: &config::Backbone) -> [i64; 4] {
    [0, 1, 2, 3].map(|stage| (config.embed_dim << stage) as i64)
}

/// Channels inside a block of `channels`.
fn hidden_channels(config: &config::Backbone, channels: i64) -> i64 {
    (channels as f64 * config.mlp_ratio) as i64
}

/// Channels that the partial convolution of a block of `channels` processes.
fn convolved_channels(config: &config::Backbone, channels: i64) -> i64 {
    channels / config.n_div as i64
}

/// Patch embedding and four stages, each with a normalized output.
#[derive(Debug)]
pub struct FasterNet {
    patch_embed: ConvNorm,
    stages: Vec<Stage>,
    partial_conv: PartialConv,
    drop_rates: Vec<f64>,
    /// Number of batches that each norm has seen.
    counters: Tensor,
    frozen: Option<Frozen>,
}

#[derive(Debug)]
struct Frozen {
    /// The last frozen stage; 0 for the patch embedding.
    last: usize,
    /// 1 for each counter of a norm that uses batch statistics, else 0.
    counted: Tensor,
}

#[derive(Debug)]
struct Stage {
    /// Halves the size and doubles the channels. `None` before the first stage.
    merging: Option<ConvNorm>,
    blocks: Vec<Block>,
    /// Normalizes the input of the pyramid. The next stage uses the values before normalization.
    norm: BatchNorm2d,
}

impl FasterNet {
    /// Adds its tensors to `parameters` below `prefix`.
    pub fn new(parameters: &mut Parameters, prefix: &str, config: &config::Backbone) -> Result<Self> {
        let channels = stage_channels(config);
        let patch_embed = ConvNorm::new(
            parameters,
            &format!("{prefix}.patch_embed.proj"),
            &format!("{prefix}.patch_embed.norm"),
            ConvShape::patches(3, channels[0], PATCH),
            Init::BACKBONE,
        )?;
        let mut bodies = Vec::with_capacity(4);
        for (stage, &channels) in channels.iter().enumerate() {
            let merging = (stage > 0)
                .then(|| merging(parameters, &format!("{prefix}.stages.{}", 2 * stage - 1), channels / 2))
                .transpose()?;
            let blocks = (0..config.depths[stage])
                .map(|block| {
                    let name = format!("{prefix}.stages.{}.blocks.{block}", 2 * stage);
                    Block::new(parameters, &name, channels, config)
                })
                .collect::<Result<Vec<_>>>()?;
            bodies.push((merging, blocks));
        }
        let mut stages = Vec::with_capacity(4);
        for (stage, (merging, blocks)) in bodies.into_iter().enumerate() {
            let norm = BatchNorm2d::new(parameters, &format!("{prefix}.norm{}", 2 * stage), channels[stage])?;
            stages.push(Stage { merging, blocks, norm });
        }
        let counters = parameters.join_counters(&format!("{prefix}."))?;
        Ok(Self {
            patch_embed,
            stages,
            partial_conv: config.partial_conv,
            drop_rates: drop_rates(config),
            counters,
            frozen: None,
        })
    }

    /// The factors `[n, 1, 1, 1]` of each block, or `None` if it drops nothing.
    fn masks(&self, factors: &Tensor) -> Result<Vec<Option<Tensor>>> {
        if factors.numel() == 0 {
            return Ok(Vec::new());
        }
        let factors = factors.f_reshape([self.drop_rates.len() as i64, -1, 1, 1, 1])?;
        (0..)
            .zip(&self.drop_rates)
            .map(|(block, &rate)| Ok(if rate == 0.0 { None } else { Some(factors.f_select(0, block)?) }))
            .collect()
    }
}

impl Backbone for FasterNet {
    fn output_sizes(&self, (height, width): (usize, usize)) -> Vec<(usize, usize)> {
        let scale = |stage: u32| PATCH as usize * (MERGE as usize).pow(stage);
        (0..self.stages.len() as u32).map(|stage| (height / scale(stage), width / scale(stage))).collect()
    }

    /// The normalized outputs of the four stages.
    fn forward(&self, images: &Tensor, statistics: Statistics, drop_path: Option<&Tensor>) -> Result<Vec<Tensor>> {
        if !matches!(statistics, Statistics::Running) {
            let mut counters = self.counters.shallow_clone();
            let _ = match &self.frozen {
                None => counters.f_add_scalar_(1)?,
                Some(frozen) => counters.f_add_(&frozen.counted)?,
            };
        }
        let is_frozen = |stage: usize| self.frozen.as_ref().is_some_and(|frozen| stage <= frozen.last);
        let statistics_of = |stage: usize| if is_frozen(stage) { Statistics::Running } else { statistics };
        let mut x = self.patch_embed.forward(images, statistics_of(0))?;
        let masks = drop_path.map(|factors| self.masks(factors)).transpose()?.unwrap_or_default();
        // Values that autograd needs for the gradient must not be overwritten.
        let in_place = self.partial_conv == PartialConv::Slicing && masks.is_empty() && !x.requires_grad();
        let mut masks = masks.iter();
        let mut outputs = Vec::with_capacity(self.stages.len());
        for (number, stage) in (1..).zip(&self.stages) {
            let statistics = statistics_of(number);
            if let Some(merging) = &stage.merging {
                x = merging.forward(&x, statistics)?;
            }
            for block in &stage.blocks {
                let mask = masks.next().and_then(Option::as_ref).filter(|_| !is_frozen(number));
                x = if in_place {
                    block.forward_in_place(x, statistics)?
                } else {
                    block.forward(&x, statistics, mask)?
                };
            }
            outputs.push(stage.norm.forward(&x, statistics)?);
        }
        Ok(outputs)
    }

    /// For each block and each of `images`, the factor of its branch: 0 if it is dropped, otherwise one over the keep
    /// probability (Huang et al., 2016). Empty if no block drops its branch.
    fn draw_factors(&self, generator: &mut Generator, images: usize) -> Vec<f32> {
        if self.drop_rates.iter().all(|&rate| rate == 0.0) {
            return Vec::new();
        }
        let mut factors = Vec::with_capacity(self.drop_rates.len() * images);
        for &rate in &self.drop_rates {
            let keep = 1.0 - rate;
            factors.extend((0..images).map(|_| if generator.uniform() < keep { (1.0 / keep) as f32 } else { 0.0 }));
        }
        factors
    }

    /// Checks that the partial convolution can be trained.
    fn check_trainable(&self) -> Result<()> {
        match self.partial_conv {
            PartialConv::SplitCat => Ok(()),
            PartialConv::Slicing => Err(Error::usage(
                "model.backbone.partial_conv is \"slicing\", which overwrites its input and cannot be trained: \
                 set it to \"split_cat\" (the results are equal)",
            )),
        }
    }

    fn freeze(&mut self, stages: usize) -> Result<()> {
        // In the order of the counters: patch embedding, the stages, their output norms.
        let mut owners = vec![0];
        for (number, stage) in (1..).zip(&self.stages) {
            owners.extend(vec![number; usize::from(stage.merging.is_some()) + stage.blocks.len()]);
        }
        owners.extend(1..=self.stages.len());
        let counted: Vec<i64> = owners.into_iter().map(|owner| i64::from(owner > stages)).collect();
        let counted = Tensor::f_from_slice(&counted)?.f_to_device(self.counters.device())?;
        self.frozen = Some(Frozen { last: stages, counted });
        Ok(())
    }

    fn fuse(&mut self) -> Result<()> {
        self.patch_embed.fuse()?;
        for stage in &mut self.stages {
            stage.merging.as_mut().map(ConvNorm::fuse).transpose()?;
            stage.blocks.iter_mut().try_for_each(|block| block.expand.fuse())?;
        }
        Ok(())
    }
}

/// The drop path rate of each block, increasing linearly from 0 to the configured rate.
fn drop_rates(config: &config::Backbone) -> Vec<f64> {
    let blocks = config.depths.iter().sum::<usize>();
    let last = blocks.saturating_sub(1).max(1) as f64;
    (0..blocks).map(|block| config.drop_path_rate * block as f64 / last).collect()
}

fn merging(parameters: &mut Parameters, name: &str, channels: i64) -> Result<ConvNorm> {
    let shape = ConvShape::patches(channels, 2 * channels, MERGE);
    ConvNorm::new(parameters, &format!("{name}.reduction"), &format!("{name}.norm"), shape, Init::BACKBONE)
}

/// Refuses widths without a channel to convolve.
fn check(config: &config::Backbone) -> Result<()> {
    let (embed_dim, n_div) = (config.embed_dim, config.n_div);
    if let Some((field, _)) = [("embed_dim", embed_dim), ("n_div", n_div)].iter().find(|(_, value)| *value == 0) {
        return Err(Error::usage(format!("model.backbone.{field} is 0: a positive number is expected")));
    }
    if embed_dim < n_div {
        return Err(Error::usage(format!(
            "model.backbone.n_div is {n_div}: at most model.backbone.embed_dim ({embed_dim}) is expected, \
             so that at least one channel is convolved"
        )));
    }
    Ok(())
}

/// The layers in the order of MMDetection's module tree.
fn layers(config: &config::Backbone, image: Map, layers: &mut Layers) -> Vec<Map> {
    let channels = stage_channels(config).map(|channels| channels as u64);
    let embedded = image.convolved(channels[0], PATCH as u64);
    let mut map = layers.conv("backbone.patch_embed.proj", 1, image, embedded, PATCH as u64, false);
    layers.norm("backbone.patch_embed.norm", map);
    let mut outputs = Vec::with_capacity(channels.len());
    for (stage, &channels) in channels.iter().enumerate() {
        if stage > 0 {
            let name = format!("backbone.stages.{}", 2 * stage - 1);
            let merged = map.convolved(channels, MERGE as u64);
            map = layers.conv(&format!("{name}.reduction"), 1, map, merged, MERGE as u64, false);
            layers.norm(&format!("{name}.norm"), map);
        }
        for block in 0..config.depths[stage] {
            block_layers(&format!("backbone.stages.{}.blocks.{block}", 2 * stage), config, map, layers);
        }
        outputs.push(map);
    }
    for (stage, map) in outputs.iter().enumerate() {
        layers.norm(&format!("backbone.norm{}", 2 * stage), *map);
    }
    outputs
}

fn block_layers(name: &str, config: &config::Backbone, map: Map, layers: &mut Layers) {
    let hidden = hidden_channels(config, map.channels as i64) as u64;
    let hidden = layers.conv(&format!("{name}.mlp.0"), 1, map, map.convolved(hidden, 1), 1, false);
    layers.norm(&format!("{name}.mlp.1"), hidden);
    match config.activation {
        Activation::Relu => {
            layers.relu(&format!("{name}.mlp.2"), vec![1, hidden.channels, hidden.height, hidden.width])
        }
        Activation::Gelu => layers.uncounted(hidden),
    }
    layers.conv(&format!("{name}.mlp.3"), 1, hidden, map, 1, false);
    let part = map.convolved(convolved_channels(config, map.channels as i64) as u64, 1);
    layers.conv(&format!("{name}.spatial_mixing.partial_conv3"), 1, part, part, 3, false);
}

/// `x + mlp(partial_conv(x))`: a 3x3 convolution of the first channels, then two 1x1 convolutions of all.
#[derive(Debug)]
struct Block {
    expand: ConvNorm,
    activation: Activation,
    reduce: Conv2d,
    partial: Conv2d,
    /// Channels that the partial convolution processes.
    convolved: i64,
}

impl Block {
    fn new(parameters: &mut Parameters, name: &str, channels: i64, config: &config::Backbone) -> Result<Self> {
        let hidden = hidden_channels(config, channels);
        let convolved = convolved_channels(config, channels);
        let init = Init::BACKBONE;
        let expand = ConvNorm::new(
            parameters,
            &format!("{name}.mlp.0"),
            &format!("{name}.mlp.1"),
            ConvShape::same(channels, hidden, 1, false),
            init,
        )?;
        let shape = ConvShape::same(hidden, channels, 1, false);
        let reduce = Conv2d::new(parameters, &format!("{name}.mlp.3"), shape, init)?;
        let shape = ConvShape::same(convolved, convolved, 3, false);
        let partial = Conv2d::new(parameters, &format!("{name}.spatial_mixing.partial_conv3"), shape, init)?;
        Ok(Self { expand, activation: config.activation, reduce, partial, convolved })
    }

    /// `mask` holds the factors of the branch, if any.
    fn forward(&self, x: &Tensor, statistics: Statistics, mask: Option<&Tensor>) -> Result<Tensor> {
        let (mixed, shortcut) = block::partial_conv(x, self.partial.weight())?;
        let branch = self.branch(&mixed, statistics)?;
        match mask {
            Some(mask) => Ok(block::add_scaled(&shortcut, &branch, mask)?),
            None => Ok(shortcut.f_add(&branch)?),
        }
    }

    /// Like `forward` without gradient, in the memory of `x`: overwrites the convolved channels, and restores a saved
    /// copy for the shortcut.
    fn forward_in_place(&self, mut x: Tensor, statistics: Statistics) -> Result<Tensor> {
        let mut window = x.f_narrow(1, 0, self.convolved)?;
        let saved = window.f_detach_copy()?;
        window.f_copy_(&self.partial.forward(&saved)?)?;
        let branch = self.branch(&x, statistics)?;
        window.f_copy_(&saved)?;
        Ok(x.f_add_(&branch)?)
    }

    fn branch(&self, mixed: &Tensor, statistics: Statistics) -> Result<Tensor> {
        self.reduce.forward(&self.expand.forward_activated(mixed, statistics, Some(self.activation))?)
    }
}

#[cfg(test)]
mod tests;
