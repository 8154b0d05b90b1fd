use super::*;
use crate::{Meta, Weights};
use fnet_test_support::fixture;

fn moments(value: f64, step: u64) -> Moments {
    let tensor = Tensor::full([2, 3], value, (Kind::Float, Device::Cpu));
    Moments { step, exp_avg: tensor.shallow_clone(), exp_avg_sq: tensor }
}

fn checkpoint() -> MmdetCheckpoint {
    let state = ["b.weight", "a.weight", "a.num_batches_tracked"]
        .into_iter()
        .zip([
            Tensor::ones([3, 2], (Kind::Float, Device::Cpu)).tr(),
            Tensor::zeros([2, 3], (Kind::Half, Device::Cpu)),
            Tensor::from(7_i64),
        ])
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .collect();
    let group = ParameterGroup {
        lr: 0.1 * 0.1,
        initial_lr: Some(1.0),
        betas: (0.9, 0.999),
        eps: 1e-8,
        weight_decay: 0.05,
        params: vec![0, 1],
    };
    MmdetCheckpoint {
        state,
        meta: Meta { classes: vec!["é".into()], epoch: Some(2), iter: Some(1 << 40) },
        optimizer: Some(OptimizerState { groups: vec![group], moments: IndexMap::from([(1, moments(2.0, 9))]) }),
    }
}

#[test]
fn exports_are_read_back_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pth");
    let written = checkpoint();
    write(&path, &written).unwrap();
    let read = MmdetCheckpoint::open(&path).unwrap();
    assert_eq!(read.meta, written.meta);
    assert!(read.state.iter().eq(written.state.iter()), "{:?}", read.state);
    let (read, written) = (read.optimizer.unwrap(), written.optimizer.unwrap());
    assert_eq!(read.groups, written.groups);
    assert_eq!(read.moments.keys().collect::<Vec<_>>(), [&1]);
    assert_eq!((read.moments[&1].step, &read.moments[&1].exp_avg), (9, &written.moments[&1].exp_avg));

    // The same content gives the same file, byte for byte.
    let again = folder.path().join("b.pth");
    write(&again, &MmdetCheckpoint::open(&path).unwrap()).unwrap();
    assert!(std::fs::read(path).unwrap() == std::fs::read(again).unwrap());
}

#[test]
fn reordered_parameters_keep_their_moments() {
    let mut optimizer = OptimizerState {
        groups: checkpoint().optimizer.unwrap().groups,
        moments: IndexMap::from([(0, moments(1.0, 1)), (1, moments(2.0, 2))]),
    };
    optimizer.renumber(&[1, 0]);
    assert_eq!(optimizer.groups[0].params, [1, 0]);
    assert_eq!(
        optimizer.moments.iter().map(|(&index, state)| (index, state.step)).collect::<Vec<_>>(),
        [(0, 2), (1, 1)]
    );
}

#[test]
fn the_file_name_decides_the_format_and_unsupported_types_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(write(&folder.path().join("a.onnx"), &checkpoint()).unwrap_err().kind(), fnet_common::ErrorKind::Usage);
    write(&folder.path().join("a.safetensors"), &checkpoint()).unwrap();
    let read = Weights::open(&folder.path().join("a.safetensors")).unwrap();
    assert_eq!((read.meta(), read.len()), (&checkpoint().meta, 3));
    let mut odd = checkpoint();
    odd.state.insert("c".into(), Tensor::zeros([1], (Kind::ComplexFloat, Device::Cpu)));
    for name in ["b.pth", "b.safetensors"] {
        let error = write(&folder.path().join(name), &odd).unwrap_err().to_string();
        assert!(error.contains('c') && error.contains("ComplexFloat"), "{error}");
        assert!(!folder.path().join(name).exists());
    }
}

#[test]
fn an_mmdetection_checkpoint_is_unchanged_after_reading_and_writing() {
    let Some(reference) = fixture("reference") else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pth");
    let original = MmdetCheckpoint::open(&reference.join("trained_tiny/ckpt.pth")).unwrap();
    write(&path, &original).unwrap();
    let written = MmdetCheckpoint::open(&path).unwrap();
    assert!(written.state.len() == 126 && written.state.iter().eq(original.state.iter()));
    assert_eq!((&written.meta.epoch, &written.meta.iter, written.meta.classes.len()), (&Some(160), &Some(1440), 80));
    let (written, original) = (written.optimizer.unwrap(), original.optimizer.unwrap());
    assert_eq!(written.groups, original.groups);
    assert_eq!((written.moments.len(), written.groups[0].lr), (87, 1.0000000000000003e-05));
    for (index, state) in &original.moments {
        let other = &written.moments[index];
        assert_eq!((other.step, &other.exp_avg, &other.exp_avg_sq), (state.step, &state.exp_avg, &state.exp_avg_sq));
    }
}
