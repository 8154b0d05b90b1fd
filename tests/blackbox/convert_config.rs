//! `convert-config`: a Python config becomes a config that trains.

use std::fs;

use crate::support::{Ended, Scene};

/// The config of `support.rs` in MMDetection's words. `DATA` is the folder of the images.
const CONFIG: &str = "_base_ = ['./base.py']
data_root = 'DATA/'
model = dict(
    backbone=dict(type='FasterNet', embed_dim=8, depths=(1, 1, 1, 1)),
    roi_head=dict(bbox_head=dict(num_classes=8), mask_head=dict(num_classes=8)))
data = dict(
    samples_per_gpu=1,
    workers_per_gpu=1,
    train=dict(ann_file=data_root + 'annotations/instances_train.json', img_prefix=data_root + 'train/'),
    val=dict(ann_file=data_root + 'annotations/instances_val.json', img_prefix=data_root + 'val/'))
optimizer = dict(_delete_=True, type='AdamW', lr=0.002 / 2, weight_decay=0.0001)
seed = find_seed()
";

const BASE: &str = "model = dict(
    type='MaskRCNN',
    backbone=dict(type='ResNet', depth=50),
    neck=dict(type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=16, num_outs=5),
    rpn_head=dict(type='RPNHead', in_channels=16, feat_channels=16),
    roi_head=dict(
        type='StandardRoIHead',
        bbox_head=dict(type='Shared2FCBBoxHead', fc_out_channels=32, num_classes=80),
        mask_head=dict(type='FCNMaskHead', num_convs=1, conv_out_channels=16, num_classes=80)))
pipeline = [dict(type='Resize', img_scale=(96, 64), keep_ratio=True), dict(type='RandomFlip', flip_ratio=0.5), dict(type='Mosaic')]
test_pipeline = [dict(type='MultiScaleFlipAug', img_scale=(96, 64), flip=False, transforms=[])]
data = dict(
    train=dict(type='CocoDataset', pipeline=pipeline),
    val=dict(type='CocoDataset', pipeline=test_pipeline))
evaluation = dict(metric=['bbox', 'segm'])
optimizer = dict(type='SGD', lr=0.02, momentum=0.9)
lr_config = dict(policy='step', warmup='linear', warmup_iters=4, warmup_ratio=0.001, step=[1])
runner = dict(type='EpochBasedRunner', max_epochs=1)
log_config = dict(interval=1)
";

fn scene() -> Scene {
    let scene = Scene::small();
    let config = fs::read_to_string(scene.path("cfg.toml")).unwrap();
    let root = config.lines().find_map(|line| line.strip_prefix("root = ")).unwrap().trim_matches('"').to_owned();
    fs::write(scene.path("mine.py"), CONFIG.replace("DATA", &root)).unwrap();
    fs::write(scene.path("base.py"), BASE).unwrap();
    scene
}

/// Runs `line`, which must end with exit code 2 and name what is wrong.
fn refused(scene: &Scene, line: &str, texts: &[&str]) -> Ended {
    let ended = scene.launch(line);
    ended.expect(2, texts);
    ended
}

#[test]
fn a_converted_config_trains() {
    let scene = scene();
    let told = scene.launch("convert-config mine.py --out mine.toml");
    told.expect(
        0,
        &[
            "carried over:",
            "optimizer.lr = 0.001 -> optimizer.lr = 0.001",
            "data.train.pipeline[Mosaic]: fnet has no such augmentation",
            "assumed:",
            "mine.py:12:8: seed is `find_seed()`, a function call",
            "wrote mine.toml",
        ],
    );
    let printed = scene.launch("convert-config mine.py");
    assert_eq!(printed.stdout, fs::read_to_string(scene.path("mine.toml")).unwrap(), "without --out it is printed");
    scene.one("train mine.toml --set model.rpn.train_nms_pre=100 model.rpn.max_per_image=50");
    assert!(scene.path("work_dirs/mine/latest.ckpt").exists());
}

#[test]
fn every_command_that_takes_a_config_names_this_one() {
    let scene = scene();
    let line = "fnet-launch convert-config mine.py --out mine.toml";
    for command in ["train mine.py", "check-data mine.py", "print-config mine.py", "test mine.py", "flops mine.py"] {
        let code = if command.starts_with("test") { 3 } else { 2 };
        scene.launch(&format!("--device cpu --nproc 1 {command}")).expect(code, &["this is a Python file", line]);
    }
}

#[test]
fn what_cannot_be_converted_is_refused() {
    let scene = scene();
    fs::write(scene.path("new.py"), "with read_base():\n    from .base import *\n").unwrap();
    fs::write(scene.path("other.py"), "model = dict(type='YOLOX')\n").unwrap();
    refused(&scene, "convert-config none.py", &["none.py", "No such file"]);
    refused(&scene, "convert-config cfg.toml", &["this is a TOML file", "print-config cfg.toml"]);
    refused(&scene, "convert-config new.py", &["new.py:1:1: this config imports its bases", ".dump('flat.py')"]);
    refused(&scene, "convert-config other.py", &["other.py:1:19: the model has the type YOLOX", "MaskRCNN"]);
    refused(&scene, "convert-config mine.py --out cfg.toml", &["--out cfg.toml: the file exists"]);
    refused(&scene, "convert-config mine.py --out mine.txt", &["expected the name of a .toml file"]);
}
