use tch::Device;

use super::*;

fn norm_with_statistics(parameters: &mut Parameters, channels: i64) -> BatchNorm2d {
    let norm = BatchNorm2d::new(parameters, "n", channels).unwrap();
    tch::no_grad(|| {
        for (tensor, low, high) in [
            (&norm.weight, 0.5, 1.5),
            (&norm.bias, -1.0, 1.0),
            (&norm.running_mean, -1.0, 1.0),
            (&norm.running_var, 0.5, 2.0),
        ] {
            let _ = tensor.shallow_clone().uniform_(low, high);
        }
    });
    norm
}

#[test]
fn training_moves_the_running_statistics_by_a_tenth() {
    let mut parameters = Parameters::new();
    let norm = BatchNorm2d::new(&mut parameters, "n", 1).unwrap();
    parameters.initialize(0).unwrap();
    let x = Tensor::from_slice(&[1.0f32, 3.0]).reshape([2, 1, 1, 1]);
    let y = norm.forward(&x, Statistics::Batch).unwrap();
    assert!((f64::try_from(y.select(0, 1)).unwrap() - 1.0).abs() < 1e-4);
    let value = |name: &str| f64::try_from(parameters.get(name).unwrap()).unwrap();
    assert!((value("n.running_mean") - 0.2).abs() < 1e-6);
    assert!((value("n.running_var") - 1.1).abs() < 1e-6, "the unbiased variance is 2");
    let _ = norm.forward(&x, Statistics::Running).unwrap();
    assert!((value("n.running_mean") - 0.2).abs() < 1e-6);
}

#[test]
fn synchronized_statistics_of_two_ranks_with_equal_images_equal_those_of_one_rank() {
    // The sum over two ranks with the same images doubles every value and the count.
    let mut parameters = Parameters::new();
    let norm = norm_with_statistics(&mut parameters, 3);
    let saved: Vec<(String, Tensor)> =
        parameters.iter().map(|(name, _, tensor)| (name.to_owned(), tensor.detach().copy())).collect();
    let start = norm.running_var.copy();
    let x = (Tensor::randn([2, 3, 4, 5], (Kind::Float, Device::Cpu)) + 7.0).set_requires_grad(true);
    let twice: SumOverRanks = Box::new(|x| Ok(x.f_add(x)?));
    let run = |statistics| {
        let y = norm.forward(&x, statistics).unwrap();
        let loss = (&y * &y * &y).sum(Kind::Float);
        let gradients = Tensor::run_backward(&[loss], &[&x, &norm.weight], false, false);
        (y, gradients, norm.running_mean.copy(), norm.running_var.copy())
    };
    let plain = run(Statistics::Batch);
    parameters.load(saved).unwrap();
    let synchronized = run(Statistics::Synchronized(&twice));
    assert!(synchronized.0.allclose(&plain.0, 1e-4, 1e-5, false));
    assert!(synchronized.1[0].allclose(&plain.1[0], 1e-3, 1e-3, false));
    assert!(synchronized.1[1].allclose(&plain.1[1], 1e-3, 1e-3, false));
    assert!(synchronized.2.allclose(&plain.2, 1e-5, 1e-6, false));
    // The running variance uses the unbiased variance: of 40 values per channel, and of 80.
    let before = 0.9 * &start;
    let plain = (plain.3 - &before) * 39.0 / 40.0;
    let synchronized = (synchronized.3 - &before) * 79.0 / 80.0;
    assert!(synchronized.allclose(&plain, 1e-4, 1e-5, false));
}

#[test]
fn a_fused_convolution_equals_convolution_and_norm() {
    let mut parameters = Parameters::new();
    let shape = ConvShape::same(3, 4, 3, false);
    let conv = Conv2d::new(&mut parameters, "c", shape, Init::Normal(0.3)).unwrap();
    parameters.initialize(1).unwrap();
    let norm = norm_with_statistics(&mut parameters, 4);
    let mut layer = ConvNorm { conv, norm: Some(norm) };
    let x = Tensor::randn([1, 3, 6, 5], (Kind::Float, Device::Cpu));
    let before = layer.forward(&x, Statistics::Running).unwrap();
    layer.fuse().unwrap();
    assert!(layer.forward(&x, Statistics::Running).unwrap().allclose(&before, 1e-5, 1e-5, false));
    assert!(layer.forward(&x, Statistics::Batch).is_err());
}
