//! Tests of both partial convolution implementations and of BatchNorm fusion.

use tch::{Device, Kind};
use torch_ext::autocast;

use fnet_config::Amp;

use super::*;

/// A backbone with random weights and statistics.
fn backbone(config: &config::Backbone) -> FasterNet {
    let mut parameters = Parameters::new();
    let backbone = FasterNet::new(&mut parameters, "backbone", config).unwrap();
    parameters.initialize(7).unwrap();
    tch::no_grad(|| {
        for (name, _, tensor) in parameters.iter() {
            let mut tensor = tensor.shallow_clone();
            if name.contains("norm") || name.contains("mlp.1.") {
                let (low, high) =
                    if name.ends_with("bias") || name.ends_with("mean") { (-0.5, 0.5) } else { (0.5, 1.5) };
                if tensor.kind() == Kind::Float {
                    let _ = tensor.uniform_(low, high);
                }
            } else {
                let _ = tensor.f_mul_scalar_(10.0).unwrap();
            }
        }
    });
    backbone
}

fn config(embed_dim: usize, activation: Activation) -> config::Backbone {
    config::Backbone { embed_dim, activation, depths: [1, 2, 3, 1], drop_path_rate: 0.0, ..config::Backbone::default() }
}

fn images(count: i64, height: i64, width: i64) -> Tensor {
    torch_ext::memory::channels_last(&Tensor::randn([count, 3, height, width], (Kind::Float, Device::Cpu))).unwrap()
}

#[test]
fn slicing_equals_split_cat_bitwise_and_does_not_change_its_input() {
    let kinds = [(Amp::Off, None), (Amp::Bf16, Some(Kind::BFloat16))];
    for (embed_dim, n_div, activation) in
        [(8, 4, Activation::Relu), (40, 4, Activation::Gelu), (96, 4, Activation::Relu), (16, 1, Activation::Gelu)]
    {
        for fused in [false, true] {
            let mut backbone = backbone(&config::Backbone { n_div, ..config(embed_dim, activation) });
            if fused {
                backbone.fuse().unwrap();
            }
            for (count, height, width) in [(1, 64, 96), (2, 37, 53), (1, 129, 70)] {
                let images = images(count, height, width);
                let given = images.copy();
                for (amp, kind) in kinds {
                    let _autocast = kind.map(|kind| autocast::Guard::new(Device::Cpu, kind).unwrap());
                    let mut forward = |partial_conv| {
                        backbone.partial_conv = partial_conv;
                        tch::no_grad(|| backbone.forward(&images, Statistics::Running, None)).unwrap()
                    };
                    let (slicing, split_cat) = (forward(PartialConv::Slicing), forward(PartialConv::SplitCat));
                    for (level, (slicing, split_cat)) in slicing.iter().zip(&split_cat).enumerate() {
                        let which =
                            format!("{embed_dim} channels, {height}x{width}, fused {fused}, {amp:?}, output {level}");
                        assert!(bool::try_from(slicing.isfinite().all()).unwrap(), "{which}");
                        assert!(f64::try_from(slicing.to_kind(Kind::Float).std(true)).unwrap() > 1e-3, "{which}");
                        assert_eq!(
                            (slicing.kind(), slicing.stride()),
                            (split_cat.kind(), split_cat.stride()),
                            "{which}"
                        );
                        assert_eq!(slicing, split_cat, "{which}");
                    }
                }
                assert_eq!(images, given, "the input was changed");
            }
        }
    }
}

#[test]
fn every_norm_counts_the_batches_of_training() {
    let mut parameters = Parameters::new();
    let backbone = FasterNet::new(&mut parameters, "backbone", &config(8, Activation::Relu)).unwrap();
    parameters.initialize(7).unwrap();
    for (statistics, seen) in [(Statistics::Batch, 1), (Statistics::Running, 1), (Statistics::Batch, 2)] {
        let outputs = backbone.forward(&images(1, 70, 100), statistics, None).unwrap();
        let sizes: Vec<_> = outputs.iter().map(|map| (map.size()[2] as usize, map.size()[3] as usize)).collect();
        assert_eq!(sizes, backbone.output_sizes((70, 100)));
        let counters = parameters.buffers().filter(|(name, _)| name.ends_with("num_batches_tracked"));
        let values: Vec<i64> = counters.map(|(_, counter)| i64::try_from(counter).unwrap()).collect();
        assert_eq!(values, [seen; 1 + 3 + 7 + 4]);
    }
}

#[test]
fn a_fused_backbone_gives_the_same_features() {
    for (embed_dim, activation) in [(8, Activation::Relu), (40, Activation::Gelu)] {
        let mut backbone = backbone(&config(embed_dim, activation));
        let images = images(2, 64, 96);
        let features =
            |backbone: &FasterNet| tch::no_grad(|| backbone.forward(&images, Statistics::Running, None)).unwrap();
        let before = features(&backbone);
        backbone.fuse().unwrap();
        let after = features(&backbone);
        for (level, (after, before)) in after.iter().zip(&before).enumerate() {
            let most = |tensor: Tensor| f64::try_from(tensor.abs().max()).unwrap();
            let off = most(after - before) / most(before.shallow_clone());
            assert!(off > 0.0 && off <= 1e-5, "output {level} differs by {off:e} of its maximum");
        }
    }
}

#[test]
fn slicing_does_not_overwrite_values_that_a_gradient_needs() {
    let mut backbone = backbone(&config(8, Activation::Relu));
    let images = images(1, 64, 64).set_requires_grad(true);
    let mut gradient = |partial_conv| {
        backbone.partial_conv = partial_conv;
        let features = backbone.forward(&images, Statistics::Running, None).unwrap();
        let sum = features.iter().map(|map| map.square().sum(Kind::Float)).reduce(|a, b| a + b).unwrap();
        Tensor::run_backward(&[sum], &[&images], false, false).remove(0)
    };
    assert_eq!(gradient(PartialConv::Slicing), gradient(PartialConv::SplitCat));
}
