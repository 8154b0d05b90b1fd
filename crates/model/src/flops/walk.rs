//! The layers of a model with the shapes of their results, in the order of MMDetection's module tree.

use fnet_common::Result;
use fnet_config as config;

use crate::backbones;
use crate::counted_layers::{Layer, LayerKind, Layers, Map};

/// Number of RoIs in the box head.
pub const BBOX_ROIS: u64 = 1000;
/// Number of RoIs in the mask head.
pub const MASK_ROIS: u64 = 100;

/// All layers for an image of `height` x `width` pixels.
pub(super) fn layers_of(model: &config::Model, height: u64, width: u64) -> Result<Layers> {
    let backbone = backbones::find(&model.backbone.kind)?;
    let mut layers = Layers::default();
    let features = (backbone.layers)(&model.backbone, Map { channels: 3, height, width }, &mut layers);
    let levels = neck(&mut layers, &model.neck, &features);
    rpn(&mut layers, &model.rpn, &levels);
    bbox_head(&mut layers, model);
    if model.mask {
        mask_head(&mut layers, model);
    }
    Ok(layers)
}

fn neck(layers: &mut Layers, config: &config::Neck, features: &[Map]) -> Vec<Map> {
    let channels = config.out_channels as u64;
    let levels: Vec<Map> = features.iter().map(|map| map.convolved(channels, 1)).collect();
    for (level, (&feature, &map)) in features.iter().zip(&levels).enumerate() {
        layers.conv(&format!("neck.lateral_convs.{level}.conv"), 1, feature, map, 1, true);
    }
    for (level, &map) in levels.iter().enumerate() {
        layers.conv(&format!("neck.fpn_convs.{level}.conv"), 1, map, map, 3, true);
    }
    let coarser = |map: &Map| Some(Map { channels, height: map.height.div_ceil(2), width: map.width.div_ceil(2) });
    let extra = config.num_outs.saturating_sub(levels.len());
    let last = levels.last().copied();
    let beyond = std::iter::successors(last, coarser).skip(1).take(extra);
    levels.iter().copied().chain(beyond).collect()
}

fn rpn(layers: &mut Layers, config: &config::Rpn, levels: &[Map]) {
    let anchors = (config.anchor_ratios.len() * config.anchor_scales.len()) as u64;
    let heads = [("rpn_cls", anchors), ("rpn_reg", 4 * anchors)];
    let hidden = |map: Map| map.convolved(config.feat_channels as u64, 1);
    for &map in levels {
        layers.conv("rpn_head.rpn_conv", 1, map, hidden(map), 3, true);
    }
    for (name, channels) in heads {
        for &map in levels {
            layers.conv(&format!("rpn_head.{name}"), 1, hidden(map), map.convolved(channels, 1), 1, true);
        }
    }
}

fn bbox_head(layers: &mut Layers, model: &config::Model) {
    let (head, classes) = (&model.roi_head, model.num_classes as u64);
    let width = head.bbox_fc_channels as u64;
    let inputs = (model.neck.out_channels * head.bbox_roi_size * head.bbox_roi_size) as u64;
    let name = |layer: &str| format!("roi_head.bbox_head.{layer}");
    layers.linear(&name("fc_cls"), BBOX_ROIS, width, classes + 1);
    layers.linear(&name("fc_reg"), BBOX_ROIS, width, 4 * classes);
    layers.linear(&name("shared_fcs.0"), BBOX_ROIS, inputs, width);
    layers.linear(&name("shared_fcs.1"), BBOX_ROIS, width, width);
    for _ in 0..2 {
        layers.relu(&name("relu"), vec![BBOX_ROIS, width]);
    }
}

fn mask_head(layers: &mut Layers, model: &config::Model) {
    let head = &model.roi_head;
    let side = head.mask_roi_size as u64;
    let mut map = Map { channels: model.neck.out_channels as u64, height: side, width: side };
    let name = |layer: &str| format!("roi_head.mask_head.{layer}");
    for index in 0..head.mask_convs {
        let output = map.convolved(head.mask_channels as u64, 1);
        map = layers.conv(&name(&format!("convs.{index}.conv")), MASK_ROIS, map, output, 3, true);
        layers.relu(&name(&format!("convs.{index}.activate")), vec![MASK_ROIS, map.channels, side, side]);
    }
    let upsampled = Map { channels: head.mask_channels as u64, height: 2 * side, width: 2 * side };
    let weights = 4 * map.channels * upsampled.channels;
    let (macs, values) = (MASK_ROIS * weights * map.pixels(), MASK_ROIS * upsampled.values());
    let shape = vec![MASK_ROIS, upsampled.channels, upsampled.height, upsampled.width];
    layers.push(Layer {
        name: name("upsample"),
        kind: LayerKind::ConvTranspose2d,
        flops: macs + values,
        macs,
        params: weights + upsampled.channels,
        activations: values,
        outputs: vec![shape.clone()],
    });
    let logits = upsampled.convolved(model.num_classes as u64, 1);
    layers.conv(&name("conv_logits"), MASK_ROIS, upsampled, logits, 1, true);
    layers.relu(&name("relu"), shape);
}
