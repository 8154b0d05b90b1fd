//! The commands and their options.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use crate::fault::Fault;
use crate::work_dir;

/// A `key=value` that overrides a config value.
pub(super) fn parse_override(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((key, _)) if !key.trim().is_empty() => Ok(text.to_owned()),
        _ => Err("expected KEY=VALUE, for example optimizer.lr=0.01".to_owned()),
    }
}

/// `train`
#[derive(Debug, Clone, PartialEq, Args)]
#[command(after_help = "Examples:\n  \
    fnet-launch --gpus 8 train configs/mask_rcnn_fasternet_s_fpn_1x_coco.toml\n  \
    fnet-launch --gpus 8 train cfg.toml --resume --set optimizer.lr=1e-4 train.epochs=24\n  \
    fnet-launch --gpus 8 train cfg.toml --auto-resume --load-from detector.ckpt\n  \
    fnet-launch --gpus 8 train my_classes.toml --load-from coco.ckpt --match-classes\n  \
    fnet-launch --gpus 8 train cfg.toml --set model.backbone.pretrained=fasternet_s.pth\n  \
    fnet-launch --gpus 8 train cfg.toml --resume=mmdetection/epoch_6.pth")]
pub struct Train {
    /// Config (TOML)
    pub config: PathBuf,
    /// Folder for checkpoints and logs [default: work_dirs/<config name>]
    #[arg(long, value_name = "DIR")]
    pub work_dir: Option<PathBuf>,
    /// Resume from the newest checkpoint in the folder, or from CKPT (fnet or MMDetection .pth)
    #[arg(long, value_name = "CKPT", num_args = 0..=1, require_equals = true, default_missing_value = "", value_parser = parse_resume)]
    pub resume: Option<Resume>,
    /// Resume from the newest checkpoint in the folder if it has one, else start as the other options say (also --resume=auto)
    #[arg(long)]
    pub auto_resume: bool,
    /// Start training from the weights of this checkpoint (fnet or MMDetection .pth)
    #[arg(long, value_name = "CKPT", conflicts_with = "resume")]
    pub load_from: Option<PathBuf>,
    /// Keep what --load-from has learned of classes with the same names (also train.match_classes)
    #[arg(long, requires = "load_from")]
    pub match_classes: bool,
    /// Random seed [default: train.seed of the config]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Use deterministic algorithms, even where they are slower
    #[arg(long)]
    pub deterministic: bool,
    /// Do not evaluate during training
    #[arg(long)]
    pub no_validate: bool,
    /// Multiply the learning rate by (images per step) / optimizer.base_batch_size
    #[arg(long)]
    pub auto_scale_lr: bool,
    /// Load matching weights of --load-from or model.backbone.pretrained; re-initialize the rest
    #[arg(long)]
    pub allow_partial: bool,
    /// Fault injection: fail on purpose, for example kill:rank=1,step=3,phase=backward (docs/reliability.md)
    #[arg(long, value_name = "FAULT")]
    pub fault: Vec<Fault>,
    /// With --dry-run: print JSON to stdout
    #[arg(long)]
    pub json: bool,
    /// With --dry-run: forecast the job from the measured seconds of a step of one worker (docs/scaling.md)
    #[arg(long, value_name = "SECONDS", value_parser = parse_positive_number)]
    pub step_time: Option<f64>,
    /// With --step-time: bus bandwidth of an all-reduce within and between nodes in GB/s [default: 370,360; 1,1.1 on the CPU]
    #[arg(long, value_name = "GB,GB", requires = "step_time", value_parser = parse_links)]
    pub links: Option<[f64; 2]>,
    /// Override config values; accepts several
    #[arg(long, visible_alias = "cfg-options", value_name = "KEY=VALUE", value_parser = parse_override)]
    pub set: Vec<String>,
}

/// What to resume from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// The newest checkpoint of the work folder.
    Newest,
    /// This checkpoint.
    From(PathBuf),
    /// The newest checkpoint of the work folder if it has one, else the given checkpoint if there is one.
    Auto(Option<PathBuf>),
}

#[expect(clippy::unnecessary_wraps, reason = "clap expects a fallible function")]
fn parse_resume(text: &str) -> Result<Resume, std::convert::Infallible> {
    Ok(if text.is_empty() { Resume::Newest } else { Resume::From(PathBuf::from(text)) })
}

/// `test`
#[derive(Debug, Clone, PartialEq, Args)]
#[command(after_help = "Examples:\n  \
    fnet-launch --gpus 8 test work_dirs/mask_rcnn_fasternet_s_fpn_1x_coco/latest.ckpt --metrics metrics.json\n  \
    fnet-launch --gpus 8 test model.pth --config cfg.toml --eval bbox segm")]
pub struct Test {
    /// Checkpoint of fnet, or MMDetection .pth (needs --config)
    #[arg(value_name = "CKPT")]
    pub checkpoint: PathBuf,
    /// Config [default: the one in the checkpoint]
    #[arg(long, value_name = "CONFIG")]
    pub config: Option<PathBuf>,
    /// The split: data.train, data.val or data.test of the config
    #[arg(long, value_name = "SPLIT", default_value = "val")]
    pub split: SplitName,
    /// Metrics; accepts several [default: bbox, and segm if the model has masks]
    #[arg(long, value_name = "METRIC", conflicts_with = "format_only")]
    pub eval: Vec<Metric>,
    /// Write the detections as COCO results JSON
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Write the detections without evaluating them
    #[arg(long)]
    pub format_only: bool,
    /// Draw the detections on the images, into this folder
    #[arg(long, value_name = "DIR")]
    pub show_dir: Option<PathBuf>,
    /// Score threshold for drawing
    #[arg(long, value_name = "SCORE", default_value_t = 0.3)]
    pub show_score_thr: f64,
    /// Fold BatchNorm into the convolutions first
    #[arg(long)]
    pub fuse_conv_bn: bool,
    /// Test-time augmentation: evaluate each image together with its mirror image (--set evaluation.tta=flip)
    #[arg(long, alias = "aug-test")]
    pub tta: bool,
    /// Write the metrics as JSON
    #[arg(long, value_name = "FILE")]
    pub metrics: Option<PathBuf>,
    /// Continue if tensors of the model are missing from the checkpoint or have other shapes there
    #[arg(long)]
    pub allow_partial: bool,
    /// With --dry-run: print JSON to stdout
    #[arg(long)]
    pub json: bool,
    /// Override config values; accepts several
    #[arg(long, visible_alias = "cfg-options", value_name = "KEY=VALUE", value_parser = parse_override)]
    pub set: Vec<String>,
}

impl Train {
    /// What the job resumes from, as `--resume` and `--auto-resume` say together.
    pub fn resumes(&self) -> Option<Resume> {
        match (self.auto_resume, &self.resume) {
            (false, resume) => resume.clone(),
            (true, Some(Resume::From(path))) => Some(Resume::Auto(Some(path.clone()))),
            (true, _) => Some(Resume::Auto(None)),
        }
    }

    /// The folder that the job writes to.
    pub fn folder(&self) -> PathBuf {
        work_dir::work_dir(&self.config, self.work_dir.as_deref())
    }
}

impl Test {
    /// The metrics of `--eval`; by default boxes, and masks if the model `has_masks`.
    /// Errors: masks are asked for and the model has none; the message says what to do.
    pub fn metrics_to_measure(&self, has_masks: bool) -> Result<Vec<Metric>, String> {
        match (self.eval.as_slice(), has_masks) {
            ([], true) => Ok(vec![Metric::Bbox, Metric::Segm]),
            ([], false) => Ok(vec![Metric::Bbox]),
            (kinds, false) if kinds.contains(&Metric::Segm) => Err(format!(
                "--eval segm: the model of {} has no masks (model.mask is false); use --eval bbox",
                self.checkpoint.display()
            )),
            (kinds, _) => Ok(kinds.to_vec()),
        }
    }
}

/// One of a config's data sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SplitName {
    /// data.train
    Train,
    /// data.val
    Val,
    /// data.test, or without it data.val
    Test,
}

impl SplitName {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            SplitName::Train => "train",
            SplitName::Val => "val",
            SplitName::Test => "test",
        }
    }
}

/// What `--eval` measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Metric {
    /// Boxes
    Bbox,
    /// Masks
    Segm,
    /// Class-agnostic box recall
    Proposal,
}

/// `predict`
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(after_help = "Examples:\n  \
    fnet-launch --device cpu --nproc 1 predict work_dirs/demo/latest.ckpt holiday/ cat.jpg --out drawn\n  \
    fnet-launch --gpus 1 predict detector.ckpt 'photos/**/*.jpg' --out found --no-images --format csv\n  \
    fnet-launch --gpus 1 predict detector.ckpt --list images.txt --out drawn --tta")]
pub struct Predict {
    /// Checkpoint of fnet, or MMDetection .pth (needs --config)
    #[arg(value_name = "CKPT")]
    pub checkpoint: PathBuf,
    /// Images, folders of images, or patterns ('photos/**/*.jpg', quoted)
    #[arg(value_name = "IMAGE_OR_DIR", required_unless_present = "list")]
    pub images: Vec<PathBuf>,
    /// File with the path of an image on each line, relative to the current folder
    #[arg(long, value_name = "FILE")]
    pub list: Option<PathBuf>,
    /// Folder for the drawn images and results.json or results.csv
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Format of the objects, which contain those below --score-thr
    #[arg(long, value_name = "FORMAT", default_value = "coco")]
    pub format: PredictFormat,
    /// Do not draw images
    #[arg(long)]
    pub no_images: bool,
    /// Config [default: the one in the checkpoint]
    #[arg(long, value_name = "CONFIG")]
    pub config: Option<PathBuf>,
    /// Score threshold for drawing
    #[arg(long, value_name = "SCORE", default_value_t = 0.3)]
    pub score_thr: f64,
    /// Test-time augmentation: use each image together with its mirror image (--set evaluation.tta=flip)
    #[arg(long, alias = "aug-test")]
    pub tta: bool,
    /// Continue if tensors of the model are missing from the checkpoint or have other shapes there
    #[arg(long)]
    pub allow_partial: bool,
    /// Override config values; accepts several
    #[arg(long, visible_alias = "cfg-options", value_name = "KEY=VALUE", value_parser = parse_override)]
    pub set: Vec<String>,
}

impl Predict {
    /// Whether an input is a pattern: there is no such file, and it has a wildcard.
    pub fn is_pattern(input: &Path) -> bool {
        Self::has_wildcard(input.as_os_str()) && !input.exists()
    }

    /// Whether a path or a part of it has a wildcard.
    pub fn has_wildcard(text: &OsStr) -> bool {
        text.to_str().is_some_and(|text| text.contains(['*', '?', '[']))
    }
}

/// Format of the objects that `predict` writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum PredictFormat {
    /// results.json: COCO results, with masks
    #[default]
    Coco,
    /// results.json: one object for each image, with masks, sizes and names
    Json,
    /// results.csv: one line for each object, without masks
    Csv,
}

/// Height and width in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Height.
    pub height: usize,
    /// Width.
    pub width: usize,
}

/// `H W` as clap returns it: one number (a square) or two.
pub(super) fn shape(values: &[usize], default: Shape) -> Shape {
    match *values {
        [side] => Shape { height: side, width: side },
        [height, width, ..] => Shape { height, width },
        [] => default,
    }
}

pub(super) fn parse_side(text: &str) -> Result<usize, String> {
    text.parse::<usize>().ok().filter(|&side| (1..=65_536).contains(&side)).ok_or("expected 1 to 65536 pixels".into())
}

fn parse_positive_number(text: &str) -> Result<f64, String> {
    text.parse::<f64>().ok().filter(|number| (1e-9..1e9).contains(number)).ok_or("expected a number above 0".into())
}

fn parse_links(text: &str) -> Result<[f64; 2], String> {
    let (within, between) = text.split_once(',').ok_or("expected two numbers, for example 370,45")?;
    Ok([parse_positive_number(within)?, parse_positive_number(between)?])
}

pub(super) fn parse_positive(text: &str) -> Result<usize, String> {
    text.parse::<usize>().ok().filter(|&number| number > 0).ok_or("expected a whole number above 0".into())
}

/// `flops`
#[derive(Debug, Clone, PartialEq, Args)]
#[command(after_help = "Example: fnet-launch flops configs/mask_rcnn_fasternet_s_fpn_1x_coco.toml --shape 1280 800")]
pub struct Flops {
    /// Config (TOML)
    pub config: PathBuf,
    /// Height and width of the image, or the side of a square [default: 1280 800]
    #[arg(long, value_names = ["H", "W"], num_args = 1..=2, value_parser = parse_side)]
    pub shape: Vec<usize>,
    /// Round height and width up to multiples of this, as padding does; -1 to disable
    #[arg(long, value_name = "N", default_value_t = 32, allow_negative_numbers = true)]
    pub size_divisor: i64,
    /// Print JSON to stdout: flops, macs, params, activations, shape, per_module, layers
    #[arg(long)]
    pub json: bool,
    /// Override config values; accepts several
    #[arg(long, visible_alias = "cfg-options", value_name = "KEY=VALUE", value_parser = parse_override)]
    pub set: Vec<String>,
}

impl Flops {
    /// The image size as given.
    pub fn shape(&self) -> Shape {
        shape(&self.shape, Shape { height: 1280, width: 800 })
    }

    /// The image size that is counted: each side rounded up to a multiple of the divisor.
    pub fn padded_shape(&self) -> Shape {
        let Shape { height, width } = self.shape();
        let padded = |side: usize| match usize::try_from(self.size_divisor) {
            Ok(divisor) if divisor > 0 => side.next_multiple_of(divisor),
            _ => side,
        };
        Shape { height: padded(height), width: padded(width) }
    }
}

/// `status`
#[derive(Debug, Clone, PartialEq, Args)]
#[command(after_help = "Examples:\n  \
    fnet-launch status work_dirs/cfg\n  \
    fnet-launch status work_dirs/cfg --watch\n\n\
    Exit codes: 0 the status was shown, 2 the folder is not that of a training, 3 its status is missing or damaged.\n\
    With --check: 0 the job runs, 4 its launcher was killed, 5 it is silent; of an ended job its own.")]
pub struct Status {
    /// Work folder of the training
    #[arg(value_name = "WORK_DIR")]
    pub work_dir: PathBuf,
    /// Show it again every second, until the job ends
    #[arg(long)]
    pub watch: bool,
    /// Print whether the job runs, in one line, and exit with that; for probes
    #[arg(long, conflicts_with_all = ["watch", "json"])]
    pub check: bool,
    /// Print JSON to stdout; with --watch one line each time
    #[arg(long)]
    pub json: bool,
}

/// `doctor`
#[derive(Debug, Clone, PartialEq, Args)]
#[command(after_help = "Examples:\n  fnet-launch doctor\n  fnet-launch doctor --json")]
pub struct Doctor {
    /// Print JSON to stdout
    #[arg(long)]
    pub json: bool,
}

/// `export`
#[derive(Debug, Clone, PartialEq, Args)]
#[command(after_help = "Examples:\n  \
    fnet-launch export work_dirs/cfg/latest.ckpt detector.pth\n  \
    fnet-launch export work_dirs/cfg/epoch_6.ckpt epoch_6.pth --with-optimizer\n  \
    fnet-launch export detector.pth detector.safetensors")]
pub struct Export {
    /// Checkpoint of fnet, or PyTorch file
    #[arg(value_name = "CKPT")]
    pub checkpoint: PathBuf,
    /// Output file: .pth (PyTorch, MMDetection) or .safetensors
    #[arg(value_name = "OUT")]
    pub out: PathBuf,
    /// Include AdamW's state, so that MMDetection can resume training (.pth only)
    #[arg(long)]
    pub with_optimizer: bool,
    /// Config whose model the weights must match, in whose order they are written [default: the one in the checkpoint]
    #[arg(long, value_name = "CONFIG")]
    pub config: Option<PathBuf>,
}

/// `print-config`
#[derive(Debug, Clone, PartialEq, Args)]
#[command(after_help = "Examples:\n  \
    fnet-launch print-config cfg.toml --set optimizer.lr=0.01\n  \
    fnet-launch print-config cfg.toml --schedule --world-size 8")]
pub struct PrintConfig {
    /// Config (TOML)
    pub config: PathBuf,
    /// Print the learning rate over the job instead, as a table and a plot; reads the training set
    #[arg(long)]
    pub schedule: bool,
    /// With --schedule: number of workers of the job
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_positive)]
    pub world_size: usize,
    /// Override config values; accepts several
    #[arg(long, visible_alias = "cfg-options", value_name = "KEY=VALUE", value_parser = parse_override)]
    pub set: Vec<String>,
}

/// `synth`
#[derive(Debug, Clone, PartialEq, Args)]
#[command(after_help = "Examples:\n  \
    fnet-launch synth --out data/synth --images 400 --seed 1\n  \
    fnet-launch synth --out data/shapes --layout roboflow --images 60 --val-images 12\n  \
    fnet-launch synth --out data/synth-large --annotations-only 1000000 --sides 320 640")]
pub struct Synth {
    /// Output folder: new, empty, or one that contains the same set
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Layout of the files
    #[arg(long, value_name = "LAYOUT", default_value = "coco")]
    pub layout: SynthLayout,
    /// Training images
    #[arg(long, value_name = "N", default_value_t = 400)]
    pub images: u32,
    /// Validation images; with --layout roboflow also the number of test images
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub val_images: u32,
    /// Seed; equal seeds produce equal files
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// Minimum and maximum side of an image in pixels
    #[arg(long, value_names = ["MIN", "MAX"], num_args = 2, default_values_t = [160, 256])]
    pub sides: Vec<u32>,
    /// Minimum and maximum number of objects per image
    #[arg(long, value_names = ["MIN", "MAX"], num_args = 2, default_values_t = [1, 5])]
    pub objects: Vec<u32>,
    /// Write N annotations without images, for tests and benchmarks of any size
    #[arg(long, value_name = "N", conflicts_with_all = ["images", "val_images"])]
    pub annotations_only: Option<u64>,
}

/// Layout of the files that `synth` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SynthLayout {
    /// annotations/instances_train.json and train/, annotations/instances_val.json and val/
    Coco,
    /// train/, valid/ and test/ with _annotations.coco.json in each; category 0 unused, ids from 0
    Roboflow,
}

/// `completions`
#[derive(Debug, Clone, PartialEq, Args)]
#[command(
    after_help = "Example: fnet-launch completions bash > ~/.local/share/bash-completion/completions/fnet-launch"
)]
pub struct Completions {
    /// The shell: bash, elvish, fish, powershell or zsh
    pub shell: clap_complete::Shell,
}

/// `man`
#[derive(Debug, Clone, PartialEq, Args)]
#[command(after_help = "Example: fnet-launch man ~/.local/share/man/man1")]
pub struct Man {
    /// Folder of the pages; made if it is missing
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}
