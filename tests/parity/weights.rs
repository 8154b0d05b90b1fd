//! MMDetection's weights: both checkpoint formats, ImageNet backbones, names and shapes of all FasterNet sizes.

use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};

use fnet_checkpoint::{Format, Need, Weights};
use fnet_config as config;
use fnet_model::{MaskRcnn, Parameters, Role};

use super::fixtures::{Fixtures, load_all, reference, skip};

/// The tensors of a classification checkpoint that are not in the backbone.
const DROPPED: [&str; 3] = ["avgpool_pre_head.1.weight", "head.weight", "head.bias"];

#[test]
fn parity_weights_of_both_formats_are_equal() {
    let Some(fixtures) = Fixtures::open() else { return };
    let mut models = Vec::new();
    for name in ["ckpt.safetensors", "ckpt.pth"] {
        let Some(path) = fixtures.optional(name) else { return };
        let mut parameters = Parameters::new();
        MaskRcnn::build(&fixtures.config(), &mut parameters, Device::Cpu).unwrap();
        load_all(&path, &parameters);
        models.push(parameters);
    }
    for ((name, _, one), (_, _, other)) in models[0].iter().zip(models[1].iter()) {
        assert_eq!(one, other, "{name}");
    }
}

/// Names of the output norms, which classification checkpoints lack.
fn is_output_norm(name: &str) -> bool {
    [0, 2, 4, 6].iter().any(|stage| name.starts_with(&format!("backbone.norm{stage}.")))
}

/// The classification checkpoint among the fixtures.
fn classification(fixtures: &Fixtures) -> Option<PathBuf> {
    let entries = std::fs::read_dir(fixtures.folder()).unwrap().map(|entry| entry.unwrap().path());
    let is_one = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("cls_") && name.ends_with(".pth")
    };
    let found = entries.into_iter().find(is_one);
    if found.is_none() {
        skip(&format!("there is no cls_*.pth in {}", fixtures.folder().display()));
    }
    found
}

/// Loads a checkpoint as a bare dictionary, below `model` and below `state_dict`. Each loads all of the backbone except
/// the output norms, which keep their initial values, and ignores the classifier.
#[test]
fn parity_weights_of_an_imagenet_backbone() {
    let Some(fixtures) = Fixtures::open() else { return };
    let Some(path) = classification(&fixtures) else { return };
    let bare = Weights::open(&path).unwrap();
    assert_eq!(bare.format(), Format::Bare);
    let folder = tempfile::tempdir().unwrap();
    for (key, format) in [(None, Format::Bare), (Some("model"), Format::Model), (Some("state_dict"), Format::StateDict)]
    {
        let path = match key {
            None => path.clone(),
            Some(key) => {
                let nested = folder.path().join(format!("{key}.pth"));
                if !nest(&path, key, &nested) {
                    return;
                }
                nested
            }
        };
        let weights = Weights::open(&path).unwrap();
        assert_eq!(weights.format(), format);
        check_backbone(&fixtures.config(), &weights);
    }
}

fn check_backbone(config: &config::Model, weights: &Weights) {
    let mut parameters = Parameters::new();
    MaskRcnn::new(config, &mut parameters, Device::Cpu, 5).unwrap();
    let before: Vec<Tensor> = parameters.iter().map(|(_, _, tensor)| tensor.copy()).collect();
    let report = weights.load_backbone(&parameters, Need::Most).unwrap().report;
    let mut dropped = report.unexpected.clone();
    dropped.sort_unstable_by_key(|name| DROPPED.iter().position(|known| known == name));
    assert_eq!(dropped, DROPPED);
    assert!(report.conflicts.is_empty());
    assert_eq!(report.missing.len(), 16);
    assert!(report.missing.iter().all(|name| is_output_norm(name)), "{:?}", report.missing);
    for ((name, _, now), before) in parameters.iter().zip(before) {
        match name.strip_prefix("backbone.") {
            Some(short) if !is_output_norm(name) => assert_eq!(now, &weights.tensor(short).unwrap(), "{name}"),
            _ => assert_eq!(now, &before, "{name} was changed"),
        }
    }
}

/// Saves the dictionary of `path` below `key` with PyTorch. Returns `false` without PyTorch.
fn nest(path: &Path, key: &str, nested: &Path) -> bool {
    let script = format!("import torch; torch.save({{{key:?}: torch.load({path:?})}}, {nested:?})");
    fnet_test_support::run_python(Path::new("."), &script)
}

#[test]
fn parity_names_and_shapes_of_the_family() {
    for (file, embed_dim, depths) in
        [("keys_s", 128, [1, 2, 13, 2]), ("keys_m", 144, [3, 4, 18, 3]), ("keys_l", 192, [3, 4, 18, 3])]
    {
        let Some(path) = reference(&format!("{file}.txt")) else { return };
        let mut config = config::Model::default();
        (config.backbone.embed_dim, config.backbone.depths) = (embed_dim, depths);
        let mut parameters = Parameters::new();
        MaskRcnn::build(&config, &mut parameters, Device::Cpu).unwrap();
        let expected = std::fs::read_to_string(path).unwrap();
        let actual = parameters.iter().map(|(name, role, tensor)| {
            let (kind, role) = match (tensor.kind(), role) {
                (Kind::Int64, _) => ("int64", "buffer"),
                (_, Role::Buffer) => ("float32", "buffer"),
                (_, Role::Parameter) => ("float32", "param"),
            };
            format!("{name}\t{:?}\t{kind}\t{role}", tensor.size())
        });
        assert_eq!(actual.collect::<Vec<_>>(), expected.lines().collect::<Vec<_>>(), "{file}");
    }
}
