//! `benchmark data`: measures only the input pipeline, as in training.
//!
//! The loader makes training batches of the config (with its threads, augmentation and padding) without a model. A few
//! warm-up batches are not measured.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tch::Device;

use fnet_common::process;
use fnet_common::{Error, Result};
use fnet_data::{Dataset, DecodedImage, Loader, Severity, Split, StageTimes, TrainOptions, train_indices};
use fnet_protocol::cli::BenchmarkData;
use fnet_protocol::client::Client;
use fnet_protocol::{exit, stop};

use crate::commands::stdout::publish;

/// Warm-up batches per thread.
const WARM_UP: usize = 4;
/// Time between two progress lines.
const PROGRESS: Duration = Duration::from_secs(10);

/// The results of `benchmark data`.
#[derive(Debug, Serialize)]
struct DataReport {
    /// Loader threads.
    threads: usize,
    /// Images in a batch.
    batch: usize,
    masks: bool,
    /// Whether JPEG files are decoded with vector instructions.
    jpeg_simd: bool,
    /// Images measured.
    images: usize,
    seconds: f64,
    images_per_second: f64,
    images_per_second_per_thread: f64,
    /// Milliseconds per image in one thread.
    ms_per_image: Stages,
    peak_memory_bytes: u64,
}

/// Milliseconds by stage.
#[derive(Debug, Serialize)]
struct Stages {
    read: f64,
    decode: f64,
    masks: f64,
    resize: f64,
    assemble: f64,
    total: f64,
}

/// Runs `benchmark data` in this process.
/// Errors: what the user can fix (config, data, memory) or a bug.
pub fn benchmark_data(arguments: &BenchmarkData, control: &Client) -> Result<i32> {
    let mut config = fnet_data::load_config(&arguments.config, &arguments.set)?.config;
    config.data.workers_per_gpu = arguments.threads;
    let dataset = Arc::new(Dataset::open(&config.data, Split::Train)?);
    dataset.diagnostics().lines(Severity::Warning).iter().for_each(|warning| control.note(warning));
    let batch = config.data.samples_per_gpu;
    let flags = dataset.aspect_flags();
    let epoch = |number: u64| train_indices(&flags, number, config.train.seed, 0, 1, batch);
    if epoch(0).is_empty() {
        let path = dataset.annotation_files();
        return Err(Error::data(format!("{path} has no image to train on; set data.train.ann_file to another file")));
    }
    let open = |number: u64| {
        let options = TrainOptions {
            seed: config.train.seed,
            epoch: number,
            without_masks: arguments.no_masks,
            ..TrainOptions::default()
        };
        Loader::train(Arc::clone(&dataset), &config.data, &epoch(number), &options)
    };
    for warm in open(0)?.take(WARM_UP * arguments.threads) {
        warm?;
    }
    let mut run = Run::new(arguments.images.unwrap_or_else(|| epoch(0).len()), control);
    let mut number = 0;
    while run.images < run.wanted {
        run.take(open(number)?)?;
        if let Some(reason) = stop::requested() {
            return Ok(reason.exit_code());
        }
        number += 1;
    }
    let report = run.report(arguments, batch, config.model.mask && !arguments.no_masks);
    publish(&report, &report.to_string(), arguments.json)?;
    Ok(exit::SUCCESS)
}

/// A running measurement.
struct Run<'a> {
    control: &'a Client,
    wanted: usize,
    started: Instant,
    reported: Instant,
    images: usize,
    times: StageTimes,
}

impl<'a> Run<'a> {
    fn new(wanted: usize, control: &'a Client) -> Self {
        let now = Instant::now();
        Self { control, wanted, started: now, reported: now, images: 0, times: StageTimes::default() }
    }

    /// Takes the batches of one epoch, up to the number of wanted images.
    fn take(&mut self, mut loader: Loader) -> Result<()> {
        while self.images < self.wanted && stop::requested().is_none() {
            let Some(batch) = loader.next() else { break };
            self.images += batch?.metas.len();
            for skipped in loader.take_skipped() {
                self.control.note(format!("skipped {}: {}", skipped.file, skipped.reason));
            }
            if self.reported.elapsed() >= PROGRESS {
                self.reported = Instant::now();
                let rate = self.images as f64 / self.started.elapsed().as_secs_f64();
                self.control.note(format!("{} of {} images, {rate:.1} per second", self.images, self.wanted));
            }
        }
        self.times += loader.times();
        Ok(())
    }

    fn report(&self, arguments: &BenchmarkData, batch: usize, masks: bool) -> DataReport {
        let seconds = self.started.elapsed().as_secs_f64();
        let rate = self.images as f64 / seconds;
        let ms = |time: Duration| time.as_secs_f64() * 1e3 / self.images as f64;
        let StageTimes { read, decode, masks: masks_time, resize, assemble } = self.times;
        DataReport {
            threads: arguments.threads,
            batch,
            masks,
            jpeg_simd: DecodedImage::jpeg_simd(),
            images: self.images,
            seconds,
            images_per_second: rate,
            images_per_second_per_thread: rate / arguments.threads as f64,
            ms_per_image: Stages {
                read: ms(read),
                decode: ms(decode),
                masks: ms(masks_time),
                resize: ms(resize),
                assemble: ms(assemble),
                total: ms(self.times.total()),
            },
            peak_memory_bytes: process::peak_memory(Device::Cpu),
        }
    }
}

impl fmt::Display for DataReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let masks = if self.masks { "with masks" } else { "without masks" };
        writeln!(
            f,
            "{} images {masks} in {:.2} s on {} loader threads: {:.1} images/s, {:.1} per thread",
            self.images, self.seconds, self.threads, self.images_per_second, self.images_per_second_per_thread
        )?;
        let stages = &self.ms_per_image;
        for (name, ms) in [
            ("read", stages.read),
            ("decode", stages.decode),
            ("masks", stages.masks),
            ("resize", stages.resize),
            ("assemble", stages.assemble),
            ("all", stages.total),
        ] {
            writeln!(f, "{name:>10} {ms:8.3} ms per image")?;
        }
        if !self.jpeg_simd {
            writeln!(
                f,
                "JPEG is decoded without vector instructions: libtorch's Python environment has no pillow.libs/libjpeg-*.so.62*; \
                 pip install pillow==13.0.0 there"
            )?;
        }
        write!(f, "peak memory {:.2} GiB", self.peak_memory_bytes as f64 / f64::from(1 << 30))
    }
}
