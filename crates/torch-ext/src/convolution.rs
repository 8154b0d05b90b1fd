//! Tests of `cpp/convolution.cpp`, which replaces libtorch's operator for gradients of convolutions on the CPU.

use tch::{Device, Kind, Tensor};

use crate::memory::channels_last;

struct Case {
    /// Channels of the output and of the input, rows and columns of the kernel.
    weight: [i64; 4],
    /// Images, rows and columns of the input.
    input: [i64; 3],
    stride: [i64; 2],
    padding: [i64; 2],
    dilation: [i64; 2],
    groups: i64,
}

/// Gradients by the input, the weight and the bias.
fn gradients(case: &Case, tensors: &[Tensor; 3], factors: &Tensor) -> Vec<Tensor> {
    let [input, weight, bias] = tensors;
    let y = input.conv2d(weight, Some(bias), case.stride, case.padding, case.dilation, case.groups);
    let loss = (&y * factors.to_kind(y.kind())).sum(y.kind());
    Tensor::run_backward(&[loss], &tensors.each_ref(), false, false)
}

/// Cases with more than one strip have a last strip of fewer rows.
#[test]
fn gradients_from_strips_of_rows_and_matrix_products_equal_those_in_float64() {
    let plain = Case {
        weight: [5, 64, 3, 3],
        input: [2, 90, 97],
        stride: [1, 1],
        padding: [1, 1],
        dilation: [1, 1],
        groups: 1,
    };
    let cases = [
        Case { padding: [0, 2], ..plain },
        Case { input: [1, 201, 97], stride: [2, 1], padding: [2, 0], ..plain },
        Case { dilation: [3, 1], padding: [3, 1], ..plain },
        Case { weight: [6, 32, 3, 3], groups: 2, ..plain },
        Case { weight: [5, 64, 5, 3], padding: [2, 1], ..plain },
        Case { weight: [3, 128, 2, 2], input: [1, 250, 201], stride: [2, 2], padding: [0, 0], ..plain },
        Case { weight: [6, 8, 2, 2], input: [2, 7, 9], stride: [2, 2], padding: [0, 0], ..plain },
        Case { weight: [512, 1024, 1, 1], input: [2, 3, 5], padding: [0, 0], ..plain },
        plain,
    ];
    for (index, case) in cases.iter().enumerate() {
        tch::manual_seed(index as i64);
        let ([count, rows, columns], [outputs, inputs, height, width]) = (case.input, case.weight);
        let random = |shape: &[i64]| Tensor::rand(shape, (Kind::Float, Device::Cpu)) - 0.5;
        let input = channels_last(&random(&[count, inputs * case.groups, rows, columns])).unwrap();
        let weight = channels_last(&random(&[outputs, inputs, height, width])).unwrap();
        let tensors = [input, weight, random(&[outputs])];
        let factors =
            tensors[0].conv2d(&tensors[1], None::<Tensor>, case.stride, case.padding, case.dilation, case.groups);
        let of = |kind: Kind| tensors.each_ref().map(|tensor| tensor.to_kind(kind).detach().set_requires_grad(true));
        let (found, exact) =
            (gradients(case, &of(Kind::Float), &factors), gradients(case, &of(Kind::Double), &factors));
        for (name, (found, exact)) in ["input", "weight", "bias"].iter().zip(found.iter().zip(&exact)) {
            let error = (found.to_kind(Kind::Double) - exact).abs().max().double_value(&[])
                / exact.abs().max().double_value(&[]);
            assert!(error < 1e-5, "case {index}: gradient by the {name} is off by {error}");
        }
        // A dimension of one value may have any stride.
        let strides = |tensor: &Tensor| {
            tensor.size().into_iter().zip(tensor.stride()).filter(|(size, _)| *size > 1).collect::<Vec<_>>()
        };
        assert_eq!(strides(&found[1]), strides(&tensors[1]), "case {index}");
    }
}
