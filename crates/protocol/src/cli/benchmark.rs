//! `benchmark` and what it measures.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::commands::{Shape, parse_override, parse_positive, parse_side, shape};

/// Images at the start of each repetition that `benchmark infer` does not measure.
pub const WARM_UP: usize = 5;

fn parse_beyond_warm_up(text: &str) -> Result<usize, String> {
    let number = text.parse::<usize>().ok().filter(|&number| number > WARM_UP);
    number.ok_or(format!("expected a whole number above {WARM_UP}, the number of warm-up images"))
}

/// `benchmark`
#[derive(Debug, Clone, PartialEq, Args)]
#[command(disable_help_subcommand = true)]
pub struct Benchmark {
    /// What to measure.
    #[command(subcommand)]
    pub what: BenchmarkCommand,
}

/// What `benchmark` measures.
#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum BenchmarkCommand {
    /// Images per second and ms per image, after 5 warm-up iterations.
    Infer(BenchmarkInfer),
    /// Time per training step on synthetic images and boxes, split by part.
    Train(BenchmarkTrain),
    /// Images per second of the input pipeline, split by stage; needs no GPU.
    Data(BenchmarkData),
    /// Speed of all-reduce by message size.
    Comm(BenchmarkComm),
    /// Time from the start of fnet-launch until every worker has finished its first all-reduce.
    Launch(BenchmarkLaunch),
}

/// `benchmark infer`
#[derive(Debug, Clone, PartialEq, Args)]
#[command(
    after_help = "Example: fnet-launch --gpus 1 benchmark infer cfg.toml work_dirs/cfg/latest.ckpt --fuse-conv-bn"
)]
pub struct BenchmarkInfer {
    /// Config (TOML)
    pub config: PathBuf,
    /// Checkpoint [default: weights that give exactly 100 detections per image]
    #[arg(value_name = "CKPT")]
    pub checkpoint: Option<PathBuf>,
    /// Fold BatchNorm into the convolutions first
    #[arg(long)]
    pub fuse_conv_bn: bool,
    /// Height and width of synthetic images [default: the validation set, or 800 1280 without CKPT]
    #[arg(long, value_names = ["H", "W"], num_args = 2, value_parser = parse_side)]
    pub shape: Vec<usize>,
    /// Number of images, including 5 warm-up images
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = parse_beyond_warm_up)]
    pub max_iter: usize,
    /// Images between two lines of output
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = parse_positive)]
    pub log_interval: usize,
    /// Repetitions of the measurement
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_positive)]
    pub repeat_num: usize,
    /// Print JSON to stdout
    #[arg(long)]
    pub json: bool,
    /// Continue if tensors of the model are missing from the checkpoint or have other shapes there
    #[arg(long)]
    pub allow_partial: bool,
    /// Override config values; accepts several
    #[arg(long, visible_alias = "cfg-options", value_name = "KEY=VALUE", value_parser = parse_override)]
    pub set: Vec<String>,
}

impl BenchmarkInfer {
    /// The size of synthetic images, if given.
    pub fn shape(&self) -> Option<Shape> {
        let &[height, width] = self.shape.as_slice() else { return None };
        Some(Shape { height, width })
    }
}

/// `benchmark train`
#[derive(Debug, Clone, PartialEq, Args)]
#[command(
    after_help = "Example: fnet-launch --device cpu --nproc 1 benchmark train cfg.toml --batch 2 --shape 320 320 --iters 10"
)]
pub struct BenchmarkTrain {
    /// Config (TOML)
    pub config: PathBuf,
    /// Images per worker and step [default: the config's]
    #[arg(long, value_name = "B", value_parser = parse_positive)]
    pub batch: Option<usize>,
    /// Height and width of the images [default: 800 1344]
    #[arg(long, value_names = ["H", "W"], num_args = 2, value_parser = parse_side)]
    pub shape: Vec<usize>,
    /// Steps to measure
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = parse_positive)]
    pub iters: usize,
    /// Also list the operators that take the time, beside what the machine can do (CPU only)
    #[arg(long)]
    pub profile: bool,
    /// Print JSON to stdout
    #[arg(long)]
    pub json: bool,
    /// Override config values; accepts several
    #[arg(long, visible_alias = "cfg-options", value_name = "KEY=VALUE", value_parser = parse_override)]
    pub set: Vec<String>,
}

impl BenchmarkTrain {
    /// The size of the images.
    pub fn shape(&self) -> Shape {
        shape(&self.shape, Shape { height: 800, width: 1344 })
    }
}

/// `benchmark data`
#[derive(Debug, Clone, PartialEq, Args)]
#[command(after_help = "Examples:\n  \
    fnet-launch benchmark data configs/mask_rcnn_fasternet_s_fpn_1x_coco.toml --images 1000\n  \
    fnet-launch benchmark data cfg.toml --threads 4 --no-masks --json")]
pub struct BenchmarkData {
    /// Config (TOML)
    pub config: PathBuf,
    /// Loader threads of one rank
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_positive)]
    pub threads: usize,
    /// Images to measure, in consecutive epochs [default: one epoch of the training set]
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub images: Option<usize>,
    /// Skip the masks, as with model.mask=false
    #[arg(long)]
    pub no_masks: bool,
    /// Print JSON to stdout
    #[arg(long)]
    pub json: bool,
    /// Override config values; accepts several
    #[arg(long, visible_alias = "cfg-options", value_name = "KEY=VALUE", value_parser = parse_override)]
    pub set: Vec<String>,
}

/// `benchmark comm`
#[derive(Debug, Clone, PartialEq, Args)]
#[command(after_help = "Examples:\n  \
    fnet-launch --gpus 8 benchmark comm\n  \
    fnet-launch --device cpu --nproc 2 benchmark comm --max-bytes 16M --iters 10 --json")]
pub struct BenchmarkComm {
    /// Smallest message (4, 64K, 16M, 1G; powers of 1024)
    #[arg(long, value_name = "BYTES", default_value = "4", value_parser = parse_bytes)]
    pub min_bytes: u64,
    /// Largest message; sizes grow by a factor of 4
    #[arg(long, value_name = "BYTES", default_value = "64M", value_parser = parse_bytes)]
    pub max_bytes: u64,
    /// Measured all-reduces per size
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = parse_positive)]
    pub iters: usize,
    /// Warm-up all-reduces per size
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub warm_up: usize,
    /// Print JSON to stdout
    #[arg(long)]
    pub json: bool,
}

/// A number of bytes; K, M and G are powers of 1024.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || "expected bytes, 4 to 64G: a whole number, optionally followed by K, M or G".to_owned();
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 1 << 10),
        Some((at, 'M' | 'm')) => (&text[..at], 1 << 20),
        Some((at, 'G' | 'g')) => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    bytes.filter(|bytes| (4..=64 << 30).contains(bytes)).ok_or_else(wrong)
}

/// `benchmark launch`
#[derive(Debug, Clone, PartialEq, Args)]
#[command(after_help = "Examples:\n  \
    fnet-launch --gpus 8 benchmark launch\n  \
    fnet-launch --device cpu --nproc 2 benchmark launch --repeat 10 --against torchrun")]
pub struct BenchmarkLaunch {
    /// Measured starts, after one warm-up start
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = parse_positive)]
    pub repeat: usize,
    /// Alternate with this program: torchrun from .venv or PATH, or a path
    #[arg(long, value_name = "PROGRAM")]
    pub against: Option<PathBuf>,
    /// Print JSON to stdout
    #[arg(long)]
    pub json: bool,
    /// One start, whose workers report when they finished
    #[arg(long, hide = true)]
    pub once: bool,
}
