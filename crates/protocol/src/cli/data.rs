//! Commands about data sets.

use std::path::PathBuf;

use clap::Args;

use super::commands::{SplitName, parse_override, parse_positive};

/// `check-data`
#[derive(Debug, Clone, PartialEq, Args)]
#[command(after_help = "Examples:\n  \
    fnet-launch check-data cfg.toml --decode\n  \
    fnet-launch check-data cfg.toml --json > findings.json\n\n\
    Exit codes: 0 no errors, 2 the config is wrong, 3 errors were found. docs/data-codes.md explains every code.")]
pub struct CheckData {
    /// Config (TOML)
    pub config: PathBuf,
    /// Check one split alone [default: all, and against each other]
    #[arg(long, value_name = "SPLIT")]
    pub split: Option<SplitName>,
    /// Decode every image instead of its header only
    #[arg(long)]
    pub decode: bool,
    /// Diagnostics listed per kind; 0 for the table alone
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub list: usize,
    /// Print every finding as JSON to stdout
    #[arg(long)]
    pub json: bool,
    /// Override config values; accepts several
    #[arg(long, visible_alias = "cfg-options", value_name = "KEY=VALUE", value_parser = parse_override)]
    pub set: Vec<String>,
}

/// `browse`
#[derive(Debug, Clone, PartialEq, Args)]
#[command(after_help = "Examples:\n  \
    fnet-launch browse configs/demo.toml --out browsed\n  \
    fnet-launch browse cfg.toml --out browsed --split val --max 20")]
pub struct Browse {
    /// Config (TOML)
    pub config: PathBuf,
    /// Folder for the drawn images
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The split: data.train, data.val or data.test of the config
    #[arg(long, value_name = "SPLIT", default_value = "train")]
    pub split: SplitName,
    /// Maximum number of images, from the start of the split
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = parse_positive)]
    pub max: usize,
    /// Epoch whose augmentations are shown, from 1
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub epoch: u64,
    /// Prepare training images as for evaluation: data.pipeline.test_scale, no flip
    #[arg(long)]
    pub no_augment: bool,
    /// Override config values; accepts several
    #[arg(long, visible_alias = "cfg-options", value_name = "KEY=VALUE", value_parser = parse_override)]
    pub set: Vec<String>,
}

/// `convert-config`
#[derive(Debug, Clone, PartialEq, Args)]
#[command(after_help = "Examples:\n  \
    fnet-launch convert-config configs/mine/mask_rcnn_r50_fpn_1x_mine.py --out mine.toml\n  \
    fnet-launch convert-config mine.py > mine.toml\n\n\
    Reads configs of MMDetection 2 and 3 with their `_base_` files, without running Python. Lists what was carried over, what \
    has no counterpart and what was assumed; docs/migrating.md says what is not supported.")]
pub struct ConvertConfig {
    /// Config of MMDetection (Python)
    pub config: PathBuf,
    /// File for the converted config [default: stdout]
    #[arg(long, value_name = "FILE.toml")]
    pub out: Option<PathBuf>,
}
