//! `synth`: generates a synthetic data set.

use std::sync::atomic::{AtomicU64, Ordering};

use fnet_protocol::cli::{LaunchOptions, Synth, SynthLayout};
use fnet_protocol::exit;
use fnet_synth::Options;
use indicatif::ProgressBar;

use crate::console::Console;
use crate::error::{Error, Result};
use crate::text;

/// Generates the set and prints its contents.
/// Errors: options out of range or a folder with other contents (exit code 2); a problem with the disk (exit code 6).
pub fn run(launch: &LaunchOptions, synth: &Synth) -> Result<()> {
    let console = Console::new(launch);
    let options = Options {
        out: synth.out.clone(),
        layout: layout(synth.layout),
        images: synth.images,
        val_images: synth.val_images,
        seed: synth.seed,
        sides: range(&synth.sides),
        objects: range(&synth.objects),
        annotations_only: synth.annotations_only,
        ..Options::default()
    };
    let bar = if console.is_live() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    let most = AtomicU64::new(0);
    let made = fnet_synth::generate(&options, &|progress| {
        // Calls come from several threads, out of order.
        let done = most.fetch_max(progress.done, Ordering::Relaxed).max(progress.done);
        bar.set_length(progress.total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let summary = made.map_err(|error| {
        let code = match error {
            fnet_synth::Error::Usage(_) => exit::USAGE,
            fnet_synth::Error::Disk(_) => exit::ENVIRONMENT,
            fnet_synth::Error::Bug(_) => exit::BUG,
        };
        Error::new(code, error.to_string())
    })?;
    let verb = if summary.reused { "already contains" } else { "now contains" };
    console.result(&format!(
        "{} {verb} {} images ({} without objects), {} annotations ({} crowds), in {}",
        synth.out.display(),
        summary.images,
        summary.empty_images,
        summary.annotations,
        summary.crowds,
        text::clock(summary.seconds)
    ));
    Ok(())
}

fn layout(named: SynthLayout) -> fnet_synth::Layout {
    match named {
        SynthLayout::Coco => fnet_synth::Layout::Coco,
        SynthLayout::Roboflow => fnet_synth::Layout::Roboflow,
    }
}

/// `MIN MAX` as clap returns it: two numbers.
fn range(values: &[u32]) -> std::ops::RangeInclusive<u32> {
    let first = values.first().copied().unwrap_or(0);
    first..=values.get(1).copied().unwrap_or(first)
}
