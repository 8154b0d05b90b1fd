use tch::{Device, Kind};

use super::*;
use crate::export;
use crate::mmdet::MmdetCheckpoint;
use fnet_test_support::{fixture, run_python};

const SAVE: &str = r#"
import torch
state = {'module.backbone.a': torch.ones(2), 'module.b': torch.zeros(3), 'note': 'no tensor'}
torch.save(state, 'bare.pth')
torch.save({'model': state}, 'model.pth')
torch.save({'state_dict': state, 'model': 1, 'meta': {'CLASSES': ('x', 'y'), 'epoch': 3, 'iter': 30}}, 'whole.pth')
torch.save({'meta': {'CLASSES': 'one', 'epoch': -1, 'iter': 'many'}, 'state_dict': state}, 'odd_meta.pth')
torch.save({'state_dict': [1]}, 'list.pth')
torch.save({'epoch': 1}, 'no_tensor.pth')
shared = torch.ones(1 << 20)
torch.save({str(i): shared for i in range(64)}, 'shared.pth')
"#;

#[test]
fn tensors_are_found_where_pytorch_programs_store_them() {
    let folder = tempfile::tempdir().unwrap();
    if !run_python(folder.path(), SAVE) {
        return;
    }
    let open = |name: &str| Weights::open(&folder.path().join(name));
    for (name, format) in [("bare.pth", Format::Bare), ("model.pth", Format::Model), ("whole.pth", Format::StateDict)] {
        let weights = open(name).unwrap();
        assert_eq!(weights.format(), format);
        assert_eq!(weights.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["backbone.a", "b"]);
        assert_eq!(weights.tensor("b").unwrap(), Tensor::zeros([3], (Kind::Float, Device::Cpu)));
    }
    let meta = Meta { classes: vec!["x".into(), "y".into()], epoch: Some(3), iter: Some(30) };
    assert_eq!(open("whole.pth").unwrap().meta(), &meta);
    assert_eq!(open("odd_meta.pth").unwrap().meta(), &Meta { classes: vec!["one".into()], epoch: None, iter: None });
    for (name, expected) in [
        ("list.pth", "found a list of 1"),
        ("no_tensor.pth", r#"keys begin with ["epoch"]"#),
        ("shared.pth", "far larger than the file"),
        ("none.pth", "cannot open"),
    ] {
        let error = open(name).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(name), "{error}");
    }
}

#[test]
fn a_safetensors_file_and_a_pth_file_with_the_same_weights_are_read_alike() {
    let Some(reference) = fixture("reference") else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let checkpoint = MmdetCheckpoint::open(&reference.join("fixtures_tiny/ckpt.pth")).unwrap();
    export::write(&path, &checkpoint).unwrap();
    let (plain, third_party) = (Weights::open(&path).unwrap(), reference.join("fixtures_tiny/ckpt.safetensors"));
    assert_eq!((plain.format(), plain.meta()), (Format::Safetensors, &checkpoint.meta));
    let third_party = Weights::open(&third_party).unwrap();
    assert_eq!((plain.len(), third_party.len()), (126, 126));
    for (name, tensor) in &checkpoint.state {
        assert_eq!(&plain.tensor(name).unwrap(), tensor);
        assert_eq!(&third_party.tensor(name).unwrap(), tensor);
    }
    assert_eq!(plain.variant().unwrap().to_string(), "a custom FasterNet (embed_dim 32, depths [1, 1, 2, 1])");
}
