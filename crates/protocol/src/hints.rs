//! Names of MMDetection (2 and 3), Detectron2 and Ultralytics that users type, and what fnet has for them.

/// Names of other programs that mean the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hint {
    /// The wrong names: config fields, or options with their dashes, with a space between them.
    pub wrong: &'static str,
    /// The right one: a field, an option, or `--set FIELD=EXAMPLE`.
    pub right: &'static str,
    /// What else is different; may be empty.
    pub note: &'static str,
}

/// Finds the hint for an unknown field. Capitals do not matter.
pub fn of_field(path: &str) -> Option<&'static Hint> {
    HINTS.iter().find(|hint| hint.wrong.split(' ').any(|wrong| wrong.eq_ignore_ascii_case(path)))
}

/// Finds the hint for an unknown option, with its dashes. `_` counts as `-`.
pub fn of_option(option: &str) -> Option<&'static Hint> {
    of_field(&option.split('=').next().unwrap_or(option).replace('_', "-"))
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

const fn to(right: &'static str, wrong: &'static str) -> Hint {
    noted(right, "", wrong)
}

const fn noted(right: &'static str, note: &'static str, wrong: &'static str) -> Hint {
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

/// All hints.
#[rustfmt::skip]
pub const HINTS: &[Hint] = &[
    noted("optimizer.kind", KINDS, "optimizer.type"),
    to("optimizer.paramwise", "optimizer.paramwise_cfg"),
    to("optimizer.paramwise.custom_keys", "optimizer.paramwise_cfg.custom_keys optim_wrapper.paramwise_cfg.custom_keys"),
    to("optimizer.grad_clip", "optimizer_config.grad_clip.max_norm optim_wrapper.clip_grad.max_norm SOLVER.CLIP_GRADIENTS.CLIP_VALUE"),
    noted("optimizer.grad_clip", "the number alone", "optimizer_config.grad_clip"),
    to("train.accumulate", "optimizer_config.cumulative_iters optim_wrapper.accumulative_counts"),
    to("schedule.policy", "lr_config.policy schedule.type SOLVER.LR_SCHEDULER_NAME"),
    to("schedule.steps", "lr_config.step lr_config.steps schedule.step"),
    to("schedule.gamma", "lr_config.gamma SOLVER.GAMMA"),
    to("schedule.power", "lr_config.power"),
    to("schedule.min_lr", "lr_config.min_lr"),
    to("schedule.min_lr_ratio", "lr_config.min_lr_ratio"),
    to("schedule.by_epoch", "lr_config.by_epoch"),
    to("schedule.warmup", "lr_config.warmup SOLVER.WARMUP_METHOD"),
    to("schedule.warmup_iters", "lr_config.warmup_iters SOLVER.WARMUP_ITERS"),
    to("schedule.warmup_ratio", "lr_config.warmup_ratio SOLVER.WARMUP_FACTOR"),
    to("schedule.warmup_by_epoch", "lr_config.warmup_by_epoch"),
    to("train.epochs", "runner.max_epochs total_epochs max_epochs train.max_epochs train_cfg.max_epochs epochs"),
    noted("train.epochs", EPOCHS, "runner.max_iters SOLVER.MAX_ITER"),
    to("data.samples_per_gpu", "data.imgs_per_gpu"),
    noted("data.samples_per_gpu", EACH, "data.batch_size train_dataloader.batch_size SOLVER.IMS_PER_BATCH batch batch_size"),
    to("data.workers_per_gpu", "data.num_workers train_dataloader.num_workers DATALOADER.NUM_WORKERS workers"),
    to("data.train.filter_empty", "data.train.filter_empty_gt"),
    to("data.val.filter_empty", "data.val.filter_empty_gt"),
    to("data.test.filter_empty", "data.test.filter_empty_gt"),
    to("data.train.repeat", "data.train.times train_dataloader.dataset.times"),
    to("data.train.class_balanced", "data.train.oversample_thr train_dataloader.dataset.oversample_thr DATALOADER.REPEAT_THRESHOLD DATALOADER.SAMPLER_TRAIN"),
    noted("data.train", SETS, "data.train.dataset data.train.datasets train_dataloader.dataset.datasets"),
    to("data.root", "data_root data.data_root data.train.data_root data.val.data_root data.test.data_root path"),
    to("data.classes", "data.train.classes data.val.classes metainfo.classes names"),
    to("data.pipeline", "data.train.pipeline train_pipeline test_pipeline"),
    to("data.pipeline.mean", "img_norm_cfg.mean MODEL.PIXEL_MEAN"),
    to("data.pipeline.std", "img_norm_cfg.std MODEL.PIXEL_STD"),
    noted("data.pipeline.scales", SCALES, "data.pipeline.img_scale INPUT.MIN_SIZE_TRAIN INPUT.MAX_SIZE_TRAIN imgsz img_size"),
    to("data.pipeline.flip_probability", "data.pipeline.flip_ratio INPUT.RANDOM_FLIP fliplr"),
    to("model.backbone.kind", "model.backbone.type"),
    to("model.backbone.activation", "model.backbone.act_layer"),
    to("model.backbone.partial_conv", "model.backbone.pconv_fw_type"),
    to("model.backbone.pretrained", "model.backbone.init_cfg model.backbone.init_cfg.checkpoint pretrained"),
    to("model.frozen_stages", "model.backbone.frozen_stages MODEL.BACKBONE.FREEZE_AT freeze"),
    to("model.norm_eval", "model.backbone.norm_eval"),
    to("model.rpn.feat_channels", "model.rpn_head.feat_channels"),
    to("model.rpn.anchor_scales", "model.rpn_head.anchor_generator.scales"),
    to("model.rpn.anchor_ratios", "model.rpn_head.anchor_generator.ratios"),
    to("model.rpn.anchor_strides", "model.rpn_head.anchor_generator.strides"),
    to("model.num_classes", "model.roi_head.bbox_head.num_classes model.roi_head.mask_head.num_classes MODEL.ROI_HEADS.NUM_CLASSES nc"),
    noted("model.mask", MASK, "model.type model.roi_head.mask_head"),
    to("model.rpn.assigner.positive_iou", "model.train_cfg.rpn.assigner.pos_iou_thr"),
    to("model.rpn.assigner.negative_iou", "model.train_cfg.rpn.assigner.neg_iou_thr"),
    to("model.rpn.sampler.count", "model.train_cfg.rpn.sampler.num"),
    to("model.rpn.train_nms_pre", "model.train_cfg.rpn_proposal.nms_pre MODEL.RPN.PRE_NMS_TOPK_TRAIN"),
    to("model.roi_head.assigner.positive_iou", "model.train_cfg.rcnn.assigner.pos_iou_thr"),
    to("model.roi_head.sampler.count", "model.train_cfg.rcnn.sampler.num MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"),
    to("model.roi_head.sampler.positive_fraction", "model.train_cfg.rcnn.sampler.pos_fraction MODEL.ROI_HEADS.POSITIVE_FRACTION"),
    to("model.rpn.nms_pre", "model.test_cfg.rpn.nms_pre MODEL.RPN.PRE_NMS_TOPK_TEST"),
    to("model.roi_head.score_threshold", "model.test_cfg.rcnn.score_thr MODEL.ROI_HEADS.SCORE_THRESH_TEST conf"),
    to("model.roi_head.nms_iou", "model.test_cfg.rcnn.nms.iou_threshold MODEL.ROI_HEADS.NMS_THRESH_TEST iou"),
    to("model.roi_head.max_per_image", "model.test_cfg.rcnn.max_per_img TEST.DETECTIONS_PER_IMAGE max_det"),
    to("model.roi_head.mask_threshold", "model.test_cfg.rcnn.mask_thr_binary"),
    to("evaluation.metrics", "evaluation.metric val_evaluator.metric"),
    to("checkpoint.save_best", "evaluation.save_best default_hooks.checkpoint.save_best"),
    to("checkpoint.interval", "checkpoint_config.interval default_hooks.checkpoint.interval SOLVER.CHECKPOINT_PERIOD save_period"),
    to("checkpoint.keep_last", "checkpoint_config.max_keep_ckpts checkpoint.max_keep_ckpts default_hooks.checkpoint.max_keep_ckpts"),
    to("log.interval", "log_config.interval default_hooks.logger.interval"),
    noted("train.amp", AMP, "fp16 SOLVER.AMP.ENABLED amp"),
    to("train.loss_scale", "fp16.loss_scale"),
    to("--auto-scale-lr", "auto_scale_lr.enable"),
    to("optimizer.base_batch_size", "auto_scale_lr.base_batch_size nbs"),
    to("--load-from", "load_from MODEL.WEIGHTS --weights"),
    to("--resume", "resume_from resume --resume-from"),
    to("--work-dir", "work_dir OUTPUT_DIR project --project --output --output-dir"),
    to("optimizer.kind", "optim_wrapper.optimizer.type"),
    to("optimizer.lr", "optim_wrapper.optimizer.lr SOLVER.BASE_LR lr0 learning_rate"),
    to("optimizer.momentum", "optim_wrapper.optimizer.momentum SOLVER.MOMENTUM momentum"),
    to("optimizer.betas", "optim_wrapper.optimizer.betas"),
    to("optimizer.weight_decay", "optim_wrapper.optimizer.weight_decay SOLVER.WEIGHT_DECAY weight_decay"),
    to("evaluation.interval", "train_cfg.val_interval TEST.EVAL_PERIOD"),
    to("data.test.ann_file", "test_dataloader.dataset.ann_file test"),
    to("train.seed", "randomness.seed seed"),
    to("train.early_stop.patience", "early_stop.patience patience"),
    to("train.early_stop.metric", "early_stop.monitor"),
    noted("schedule.steps", "in epochs, or with schedule.by_epoch = false in steps", "SOLVER.STEPS"),
    noted("optimizer.paramwise.norm_decay_mult", "a multiplier of optimizer.weight_decay", "SOLVER.WEIGHT_DECAY_NORM"),
    noted("optimizer.paramwise.bias_decay_mult", "a multiplier of optimizer.weight_decay", "SOLVER.WEIGHT_DECAY_BIAS"),
    to("optimizer.paramwise.bias_lr_mult", "SOLVER.BIAS_LR_FACTOR"),
    to("data.train.ann_file", "DATASETS.TRAIN"),
    to("data.val.ann_file", "DATASETS.TEST val"),
    to("data.pipeline.test_scale", "INPUT.MIN_SIZE_TEST"),
    to("model.mask", "MODEL.MASK_ON"),
    to("model.rpn.max_per_image", "MODEL.RPN.POST_NMS_TOPK_TRAIN"),
    noted("schedule.min_lr_ratio", "with schedule.policy = \"cosine\"", "lrf"),
    noted("schedule.policy", "\"cosine\"", "cos_lr"),
    noted("schedule.warmup_iters", "with schedule.warmup_by_epoch = true", "warmup_epochs"),
    to("--device", "device"),
    to("--set train.epochs=12", "--epochs --max-epochs"),
    noted("--set data.samples_per_gpu=2", EACH, "--batch --batch-size"),
    to("--set data.samples_per_gpu=2", "--samples-per-gpu"),
    to("--set optimizer.lr=1e-4", "--lr --lr0 --learning-rate"),
    to("--set optimizer.kind=sgd", "--optimizer"),
    to("--set optimizer.momentum=0.9", "--momentum"),
    to("--set optimizer.weight_decay=1e-4", "--weight-decay"),
    to("--set schedule.policy=cosine", "--cos-lr"),
    noted("--set data.pipeline.scales=[[1333,800]]", SCALES, "--img --imgsz --img-size"),
    to("--set data.workers_per_gpu=4", "--workers --num-workers"),
    to("--set model.num_classes=80", "--num-classes"),
    to("--set model.frozen_stages=4", "--freeze"),
    to("--set train.amp=bf16", "--amp"),
    to("--set train.amp=fp16", "--fp16"),
    to("--set evaluation.amp=fp16", "--half"),
    to("--tta", "--augment"),
    noted("--set train.early_stop.patience=10", "with train.early_stop.metric", "--patience"),
    to("--set train.accumulate=2", "--accumulate"),
    to("--set checkpoint.interval=1", "--save-period"),
    to("--set evaluation.interval=1", "--eval-interval"),
    to("--set data.root=data/coco", "--data --data-root"),
    noted("--set data.val.fraction=0.1", "the part of the training images to validate on", "--val-split --val-fraction"),
    to("--no-validate", "--noval --no-val"),
    to("--set model.backbone.pretrained=fasternet_s.pth", "--pretrained"),
    to("--set", "--options --opts"),
    noted("--nnodes", PER_WORKER, "--launcher"),
    noted("--nproc", PER_WORKER, "--nproc-per-node"),
    to("--gpus", "--num-gpus --gpu-id --gpu-ids"),
    to("--nnodes", "--num-machines"),
    to("--node-rank", "--machine-rank"),
    to("--master-addr", "--dist-url"),
    to("--master-port", "--port"),
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
            for wrong in hint.wrong.split(' ') {
                assert!(seen.insert(wrong.to_ascii_lowercase()), "{wrong} stands twice");
                assert!(!options.contains(wrong) || wrong == "--batch", "{wrong} exists");
            }
            let option = hint.right.split(' ').next().unwrap();
            assert!(!option.starts_with("--") || options.contains(option), "{} does not exist", hint.right);
        }
        assert!(seen.len() >= 60);
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
