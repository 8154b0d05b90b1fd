use std::collections::HashMap;
use std::path::Path;

use proptest::prelude::*;
use tch::{Device, Kind};

use super::*;
use crate::{ErrorKind, memory};

const STRIDES: [usize; 4] = [4, 8, 16, 32];

/// Inputs and outputs of torchvision's operators; see tests/fixtures/make_ops.py.
fn fixture() -> HashMap<String, Tensor> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ops.npz");
    Tensor::read_npz(file).unwrap().into_iter().collect()
}

fn levels(fixture: &HashMap<String, Tensor>) -> Vec<Tensor> {
    (0..4).map(|i| fixture[&format!("level{i}")].to_kind(Kind::Float) / 16.0).collect()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    f64::try_from((a - b).abs().max()).unwrap()
}

#[test]
fn roi_align_equals_torchvisions_on_all_levels_in_both_memory_formats() {
    let f = fixture();
    for channels_last in [false, true] {
        let levels: Vec<_> = levels(&f)
            .iter()
            .map(|level| if channels_last { memory::channels_last(level).unwrap() } else { level.shallow_clone() })
            .collect();
        let out = roi_align(&levels, &f["rois"], &f["roi_levels"], &STRIDES, 7).unwrap();
        assert!(largest_difference(&out, &f["out7"]) < 4e-6);
        let out = roi_align(&levels, &f["rois"], &f["roi_levels"], &STRIDES, 14).unwrap();
        assert!(largest_difference(&out.narrow(1, 0, 4), &f["out14_first_channels"]) < 4e-6);
    }
}

#[test]
fn roi_align_gives_torchvisions_gradients() {
    let f = fixture();
    let levels: Vec<_> = levels(&f).into_iter().map(|level| level.set_requires_grad(true)).collect();
    let out = roi_align(&levels, &f["rois"], &f["roi_levels"], &STRIDES, 7).unwrap();
    (out * f["grad_out7"].to_kind(Kind::Float)).sum(Kind::Float).backward();
    for (i, level) in levels.iter().enumerate() {
        assert!(largest_difference(&level.grad(), &f[&format!("grad{i}")]) < 4e-5, "level {i}");
    }
}

#[test]
fn roi_align_in_bfloat16_computes_in_float_and_returns_bfloat16() {
    let f = fixture();
    let levels: Vec<_> = levels(&f).iter().map(|level| level.to_kind(Kind::BFloat16).set_requires_grad(true)).collect();
    let out = roi_align(&levels, &f["rois"], &f["roi_levels"], &STRIDES, 7).unwrap();
    assert_eq!(out.kind(), Kind::BFloat16);
    assert!(largest_difference(&out.to_kind(Kind::Float), &f["out7"]) < 0.04);
    out.sum(Kind::Float).backward();
    assert_eq!(levels[0].grad().kind(), Kind::BFloat16);
}

/// torchvision's library also has kernels for the CPU, so the way that CUDA tensors take is walked here without a GPU.
/// In a process of its own, because the library brings libtorch_cuda along.
#[test]
fn the_way_through_torchvision_gives_the_same_numbers() {
    let body = "ops::tests::body_through_torchvision";
    let program = std::env::current_exe().unwrap();
    let output = std::process::Command::new(program).args(["--exact", body, "--ignored"]).output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}");
}

/// RoIs in the order of their levels.
fn by_level(rois: &Tensor, roi_levels: &Tensor) -> RoisByLevel {
    let (_, order) = roi_levels.sort_stable(true, 0, false);
    let counts = (0..4).map(|level| roi_levels.eq(level).sum(Kind::Int64).int64_value(&[])).collect();
    let (rois, back) = (rois.index_select(0, &order), order.argsort(0, false));
    RoisByLevel { rois, order: Some([order, back]), counts }
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn body_through_torchvision() {
    let f = fixture();
    let given = by_level(&f["rois"], &f["roi_levels"]);
    let before = roi_align_by_level(&levels(&f), &given, &STRIDES, 7).unwrap_err();
    assert!(before.kind() == ErrorKind::Environment && before.message().contains("not registered"), "{before}");
    crate::cuda::load_torch_cuda(&crate::cuda::libtorch_folder().unwrap()).unwrap();

    let inputs: Vec<_> = levels(&f).into_iter().map(|level| level.set_requires_grad(true)).collect();
    let out = roi_align_by_level(&inputs, &given, &STRIDES, 7).unwrap();
    assert!(largest_difference(&out, &f["out7"]) < 1e-6);
    (out * f["grad_out7"].to_kind(Kind::Float)).sum(Kind::Float).backward();
    for (i, level) in inputs.iter().enumerate() {
        assert!(largest_difference(&level.grad(), &f[&format!("grad{i}")]) < 1e-5, "level {i}");
    }
    // In the order of the levels that is the caller's, without a way there and back.
    let sorted = RoisByLevel { rois: given.rois.shallow_clone(), order: None, counts: given.counts.clone() };
    let [order, _] = given.order.as_ref().unwrap();
    let inputs: Vec<_> = levels(&f).into_iter().map(|level| level.set_requires_grad(true)).collect();
    let out = roi_align_by_level(&inputs, &sorted, &STRIDES, 7).unwrap();
    assert!(largest_difference(&out, &f["out7"].index_select(0, order)) < 1e-6);
    (out * f["grad_out7"].to_kind(Kind::Float).index_select(0, order)).sum(Kind::Float).backward();
    assert!(largest_difference(&inputs[0].grad(), &f["grad0"]) < 1e-5);
    // All RoIs on one level: the others get a gradient of zero, not none.
    let inputs: Vec<_> = levels(&f).into_iter().map(|level| level.set_requires_grad(true)).collect();
    let given = by_level(&f["rois"], &f["roi_levels"].zeros_like());
    let out = roi_align_by_level(&inputs, &given, &STRIDES, 7).unwrap();
    out.sum(Kind::Float).backward();
    assert!(inputs[3].grad().defined());
    // In bfloat16 too.
    let inputs: Vec<_> = levels(&f).iter().map(|level| level.to_kind(Kind::BFloat16).set_requires_grad(true)).collect();
    let out = roi_align_by_level(&inputs, &given, &STRIDES, 7).unwrap();
    out.sum(Kind::Float).backward();
    assert_eq!((out.kind(), inputs[0].grad().kind()), (Kind::BFloat16, Kind::BFloat16));
}

#[test]
fn rois_that_are_not_of_as_many_levels_as_there_are_are_refused() {
    let f = fixture();
    let given = by_level(&f["rois"], &f["roi_levels"]);
    let fewer = &levels(&f)[..3];
    assert_eq!(roi_align_by_level(fewer, &given, &STRIDES[..3], 7).unwrap_err().kind(), ErrorKind::Invalid);
    let given = RoisByLevel { counts: vec![1; 4], ..given };
    assert_eq!(roi_align_by_level(&levels(&f), &given, &STRIDES, 7).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn without_rois_the_result_is_empty_and_the_gradients_are_zero() {
    let level = Tensor::ones([1, 3, 8, 8], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let rois = Tensor::zeros([0, 5], (Kind::Float, Device::Cpu));
    let out =
        roi_align(&[level.shallow_clone()], &rois, &Tensor::zeros([0], (Kind::Int64, Device::Cpu)), &[4], 7).unwrap();
    assert_eq!(out.size(), [0, 3, 7, 7]);
    out.sum(Kind::Float).backward();
    assert_eq!(level.grad(), Tensor::zeros([1, 3, 8, 8], (Kind::Float, Device::Cpu)));
}

#[test]
fn the_gradient_of_roi_align_does_not_depend_on_the_number_of_threads() {
    let f = fixture();
    let before = tch::get_num_threads();
    let gradients = [1, 2].map(|threads| {
        tch::set_num_threads(threads);
        let levels: Vec<_> = levels(&f).into_iter().map(|level| level.set_requires_grad(true)).collect();
        let out = roi_align(&levels, &f["rois"], &f["roi_levels"], &STRIDES, 7).unwrap();
        (out * &f["out7"]).sum(Kind::Float).backward();
        levels.iter().map(Tensor::grad).collect::<Vec<_>>()
    });
    tch::set_num_threads(before);
    assert_eq!(gradients[0], gradients[1]);
}

#[test]
fn wrong_rois_are_refused_by_number() {
    let level = Tensor::ones([1, 3, 8, 8], (Kind::Float, Device::Cpu));
    let cases: [([f32; 5], i64, &str); 4] = [
        ([1.0, 0.0, 0.0, 4.0, 4.0], 0, "names image"),
        ([0.0, 0.0, 0.0, 4.0, 4.0], 1, "names level"),
        ([0.0, f32::NAN, 0.0, 4.0, 4.0], 0, "coordinate"),
        ([0.0, 0.0, 0.0, f32::INFINITY, 4.0], 0, "coordinate"),
    ];
    for (roi, roi_level, message) in cases {
        let rois = Tensor::from_slice(&roi).reshape([1, 5]);
        let error = roi_align(&[level.shallow_clone()], &rois, &Tensor::from_slice(&[roi_level]), &[4], 7).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.message().contains("RoI 0") && error.message().contains(message), "{error}");
    }
}

#[test]
fn nms_keeps_what_torchvisions_keeps() {
    let f = fixture();
    for (name, threshold) in [("keep_05", 0.5), ("keep_07", 0.7), ("keep_third", 1.0 / 3.0)] {
        assert_eq!(nms(&f["boxes"], &f["scores"], threshold).unwrap(), f[name], "{name}");
    }
}

#[test]
fn nms_compares_strictly_and_keeps_the_order_of_equal_scores() {
    // The second box overlaps the first by exactly one half.
    let boxes = Tensor::from_slice(&[0f32, 0., 2., 1., 0., 0., 1., 1., 5., 5., 6., 6.]).reshape([3, 4]);
    let scores = Tensor::from_slice(&[0.5f32, 0.5, 0.9]);
    assert_eq!(Vec::<i64>::try_from(nms(&boxes, &scores, 0.5).unwrap()).unwrap(), [2, 0, 1]);
    assert_eq!(Vec::<i64>::try_from(nms(&boxes, &scores, 0.49).unwrap()).unwrap(), [2, 0]);
}

#[test]
fn a_score_that_is_no_number_comes_first_as_where_libtorch_sorts() {
    let scores = [0.5f32, -f32::NAN, 0.9, f32::NAN, 0.9];
    let boxes: Vec<[f32; 4]> = (0..5).map(|i| [10.0 * i as f32, 0.0, 10.0 * i as f32 + 5.0, 5.0]).collect();
    let (_, order) = Tensor::from_slice(&scores).sort_stable(true, 0, true);
    let kept = nms_of_values(&boxes, &scores, 0.5).unwrap();
    assert_eq!(kept.iter().map(|&place| place as i64).collect::<Vec<_>>(), Vec::<i64>::try_from(order).unwrap());
    assert!(nms_of_values(&boxes, &scores[..3], 0.5).is_err());
}

#[test]
fn nms_of_no_boxes_is_empty() {
    let boxes = Tensor::zeros([0, 4], (Kind::Float, Device::Cpu));
    assert_eq!(nms(&boxes, &Tensor::zeros([0], (Kind::Float, Device::Cpu)), 0.5).unwrap().size(), [0]);
}

/// The textbook loop, on boxes already sorted by score.
fn plain_nms(boxes: &[[f32; 4]], threshold: f32) -> Vec<i64> {
    let area = |b: &[f32; 4]| (b[2] - b[0]) * (b[3] - b[1]);
    let mut kept: Vec<usize> = Vec::new();
    for (i, b) in boxes.iter().enumerate() {
        let overlaps = kept.iter().any(|&k| {
            let a = &boxes[k];
            let w = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
            let h = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
            w * h / (area(a) + area(b) - w * h) > threshold
        });
        if !overlaps {
            kept.push(i);
        }
    }
    kept.into_iter().map(|i| i as i64).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nms_equals_the_textbook_loop(
        raw in proptest::collection::vec((0u8..20, 0u8..20, 1u8..15, 1u8..15), 0..60), quarter in 1u8..4,
    ) {
        let boxes: Vec<[f32; 4]> =
            raw.iter().map(|&(x, y, w, h)| [x, y, x + w, y + h].map(f32::from)).collect();
        let scores: Vec<f32> = (0..boxes.len()).map(|i| 1.0 - i as f32 / 100.0).collect();
        let threshold = f32::from(quarter) / 4.0;
        let tensor = Tensor::from_slice(boxes.as_flattened()).reshape([-1, 4]);
        let kept = nms(&tensor, &Tensor::from_slice(&scores), f64::from(threshold)).unwrap();
        prop_assert_eq!(Vec::<i64>::try_from(kept).unwrap(), plain_nms(&boxes, threshold));
    }
}
