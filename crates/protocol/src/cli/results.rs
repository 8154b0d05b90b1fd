//! Commands about results and runs.

use std::path::PathBuf;

use clap::Args;

use super::commands::{Metric, SplitName, parse_override, parse_positive};

/// `evaluate`
#[derive(Debug, Clone, PartialEq, Args)]
#[command(after_help = "Examples:\n  \
    fnet-launch evaluate work_dirs/mmdet/results.segm.json --config cfg.toml\n  \
    fnet-launch evaluate old.bbox.json new.bbox.json --config cfg.toml --out compared.html\n\n\
    Results are a JSON list of {image_id, category_id, bbox, score, segmentation}, as `test --out`, MMDetection's \
    `--format-only` with `jsonfile_prefix`, and pycocotools have it.")]
pub struct Evaluate {
    /// COCO results (JSON); of two, the second is compared with the first
    #[arg(value_name = "RESULTS", required = true, num_args = 1..=2)]
    pub results: Vec<PathBuf>,
    /// Config that names the ground truth
    #[arg(long, value_name = "CONFIG")]
    pub config: PathBuf,
    /// The split: data.train, data.val or data.test of the config
    #[arg(long, value_name = "SPLIT", default_value = "val")]
    pub split: SplitName,
    /// Metrics; accepts several [default: bbox, and segm if the results have masks]
    #[arg(long, value_name = "METRIC")]
    pub eval: Vec<Metric>,
    /// Bootstrap resamples of the comparison of two
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = parse_positive)]
    pub resamples: usize,
    /// Seed of the resamples
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// Write the page of `report` about the results
    #[arg(long, value_name = "FILE.html")]
    pub out: Option<PathBuf>,
    /// Print JSON to stdout: results (file, images, detections, metrics, notes) and comparison
    #[arg(long)]
    pub json: bool,
    /// Override config values; accepts several
    #[arg(long, visible_alias = "cfg-options", value_name = "KEY=VALUE", value_parser = parse_override)]
    pub set: Vec<String>,
}

/// `report`
#[derive(Debug, Clone, PartialEq, Args)]
#[command(after_help = "Examples:\n  \
    fnet-launch report work_dirs/demo\n  \
    fnet-launch report work_dirs/first work_dirs/second --out compared.html\n\n\
    The page needs no network. It shows the curves, metrics, errors, times and config of each run, and the best, worst and \
    most confused images of data.val.")]
pub struct Report {
    /// Work folders of `train`
    #[arg(value_name = "WORK_DIR", required = true)]
    pub folders: Vec<PathBuf>,
    /// The page [default: report.html in the first folder]
    #[arg(long, value_name = "FILE.html")]
    pub out: Option<PathBuf>,
    /// Override config values of all runs, for example data.root; accepts several
    #[arg(long, visible_alias = "cfg-options", value_name = "KEY=VALUE", value_parser = parse_override)]
    pub set: Vec<String>,
}

impl Report {
    /// The file of the page.
    pub fn page(&self) -> PathBuf {
        let beside = || self.folders.first().map(|folder| folder.join("report.html"));
        self.out.clone().or_else(beside).unwrap_or_else(|| PathBuf::from("report.html"))
    }
}
