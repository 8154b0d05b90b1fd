//! Every config in `configs/` loads, and the FasterNet sizes have the published values.

use std::path::{Path, PathBuf};

use fnet_config::{Activation, Config, PartialConv};
use fnet_data::load_config;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs")
}

#[allow(clippy::unwrap_used, reason = "a helper of tests")]
fn config(name: &str) -> Config {
    load_config(folder().join(format!("{name}.toml")), &[]).unwrap().config
}

#[test]
fn every_config_loads_and_can_train() {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let resolved = load_config(&path, &[]).unwrap();
            resolved.config.validate_for_training().unwrap();
            names.push(resolved.name);
        }
    }
    for size in ["t0", "t1", "t2", "s", "m", "l"] {
        let name = format!("mask_rcnn_fasternet_{size}_fpn_1x_coco");
        assert!(names.contains(&name), "{name} is missing among {names:?}");
    }
    assert!(names.contains(&"tiny80".to_owned()));
}

#[test]
fn all_sizes_have_the_published_widths_depths_and_rates() {
    use Activation::{Gelu, Relu};
    let table = [
        ("t0", 40, [1, 2, 8, 2], Gelu, 0.0, 2e-4),
        ("t1", 64, [1, 2, 8, 2], Gelu, 0.02, 2e-4),
        ("t2", 96, [1, 2, 8, 2], Relu, 0.05, 2e-4),
        ("s", 128, [1, 2, 13, 2], Relu, 0.15, 2e-4),
        ("m", 144, [3, 4, 18, 3], Relu, 0.2, 1e-4),
        ("l", 192, [3, 4, 18, 3], Relu, 0.3, 1e-4),
    ];
    for (size, embed_dim, depths, activation, drop_path_rate, lr) in table {
        let mut expected = Config::default();
        let backbone = &mut expected.model.backbone;
        (backbone.embed_dim, backbone.depths, backbone.activation) = (embed_dim, depths, activation);
        (backbone.drop_path_rate, backbone.partial_conv) = (drop_path_rate, PartialConv::SplitCat);
        expected.optimizer.lr = lr;
        // The bases repeat the defaults, so that the files show the whole recipe. A changed default fails this test.
        expected.data.root = config(&format!("mask_rcnn_fasternet_{size}_fpn_1x_coco")).data.root;
        assert_eq!(config(&format!("mask_rcnn_fasternet_{size}_fpn_1x_coco")), expected, "{size}");
    }
}

#[test]
fn the_config_of_boxes_is_that_of_masks_without_them() {
    let mut expected = config("mask_rcnn_fasternet_t0_fpn_1x_coco");
    (expected.model.mask, expected.data.boxes_only) = (false, true);
    expected.evaluation.metrics = vec![fnet_config::Metric::Bbox];
    assert_eq!(config("faster_rcnn_fasternet_t0_fpn_1x_coco"), expected);
}

#[test]
fn the_1x_schedule_matches_mmdetection() {
    let config = config("mask_rcnn_fasternet_s_fpn_1x_coco");
    assert_eq!((config.data.samples_per_gpu, config.train.epochs), (2, 12));
    assert_eq!(config.optimizer.betas, [0.9, 0.999]);
    assert_eq!((config.optimizer.eps, config.optimizer.weight_decay, config.optimizer.grad_clip), (1e-8, 1e-4, 0.0));
    assert_eq!((config.schedule.warmup_iters, config.schedule.warmup_ratio), (500, 0.001));
    assert_eq!((config.schedule.steps.as_slice(), config.schedule.gamma), ([8, 11].as_slice(), 0.1));
    assert_eq!(config.data.pipeline.scales, [[1333, 800]]);
    assert_eq!(config.effective_batch(8), config.optimizer.base_batch_size);
}

#[test]
fn tiny80_is_the_small_detector_on_sixteen_images() {
    let config = config("tiny80");
    let backbone = &config.model.backbone;
    assert_eq!((backbone.embed_dim, backbone.depths, backbone.drop_path_rate), (32, [1, 1, 2, 1], 0.0));
    let channels =
        (config.model.neck.out_channels, config.model.rpn.feat_channels, config.model.roi_head.mask_channels);
    assert_eq!((channels, config.model.roi_head.bbox_fc_channels), ((64, 64, 64), 128));
    assert_eq!(
        (config.data.pipeline.scales.as_slice(), config.data.pipeline.test_scale),
        ([[480, 320]].as_slice(), [480, 320])
    );
    assert_eq!((config.optimizer.lr, config.schedule.warmup_iters), (1e-3, 50));
    assert_eq!((config.schedule.steps.as_slice(), config.train.epochs), ([125, 150].as_slice(), 160));
    assert_eq!((config.evaluation.interval, config.log.interval, config.data.samples_per_gpu), (10, 3, 2));
}
