//! Conversions of whole configs.

use std::fs;
use std::path::PathBuf;

use fnet_test_support::folder;
use proptest::prelude::*;

use super::*;
use crate::value::{Item, SourceLocation, Value};

/// A value without a place.
pub fn item(value: Value) -> Item {
    Item { value, place: SourceLocation { file: "a.py".into(), line: 1, column: 1 } }
}

fn converted(files: &[(&str, &str)]) -> Converted {
    let folder = folder(files);
    convert(&folder.path().join(files[0].0)).unwrap()
}

fn error(files: &[(&str, &str)]) -> String {
    let folder = folder(files);
    let error = convert(&folder.path().join(files[0].0)).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    error.to_string()
}

fn config(converted: &Converted) -> Config {
    let mut config = Config::from_toml(&converted.toml, "converted").unwrap();
    // FNET_DATA_ROOT may override it.
    config.data.root.clear();
    config
}

/// In the style of MMDetection 2: variables, a repeated set, a nested test pipeline.
const TWO: &str = "
dataset_type = 'CocoDataset'
data_root = 'data/shapes/'
classes = ('square', 'disk')
img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 2.0, 3.0], to_rgb=False)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', img_scale=[(1333, 640), (1333, 800)], multiscale_mode='value', keep_ratio=True),
    dict(type='RandomFlip', flip_ratio=0.25),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='Pad', size_divisor=64),
    dict(type='CutOut', n_holes=5),
    dict(type='Collect', keys=['img']),
]
data = dict(
    samples_per_gpu=2 * 2,
    workers_per_gpu=3,
    train=dict(type='RepeatDataset', times=2, dataset=dict(
        type=dataset_type, classes=classes, ann_file=data_root + 'train.json', img_prefix=data_root + 'images/',
        pipeline=train_pipeline)),
    val=dict(type=dataset_type, classes=classes, ann_file=data_root + 'val.json', img_prefix=data_root + 'images/',
        pipeline=[dict(type='MultiScaleFlipAug', img_scale=(1000, 600), flip=False, transforms=[
            dict(type='Resize', keep_ratio=True)])]))
evaluation = dict(interval=1, metric=['bbox', 'segm'], save_best='auto')
model = dict(
    type='MaskRCNN',
    backbone=dict(type='ResNet', depth=50, norm_cfg=dict(type='SyncBN')),
    neck=dict(type='FPN', in_channels=[256, 512], out_channels=128, num_outs=5),
    rpn_head=dict(type='RPNHead', loss_bbox=dict(type='SmoothL1Loss', beta=1.0)),
    roi_head=dict(bbox_head=dict(num_classes=80), mask_head=dict(num_classes=80)),
    train_cfg=dict(rcnn=dict(sampler=dict(num=128))),
    test_cfg=dict(rcnn=dict(score_thr=0.1, nms=dict(type='soft_nms', iou_threshold=0.6))))
optimizer = dict(type='SGD', lr=0.02 / 8, weight_decay=0.0001)
optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
lr_config = dict(policy='step', warmup=None, step=[8, 11])
runner = dict(type='EpochBasedRunner', max_epochs=12)
checkpoint_config = dict(interval=2, max_keep_ckpts=3)
fp16 = dict(loss_scale=512.)
load_from = 'checkpoints/a.pth'
my_note = 1
";

/// The augmentations that a pipeline with these transforms becomes, of MMDetection 2 or 3, and the report.
fn augmentations(version: u32, transforms: &str) -> (Config, String) {
    let pipeline = format!("[dict(type='LoadImageFromFile'), {transforms}, dict(type='DefaultFormatBundle')]");
    let text = match version {
        2 => format!("data = dict(train=dict(type='CocoDataset', ann_file='a.json', pipeline={pipeline}))"),
        _ => {
            format!("train_dataloader = dict(dataset=dict(type='CocoDataset', ann_file='a.json', pipeline={pipeline}))")
        }
    };
    let converted = converted(&[("cfg.py", &text)]);
    (config(&converted), converted.report.to_string())
}

#[test]
fn pipelines_with_more_than_a_resize_and_a_flip_become_the_list_of_augmentations() {
    let resize = "dict(type='Resize', img_scale=(1024, 1024), ratio_range=(0.1, 2.0), keep_ratio=True)";
    let flip = "dict(type='RandomFlip', flip_ratio=0.5, direction=['horizontal', 'vertical'])";
    let crop = "dict(type='RandomCrop', crop_type='absolute', crop_size=(800, 1000), allow_negative_crop=True)";
    let colors = "dict(type='PhotoMetricDistortion', hue_delta=9)";
    let two = format!(
        "{resize}, {crop}, {flip}, {colors}, dict(type='Normalize', mean=[1, 2, 3]), dict(type='Pad', size=(800, 1000))"
    );
    let expected = "[{ kind = 'resize', scales = [[1024, 1024]], ratio_range = [0.1, 2.0] },
        { kind = 'random_crop', crop_type = 'absolute', crop_size = [800.0, 1000.0], allow_negative_crop = true },
        { kind = 'flip', probabilities = [0.25, 0.25], directions = ['horizontal', 'vertical'] },
        { kind = 'color_jitter', hue_delta = 9.0 }, { kind = 'pad', size = [800, 1000] }]";
    let text = format!("data.pipeline.train = {}", expected.replace('\n', " "));
    let expected =
        fnet_config::Resolved::from_toml(&text, "x", &[], &|_| unreachable!()).unwrap().config.data.pipeline.train;
    let (config, report) = augmentations(2, &two);
    assert_eq!(config.data.pipeline.train, expected, "{report}");
    assert!(report.contains("-> data.pipeline.train") && !report.contains("no such augmentation"), "{report}");
    // The sizes of MMDetection 3 are (width, height).
    let three = two.replace("img_scale", "scale").replace("flip_ratio", "prob").replace("(800, 1000)", "(1000, 800)");
    assert_eq!(augmentations(3, &three.replace("'Resize'", "'RandomResize'")).0.data.pipeline.train, expected);
    let (config, report) = augmentations(2, &format!("{resize}, dict(type='Normalize', mean=[1, 2, 3]), {colors}"));
    assert!(config.data.pipeline.train.is_empty() && report.contains("expected it before Normalize"), "{report}");
    let plain = "dict(type='Resize', img_scale=(1333, 800)), dict(type='RandomFlip', flip_ratio=0.25)";
    let pipeline = augmentations(2, plain).0.data.pipeline;
    assert!(pipeline.train.is_empty() && pipeline.flip_probability == 0.25);
}

#[test]
fn a_config_of_mmdetection_2_is_carried_over() {
    let converted = converted(&[("cfg.py", TWO)]);
    let config = config(&converted);
    assert_eq!((config.data.samples_per_gpu, config.data.workers_per_gpu), (4, 3));
    assert_eq!(config.data.classes, ["square", "disk"]);
    assert_eq!(config.model.num_classes, 2, "the number of names");
    assert_eq!(
        (config.data.train[0].ann_file.as_str(), config.data.train[0].img_prefix.as_str()),
        ("train.json", "images")
    );
    assert!(converted.toml.contains("root = \"data/shapes\"\n"), "{}", converted.toml);
    let pipeline = &config.data.pipeline;
    assert_eq!((pipeline.scales.as_slice(), pipeline.test_scale), ([[1333, 640], [1333, 800]].as_slice(), [1000, 600]));
    assert_eq!((pipeline.mean, pipeline.std), ([123.675, 116.28, 103.53], [3.0, 2.0, 1.0]), "in the order RGB");
    assert_eq!((pipeline.flip_probability, pipeline.size_divisor), (0.25, 64));
    assert_eq!((config.optimizer.kind, config.optimizer.lr), (fnet_config::OptimizerKind::Sgd, 0.0025));
    assert_eq!((config.optimizer.momentum, config.optimizer.grad_clip), (0.0, 35.0), "SGD has no momentum by default");
    assert_eq!((config.schedule.warmup_iters, config.schedule.steps), (0, vec![8, 11]));
    assert_eq!((config.train.epochs, config.data.train[0].repeat), (12, 2));
    assert_eq!((config.train.amp, config.evaluation.amp), (fnet_config::Amp::Fp16, fnet_config::Amp::Fp16));
    assert_eq!((config.train.loss_scale, config.checkpoint.keep_last), (512.0, 3));
    assert_eq!(config.checkpoint.save_best, "bbox_mAP");
    assert!(config.model.sync_bn);
    assert_eq!(config.model.neck.out_channels, 128);
    assert_eq!((config.model.roi_head.sampler.count, config.model.roi_head.nms_iou), (128, 0.6));

    let report = converted.report.to_string();
    for words in [
        "data.train.dataset.pipeline[CutOut]: fnet has no such augmentation",
        "model.rpn_head.loss_bbox.type = 'SmoothL1Loss': the RPN has",
        "model.test_cfg.rcnn.nms.type = 'soft_nms': overlapping boxes are removed (nms)",
        "load_from = 'checkpoints/a.pth': give the file to the command",
        "images are RGB",
        "the config has num_classes = 80",
        "model.backbone is FasterNet-S: the config's is ResNet",
        "optimizer.momentum = 0.0, as the config has no optimizer[SGD].momentum",
        "data.samples_per_gpu = 4 -> data.samples_per_gpu = 4",
        "my_note",
    ] {
        assert!(report.contains(words), "{words} is missing:\n{report}");
    }
    assert!(!report.contains("LoadImageFromFile") && !report.contains("in_channels"), "{report}");
    assert!(converted.report.not_evaluated.is_empty(), "{report}");
}

/// In the style of MMDetection 3: bases, loaders, schedulers in a list, an assignment into a base.
const THREE: [(&str, &str); 4] = [
    (
        "mine/cfg.py",
        "_base_ = ['../base/model.py', '../base/data.py', '../base/run.py']
metainfo = {'classes': ('square', ), 'palette': [(1, 2, 3)]}
model = dict(roi_head=dict(bbox_head=dict(num_classes=1), mask_head=dict(num_classes=1)))
train_dataloader = dict(batch_size=8, dataset=dict(metainfo=metainfo, data_root='/data/x/', ann_file='a/t.json'))
val_dataloader = dict(dataset=dict(metainfo=metainfo, data_root='/data/x/', ann_file='a/v.json'))
_base_.default_hooks.checkpoint.interval = 4
optim_wrapper = dict(_delete_=True, type='AmpOptimWrapper', dtype='bfloat16', accumulative_counts=2,
    optimizer=dict(type='AdamW', lr=0.0002, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0., custom_keys={'backbone': dict(lr_mult=0.1), 'norm0': dict(decay_mult=0)}))
custom_hooks = [dict(type='EarlyStoppingHook', monitor='coco/segm_mAP', patience=3)]
train_cfg = dict(max_epochs={{_base_.epochs}} * 2)
",
    ),
    (
        "base/model.py",
        "model = dict(
    type='mmdet.MaskRCNN',
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], bgr_to_rgb=True,
        pad_mask=True, pad_size_divisor=32),
    backbone=dict(type='fasternet_t1', depth=50, init_cfg=dict(checkpoint='t1.pth')),
    roi_head=dict(bbox_head=dict(num_classes=80), mask_head=dict(num_classes=80)))
",
    ),
    (
        "base/data.py",
        "train_dataloader = dict(batch_size=2, num_workers=2, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CocoDataset', data_prefix=dict(img='train/'), pipeline=[
        dict(type='RandomResize', scale=[(1333, 640), (1333, 800)], keep_ratio=True),
        dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs')]))
val_dataloader = dict(batch_size=1, dataset=dict(type='CocoDataset', test_mode=True, data_prefix=dict(img='val/'),
    pipeline=[dict(type='Resize', scale=(1333, 800), keep_ratio=True)]))
val_evaluator = dict(type='CocoMetric', metric=['bbox', 'segm'])
",
    ),
    (
        "base/run.py",
        "epochs = 10
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=5)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', T_max=20),
]
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, save_best='coco/segm_mAP'), logger=dict(interval=7))
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.02, momentum=0.9))
",
    ),
];

#[test]
fn a_config_of_mmdetection_3_with_bases_is_carried_over() {
    let converted = converted(&THREE);
    let config = config(&converted);
    assert_eq!((config.data.samples_per_gpu, config.data.classes.as_slice()), (8, ["square".to_owned()].as_slice()));
    assert!(converted.toml.contains("root = \"/data/x\"\n"), "{}", converted.toml);
    assert_eq!((config.data.val.ann_file.as_str(), config.data.val.img_prefix.as_str()), ("a/v.json", "val"));
    assert!(!config.data.train[0].filter_empty, "MMDetection 3 keeps empty images unless a config says otherwise");
    assert_eq!((config.model.backbone.embed_dim, config.model.backbone.pretrained.as_str()), (64, "t1.pth"));
    assert_eq!(config.data.pipeline.scale_mode, fnet_config::ScaleMode::Range);
    assert_eq!(config.data.pipeline.mean, [1.0, 2.0, 3.0]);
    assert_eq!((config.optimizer.weight_decay, config.train.accumulate), (0.05, 2));
    assert_eq!((config.train.amp, config.evaluation.amp), (fnet_config::Amp::Bf16, fnet_config::Amp::Off));
    assert_eq!((config.train.epochs, config.evaluation.interval), (20, 5));
    assert_eq!(config.checkpoint.interval, fnet_config::Interval::Epochs(4), "the assignment into the base");
    assert_eq!((config.checkpoint.save_best.as_str(), config.log.interval), ("segm_mAP", 7));
    assert_eq!((config.schedule.warmup_iters, config.schedule.warmup_ratio), (99, 0.01));
    assert_eq!((config.schedule.policy, config.schedule.by_epoch), (fnet_config::Policy::Cosine, true));
    assert_eq!((config.train.early_stop.metric.as_str(), config.train.early_stop.patience), ("segm_mAP", 3));
    let report = converted.report.to_string();
    for words in ["param_scheduler[CosineAnnealingLR] -> schedule.policy", "[EarlyStoppingHook].min_delta = 0.1"] {
        assert!(report.contains(words), "{words} is missing:\n{report}");
    }
    assert!(!report.contains("paramwise_cfg: "), "{report}");
}

/// The rule of `DefaultOptimizerConstructor`, on the names that both detectors have.
#[test]
fn multipliers_of_parameters_are_those_of_the_config() {
    let paramwise = &config(&converted(&THREE)).optimizer.paramwise;
    for (name, is_norm, expected) in [
        ("backbone.stages.0.blocks.0.mlp.0.weight", false, (0.1, 1.0)),
        ("backbone.norm0.weight", true, (0.1, 1.0)),
        ("neck.norm0.weight", true, (1.0, 0.0)),
        ("neck.other.weight", true, (1.0, 0.0)),
        ("neck.fpn_convs.0.conv.bias", false, (1.0, 1.0)),
    ] {
        let found = paramwise.multipliers(name, is_norm);
        assert_eq!((found.lr_mult, found.decay_mult), expected, "{name}");
    }
    let wrong =
        TWO.replace("weight_decay=0.0001)", "paramwise_cfg=dict(custom_keys=dict(a=dict(lr=1)), num_layers=6))");
    let converted = converted(&[("cfg.py", &wrong)]);
    assert!(config(&converted).optimizer.paramwise.custom_keys.is_empty());
    let report = converted.report.to_string();
    for words in ["optimizer.paramwise_cfg.custom_keys = dict(a=dict(lr=1)) (", "paramwise_cfg = dict("] {
        assert!(report.contains(words), "{words} is missing:\n{report}");
    }
}

/// FasterNet's code takes and ignores them; a backbone in whose place FasterNet starts without weights must not be frozen.
#[test]
fn frozen_stages_and_norms_stay_as_they_are_and_are_named() {
    for (backbone, words) in [
        ("type='fasternet_s'", "model.frozen_stages has its default, because FasterNet's code ignores"),
        ("type='ResNet', depth=50", "model.backbone.frozen_stages = 1: all is trained; with FasterNet's weights, set"),
    ] {
        let text = format!("model = dict(type='MaskRCNN', backbone=dict({backbone}, frozen_stages=1, norm_eval=True))");
        let converted = converted(&[("cfg.py", &text)]);
        let config = config(&converted);
        assert_eq!((config.model.frozen_stages, config.model.norm_eval), (-1, false));
        let report = converted.report.to_string();
        assert!(report.contains(words) && report.contains("norm_eval"), "{report}");
    }
}

#[test]
fn what_python_would_have_to_evaluate_is_listed_and_left_out() {
    let text = TWO.replace("lr=0.02 / 8", "lr=rate()").replace("'images/'", "'images/' + name");
    let converted = converted(&[("cfg.py", &text)]);
    assert_eq!(config(&converted).optimizer.lr, Config::default().optimizer.lr);
    let report = converted.report.to_string();
    for words in ["optimizer.lr is `rate()`, a function call", "img_prefix is `name`, a name that", "Config.fromfile("]
    {
        assert!(report.contains(words), "{words} is missing:\n{report}");
    }
}

#[test]
fn what_cannot_be_converted_is_refused_with_place_and_remedy() {
    let base = ("b.py", "model = dict(backbone=dict(depth=50))\nlr_config = None\n");
    for (files, words) in [
        (vec![("a.py", "model = dict(type='DETR')")], vec!["a.py:1:19", "DETR", "MaskRCNN"]),
        (vec![("a.py", "x = 1")], vec!["neither `model` nor `data`"]),
        (vec![("a.py", "model = dict(type='MaskRCNN')\nmodel.update(a=1)")], vec!["a.py:2:1", "function call"]),
        (vec![("a.py", "m = dict(type='MaskRCNN')\nmodel = m\nm.update(a=1)")], vec!["type that only Python knows"]),
        (vec![("a.py", "model = build()")], vec!["a.py:1:9", "`build()`, a function call"]),
        (vec![("a.py", "_base_ = 'none.py'")], vec!["a.py:1:10", "none.py does not exist", "configs/"]),
        (vec![("a.py", "_base_ = 'mmdet::b.py'")], vec!["a.py:1:10", "installed package"]),
        (vec![("a.py", "_base_ = 'a.py'")], vec!["base of itself"]),
        (vec![("a.py", "_base_ = ['b.py', 'c.py']"), base, ("c.py", "model = 1")], vec!["two bases set `model`"]),
        (vec![("a.py", "_base_ = 'b.py'\nlr_config = dict(step=[1])"), base], vec!["a.py:2:13", "`_delete_=True`"]),
        (vec![("a.py", "_base_ = 'b.py'"), ("b.py", "a = = 1")], vec!["base 'b.py' of", "b.py:1:"]),
        (
            vec![("a.py", "model = dict(type='MaskRCNN', test_cfg=dict(rcnn=dict(score_thr=2)))")],
            vec![
                "a.py: these values",
                "model.test_cfg.rcnn.score_thr = 2 -> model.roi_head.score_threshold",
                "at most 1",
            ],
        ),
    ] {
        let error = error(&files);
        for words in words {
            assert!(error.contains(words), "{words} is missing: {error}");
        }
    }
    let folder = folder(&[]);
    let path = folder.path().join("a.py");
    fs::write(&path, b"a = '\xff'\n").unwrap();
    assert!(convert(&path).unwrap_err().to_string().contains("byte 6 is not UTF-8"));
    assert!(convert(&PathBuf::from("/dev/null")).unwrap_err().to_string().contains("regular file"));
}

#[test]
fn a_model_without_a_mask_head_finds_boxes_only() {
    let converted = converted(&[(
        "cfg.py",
        &TWO.replace("MaskRCNN", "FasterRCNN")
            .replace("mask_head=dict(num_classes=80)", "")
            .replace("['bbox', 'segm']", "'bbox'"),
    )]);
    let config = config(&converted);
    assert!(!config.model.mask && config.evaluation.metrics == [fnet_config::Metric::Bbox]);
    let report = converted.report.to_string();
    assert!(report.contains("model.mask = false, as the config has no mask_head"), "{report}");
}

#[test]
fn a_deleted_dict_of_a_base_is_replaced() {
    let base = ("b.py", "model = dict(type='MaskRCNN')\noptimizer = dict(type='SGD', lr=0.02, momentum=0.8)\n");
    let converted =
        converted(&[("a.py", "_base_ = './b.py'\noptimizer = dict(_delete_=True, type='AdamW', lr=1)\n"), base]);
    let config = config(&converted);
    assert_eq!((config.optimizer.lr, config.optimizer.momentum), (1.0, Config::default().optimizer.momentum));
    assert_eq!(config.optimizer.weight_decay, 0.01, "AdamW's default in PyTorch");
}

proptest! {
    /// Any bytes give a result or an error.
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.py");
        fs::write(&path, bytes).unwrap();
        let _ = convert(&path);
    }

    /// A config with some bytes replaced, which is often still one.
    #[test]
    fn no_damaged_config_panics(places in prop::collection::vec((0..TWO.len(), any::<u8>()), 0..6)) {
        let mut bytes = TWO.as_bytes().to_vec();
        for (place, byte) in places {
            bytes[place] = byte;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.py");
        fs::write(&path, bytes).unwrap();
        let _ = convert(&path);
    }
}

#[test]
fn every_training_set_becomes_an_entry_of_the_list() {
    let config = |train: &str| {
        format!(
            "root = 'd/'\nclasses = ('a', 'b')\nx = dict(type='CocoDataset', ann_file=root + 'x.json', img_prefix=root + 'x', \
             classes=classes)\ny = dict(type='CocoDataset', ann_file=root + 'y.json', img_prefix=root + 'y', classes=classes)\n\
             data = dict(train={train}, val=y)"
        )
    };
    let sets = |train: &str| {
        let converted = converted(&[("cfg.py", &config(train))]);
        let set = |set: &fnet_config::TrainSet| (set.ann_file.clone(), set.img_prefix.clone(), set.repeat);
        let sets: Vec<_> = self::config(&converted).data.train.iter().map(set).collect();
        (sets, converted.report.to_string())
    };
    let expected = |entries: &[(&str, &str, usize)]| -> Vec<_> {
        entries.iter().map(|(file, folder, repeat)| (file.to_string(), folder.to_string(), *repeat)).collect()
    };
    let both = expected(&[("x.json", "x", 1), ("y.json", "y", 1)]);
    for train in ["[x, y]", "dict(type='ConcatDataset', datasets=[x, y])"] {
        let (found, report) = sets(train);
        assert_eq!(found, both);
        assert!(report.contains("data.train[1].ann_file = \"y.json\"") && !report.contains("differs"), "{report}");
    }
    let repeated = "dict(type='RepeatDataset', times=3, dataset=dict(type='ConcatDataset', datasets=[x, y]))";
    assert_eq!(sets(repeated).0, expected(&[("x.json", "x", 3), ("y.json", "y", 3)]));
    let one = "dict(type='RepeatDataset', times=3, dataset=x)";
    assert_eq!(sets(&format!("[{one}, y]")).0, expected(&[("x.json", "x", 3), ("y.json", "y", 1)]));
    assert_eq!(sets(&format!("[{one}]")).0, expected(&[("x.json", "x", 3)]));
    let files =
        "dict(type='CocoDataset', ann_file=[root + 'x.json', root + 'y.json'], img_prefix=root + 'x', classes=classes)";
    assert_eq!(sets(files).0, expected(&[("x.json", "x", 1), ("y.json", "x", 1)]));
    let folders = files.replace("img_prefix=root + 'x'", "img_prefix=[root + 'x', root + 'y']");
    assert_eq!(sets(&folders).0, both);
    let balanced =
        "dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=dict(type='ConcatDataset', datasets=[x, y]))";
    assert!(sets(balanced).1.contains("counts the classes of each set"));
    let other = "[x, dict(type='CocoDataset', ann_file='d/z.json', img_prefix='d/z', classes=('c', 'd'))]";
    assert!(sets(other).1.contains("data.train[1].classes differs"), "{}", sets(other).1);
    let many = format!("[{}]", "x, ".repeat(1001));
    assert!(error(&[("cfg.py", &config(&many))]).contains("more than 1000 training sets"));
}
