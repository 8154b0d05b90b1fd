//! The layers of a model with the shapes of their results, in the order of MMDetection's module tree.

use fnet_config::{self as config, Activation};

use super::{BBOX_ROIS, Layer, LayerKind, MASK_ROIS};
use crate::fasternet as shapes;

/// Channels, height and width of a feature map.
#[derive(Debug, Clone, Copy)]
struct Map {
    channels: u64,
    height: u64,
    width: u64,
}

impl Map {
    fn pixels(self) -> u64 {
        self.height * self.width
    }

    fn values(self) -> u64 {
        self.channels * self.pixels()
    }

    /// The output of a convolution without padding, or with the same size if `stride` is 1.
    fn convolved(self, channels: u64, stride: u64) -> Self {
        Self { channels, height: self.height / stride, width: self.width / stride }
    }
}

/// All layers for an image of `height` x `width` pixels.
pub(super) fn layers(model: &config::Model, height: u64, width: u64) -> Vec<Layer> {
    let mut walk = Walk::default();
    let features = walk.backbone(&model.backbone, Map { channels: 3, height, width });
    let levels = walk.neck(&model.neck, &features);
    walk.rpn(&model.rpn, &levels);
    walk.bbox_head(model);
    walk.mask_head(model);
    walk.layers
}

#[derive(Default)]
struct Walk {
    layers: Vec<Layer>,
}

impl Walk {
    /// Adds a convolution of `count` maps. Returns the output map.
    fn conv(&mut self, name: &str, count: u64, input: Map, output: Map, kernel: u64, bias: bool) -> Map {
        let weights = kernel * kernel * input.channels * output.channels;
        let macs = count * weights * output.pixels();
        let biases = if bias { output.channels } else { 0 };
        let values = count * output.values();
        let layer = Layer {
            name: name.to_owned(),
            kind: LayerKind::Conv2d,
            flops: macs + if bias { values } else { 0 },
            macs,
            params: weights + biases,
            activations: values,
            outputs: vec![vec![count, output.channels, output.height, output.width]],
        };
        self.push(layer);
        output
    }

    /// Adds a BatchNorm of one map.
    fn norm(&mut self, name: &str, map: Map) {
        let shape = vec![1, map.channels, map.height, map.width];
        self.simple(name, LayerKind::BatchNorm2d, 2 * map.values(), 2 * map.channels, shape);
    }

    /// Adds a layer without multiply-adds.
    fn simple(&mut self, name: &str, kind: LayerKind, flops: u64, params: u64, shape: Vec<u64>) {
        let (macs, activations, outputs) = (0, 0, vec![shape]);
        self.push(Layer { name: name.to_owned(), kind, flops, macs, params, activations, outputs });
    }

    fn relu(&mut self, name: &str, shape: Vec<u64>) {
        self.simple(name, LayerKind::Relu, shape.iter().product(), 0, shape);
    }

    fn linear(&mut self, name: &str, rows: u64, inputs: u64, outputs: u64) {
        let macs = rows * inputs * outputs;
        self.push(Layer {
            name: name.to_owned(),
            kind: LayerKind::Linear,
            flops: macs,
            macs,
            params: inputs * outputs + outputs,
            activations: rows * outputs,
            outputs: vec![vec![rows, outputs]],
        });
    }

    /// Adds a layer, or another call of an existing one. Its parameters are counted once.
    fn push(&mut self, layer: Layer) {
        match self.layers.iter_mut().find(|known| known.name == layer.name) {
            Some(known) => {
                known.flops += layer.flops;
                known.macs += layer.macs;
                known.activations += layer.activations;
                known.outputs.extend(layer.outputs);
            }
            None => self.layers.push(layer),
        }
    }

    fn backbone(&mut self, config: &config::Backbone, image: Map) -> Vec<Map> {
        let channels = shapes::stage_channels(config).map(|channels| channels as u64);
        let embedded = image.convolved(channels[0], shapes::PATCH as u64);
        let mut map = self.conv("backbone.patch_embed.proj", 1, image, embedded, shapes::PATCH as u64, false);
        self.norm("backbone.patch_embed.norm", map);
        let mut outputs = Vec::with_capacity(channels.len());
        for (stage, &channels) in channels.iter().enumerate() {
            if stage > 0 {
                let name = format!("backbone.stages.{}", 2 * stage - 1);
                let merged = map.convolved(channels, shapes::MERGE as u64);
                map = self.conv(&format!("{name}.reduction"), 1, map, merged, shapes::MERGE as u64, false);
                self.norm(&format!("{name}.norm"), map);
            }
            for block in 0..config.depths[stage] {
                self.block(&format!("backbone.stages.{}.blocks.{block}", 2 * stage), config, map);
            }
            outputs.push(map);
        }
        for (stage, map) in outputs.iter().enumerate() {
            self.norm(&format!("backbone.norm{}", 2 * stage), *map);
        }
        outputs
    }

    fn block(&mut self, name: &str, config: &config::Backbone, map: Map) {
        let hidden = shapes::hidden_channels(config, map.channels as i64) as u64;
        let hidden = self.conv(&format!("{name}.mlp.0"), 1, map, map.convolved(hidden, 1), 1, false);
        self.norm(&format!("{name}.mlp.1"), hidden);
        if config.activation == Activation::Relu {
            self.relu(&format!("{name}.mlp.2"), vec![1, hidden.channels, hidden.height, hidden.width]);
        }
        self.conv(&format!("{name}.mlp.3"), 1, hidden, map, 1, false);
        let part = map.convolved(shapes::convolved_channels(config, map.channels as i64) as u64, 1);
        self.conv(&format!("{name}.spatial_mixing.partial_conv3"), 1, part, part, 3, false);
    }

    fn neck(&mut self, config: &config::Neck, features: &[Map]) -> Vec<Map> {
        let channels = config.out_channels as u64;
        let levels: Vec<Map> = features.iter().map(|map| map.convolved(channels, 1)).collect();
        for (level, (&feature, &map)) in features.iter().zip(&levels).enumerate() {
            self.conv(&format!("neck.lateral_convs.{level}.conv"), 1, feature, map, 1, true);
        }
        for (level, &map) in levels.iter().enumerate() {
            self.conv(&format!("neck.fpn_convs.{level}.conv"), 1, map, map, 3, true);
        }
        let coarser = |map: &Map| Some(Map { channels, height: map.height.div_ceil(2), width: map.width.div_ceil(2) });
        let extra = config.num_outs.saturating_sub(levels.len());
        let last = levels.last().copied();
        let beyond = std::iter::successors(last, coarser).skip(1).take(extra);
        levels.iter().copied().chain(beyond).collect()
    }

    fn rpn(&mut self, config: &config::Rpn, levels: &[Map]) {
        let anchors = (config.anchor_ratios.len() * config.anchor_scales.len()) as u64;
        let heads = [("rpn_cls", anchors), ("rpn_reg", 4 * anchors)];
        let hidden = |map: Map| map.convolved(config.feat_channels as u64, 1);
        for &map in levels {
            self.conv("rpn_head.rpn_conv", 1, map, hidden(map), 3, true);
        }
        for (name, channels) in heads {
            for &map in levels {
                self.conv(&format!("rpn_head.{name}"), 1, hidden(map), map.convolved(channels, 1), 1, true);
            }
        }
    }

    fn bbox_head(&mut self, model: &config::Model) {
        let (head, classes) = (&model.roi_head, model.num_classes as u64);
        let width = head.bbox_fc_channels as u64;
        let inputs = (model.neck.out_channels * head.bbox_roi_size * head.bbox_roi_size) as u64;
        let name = |layer: &str| format!("roi_head.bbox_head.{layer}");
        self.linear(&name("fc_cls"), BBOX_ROIS, width, classes + 1);
        self.linear(&name("fc_reg"), BBOX_ROIS, width, 4 * classes);
        self.linear(&name("shared_fcs.0"), BBOX_ROIS, inputs, width);
        self.linear(&name("shared_fcs.1"), BBOX_ROIS, width, width);
        for _ in 0..2 {
            self.relu(&name("relu"), vec![BBOX_ROIS, width]);
        }
    }

    fn mask_head(&mut self, model: &config::Model) {
        let head = &model.roi_head;
        let side = head.mask_roi_size as u64;
        let mut map = Map { channels: model.neck.out_channels as u64, height: side, width: side };
        let name = |layer: &str| format!("roi_head.mask_head.{layer}");
        for index in 0..head.mask_convs {
            let output = map.convolved(head.mask_channels as u64, 1);
            map = self.conv(&name(&format!("convs.{index}.conv")), MASK_ROIS, map, output, 3, true);
            self.relu(&name(&format!("convs.{index}.activate")), vec![MASK_ROIS, map.channels, side, side]);
        }
        let upsampled = Map { channels: head.mask_channels as u64, height: 2 * side, width: 2 * side };
        let weights = 4 * map.channels * upsampled.channels;
        let (macs, values) = (MASK_ROIS * weights * map.pixels(), MASK_ROIS * upsampled.values());
        let shape = vec![MASK_ROIS, upsampled.channels, upsampled.height, upsampled.width];
        self.push(Layer {
            name: name("upsample"),
            kind: LayerKind::ConvTranspose2d,
            flops: macs + values,
            macs,
            params: weights + upsampled.channels,
            activations: values,
            outputs: vec![shape.clone()],
        });
        let logits = upsampled.convolved(model.num_classes as u64, 1);
        self.conv(&name("conv_logits"), MASK_ROIS, upsampled, logits, 1, true);
        self.relu(&name("relu"), shape);
    }
}
