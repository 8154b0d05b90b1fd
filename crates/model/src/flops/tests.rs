use fnet_config::Model;

use super::*;

fn family(embed_dim: usize, depths: [usize; 4]) -> Model {
    let mut model = Model::default();
    (model.backbone.embed_dim, model.backbone.depths) = (embed_dim, depths);
    model
}

#[test]
fn totals_of_s_m_and_l_match_mmdetection() {
    for (embed_dim, depths, flops, params, printed) in [
        (128, [1, 2, 13, 2], 265_259_083_700, 48_989_936, ["265.26 GFLOPs", "48.99 M", "leaves 258.49 GFLOPs"]),
        (144, [3, 4, 18, 3], 351_177_547_700, 71_228_448, ["351.18 GFLOPs", "71.23 M", "leaves 344.41 GFLOPs"]),
        (192, [3, 4, 18, 3], 491_060_299_700, 110_866_416, ["491.06 GFLOPs", "110.87 M", "leaves 484.29 GFLOPs"]),
    ] {
        for (height, width) in [(1280, 800), (800, 1280)] {
            let report = count(&family(embed_dim, depths), height, width).unwrap();
            assert_eq!((report.total.flops, report.total.params), (flops, params), "embed_dim {embed_dim}");
            let text = report.to_string();
            assert!(printed.iter().all(|part| text.contains(part)), "{text}");
        }
    }
}

#[test]
fn modules_add_up_to_the_total_as_in_mmdetection() {
    let report = count(&Model::default(), 1280, 800).unwrap();
    let flops: Vec<u64> = report.per_module.values().map(|cost| cost.flops).collect();
    assert_eq!(flops, [93_130_752_000, 54_110_720_000, 50_638_898_100, 14_306_304_000, 53_072_409_600]);
    assert_eq!(report.per_module.values().map(|cost| cost.params).sum::<u64>(), report.total.params);
    assert_eq!(report.per_module.values().map(|cost| cost.macs).sum::<u64>(), report.total.macs);
    assert_eq!(report.per_module.values().map(|cost| cost.activations).sum::<u64>(), report.total.activations);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["flops"], 265_259_083_700_u64);
    assert_eq!(json["per_module"]["roi_head.mask_head"]["flops"], 53_072_409_600_u64);
}

/// Derives the multiply-adds of each layer from its positions and trainable values.
#[test]
fn multiply_adds_and_activations_follow_from_parameters_and_shapes() {
    for (height, width) in [(1280, 800), (801, 1203), (33, 64)] {
        for layer in count(&Model::default(), height, width).unwrap().layers {
            let product = |shape: &Vec<u64>| shape.iter().product::<u64>();
            let values: u64 = layer.outputs.iter().map(product).sum();
            let outputs = layer.outputs[0][1];
            let (places, biases) = (values / outputs, outputs);
            let (macs, activations) = match layer.kind {
                LayerKind::Conv2d if layer.flops == layer.macs => (layer.params * places, values),
                LayerKind::Conv2d | LayerKind::Linear => ((layer.params - biases) * places, values),
                // Each output position uses one of the four kernel positions.
                LayerKind::ConvTranspose2d => ((layer.params - biases) / 4 * places, values),
                LayerKind::BatchNorm2d | LayerKind::Relu => (0, 0),
            };
            assert_eq!((layer.macs, layer.activations), (macs, activations), "{}", layer.name);
        }
    }
}

#[test]
fn sides_that_are_not_multiples_of_32_are_rounded_like_the_layers() {
    let report = count(&Model::default(), 70, 45).unwrap();
    let outputs = |name: &str| report.layers.iter().find(|layer| layer.name == name).unwrap().outputs.clone();
    assert_eq!(outputs("backbone.patch_embed.proj"), [[1, 128, 17, 11]]);
    assert_eq!(outputs("backbone.stages.1.reduction"), [[1, 256, 8, 5]]);
    assert_eq!(outputs("backbone.stages.5.reduction"), [[1, 1024, 2, 1]]);
    let cls = outputs("rpn_head.rpn_cls");
    assert_eq!(cls, [[1, 3, 17, 11], [1, 3, 8, 5], [1, 3, 4, 2], [1, 3, 2, 1], [1, 3, 1, 1]]);
}

#[test]
fn gelu_is_not_counted_and_small_images_are_errors() {
    let mut model = Model::default();
    let relu = count(&model, 64, 96).unwrap();
    model.backbone.activation = config::Activation::Gelu;
    let gelu = count(&model, 64, 96).unwrap();
    assert!(gelu.total.flops < relu.total.flops && gelu.total.macs == relu.total.macs);
    assert!(count(&model, 31, 96).unwrap_err().to_string().contains("32 x 32"));
}

#[test]
fn parity_flops_of_every_layer_of_s() {
    let Some(path) = fnet_test_support::fixture("reference/flops_split.json") else { return };
    let split: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for (key, model) in [("s", Model::default()), ("m", family(144, [3, 4, 18, 3])), ("l", family(192, [3, 4, 18, 3]))]
    {
        for (height, width) in [(800, 1280), (1280, 800)] {
            let expected = split[format!("{key}_{height}x{width}")]["layers"].as_array().unwrap();
            let actual = count(&model, height, width).unwrap().layers;
            assert_eq!(actual.len(), expected.len());
            for (actual, expected) in actual.iter().zip(expected) {
                assert_eq!(actual.name, expected["name"].as_str().unwrap());
                assert_eq!(actual.flops, expected["flops"].as_u64().unwrap(), "{}", actual.name);
                let shapes: Vec<Vec<u64>> = expected["calls"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|call| serde_json::from_value(call[1].clone()).unwrap())
                    .collect();
                assert_eq!(actual.outputs, shapes, "{}", actual.name);
            }
        }
    }
}

#[test]
fn without_masks_everything_but_the_mask_head_is_counted() {
    let (all, boxes) = [true, false].map(|mask| count(&Model { mask, ..Model::default() }, 1280, 800).unwrap()).into();
    let mask_head = all.per_module["roi_head.mask_head"];
    let (boxes_alone, all) = (boxes.total, all.total);
    assert_eq!(boxes_alone.flops, all.flops - mask_head.flops);
    assert_eq!(boxes_alone.params, all.params - mask_head.params);
    assert!(!boxes.per_module.contains_key("roi_head.mask_head") && !boxes.to_string().contains("mask"));
}
