//! Names of MMDetection (2 and 3), Detectron2 and Ultralytics that users type, and what fnet has for them.

/// A name of another program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hint {
    /// The wrong name: a config field, or an option with its dashes.
    pub wrong: &'static str,
    /// The right one: a field, an option, or `--set FIELD=EXAMPLE`.
    pub right: &'static str,
    /// What else is different; may be empty.
    pub note: &'static str,
}

/// Finds the hint for an unknown field. Capitals do not matter.
pub fn of_field(path: &str) -> Option<&'static Hint> {
    HINTS.iter().find(|hint| hint.wrong.eq_ignore_ascii_case(path))
}

/// Finds the hint for an unknown option, with its dashes. `_` counts as `-`.
pub fn of_option(option: &str) -> Option<&'static Hint> {
    let name = option.split('=').next().unwrap_or(option).replace('_', "-");
    HINTS.iter().find(|hint| hint.wrong.eq_ignore_ascii_case(&name))
}

/// Finds the word of a field for another program's word.
pub fn of_word(field: &str, word: &str) -> Option<&'static str> {
    let found = WORDS.iter().find(|(of, wrong, _)| *of == field && wrong.eq_ignore_ascii_case(word));
    found.map(|(.., right)| *right)
}

impl Hint {
    /// `use X`, with the note.
    pub fn text(&self) -> String {
        let quoted = if self.right.starts_with("--") { self.right.to_owned() } else { format!("`{}`", self.right) };
        let note = if self.note.is_empty() { String::new() } else { format!(" ({})", self.note) };
        format!("use {quoted}{note}")
    }
}

const fn to(wrong: &'static str, right: &'static str) -> Hint {
    Hint { wrong, right, note: "" }
}

const fn noted(wrong: &'static str, right: &'static str, note: &'static str) -> Hint {
    Hint { wrong, right, note }
}

const KINDS: &str = "\"adamw\" or \"sgd\"";
const EPOCHS: &str = "a job is counted in epochs";
const SETS: &str = "a table, or a list of tables; each may have repeat and class_balanced";
const EACH: &str = "images of one worker, not of all";
const SCALES: &str = "a list of [longer side, shorter side]";
const AMP: &str = "\"off\", \"bf16\" or \"fp16\"";
const MASK: &str = "true for Mask R-CNN, false for Faster R-CNN";
const PER_WORKER: &str = "fnet-launch starts the workers itself";

/// All hints, by their programs.
pub const HINTS: &[Hint] = &[
    // MMDetection 2
    noted("optimizer.type", "optimizer.kind", KINDS),
    to("optimizer.paramwise_cfg", "optimizer.paramwise"),
    to("optimizer.paramwise_cfg.custom_keys", "optimizer.paramwise.custom_keys"),
    to("optimizer_config.grad_clip.max_norm", "optimizer.grad_clip"),
    noted("optimizer_config.grad_clip", "optimizer.grad_clip", "the number alone"),
    to("optimizer_config.cumulative_iters", "train.accumulate"),
    to("lr_config.policy", "schedule.policy"),
    to("lr_config.step", "schedule.steps"),
    to("lr_config.steps", "schedule.steps"),
    to("lr_config.gamma", "schedule.gamma"),
    to("lr_config.power", "schedule.power"),
    to("lr_config.min_lr", "schedule.min_lr"),
    to("lr_config.min_lr_ratio", "schedule.min_lr_ratio"),
    to("lr_config.by_epoch", "schedule.by_epoch"),
    to("lr_config.warmup", "schedule.warmup"),
    to("lr_config.warmup_iters", "schedule.warmup_iters"),
    to("lr_config.warmup_ratio", "schedule.warmup_ratio"),
    to("lr_config.warmup_by_epoch", "schedule.warmup_by_epoch"),
    to("schedule.step", "schedule.steps"),
    to("schedule.type", "schedule.policy"),
    to("runner.max_epochs", "train.epochs"),
    noted("runner.max_iters", "train.epochs", EPOCHS),
    to("total_epochs", "train.epochs"),
    to("max_epochs", "train.epochs"),
    to("train.max_epochs", "train.epochs"),
    to("data.imgs_per_gpu", "data.samples_per_gpu"),
    noted("data.batch_size", "data.samples_per_gpu", EACH),
    to("data.num_workers", "data.workers_per_gpu"),
    to("data.train.filter_empty_gt", "data.train.filter_empty"),
    to("data.val.filter_empty_gt", "data.val.filter_empty"),
    to("data.test.filter_empty_gt", "data.test.filter_empty"),
    to("data.train.times", "data.train.repeat"),
    to("data.train.oversample_thr", "data.train.class_balanced"),
    noted("data.train.dataset", "data.train", SETS),
    noted("data.train.datasets", "data.train", SETS),
    to("data_root", "data.root"),
    to("data.data_root", "data.root"),
    to("data.train.data_root", "data.root"),
    to("data.val.data_root", "data.root"),
    to("data.test.data_root", "data.root"),
    to("data.train.classes", "data.classes"),
    to("data.val.classes", "data.classes"),
    to("data.train.pipeline", "data.pipeline"),
    to("train_pipeline", "data.pipeline"),
    to("test_pipeline", "data.pipeline"),
    to("img_norm_cfg.mean", "data.pipeline.mean"),
    to("img_norm_cfg.std", "data.pipeline.std"),
    noted("data.pipeline.img_scale", "data.pipeline.scales", SCALES),
    to("data.pipeline.flip_ratio", "data.pipeline.flip_probability"),
    to("model.backbone.type", "model.backbone.kind"),
    to("model.backbone.act_layer", "model.backbone.activation"),
    to("model.backbone.pconv_fw_type", "model.backbone.partial_conv"),
    to("model.backbone.init_cfg", "model.backbone.pretrained"),
    to("model.backbone.init_cfg.checkpoint", "model.backbone.pretrained"),
    to("model.backbone.frozen_stages", "model.frozen_stages"),
    to("model.backbone.norm_eval", "model.norm_eval"),
    to("model.rpn_head.feat_channels", "model.rpn.feat_channels"),
    to("model.rpn_head.anchor_generator.scales", "model.rpn.anchor_scales"),
    to("model.rpn_head.anchor_generator.ratios", "model.rpn.anchor_ratios"),
    to("model.rpn_head.anchor_generator.strides", "model.rpn.anchor_strides"),
    to("model.roi_head.bbox_head.num_classes", "model.num_classes"),
    to("model.roi_head.mask_head.num_classes", "model.num_classes"),
    noted("model.type", "model.mask", MASK),
    noted("model.roi_head.mask_head", "model.mask", MASK),
    to("model.train_cfg.rpn.assigner.pos_iou_thr", "model.rpn.assigner.positive_iou"),
    to("model.train_cfg.rpn.assigner.neg_iou_thr", "model.rpn.assigner.negative_iou"),
    to("model.train_cfg.rpn.sampler.num", "model.rpn.sampler.count"),
    to("model.train_cfg.rpn_proposal.nms_pre", "model.rpn.train_nms_pre"),
    to("model.train_cfg.rcnn.assigner.pos_iou_thr", "model.roi_head.assigner.positive_iou"),
    to("model.train_cfg.rcnn.sampler.num", "model.roi_head.sampler.count"),
    to("model.train_cfg.rcnn.sampler.pos_fraction", "model.roi_head.sampler.positive_fraction"),
    to("model.test_cfg.rpn.nms_pre", "model.rpn.nms_pre"),
    to("model.test_cfg.rcnn.score_thr", "model.roi_head.score_threshold"),
    to("model.test_cfg.rcnn.nms.iou_threshold", "model.roi_head.nms_iou"),
    to("model.test_cfg.rcnn.max_per_img", "model.roi_head.max_per_image"),
    to("model.test_cfg.rcnn.mask_thr_binary", "model.roi_head.mask_threshold"),
    to("evaluation.metric", "evaluation.metrics"),
    to("evaluation.save_best", "checkpoint.save_best"),
    to("checkpoint_config.interval", "checkpoint.interval"),
    to("checkpoint_config.max_keep_ckpts", "checkpoint.keep_last"),
    to("checkpoint.max_keep_ckpts", "checkpoint.keep_last"),
    to("log_config.interval", "log.interval"),
    noted("fp16", "train.amp", AMP),
    to("fp16.loss_scale", "train.loss_scale"),
    to("auto_scale_lr.enable", "--auto-scale-lr"),
    to("auto_scale_lr.base_batch_size", "optimizer.base_batch_size"),
    to("load_from", "--load-from"),
    to("resume_from", "--resume"),
    to("work_dir", "--work-dir"),
    // MMDetection 3
    to("optim_wrapper.optimizer.type", "optimizer.kind"),
    to("optim_wrapper.optimizer.lr", "optimizer.lr"),
    to("optim_wrapper.optimizer.momentum", "optimizer.momentum"),
    to("optim_wrapper.optimizer.betas", "optimizer.betas"),
    to("optim_wrapper.optimizer.weight_decay", "optimizer.weight_decay"),
    to("optim_wrapper.clip_grad.max_norm", "optimizer.grad_clip"),
    to("optim_wrapper.accumulative_counts", "train.accumulate"),
    to("optim_wrapper.paramwise_cfg.custom_keys", "optimizer.paramwise.custom_keys"),
    to("train_cfg.max_epochs", "train.epochs"),
    to("train_cfg.val_interval", "evaluation.interval"),
    noted("train_dataloader.batch_size", "data.samples_per_gpu", EACH),
    to("train_dataloader.num_workers", "data.workers_per_gpu"),
    to("train_dataloader.dataset.times", "data.train.repeat"),
    to("train_dataloader.dataset.oversample_thr", "data.train.class_balanced"),
    noted("train_dataloader.dataset.datasets", "data.train", SETS),
    to("test_dataloader.dataset.ann_file", "data.test.ann_file"),
    to("metainfo.classes", "data.classes"),
    to("val_evaluator.metric", "evaluation.metrics"),
    to("default_hooks.checkpoint.interval", "checkpoint.interval"),
    to("default_hooks.checkpoint.max_keep_ckpts", "checkpoint.keep_last"),
    to("default_hooks.checkpoint.save_best", "checkpoint.save_best"),
    to("default_hooks.logger.interval", "log.interval"),
    to("randomness.seed", "train.seed"),
    to("early_stop.patience", "train.early_stop.patience"),
    to("early_stop.monitor", "train.early_stop.metric"),
    // Detectron2
    to("SOLVER.BASE_LR", "optimizer.lr"),
    noted("SOLVER.IMS_PER_BATCH", "data.samples_per_gpu", EACH),
    noted("SOLVER.MAX_ITER", "train.epochs", EPOCHS),
    noted("SOLVER.STEPS", "schedule.steps", "in epochs, or with schedule.by_epoch = false in steps"),
    to("SOLVER.GAMMA", "schedule.gamma"),
    to("SOLVER.LR_SCHEDULER_NAME", "schedule.policy"),
    to("SOLVER.WARMUP_ITERS", "schedule.warmup_iters"),
    to("SOLVER.WARMUP_FACTOR", "schedule.warmup_ratio"),
    to("SOLVER.WARMUP_METHOD", "schedule.warmup"),
    to("SOLVER.MOMENTUM", "optimizer.momentum"),
    to("SOLVER.WEIGHT_DECAY", "optimizer.weight_decay"),
    noted("SOLVER.WEIGHT_DECAY_NORM", "optimizer.paramwise.norm_decay_mult", "a multiplier of optimizer.weight_decay"),
    noted("SOLVER.WEIGHT_DECAY_BIAS", "optimizer.paramwise.bias_decay_mult", "a multiplier of optimizer.weight_decay"),
    to("SOLVER.BIAS_LR_FACTOR", "optimizer.paramwise.bias_lr_mult"),
    to("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "optimizer.grad_clip"),
    to("SOLVER.CHECKPOINT_PERIOD", "checkpoint.interval"),
    noted("SOLVER.AMP.ENABLED", "train.amp", AMP),
    to("DATALOADER.NUM_WORKERS", "data.workers_per_gpu"),
    to("DATALOADER.REPEAT_THRESHOLD", "data.train.class_balanced"),
    to("DATALOADER.SAMPLER_TRAIN", "data.train.class_balanced"),
    to("DATASETS.TRAIN", "data.train.ann_file"),
    to("DATASETS.TEST", "data.val.ann_file"),
    noted("INPUT.MIN_SIZE_TRAIN", "data.pipeline.scales", SCALES),
    noted("INPUT.MAX_SIZE_TRAIN", "data.pipeline.scales", SCALES),
    to("INPUT.MIN_SIZE_TEST", "data.pipeline.test_scale"),
    to("INPUT.RANDOM_FLIP", "data.pipeline.flip_probability"),
    to("MODEL.WEIGHTS", "--load-from"),
    to("MODEL.PIXEL_MEAN", "data.pipeline.mean"),
    to("MODEL.PIXEL_STD", "data.pipeline.std"),
    to("MODEL.MASK_ON", "model.mask"),
    to("MODEL.BACKBONE.FREEZE_AT", "model.frozen_stages"),
    to("MODEL.ROI_HEADS.NUM_CLASSES", "model.num_classes"),
    to("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "model.roi_head.sampler.count"),
    to("MODEL.ROI_HEADS.POSITIVE_FRACTION", "model.roi_head.sampler.positive_fraction"),
    to("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "model.roi_head.score_threshold"),
    to("MODEL.ROI_HEADS.NMS_THRESH_TEST", "model.roi_head.nms_iou"),
    to("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "model.rpn.train_nms_pre"),
    to("MODEL.RPN.PRE_NMS_TOPK_TEST", "model.rpn.nms_pre"),
    to("MODEL.RPN.POST_NMS_TOPK_TRAIN", "model.rpn.max_per_image"),
    to("TEST.EVAL_PERIOD", "evaluation.interval"),
    to("TEST.DETECTIONS_PER_IMAGE", "model.roi_head.max_per_image"),
    to("OUTPUT_DIR", "--work-dir"),
    // Ultralytics
    to("epochs", "train.epochs"),
    noted("batch", "data.samples_per_gpu", EACH),
    noted("batch_size", "data.samples_per_gpu", EACH),
    noted("imgsz", "data.pipeline.scales", SCALES),
    noted("img_size", "data.pipeline.scales", SCALES),
    to("lr0", "optimizer.lr"),
    noted("lrf", "schedule.min_lr_ratio", "with schedule.policy = \"cosine\""),
    noted("cos_lr", "schedule.policy", "\"cosine\""),
    noted("warmup_epochs", "schedule.warmup_iters", "with schedule.warmup_by_epoch = true"),
    to("learning_rate", "optimizer.lr"),
    to("momentum", "optimizer.momentum"),
    to("weight_decay", "optimizer.weight_decay"),
    to("patience", "train.early_stop.patience"),
    to("workers", "data.workers_per_gpu"),
    to("nbs", "optimizer.base_batch_size"),
    to("nc", "model.num_classes"),
    to("names", "data.classes"),
    to("path", "data.root"),
    to("val", "data.val.ann_file"),
    to("test", "data.test.ann_file"),
    to("freeze", "model.frozen_stages"),
    noted("amp", "train.amp", AMP),
    to("seed", "train.seed"),
    to("fliplr", "data.pipeline.flip_probability"),
    to("pretrained", "model.backbone.pretrained"),
    to("save_period", "checkpoint.interval"),
    to("conf", "model.roi_head.score_threshold"),
    to("iou", "model.roi_head.nms_iou"),
    to("max_det", "model.roi_head.max_per_image"),
    to("project", "--work-dir"),
    to("resume", "--resume"),
    to("device", "--device"),
    // Options of all of them
    to("--epochs", "--set train.epochs=12"),
    to("--max-epochs", "--set train.epochs=12"),
    noted("--batch", "--set data.samples_per_gpu=2", EACH),
    noted("--batch-size", "--set data.samples_per_gpu=2", EACH),
    to("--samples-per-gpu", "--set data.samples_per_gpu=2"),
    to("--lr", "--set optimizer.lr=1e-4"),
    to("--lr0", "--set optimizer.lr=1e-4"),
    to("--learning-rate", "--set optimizer.lr=1e-4"),
    to("--optimizer", "--set optimizer.kind=sgd"),
    to("--momentum", "--set optimizer.momentum=0.9"),
    to("--weight-decay", "--set optimizer.weight_decay=1e-4"),
    to("--cos-lr", "--set schedule.policy=cosine"),
    noted("--img", "--set data.pipeline.scales=[[1333,800]]", SCALES),
    noted("--imgsz", "--set data.pipeline.scales=[[1333,800]]", SCALES),
    noted("--img-size", "--set data.pipeline.scales=[[1333,800]]", SCALES),
    to("--workers", "--set data.workers_per_gpu=4"),
    to("--num-workers", "--set data.workers_per_gpu=4"),
    to("--num-classes", "--set model.num_classes=80"),
    to("--freeze", "--set model.frozen_stages=4"),
    to("--amp", "--set train.amp=bf16"),
    to("--fp16", "--set train.amp=fp16"),
    to("--half", "--set evaluation.amp=fp16"),
    to("--augment", "--tta"),
    noted("--patience", "--set train.early_stop.patience=10", "with train.early_stop.metric"),
    to("--accumulate", "--set train.accumulate=2"),
    to("--save-period", "--set checkpoint.interval=1"),
    to("--eval-interval", "--set evaluation.interval=1"),
    to("--data", "--set data.root=data/coco"),
    to("--data-root", "--set data.root=data/coco"),
    noted("--val-split", "--set data.val.fraction=0.1", "the part of the training images to validate on"),
    noted("--val-fraction", "--set data.val.fraction=0.1", "the part of the training images to validate on"),
    to("--noval", "--no-validate"),
    to("--no-val", "--no-validate"),
    to("--resume-from", "--resume"),
    to("--weights", "--load-from"),
    to("--pretrained", "--set model.backbone.pretrained=fasternet_s.pth"),
    to("--project", "--work-dir"),
    to("--output", "--work-dir"),
    to("--output-dir", "--work-dir"),
    to("--options", "--set"),
    to("--opts", "--set"),
    noted("--launcher", "--nnodes", PER_WORKER),
    noted("--nproc-per-node", "--nproc", PER_WORKER),
    to("--num-gpus", "--gpus"),
    to("--gpu-id", "--gpus"),
    to("--gpu-ids", "--gpus"),
    to("--num-machines", "--nnodes"),
    to("--machine-rank", "--node-rank"),
    to("--dist-url", "--master-addr"),
    to("--port", "--master-port"),
];

/// Words of other programs for the values of a field: field, wrong, right.
pub const WORDS: &[(&str, &str, &str)] = &[
    ("schedule.policy", "CosineAnnealing", "cosine"),
    ("schedule.policy", "CosineAnnealingLR", "cosine"),
    ("schedule.policy", "WarmupCosineLR", "cosine"),
    ("schedule.policy", "cos", "cosine"),
    ("schedule.policy", "MultiStepLR", "step"),
    ("schedule.policy", "WarmupMultiStepLR", "step"),
    ("schedule.policy", "multistep", "step"),
    ("schedule.policy", "PolyLR", "poly"),
    ("schedule.policy", "polynomial", "poly"),
    ("schedule.policy", "linear", "poly"),
    ("schedule.policy", "fixed", "constant"),
    ("schedule.policy", "ConstantLR", "constant"),
    ("schedule.warmup", "exponential", "exp"),
    ("schedule.warmup", "LinearLR", "linear"),
    ("train.amp", "true", "bf16"),
    ("train.amp", "float16", "fp16"),
    ("train.amp", "half", "fp16"),
    ("train.amp", "bfloat16", "bf16"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory;

    use super::*;
    use crate::cli::Launch;

    /// All options of fnet-launch and its commands.
    fn options() -> BTreeSet<String> {
        fn collect(command: &clap::Command, into: &mut BTreeSet<String>) {
            into.extend(command.get_arguments().filter_map(|argument| Some(format!("--{}", argument.get_long()?))));
            command.get_subcommands().for_each(|command| collect(command, into));
        }
        let mut all = BTreeSet::new();
        collect(&Launch::command(), &mut all);
        all
    }

    #[test]
    fn every_option_that_a_hint_names_exists_and_no_wrong_one_does() {
        let options = options();
        let mut seen = BTreeSet::new();
        for hint in HINTS {
            assert!(seen.insert(hint.wrong.to_ascii_lowercase()), "{} stands twice", hint.wrong);
            assert!(!options.contains(hint.wrong) || hint.wrong == "--batch", "{} exists", hint.wrong);
            let option = hint.right.split(' ').next().unwrap();
            assert!(!option.starts_with("--") || options.contains(option), "{} does not exist", hint.right);
        }
        assert!(HINTS.len() >= 60);
    }

    #[test]
    fn capitals_and_underscores_do_not_matter() {
        assert_eq!(of_field("solver.base_lr").unwrap().right, "optimizer.lr");
        assert_eq!(of_option("--nproc_per_node=8").unwrap().text(), format!("use --nproc ({PER_WORKER})"));
        assert_eq!(of_field("runner.max_epochs").unwrap().text(), "use `train.epochs`");
        assert_eq!(of_word("schedule.policy", "cosineannealing"), Some("cosine"));
        assert!(of_field("zzz").is_none() && of_option("--zzz").is_none() && of_word("a", "cos").is_none());
    }
}
