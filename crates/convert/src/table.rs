//! The mapping of MMDetection's fields to fnet's.

use toml::Value as Toml;

use crate::schedule;
use crate::value::{Item, Value, fields};

/// Converts a value; the error says what was expected.
pub type Convert = fn(&Value) -> Result<Toml, &'static str>;

/// What becomes of a field.
#[derive(Clone, Copy)]
pub enum Rule {
    /// The field of fnet, or several in a table of values if the name is empty. Names that start with `=` are used to find
    /// other values and are no fields.
    To(&'static str, Convert),
    /// If the field is missing, although the first pattern is there: the field of fnet and MMDetection's default.
    Missing(&'static str, &'static str, &'static str),
    /// fnet always does this; values as Python prints them. For others: what fnet does.
    Always(&'static [&'static str], &'static str),
    /// Another field has the same value. If not: what fnet does.
    As(&'static str, &'static str),
    /// There is no such field in fnet: what it does.
    No(&'static str),
    /// Has no effect on what is trained or evaluated, or follows from other fields.
    Follows,
}

use Rule::{Always, As, Follows, Missing, No, To};

/// Names in patterns that stand for several places, those of MMDetection 2 first.
pub const ALIASES: [(&str, &[&str]); 9] = [
    ("$train", &["data.train", "train_dataloader.dataset"]),
    ("$val", &["data.val", "val_dataloader.dataset"]),
    ("$test", &["data.test", "test_dataloader.dataset"]),
    ("$optimizer", &["optimizer", "optim_wrapper.optimizer"]),
    ("$paramwise", &["optimizer.paramwise_cfg", "optim_wrapper.paramwise_cfg"]),
    ("$evaluation", &["evaluation", "val_evaluator[CocoMetric]"]),
    ("$checkpoint", &["checkpoint_config", "default_hooks.checkpoint"]),
    ("$traincfg", &["model.train_cfg", "train_cfg"]),
    ("$testcfg", &["model.test_cfg", "test_cfg"]),
];

/// Types of data sets that rows of their own tell about, and the one that fnet reads.
const WRAPPERS: [&str; 5] =
    ["'CocoDataset'", "'RepeatDataset'", "'ClassBalancedDataset'", "'ConcatDataset'", "'MultiImageMixDataset'"];
const IOU: &str = "fnet computes IoU in one piece, whatever the memory";
const ONE_HEAD: &str = "the box head is two shared fully connected layers with softmax and L1 losses of weight 1";
const RPN: &str = "the RPN has one 3x3 convolution with sigmoid and L1 losses of weight 1, and plain anchors";
const MASKS: &str = "the mask head is FCNMaskHead with a loss of weight 1";
const RESIZE: &str = "images keep their aspect ratio; sizes are those of data.pipeline.scales";
const AUGMENTATIONS: &str = "fnet has no such augmentation; data.pipeline.train lists those that there are";
const SCHEDULE: &str = "the schedule is a warm-up and one of the policies step, cosine, poly and constant";
const LOGS: &str = "text, JSON and TensorBoard files in the work folder";
const LOADER: &str = "each loader thread decodes and augments; it needs no settings";
const GROUP: &str = "learning rate and weight decay of some parameters follow from optimizer.paramwise alone";
const STOP: &str = "a job stops early after train.early_stop.patience evaluations without a higher value";

/// The fields of MMDetection, in the order in which they are looked for, those with the same rule separated by spaces. A row
/// for a dict or list takes what the rows above it left.
#[rustfmt::skip] // One line for each row.
pub const TABLE: &[(&str, Rule)] = &[
    // The detector.
    ("model.type", Follows),
    ("model.roi_head.bbox_head.num_classes model.roi_head.mask_head.num_classes", To("model.num_classes", whole)),
    ("model.backbone.norm_cfg.type", To("model.sync_bn", sync_bn)),
    ("model.backbone[fasternet*].embed_dim", To("model.backbone.embed_dim", whole)),
    ("model.backbone[fasternet*].depths", To("model.backbone.depths", numbers)),
    ("model.backbone[fasternet*].mlp_ratio", To("model.backbone.mlp_ratio", number)),
    ("model.backbone[fasternet*].n_div", To("model.backbone.n_div", whole)),
    ("model.backbone[fasternet*].act_layer", To("model.backbone.activation", lower_case)),
    ("model.backbone[fasternet*].drop_path_rate", To("model.backbone.drop_path_rate", number)),
    ("model.backbone[fasternet*].pconv_fw_type", To("model.backbone.partial_conv", lower_case)),
    ("model.backbone[fasternet*].init_cfg.checkpoint", To("model.backbone.pretrained", text)),
    ("model.backbone[fasternet*].pretrained", To("model.backbone.pretrained", text)),
    ("model[&backbone.type=fasternet*].pretrained", To("model.backbone.pretrained", text)),
    ("model.backbone[fasternet*].type", To("", variant)),
    ("model.backbone[fasternet*].layer_scale_init_value", Always(&["0", "0.0"], "there is no layer scale")),
    ("model.backbone[fasternet*].norm_layer", Always(&["'BN'"], "norms are BatchNorm")),
    // FasterNet's code takes and ignores the fields of other backbones that a base brings along.
    ("model.backbone[fasternet*]", Follows),
    ("model.backbone.frozen_stages", Always(&["-1"], "all is trained; with FasterNet's weights, set model.frozen_stages")),
    ("model.backbone.norm_eval", Always(&["False"], "norms use the batch; with FasterNet's weights, set model.norm_eval")),
    ("model.backbone", No("the backbone is FasterNet-S; another size is chosen by [model.backbone], as in configs/")),
    ("model.pretrained", No("weights of another backbone do not fit; set model.backbone.pretrained to a FasterNet file")),
    ("model.data_preprocessor.mean", To("=mean", numbers)),
    ("model.data_preprocessor.std", To("=std", numbers)),
    ("model.data_preprocessor.bgr_to_rgb", To("=to_rgb", flag)),
    ("model.data_preprocessor.pad_size_divisor", To("data.pipeline.size_divisor", whole)),
    ("model.data_preprocessor.pad_size_divisor", Missing("model.data_preprocessor", "data.pipeline.size_divisor", "1")),
    ("model.data_preprocessor.batch_augments", No("images of a batch are not augmented together")),
    ("model.data_preprocessor data_preprocessor", Follows),
    ("model.neck.out_channels", To("model.neck.out_channels", whole)),
    ("model.neck.num_outs", To("model.neck.num_outs", whole)),
    ("model.neck.type", Always(&["'FPN'"], "the neck is FPN")),
    ("model.neck.in_channels", Follows),
    ("model.neck.start_level", Always(&["0"], "FPN takes all four outputs of the backbone")),
    ("model.neck.add_extra_convs", Always(&["False"], "further levels are subsampled")),
    ("model.neck", No("FPN without norms and activations")),
    ("model.rpn_head.feat_channels", To("model.rpn.feat_channels", whole)),
    ("model.rpn_head.anchor_generator[AnchorGenerator].scales", To("model.rpn.anchor_scales", numbers)),
    ("model.rpn_head.anchor_generator[AnchorGenerator].ratios", To("model.rpn.anchor_ratios", numbers)),
    ("model.rpn_head.anchor_generator[AnchorGenerator].strides", To("model.rpn.anchor_strides", numbers)),
    ("model.rpn_head.type", Always(&["'RPNHead'"], RPN)),
    ("model.rpn_head.in_channels", Follows),
    ("model.rpn_head.bbox_coder.type", Always(&["'DeltaXYWHBBoxCoder'"], RPN)),
    ("model.rpn_head.bbox_coder.target_means", Always(&["[0.0, 0.0, 0.0, 0.0]", "[0, 0, 0, 0]"], RPN)),
    ("model.rpn_head.bbox_coder.target_stds", Always(&["[1.0, 1.0, 1.0, 1.0]", "[1, 1, 1, 1]"], RPN)),
    ("model.rpn_head.loss_cls.type", Always(&["'CrossEntropyLoss'"], RPN)),
    ("model.rpn_head.loss_cls.use_sigmoid", Always(&["True"], RPN)),
    ("model.rpn_head.loss_cls.loss_weight", Always(&["1.0", "1"], RPN)),
    ("model.rpn_head.loss_bbox.type", Always(&["'L1Loss'"], RPN)),
    ("model.rpn_head.loss_bbox.loss_weight", Always(&["1.0", "1"], RPN)),
    ("model.rpn_head", No(RPN)),
    ("model.roi_head.type", Always(&["'StandardRoIHead'"], "one box head and one mask head (StandardRoIHead)")),
    ("model.roi_head.bbox_roi_extractor.finest_scale", To("model.roi_head.finest_scale", number)),
    ("model.roi_head.bbox_roi_extractor.roi_layer.output_size", To("model.roi_head.bbox_roi_size", whole)),
    ("model.roi_head.mask_roi_extractor.roi_layer.output_size", To("model.roi_head.mask_roi_size", whole)),
    ("model.roi_head.bbox_roi_extractor.roi_layer.sampling_ratio", Always(&["0"], "RoIAlign samples every pixel")),
    ("model.roi_head.mask_roi_extractor.roi_layer.sampling_ratio", Always(&["0"], "RoIAlign samples every pixel")),
    ("model.roi_head.bbox_roi_extractor.roi_layer.type", Always(&["'RoIAlign'"], "regions are cut out by RoIAlign")),
    ("model.roi_head.mask_roi_extractor.roi_layer.type", Always(&["'RoIAlign'"], "regions are cut out by RoIAlign")),
    ("model.roi_head.bbox_roi_extractor.type", Always(&["'SingleRoIExtractor'"], "each region is cut from one level")),
    ("model.roi_head.mask_roi_extractor.type", Always(&["'SingleRoIExtractor'"], "each region is cut from one level")),
    ("model.roi_head.bbox_roi_extractor.featmap_strides", Always(&["[4, 8, 16, 32]"], "regions come from four levels")),
    ("model.roi_head.mask_roi_extractor.featmap_strides", Always(&["[4, 8, 16, 32]"], "regions come from four levels")),
    ("model.roi_head.bbox_roi_extractor model.roi_head.mask_roi_extractor", Follows),
    ("model.roi_head.bbox_head.fc_out_channels", To("model.roi_head.bbox_fc_channels", whole)),
    ("model.roi_head.bbox_head.bbox_coder.target_stds", To("model.roi_head.bbox_target_stds", numbers)),
    ("model.roi_head.bbox_head.type", Always(&["'Shared2FCBBoxHead'"], ONE_HEAD)),
    ("model.roi_head.bbox_head.in_channels model.roi_head.bbox_head.roi_feat_size", Follows),
    ("model.roi_head.bbox_head.bbox_coder.type", Always(&["'DeltaXYWHBBoxCoder'"], ONE_HEAD)),
    ("model.roi_head.bbox_head.bbox_coder.target_means", Always(&["[0.0, 0.0, 0.0, 0.0]", "[0, 0, 0, 0]"], ONE_HEAD)),
    ("model.roi_head.bbox_head.reg_class_agnostic", Always(&["False"], "each class has its own boxes")),
    ("model.roi_head.bbox_head.loss_cls.type", Always(&["'CrossEntropyLoss'"], ONE_HEAD)),
    ("model.roi_head.bbox_head.loss_cls.use_sigmoid", Always(&["False"], ONE_HEAD)),
    ("model.roi_head.bbox_head.loss_cls.loss_weight", Always(&["1.0", "1"], ONE_HEAD)),
    ("model.roi_head.bbox_head.loss_bbox.type", Always(&["'L1Loss'"], ONE_HEAD)),
    ("model.roi_head.bbox_head.loss_bbox.loss_weight", Always(&["1.0", "1"], ONE_HEAD)),
    ("model.roi_head.bbox_head", No(ONE_HEAD)),
    ("model.roi_head.mask_head.num_convs", To("model.roi_head.mask_convs", whole)),
    ("model.roi_head.mask_head.conv_out_channels", To("model.roi_head.mask_channels", whole)),
    ("model.roi_head.mask_head.type", Always(&["'FCNMaskHead'"], MASKS)),
    ("model.roi_head.mask_head.in_channels", Follows),
    ("model.roi_head.mask_head.loss_mask.type", Always(&["'CrossEntropyLoss'"], MASKS)),
    ("model.roi_head.mask_head.loss_mask.use_mask", Always(&["True"], MASKS)),
    ("model.roi_head.mask_head.loss_mask.loss_weight", Always(&["1.0", "1"], MASKS)),
    ("model.roi_head.mask_head", No(MASKS)),
    ("model.roi_head", No("one box head and one mask head")),
    // Assigners, samplers and thresholds.
    ("$traincfg.rpn.assigner.pos_iou_thr", To("model.rpn.assigner.positive_iou", number)),
    ("$traincfg.rpn.assigner.neg_iou_thr", To("model.rpn.assigner.negative_iou", number)),
    ("$traincfg.rpn.assigner.min_pos_iou", To("model.rpn.assigner.min_positive_iou", number)),
    ("$traincfg.rpn.assigner.match_low_quality", To("model.rpn.assigner.match_low_quality", flag)),
    ("$traincfg.rpn.assigner.type", Always(&["'MaxIoUAssigner'"], "boxes are assigned by their IoU (MaxIoUAssigner)")),
    ("$traincfg.rpn.assigner.ignore_iof_thr", Always(&["-1"], "crowd objects assign nothing")),
    ("$traincfg.rpn.assigner.gpu_assign_thr", No(IOU)),
    ("$traincfg.rpn.assigner.iou_calculator", No("boxes are compared by IoU")),
    ("$traincfg.rpn.sampler.num", To("model.rpn.sampler.count", whole)),
    ("$traincfg.rpn.sampler.pos_fraction", To("model.rpn.sampler.positive_fraction", number)),
    ("$traincfg.rpn.sampler.add_gt_as_proposals", To("model.rpn.sampler.add_ground_truth", flag)),
    ("$traincfg.rpn.sampler.type", Always(&["'RandomSampler'"], "boxes are sampled at random (RandomSampler)")),
    ("$traincfg.rpn.sampler.neg_pos_ub", Always(&["-1"], "the number of negative boxes has no other bound")),
    ("$traincfg.rpn.allowed_border", Always(&["-1"], "anchors may exceed the image")),
    ("$traincfg.rpn.pos_weight", Always(&["-1"], "positive boxes have weight 1")),
    ("$traincfg.rpn.debug", Follows),
    ("$traincfg.rpn_proposal.nms_pre", To("model.rpn.train_nms_pre", whole)),
    ("$testcfg.rpn.nms_pre", To("model.rpn.nms_pre", whole)),
    ("$testcfg.rpn.max_per_img $testcfg.rpn.nms_post", To("model.rpn.max_per_image", whole)),
    ("$traincfg.rpn_proposal.max_per_img $traincfg.rpn_proposal.nms_post", To("model.rpn.max_per_image", whole)),
    ("$testcfg.rpn.nms.iou_threshold $testcfg.rpn.nms_thr", To("model.rpn.nms_iou", number)),
    ("$traincfg.rpn_proposal.nms.iou_threshold $traincfg.rpn_proposal.nms_thr", To("model.rpn.nms_iou", number)),
    ("$testcfg.rpn.min_bbox_size $traincfg.rpn_proposal.min_bbox_size", To("model.rpn.min_box_size", number)),
    ("$testcfg.rpn.nms.type $traincfg.rpn_proposal.nms.type", Always(&["'nms'"], "overlapping boxes are removed (nms)")),
    ("$testcfg.rpn.nms_across_levels", Always(&["False"], "each level has its own NMS")),
    ("$traincfg.rpn_proposal.nms_across_levels", Always(&["False"], "each level has its own NMS")),
    ("$testcfg.rpn.max_num $traincfg.rpn_proposal.max_num", Follows),
    ("$traincfg.rcnn.assigner.pos_iou_thr", To("model.roi_head.assigner.positive_iou", number)),
    ("$traincfg.rcnn.assigner.neg_iou_thr", To("model.roi_head.assigner.negative_iou", number)),
    ("$traincfg.rcnn.assigner.min_pos_iou", To("model.roi_head.assigner.min_positive_iou", number)),
    ("$traincfg.rcnn.assigner.match_low_quality", To("model.roi_head.assigner.match_low_quality", flag)),
    ("$traincfg.rcnn.assigner.type", Always(&["'MaxIoUAssigner'"], "boxes are assigned by their IoU (MaxIoUAssigner)")),
    ("$traincfg.rcnn.assigner.ignore_iof_thr", Always(&["-1"], "crowd objects assign nothing")),
    ("$traincfg.rcnn.assigner.gpu_assign_thr", No(IOU)),
    ("$traincfg.rcnn.sampler.num", To("model.roi_head.sampler.count", whole)),
    ("$traincfg.rcnn.sampler.pos_fraction", To("model.roi_head.sampler.positive_fraction", number)),
    ("$traincfg.rcnn.sampler.add_gt_as_proposals", To("model.roi_head.sampler.add_ground_truth", flag)),
    ("$traincfg.rcnn.sampler.type", Always(&["'RandomSampler'"], "boxes are sampled at random (RandomSampler)")),
    ("$traincfg.rcnn.sampler.neg_pos_ub", Always(&["-1"], "the number of negative boxes has no other bound")),
    ("$traincfg.rcnn.mask_size", Always(&["28"], "masks are twice as large as model.roi_head.mask_roi_size")),
    ("$traincfg.rcnn.pos_weight", Always(&["-1"], "positive boxes have weight 1")),
    ("$traincfg.rcnn.debug", Follows),
    ("$traincfg.rcnn", No("there is one box head, with the first of these")),
    ("$testcfg.rcnn.score_thr", To("model.roi_head.score_threshold", number)),
    ("$testcfg.rcnn.nms.iou_threshold $testcfg.rcnn.nms.iou_thr", To("model.roi_head.nms_iou", number)),
    ("$testcfg.rcnn.max_per_img", To("model.roi_head.max_per_image", whole)),
    ("$testcfg.rcnn.mask_thr_binary", To("model.roi_head.mask_threshold", number)),
    ("$testcfg.rcnn.nms.type", Always(&["'nms'"], "overlapping boxes are removed (nms), not weighted down")),
    ("$testcfg.rcnn.nms", No("overlapping boxes are removed by their IoU")),
    // Data sets.
    ("data_root", To("=root", text)),
    ("$train[RepeatDataset].times", To("data.train.repeat", whole)),
    ("$train[ClassBalancedDataset].oversample_thr", To("data.train.class_balanced", number)),
    ("$train.data_root", To("=train.root", text)),
    ("$train.ann_file", To("data.train.ann_file", first_text)),
    ("$train.img_prefix", To("data.train.img_prefix", first_text)),
    ("$train.data_prefix.img $train.data_prefix.img_path", To("data.train.img_prefix", text)),
    ("$train.data_prefix", Missing("train_dataloader.dataset.ann_file", "data.train.img_prefix", "\"\"")),
    ("$train.img_prefix", Missing("data.train.ann_file", "data.train.img_prefix", "\"\"")),
    ("$val.data_root", To("=val.root", text)),
    ("$val.ann_file", To("data.val.ann_file", first_text)),
    ("$val.img_prefix", To("data.val.img_prefix", first_text)),
    ("$val.data_prefix.img $val.data_prefix.img_path", To("data.val.img_prefix", text)),
    ("$val.data_prefix", Missing("val_dataloader.dataset.ann_file", "data.val.img_prefix", "\"\"")),
    ("$val.img_prefix", Missing("data.val.ann_file", "data.val.img_prefix", "\"\"")),
    ("$train.classes $train.metainfo.classes $train.metainfo.CLASSES $val.classes", To("data.classes", texts)),
    ("$val.metainfo.classes $val.metainfo.CLASSES", To("data.classes", texts)),
    ("$train.metainfo $val.metainfo", Follows),
    ("$train.filter_empty_gt $train.filter_cfg.filter_empty_gt", To("data.train.filter_empty", flag)),
    ("$train.filter_cfg", Missing("train_dataloader.dataset", "data.train.filter_empty", "false")),
    ("$train.filter_cfg.min_size", Always(&["32"], "images smaller than 32 pixels are skipped with data.train.filter_empty")),
    ("$val.filter_empty_gt", To("data.val.filter_empty", flag)),
    ("$val.test_mode $train.test_mode $val.filter_cfg", Follows),
    ("$train.type $val.type", Always(&WRAPPERS, "files are read as COCO")),
    ("$train.backend_args $val.backend_args", Follows),
    ("$test.ann_file", As("$val.ann_file", "data.val is evaluated; name this file in data.test for `test --split test`")),
    ("$test", Follows),
    // Batches and loaders.
    ("data.samples_per_gpu data.imgs_per_gpu data.train_dataloader.samples_per_gpu", To("data.samples_per_gpu", whole)),
    ("train_dataloader.batch_size", To("data.samples_per_gpu", whole)),
    ("data.workers_per_gpu data.train_dataloader.workers_per_gpu", To("data.workers_per_gpu", whole)),
    ("train_dataloader.num_workers", To("data.workers_per_gpu", whole)),
    ("val_dataloader.batch_size val_dataloader.num_workers $val.samples_per_gpu data.val_dataloader", Follows),
    ("data.test_dataloader test_dataloader data.persistent_workers train_dataloader.persistent_workers", Follows),
    ("train_dataloader.pin_memory val_dataloader.persistent_workers val_dataloader.pin_memory", Follows),
    ("val_dataloader.drop_last", Follows),
    ("train_dataloader.drop_last", Always(&["False"], "the last batch of an epoch is filled up")),
    ("train_dataloader.sampler.type", Always(&["'DefaultSampler'"], "images are shuffled (DefaultSampler)")),
    ("train_dataloader.sampler.shuffle", Always(&["True"], "images are shuffled")),
    ("train_dataloader.batch_sampler.type", Always(&["'AspectRatioBatchSampler'"], "a batch has images of one orientation")),
    ("val_dataloader.sampler", Follows),
    // Preprocessing of training images.
    ("$train.pipeline[Resize&multiscale_mode!=value].img_scale", To("", scale_range)),
    ("$train.pipeline[Resize].img_scale $train.pipeline[Resize].scale", To("data.pipeline.scales", scales)),
    ("$train.pipeline[RandomChoiceResize].scales", To("data.pipeline.scales", scales)),
    ("$train.pipeline[RandomChoiceResize].scale", To("data.pipeline.scales", scales)),
    ("$train.pipeline[RandomResize].ratio_range", Follows),
    ("$train.pipeline[RandomResize].scale", To("", scale_range)),
    ("$train.pipeline[Resize].multiscale_mode", Always(&["'value'", "'range'"], RESIZE)),
    ("$train.pipeline[Resize].ratio_range", Follows),
    ("$train.pipeline[Resize].keep_ratio $train.pipeline[RandomResize].keep_ratio", Always(&["True"], RESIZE)),
    ("$train.pipeline[RandomChoiceResize].keep_ratio", Always(&["True"], RESIZE)),
    ("$train.pipeline[RandomFlip].flip_ratio", To("data.pipeline.flip_probability", number)),
    ("$train.pipeline[RandomFlip].prob", To("data.pipeline.flip_probability", number)),
    ("$train.pipeline[RandomFlip]", Missing("$train.pipeline", "data.pipeline.flip_probability", "0.0")),
    ("$train.pipeline[RandomFlip].direction $train.pipeline[RandomCrop] $train.pipeline[PhotoMetricDistortion]", Follows),
    ("$train.pipeline[Pad].size", Follows),
    ("$train.pipeline[Normalize].mean", To("=mean", numbers)),
    ("$train.pipeline[Normalize].std", To("=std", numbers)),
    ("$train.pipeline[Normalize].to_rgb", To("=to_rgb", flag)),
    ("$train.pipeline[Pad].size_divisor", To("data.pipeline.size_divisor", whole)),
    ("$train.pipeline[Pad].pad_val", Follows),
    ("$train.pipeline[Pad]", No("images are padded to a multiple of data.pipeline.size_divisor")),
    ("$train.pipeline[LoadImageFromFile] $train.pipeline[LoadAnnotations] $train.pipeline[DefaultFormatBundle]", Follows),
    ("$train.pipeline[PackDetInputs] $train.pipeline[Collect] $train.pipeline[ImageToTensor]", Follows),
    ("$train.pipeline[FilterAnnotations]", No("objects with a width or height below 1 pixel are left out")),
    ("$train.pipeline[*]", No(AUGMENTATIONS)),
    // Preprocessing of validation images.
    ("$val.pipeline[MultiScaleFlipAug].img_scale $val.pipeline[Resize].scale", To("data.pipeline.test_scale", scale)),
    ("$val.pipeline[Resize].img_scale", To("data.pipeline.test_scale", scale)),
    ("$val.pipeline[MultiScaleFlipAug].flip", To("evaluation.tta", flip)),
    ("$val.pipeline[MultiScaleFlipAug].flip_direction", Always(&["'horizontal'"], "images are mirrored horizontally")),
    ("$val.pipeline[MultiScaleFlipAug].transforms[Resize].keep_ratio", Always(&["True"], RESIZE)),
    ("$val.pipeline[Resize].keep_ratio", Always(&["True"], RESIZE)),
    ("$val.pipeline", Follows),
    ("data.train[#]", No("the first data set is trained on; data.train takes a list of sets")),
    ("$train.dataset", No("the first data set is trained on, as it is")),
    ("$train.datasets", No("the first data set is trained on; data.train takes a list of sets")),
    // The optimizer.
    ("$optimizer[AdamW].type $optimizer[SGD].type", To("optimizer.kind", lower_case)),
    ("$optimizer.type", No("the optimizer is AdamW or SGD")),
    ("$optimizer.lr", To("optimizer.lr", number)),
    ("$optimizer.weight_decay", To("optimizer.weight_decay", number)),
    ("$optimizer[AdamW].weight_decay", Missing("$optimizer[AdamW]", "optimizer.weight_decay", "0.01")),
    ("$optimizer[SGD].weight_decay", Missing("$optimizer[SGD]", "optimizer.weight_decay", "0.0")),
    ("$optimizer.betas", To("optimizer.betas", numbers)),
    ("$optimizer.eps", To("optimizer.eps", number)),
    ("$optimizer[SGD].momentum", To("optimizer.momentum", number)),
    ("$optimizer[SGD].momentum", Missing("$optimizer[SGD]", "optimizer.momentum", "0.0")),
    ("$optimizer.nesterov", No("the momentum of SGD is plain")),
    ("$optimizer.amsgrad", No("AdamW is plain")),
    ("$paramwise.custom_keys", To("", custom_keys)),
    ("$paramwise.norm_decay_mult", To("optimizer.paramwise.norm_decay_mult", number)),
    ("$paramwise.bias_lr_mult", To("optimizer.paramwise.bias_lr_mult", number)),
    ("$paramwise.bias_decay_mult", To("optimizer.paramwise.bias_decay_mult", number)),
    // For layers that these models do not have.
    ("$paramwise.dwconv_decay_mult $paramwise.dcn_offset_lr_mult $paramwise.bypass_duplicate", Follows),
    ("$paramwise", No(GROUP)),
    ("optimizer.constructor", Always(&["'DefaultOptimizerConstructor'"], GROUP)),
    ("optim_wrapper.constructor", Always(&["'DefaultOptimWrapperConstructor'"], GROUP)),
    ("optimizer_config.grad_clip.max_norm optim_wrapper.clip_grad.max_norm", To("optimizer.grad_clip", number)),
    ("optimizer_config.grad_clip.norm_type", Always(&["2", "2.0"], "gradients are clipped by their L2 norm")),
    ("optim_wrapper.clip_grad.norm_type", Always(&["2", "2.0"], "gradients are clipped by their L2 norm")),
    ("optimizer_config[GradientCumulative*].cumulative_iters", To("train.accumulate", whole)),
    ("optimizer_config[GradientCumulative*].type", Follows),
    ("optimizer_config[DistOptimizerHook].update_interval", To("train.accumulate", whole)),
    ("optim_wrapper.accumulative_counts", To("train.accumulate", whole)),
    ("fp16.loss_scale", To("train.loss_scale", loss_scale)),
    ("fp16 optimizer_config[DistOptimizerHook].use_fp16", To("", fp16_with_evaluation)),
    ("optimizer_config[Fp16*].loss_scale", To("train.loss_scale", loss_scale)),
    ("optimizer_config[Fp16*].type", To("", fp16_with_evaluation)),
    ("optim_wrapper[AmpOptimWrapper].loss_scale", To("train.loss_scale", loss_scale)),
    ("optim_wrapper[AmpOptimWrapper].dtype optim_wrapper[AmpOptimWrapper].type", To("train.amp", amp)),
    ("optim_wrapper.type optimizer_config[DistOptimizerHook]", Follows),
    ("optimizer_config.type", Always(&["'OptimizerHook'"], "the optimizer makes plain steps")),
    ("auto_scale_lr.base_batch_size", To("optimizer.base_batch_size", whole)),
    ("auto_scale_lr.enable", No("give --auto-scale-lr to `train`")),
    // The schedule.
    ("lr_config.warmup", To("schedule.warmup", schedule::warmup)),
    ("lr_config.warmup", Missing("lr_config", "schedule.warmup_iters", "0")),
    ("lr_config.warmup_iters", To("schedule.warmup_iters", whole)),
    ("lr_config.warmup_ratio", To("schedule.warmup_ratio", number)),
    ("lr_config.warmup_ratio", Missing("lr_config.warmup", "schedule.warmup_ratio", "0.1")),
    ("lr_config.warmup_by_epoch", To("schedule.warmup_by_epoch", flag)),
    ("lr_config.by_epoch", To("schedule.by_epoch", flag)),
    ("lr_config.policy", To("schedule.policy", schedule::policy)),
    ("lr_config[step*].step", To("schedule.steps", whole_or_list)),
    ("lr_config[step*].gamma", To("schedule.gamma", number)),
    ("lr_config[step*].min_lr lr_config[cosineannealing*].min_lr", To("schedule.min_lr", number)),
    ("lr_config[cosineannealing*].min_lr_ratio", To("schedule.min_lr_ratio", number)),
    ("lr_config[poly*].min_lr", To("schedule.min_lr", number)),
    ("lr_config[poly*].power", To("schedule.power", number)),
    ("lr_config", No(SCHEDULE)),
    ("param_scheduler[LinearLR]", To("", schedule::linear)),
    ("param_scheduler[ConstantLR]", To("", schedule::constant)),
    ("param_scheduler[MultiStepLR]", To("", schedule::multi_step)),
    ("param_scheduler[StepLR]", To("", schedule::every)),
    ("param_scheduler[CosineAnnealingLR]", To("", schedule::cosine)),
    ("param_scheduler[PolyLR]", To("", schedule::poly)),
    ("param_scheduler[*]", No(SCHEDULE)),
    ("momentum_config", No("momentum is constant")),
    ("runner.max_epochs train_cfg.max_epochs total_epochs", To("train.epochs", whole)),
    ("runner.max_iters train_cfg.max_iters", No("a training is counted in epochs: train.epochs")),
    ("runner.type", Always(&["'EpochBasedRunner'", "'EpochBasedRunnerAmp'"], "a training is counted in epochs")),
    ("train_cfg.type", Always(&["'EpochBasedTrainLoop'"], "a training is counted in epochs")),
    ("train_cfg.dynamic_intervals", No("evaluation.interval stays the same")),
    ("train_cfg.val_begin", Always(&["1"], "evaluations begin after evaluation.interval epochs")),
    ("val_cfg test_cfg.type", Follows),
    ("seed randomness.seed", To("train.seed", whole)),
    ("randomness.deterministic deterministic", To("train.deterministic", flag)),
    ("custom_hooks[EMAHook].momentum", To("train.ema", decay)),
    ("custom_hooks[EMAHook].momentum", Missing("custom_hooks[EMAHook]", "train.ema", "0.9998")),
    ("custom_hooks[ExpMomentumEMAHook].momentum", To("train.ema", decay)),
    ("custom_hooks[ExpMomentumEMAHook].momentum", Missing("custom_hooks[ExpMomentumEMAHook]", "train.ema", "0.9998")),
    ("custom_hooks[ExpMomentumEMAHook]", No("the decay of the moving average is constant")),
    ("custom_hooks[EMAHook].type custom_hooks[NumClassCheckHook] custom_hooks[CheckInvalidLossHook]", Follows),
    ("custom_hooks[EarlyStoppingHook].monitor", To("train.early_stop.metric", metric)),
    ("custom_hooks[EarlyStoppingHook].patience", To("train.early_stop.patience", whole)),
    ("custom_hooks[EarlyStoppingHook].patience", Missing("custom_hooks[EarlyStoppingHook]", "train.early_stop.patience", "5")),
    ("custom_hooks[EarlyStoppingHook].rule", Always(&["'greater'"], STOP)),
    ("custom_hooks[EarlyStoppingHook].min_delta", Always(&["0", "0.0"], STOP)),
    ("custom_hooks[EarlyStoppingHook].stopping_threshold", No(STOP)),
    ("custom_hooks[EarlyStoppingHook]", Follows),
    ("custom_hooks[*]", No("there are no hooks")),
    ("custom_imports", No("no Python is loaded")),
    // Evaluation, checkpoints and logs.
    ("evaluation.interval train_cfg.val_interval", To("evaluation.interval", whole)),
    ("$evaluation.metric", To("evaluation.metrics", text_or_list)),
    ("$evaluation.metric", Missing("$evaluation", "evaluation.metrics", "[\"bbox\"]")),
    ("$evaluation.classwise", To("evaluation.classwise", flag)),
    ("$evaluation.iou_thrs", To("evaluation.iou_thrs", numbers)),
    ("$evaluation.proposal_nums", To("evaluation.proposal_nums", numbers)),
    ("$evaluation.metric_items", To("evaluation.metric_items", text_or_list)),
    ("evaluation.save_best default_hooks.checkpoint.save_best", To("checkpoint.save_best", metric)),
    ("evaluation.rule default_hooks.checkpoint.rule", Follows),
    ("evaluation.dynamic_intervals", No("evaluation.interval stays the same")),
    ("evaluation.by_epoch", Always(&["True"], "evaluation.interval is counted in epochs")),
    ("val_evaluator[CocoMetric].ann_file val_evaluator[CocoMetric].format_only", Follows),
    ("val_evaluator[CocoMetric].backend_args val_evaluator[CocoMetric].type", Follows),
    ("val_evaluator", No("detections are compared as COCO does (CocoMetric)")),
    ("test_evaluator", Follows),
    ("$checkpoint[&by_epoch=False].interval", To("checkpoint.interval", steps)),
    ("$checkpoint.interval", To("checkpoint.interval", whole)),
    ("$checkpoint.max_keep_ckpts", To("checkpoint.keep_last", at_least_zero)),
    ("$checkpoint.by_epoch $checkpoint.save_last default_hooks.checkpoint.type", Follows),
    ("log_config.interval default_hooks.logger.interval", To("log.interval", whole)),
    ("log_config.hooks[TextLoggerHook] log_config.hooks[TensorboardLoggerHook]", Follows),
    ("log_config.hooks[*]", No(LOGS)),
    ("default_hooks vis_backends[LocalVisBackend] vis_backends[TensorboardVisBackend]", Follows),
    ("vis_backends[*]", No(LOGS)),
    ("log_config", Follows),
    ("load_from", No("give the file to the command: train CONFIG --load-from FILE")),
    ("resume_from", No("give the file to the command: train CONFIG --resume=FILE")),
    ("resume auto_resume", No("give it to the command: train CONFIG --resume")),
    ("work_dir", No("give it to the command: train CONFIG --work-dir DIR")),
    ("workflow", Always(&["[['train', 1]]"], "an epoch of training is followed by an evaluation")),
    ("data.train_dataloader", No(LOADER)),
    ("train_dataloader.dataset", Follows),
    ("tta_model", No("give --tta to `test` or `predict`: each image is evaluated with its mirror image, at one size")),
    ("tta_pipeline dist_params log_level log_processor opencv_num_threads mp_start_method env_cfg", Follows),
    ("default_scope visualizer cudnn_benchmark find_unused_parameters launcher gpu_ids device device_ids", Follows),
    ("backend_args file_client_args cfg_name", Follows),
];

/// A whole number.
pub fn whole(value: &Value) -> Result<Toml, &'static str> {
    match value {
        Value::Int(number) => Ok(Toml::Integer(*number)),
        _ => Err("a whole number"),
    }
}

fn at_least_zero(value: &Value) -> Result<Toml, &'static str> {
    match value {
        Value::Int(number) => Ok(Toml::Integer((*number).max(0))),
        _ => Err("a whole number"),
    }
}

/// A number, as a float.
pub fn number(value: &Value) -> Result<Toml, &'static str> {
    value.as_number().map(Toml::Float).ok_or("a number")
}

/// True or False.
pub fn flag(value: &Value) -> Result<Toml, &'static str> {
    match value {
        Value::Bool(flag) => Ok(Toml::Boolean(*flag)),
        _ => Err("True or False"),
    }
}

fn flip(value: &Value) -> Result<Toml, &'static str> {
    match value {
        Value::Bool(flip) => Ok(Toml::String(if *flip { "flip" } else { "off" }.to_owned())),
        _ => Err("True or False"),
    }
}

pub fn text(value: &Value) -> Result<Toml, &'static str> {
    value.as_text().map(|text| Toml::String(text.to_owned())).ok_or("a string")
}

/// The first of several data sets.
fn first_text(value: &Value) -> Result<Toml, &'static str> {
    match value.items().first() {
        Some(first) => text(&first.value),
        None => text(value),
    }
}

fn lower_case(value: &Value) -> Result<Toml, &'static str> {
    value.as_text().map(|text| Toml::String(text.to_lowercase())).ok_or("a string")
}

fn list(value: &Value, convert: Convert, expected: &'static str) -> Result<Toml, &'static str> {
    match value {
        Value::List(items) => {
            items.borrow().iter().map(|item| convert(&item.value)).collect::<Result<_, _>>().map(Toml::Array)
        }
        _ => Err(expected),
    }
}

fn texts(value: &Value) -> Result<Toml, &'static str> {
    list(value, text, "a list of names; write those of the file into data.classes")
}

fn text_or_list(value: &Value) -> Result<Toml, &'static str> {
    match value {
        Value::Text(_) => Ok(Toml::Array(vec![text(value)?])),
        _ => texts(value),
    }
}

/// Whole numbers stay whole.
fn numbers(value: &Value) -> Result<Toml, &'static str> {
    list(value, |item| whole(item).or_else(|_| number(item)), "a list of numbers")
}

fn whole_or_list(value: &Value) -> Result<Toml, &'static str> {
    whole(value).or_else(|_| numbers(value))
}

fn sync_bn(value: &Value) -> Result<Toml, &'static str> {
    match value.as_text() {
        Some("BN") => Ok(Toml::Boolean(false)),
        Some("SyncBN") => Ok(Toml::Boolean(true)),
        _ => Err("'BN' or 'SyncBN', the norms of FasterNet"),
    }
}

/// The published sizes of FasterNet, whose names are types of their own in MMDetection configs.
fn variant(value: &Value) -> Result<Toml, &'static str> {
    let (embed_dim, depths, activation, drop_path_rate) = match value.as_text().map(str::to_lowercase).as_deref() {
        Some("fasternet_t0") => (40, [1, 2, 8, 2], "gelu", 0.0),
        Some("fasternet_t1") => (64, [1, 2, 8, 2], "gelu", 0.02),
        Some("fasternet_t2") => (96, [1, 2, 8, 2], "relu", 0.05),
        Some("fasternet_s") => (128, [1, 2, 13, 2], "relu", 0.15),
        Some("fasternet_m") => (144, [3, 4, 18, 3], "relu", 0.2),
        Some("fasternet_l") => (192, [3, 4, 18, 3], "relu", 0.3),
        Some("fasternet") => return Ok(Toml::Table(toml::Table::new())),
        _ => return Err("fasternet_t0, _t1, _t2, _s, _m, _l, or FasterNet with its fields"),
    };
    Ok(fields([
        ("model.backbone.embed_dim", Toml::Integer(embed_dim)),
        ("model.backbone.depths", Toml::Array(depths.map(Toml::Integer).into())),
        ("model.backbone.activation", Toml::String(activation.to_owned())),
        ("model.backbone.drop_path_rate", Toml::Float(drop_path_rate)),
    ]))
}

/// Multipliers by a part of a parameter's name.
fn custom_keys(value: &Value) -> Result<Toml, &'static str> {
    const EXPECTED: &str = "a dict of dict(lr_mult=..., decay_mult=...)";
    let Value::Dict(keys) = value else { return Err(EXPECTED) };
    let multipliers = |value: &Value| {
        let Value::Dict(multipliers) = value else { return Err(EXPECTED) };
        let multipliers = multipliers.borrow();
        let known = multipliers.keys().all(|name| name == "lr_mult" || name == "decay_mult");
        let entry = |(name, item): (&String, &Item)| Ok((name.clone(), number(&item.value)?));
        if known { multipliers.iter().map(entry).collect::<Result<_, _>>().map(Toml::Table) } else { Err(EXPECTED) }
    };
    let keys = keys.borrow();
    let keys = keys.iter().map(|(key, item)| multipliers(&item.value).map(|value| (key.clone(), value)));
    Ok(fields([("optimizer.paramwise.custom_keys", Toml::Table(keys.collect::<Result<_, _>>()?))]))
}

const SCALE: &str = "a size (width, height) in pixels, or a list of them";

/// The long side first.
fn scale(value: &Value) -> Result<Toml, &'static str> {
    match scales(value)? {
        Toml::Array(scales) if scales.len() == 1 => scales.into_iter().next().ok_or(SCALE),
        _ => Err("one size (width, height)"),
    }
}

/// Pairs of whole numbers, the larger first.
pub fn pairs(value: &Value) -> Result<Vec<[i64; 2]>, &'static str> {
    let items = value.items();
    if let [Value::Int(a), Value::Int(b)] = items.iter().map(|item| &item.value).collect::<Vec<_>>()[..] {
        return Ok(vec![[(*a).max(*b), (*a).min(*b)]]);
    }
    let nested = items.iter().map(|item| match &item.value {
        Value::List(_) => {
            pairs(&item.value).ok().filter(|pairs| pairs.len() == 1).and_then(|pairs| pairs.first().copied())
        }
        _ => None,
    });
    nested.collect::<Option<Vec<_>>>().filter(|pairs| !pairs.is_empty()).ok_or(SCALE)
}

/// A list of pairs.
pub fn array(pairs: impl IntoIterator<Item = [i64; 2]>) -> Toml {
    Toml::Array(pairs.into_iter().map(|pair| Toml::Array(pair.map(Toml::Integer).into())).collect())
}

fn scales(value: &Value) -> Result<Toml, &'static str> {
    pairs(value).map(array)
}

/// Sizes between the smallest and the largest, side by side.
fn scale_range(value: &Value) -> Result<Toml, &'static str> {
    let pairs = pairs(value)?;
    if pairs.len() < 2 {
        return Ok(fields([("data.pipeline.scales", array(pairs))]));
    }
    let bound =
        |of: fn(i64, i64) -> i64| [0, 1].map(|side| pairs.iter().map(|pair| pair[side]).reduce(of).unwrap_or(1));
    let range = array([bound(i64::min), bound(i64::max)]);
    Ok(fields([("data.pipeline.scales", range), ("data.pipeline.scale_mode", Toml::String("range".to_owned()))]))
}

fn loss_scale(value: &Value) -> Result<Toml, &'static str> {
    match value {
        // The initial scale of torch.cuda.amp.GradScaler.
        Value::Text(text) if &**text == "dynamic" => Ok(Toml::Float(65_536.0)),
        Value::Dict(_) => value.get("init_scale").map_or(Ok(Toml::Float(65_536.0)), |scale| number(&scale.value)),
        _ => number(value).map_err(|_| "a number, 'dynamic' or dict(init_scale=...)"),
    }
}

/// MMDetection 2 evaluates in the type in which it trains.
fn fp16_with_evaluation(value: &Value) -> Result<Toml, &'static str> {
    let amp = if matches!(value, Value::Bool(false)) { "off" } else { "fp16" };
    Ok(fields([("train.amp", Toml::String(amp.to_owned())), ("evaluation.amp", Toml::String(amp.to_owned()))]))
}

fn amp(value: &Value) -> Result<Toml, &'static str> {
    Ok(Toml::String(if value.as_text() == Some("bfloat16") { "bf16" } else { "fp16" }.to_owned()))
}

/// MMDetection's momentum is the weight of the new values.
fn decay(value: &Value) -> Result<Toml, &'static str> {
    // Without the last digits of 1 - x.
    let decay = value.as_number().map(|momentum| ((1.0 - momentum) * 1e12).round() / 1e12);
    decay.map(Toml::Float).ok_or("a number")
}

/// A metric by which the best checkpoint is chosen.
fn metric(value: &Value) -> Result<Toml, &'static str> {
    let name = value.as_text().ok_or("the name of a metric")?;
    Ok(Toml::String(name.strip_prefix("coco/").unwrap_or(name).to_owned()))
}

fn steps(value: &Value) -> Result<Toml, &'static str> {
    match value {
        Value::Int(number) => Ok(Toml::String(format!("{number} steps"))),
        _ => Err("a whole number of steps"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of a field in the default config.
    fn default_of(field: &str) -> Option<Toml> {
        let defaults = Toml::try_from(fnet_config::Config::default()).unwrap();
        field.split('.').try_fold(defaults, |table, name| table.get(name).cloned())
    }

    #[test]
    fn every_row_names_fields_of_fnet_and_known_aliases() {
        for (patterns, rule) in TABLE {
            let target = match rule {
                To(target, _) | Missing(_, target, _) => *target,
                _ => "",
            };
            assert!(target.is_empty() || target.starts_with('=') || default_of(target).is_some(), "{target}");
            let context = if let Missing(context, ..) | As(context, _) = rule { *context } else { "" };
            for name in patterns.split(' ').chain([context]).filter_map(|pattern| pattern.split(['.', '[']).next()) {
                let known = !name.starts_with('$') || ALIASES.iter().any(|(alias, _)| *alias == name);
                assert!(known, "{name} of {patterns}");
            }
            if let No(why) | Always(_, why) | As(_, why) = rule {
                assert!(!why.is_empty() && !why.ends_with('.'), "{why}");
            }
        }
    }

    #[test]
    fn the_sizes_of_fasternet_are_those_of_the_configs() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs");
        for size in ["t0", "t1", "t2", "s", "m", "l"] {
            let Toml::Table(fields) = variant(&Value::text(format!("fasternet_{size}"))).unwrap() else { panic!() };
            let file = format!("{folder}/mask_rcnn_fasternet_{size}_fpn_1x_coco.toml");
            let config = fnet_config::load(file, &[], &|_| unreachable!()).unwrap().config;
            let config = Toml::try_from(config).unwrap();
            for (name, value) in fields {
                let found = name.split('.').try_fold(config.clone(), |table, part| table.get(part).cloned());
                assert_eq!(found, Some(value), "{size} {name}");
            }
        }
    }

    #[test]
    fn a_range_of_sizes_goes_from_the_smallest_to_the_largest_of_each_side() {
        let pair = |a, b| Value::list([a, b].map(|side| crate::tests::item(Value::Int(side))).into());
        let sizes = Value::list([pair(640, 1333), pair(1333, 800), pair(1000, 700)].map(crate::tests::item).into());
        let Ok(Toml::Table(fields)) = scale_range(&sizes) else { panic!() };
        assert_eq!(fields["data.pipeline.scales"].to_string(), "[[1000, 640], [1333, 800]]");
        assert_eq!(scale(&pair(800, 1333)).unwrap().to_string(), "[1333, 800]");
        assert!(scale(&sizes).is_err());
    }
}
