use std::path::Path;

use clap::Parser;
use tch::Device;

use fnet_checkpoint::native::{Checkpoint, CheckpointMeta, MODEL};
use fnet_common::Result;
use fnet_config::Config;
use fnet_data::Split;
use fnet_evaluate::inference::{Alone, Outcome};
use fnet_evaluate::metrics::Metrics;
use fnet_protocol::cli;
use fnet_test_support::fixture;

use super::detector::Host;
use super::predict::predict;
use super::test::test;

#[derive(Parser)]
struct TestLine {
    #[command(flatten)]
    test: cli::Test,
}

#[derive(Parser)]
struct PredictLine {
    #[command(flatten)]
    predict: cli::Predict,
}

/// A checkpoint with the weights of the small MMDetection detector and 8 real images as `data.val`.
fn mmdetection_checkpoint(folder: &Path) -> Option<std::path::PathBuf> {
    let weights = fixture("reference/fixtures_tiny/ckpt.safetensors")?;
    let data = fixture("data/coco_mini")?;
    let mut config = Config::default();
    config.model.num_classes = 5;
    config.model.backbone.embed_dim = 32;
    config.model.backbone.depths = [1, 1, 2, 1];
    config.model.backbone.drop_path_rate = 0.0;
    config.model.neck.out_channels = 64;
    config.model.rpn.feat_channels = 64;
    config.model.roi_head.bbox_fc_channels = 128;
    config.model.roi_head.mask_channels = 64;
    config.data.root = data.display().to_string();
    config.data.classes = ["person", "bicycle", "car", "motorcycle", "airplane"].map(String::from).to_vec();
    config.data.val.ann_file = "annotations/instances_overfit8.json".into();
    config.data.val.img_prefix = "train2017".into();
    config.data.pipeline.test_scale = [320, 240];
    let tensors = tch::Tensor::read_safetensors(weights).unwrap();
    let tensors = tensors.into_iter().map(|(name, tensor)| (format!("{MODEL}{name}"), tensor)).collect();
    let meta = CheckpointMeta {
        config: config.to_toml().unwrap(),
        classes: config.data.classes.clone(),
        world_size: 1,
        ..Default::default()
    };
    let path = folder.join("tiny.ckpt");
    Checkpoint { tensors, meta }.save(&path).unwrap();
    Some(path)
}

fn run_test(line: &[&str]) -> (Result<Option<Metrics>>, Vec<String>, usize) {
    let (mut said, mut calls) = (Vec::new(), 0);
    let outcome = test(
        &TestLine::parse_from([&["test"], line].concat()).test,
        &mut Host {
            ranks: &Alone,
            device: Device::Cpu,
            progress: &mut |_, _| calls += 1,
            say: &mut |text| said.push(text.to_owned()),
        },
    );
    let metrics = outcome.map(|outcome| {
        let Outcome::Here(metrics) = outcome else { panic!("the only rank has no result") };
        metrics
    });
    (metrics, said, calls)
}

#[test]
fn test_evaluates_a_checkpoint_with_its_config_and_writes_all_requested_files() {
    let folder = tempfile::tempdir().unwrap();
    let Some(checkpoint) = mmdetection_checkpoint(folder.path()) else { return };
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (out, show, numbers) = (at("found.json"), at("show"), at("metrics.json"));
    let line = [checkpoint.to_str().unwrap(), "--out", &out, "--show-dir", &show, "--metrics", &numbers];
    let (metrics, _, calls) = run_test(&line);
    let metrics = metrics.unwrap().unwrap();
    assert_eq!((metrics.images, calls), (8, 8));
    assert!(metrics.detections > 0);
    let read = |path: String| -> serde_json::Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    assert_eq!(read(numbers)["bbox_mAP"], metrics.named()["bbox_mAP"]);
    assert_eq!(read(at("found.segm.json")).as_array().unwrap().len(), metrics.detections);
    assert_eq!(std::fs::read_dir(show).unwrap().count(), 8);

    let (metrics, _, _) = run_test(&[checkpoint.to_str().unwrap(), "--format-only", "--set", "data.workers_per_gpu=1"]);
    assert!(metrics.unwrap().is_none());
    assert_eq!(read(at("results/tiny.bbox.json")), read(at("found.bbox.json")));
}

#[test]
fn weights_that_do_not_fit_the_config_are_a_data_error() {
    let folder = tempfile::tempdir().unwrap();
    let Some(checkpoint) = mmdetection_checkpoint(folder.path()) else { return };
    let (outcome, _, _) = run_test(&[checkpoint.to_str().unwrap(), "--set", "model.roi_head.bbox_fc_channels=64"]);
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), fnet_common::ErrorKind::Data);
    assert!(
        error.to_string().contains("do not match") && error.to_string().contains("first: roi_head.bbox_head."),
        "{error}"
    );
}

#[test]
fn predict_draws_detections_and_writes_results_with_file_names() {
    let folder = tempfile::tempdir().unwrap();
    let Some(checkpoint) = mmdetection_checkpoint(folder.path()) else { return };
    let Some(data) = fixture("data/coco_mini") else { return };
    let config = CheckpointMeta::read(&checkpoint).unwrap().config(&checkpoint).unwrap();
    let dataset = fnet_data::Dataset::open(&config.data, Split::Val).unwrap();
    let images = [0, 1].map(|index| dataset.image_path(index).display().to_string());
    assert!(images[0].starts_with(data.to_str().unwrap()));
    let out = folder.path().join("painted");
    let line = ["predict", checkpoint.to_str().unwrap(), &images[0], &images[1], "--out", out.to_str().unwrap()];
    let arguments = PredictLine::parse_from(line).predict;
    let (mut said, mut calls) = (Vec::new(), Vec::new());
    let mut host = Host {
        ranks: &Alone,
        device: Device::Cpu,
        progress: &mut |done, total| calls.push((done, total)),
        say: &mut |text| said.push(text.to_owned()),
    };
    assert!(matches!(predict(&arguments, &mut host).unwrap(), Outcome::Here(Ok(()))));
    assert_eq!(calls, [(1, 2), (2, 2)]);
    assert!(said.is_empty(), "the summary is a result: {said:?}");
    let results: Vec<serde_json::Value> =
        serde_json::from_slice(&std::fs::read(out.join("results.json")).unwrap()).unwrap();
    assert!(!results.is_empty());
    for result in &results {
        let name = result["file_name"].as_str().unwrap();
        assert_eq!(name, dataset.image(result["image_id"].as_u64().unwrap() as usize - 1).file_name);
        assert!(out.join(name).exists());
        let class = result["category_id"].as_u64().unwrap() as usize - 1;
        assert_eq!(result["category_name"], config.data.classes[class].as_str());
    }
}
