//! `benchmark infer`: measures images per second like MMDetection's `benchmark.py`.
//!
//! Each image is measured separately, from the image in host memory to detections with masks in the frame of the original
//! image. Loading happens between the measurements and is not counted. The first five images are not measured, but count in
//! `--max-iter` and in progress lines.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use fnet_checkpoint::{Need, TrainedFile};
use fnet_common::process;
use fnet_common::{Error, Result};
use fnet_config::{self as config, Amp, Config};
use fnet_data::{Batch, Dataset, Loader, Split, TestOptions};
use fnet_distributed::Communicator;
use fnet_evaluate::inference::detect;
use fnet_model::{MaskRcnn, Parameters};
use fnet_protocol::cli::{BenchmarkInfer, Shape, WARM_UP};
use fnet_protocol::client::Client;
use fnet_protocol::exit;
use fnet_protocol::message::{Phase, Progress};
use fnet_protocol::spread::Spread;

use super::synthetic;
use crate::commands::stdout::publish;

/// Size of synthetic images: a landscape COCO image after resizing.
const DEFAULT_SHAPE: Shape = Shape { height: 800, width: 1280 };

/// The results of `benchmark infer`.
#[derive(Debug, Serialize)]
struct InferReport {
    device: String,
    threads: i32,
    fuse_conv_bn: bool,
    /// Type of convolutions and matrix products.
    amp: Amp,
    /// Images measured in each repetition.
    images: usize,
    /// The source of the images.
    source: String,
    /// Minimum and maximum number of detections in an image.
    detections: [usize; 2],
    /// Network, box and mask heads, and pasting of masks, without loading the image.
    ms: Spread,
    images_per_second: f64,
    /// Images per second of each repetition.
    repetitions: Vec<f64>,
    peak_memory_bytes: u64,
}

/// Runs `benchmark infer` on this rank.
/// Errors: what the user can fix (config, data, checkpoint, memory) or a bug.
pub fn benchmark_infer(arguments: &BenchmarkInfer, control: &Client) -> Result<i32> {
    let config = fnet_data::load_config(&arguments.config, &arguments.set)?.config;
    let communicator = Communicator::from_environment()?;
    let mut parameters = Parameters::new();
    let mut model = MaskRcnn::new(&config.model, &mut parameters, communicator.device(), config.train.seed)?;
    match &arguments.checkpoint {
        Some(path) => {
            let need = Need::unless_partial(arguments.allow_partial, Need::All);
            let summary = TrainedFile::open(path)?.fill(&parameters, need)?;
            if communicator.is_first() {
                control.note(summary.to_string());
            }
        }
        None => find_everywhere(&parameters)?,
    }
    if arguments.fuse_conv_bn {
        model.fuse_conv_bn()?;
    }
    let mut bench =
        Bench { model, config: &config, arguments, control, communicator: &communicator, detections: [usize::MAX, 0] };
    let source = bench.source();
    let (mut all, mut repetitions) = (Vec::new(), Vec::new());
    for _ in 0..arguments.repeat_num {
        let seconds = bench.repetition(&source)?;
        let rate = Rate::of(&seconds);
        if arguments.repeat_num > 1 {
            control.note(format!("Overall {rate}"));
        }
        repetitions.push(rate.fps);
        all.extend(seconds);
    }
    if communicator.rank() == 0 {
        let ms = Spread::of_seconds(all.iter().copied());
        let report = InferReport {
            device: format!("{:?}", communicator.device()),
            threads: tch::get_num_threads(),
            fuse_conv_bn: arguments.fuse_conv_bn,
            amp: config.evaluation.amp,
            images: all.len() / arguments.repeat_num,
            source: source.to_string(),
            detections: bench.detections,
            ms,
            images_per_second: Rate::of(&all).fps,
            repetitions,
            peak_memory_bytes: process::peak_memory(communicator.device()),
        };
        publish(&report, &report.to_string(), arguments.json)?;
    }
    drop(bench);
    communicator.leave()?;
    Ok(exit::SUCCESS)
}

/// Sets the score of one class to one half everywhere, so that every image has more detections than are kept.
fn find_everywhere(parameters: &Parameters) -> Result<()> {
    let name = "roi_head.bbox_head.fc_cls.bias";
    let bias = parameters.get(name).ok_or_else(|| Error::bug(format!("the model has no {name}")))?;
    let classes = bias.size1()?;
    let _guard = tch::no_grad_guard();
    // The other classes and the background share the rest.
    let mut first = bias.f_select(0, 0)?;
    let _ = first.f_fill_(((classes - 1) as f64).ln())?;
    Ok(())
}

enum ImageSource {
    Synthetic(Shape),
    ValidationSet,
}

impl fmt::Display for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageSource::Synthetic(shape) => write!(f, "synthetic images of {}x{}", shape.height, shape.width),
            ImageSource::ValidationSet => f.write_str("the validation set"),
        }
    }
}

struct Bench<'a> {
    model: MaskRcnn,
    config: &'a Config,
    arguments: &'a BenchmarkInfer,
    control: &'a Client,
    communicator: &'a Communicator,
    detections: [usize; 2],
}

impl Bench<'_> {
    /// Images of the validation set if there is a checkpoint, as in MMDetection; otherwise, or with `--shape`, synthetic ones.
    fn source(&self) -> ImageSource {
        match (self.arguments.shape(), &self.arguments.checkpoint) {
            (Some(shape), _) => ImageSource::Synthetic(shape),
            (None, Some(_)) => ImageSource::ValidationSet,
            (None, None) => ImageSource::Synthetic(DEFAULT_SHAPE),
        }
    }

    /// Seconds of each measured image.
    fn repetition(&mut self, source: &ImageSource) -> Result<Vec<f64>> {
        let count = self.arguments.max_iter;
        match source {
            ImageSource::Synthetic(shape) => {
                let size = (shape.height, shape.width);
                let images = synthetic::images(1, (size.0.next_multiple_of(32), size.1.next_multiple_of(32)), 0);
                let metas = synthetic::metas(1, size);
                let batch = || Batch { images: images.share(), metas: metas.clone(), targets: Vec::new() };
                self.measure((0..count).map(|_| Ok(batch())), count)
            }
            ImageSource::ValidationSet => {
                let dataset = Arc::new(Dataset::open(&self.config.data, Split::Val)?);
                let indices: Vec<usize> = (0..dataset.len().min(count)).collect();
                // Loader threads would disturb the measurement, especially on the CPU.
                let data = config::Data { workers_per_gpu: 0, ..self.config.data.clone() };
                let loader = Loader::test(dataset, &data, &indices, &TestOptions::default())?;
                self.measure(loader, indices.len())
            }
        }
    }

    /// Seconds of each of `count` images after the warm-up.
    fn measure(&mut self, images: impl Iterator<Item = Result<Batch>>, count: usize) -> Result<Vec<f64>> {
        let mut seconds = Vec::new();
        for (index, image) in images.enumerate() {
            let batch = image?;
            process::synchronize(self.communicator.device())?;
            let started = Instant::now();
            let found = self.predict(&batch)?;
            process::synchronize(self.communicator.device())?;
            let elapsed = started.elapsed().as_secs_f64();
            self.detections = [self.detections[0].min(found), self.detections[1].max(found)];
            if index >= WARM_UP {
                seconds.push(elapsed);
                self.report_progress(&seconds, index + 1, count);
            }
        }
        if seconds.is_empty() {
            return Err(Error::data(format!(
                "nothing was measured: more than {WARM_UP} images are needed, which are the warm-up"
            )));
        }
        Ok(seconds)
    }

    /// Detects objects and pastes their masks. Returns the number of detections.
    fn predict(&self, batch: &Batch) -> Result<usize> {
        let found = detect(&self.model, batch, self.config)?;
        Ok(std::hint::black_box(found).iter().map(|image| image.detections.len()).sum())
    }

    /// Reports that `done` of `count` images are finished, including the warm-up.
    fn report_progress(&self, seconds: &[f64], done: usize, count: usize) {
        let rate = Rate::of(seconds);
        self.control.progress(Progress {
            phase: Phase::Evaluation,
            step: done as u64,
            total_steps: count as u64,
            images_per_second: Some(rate.fps),
            ..Progress::default()
        });
        if done.is_multiple_of(self.arguments.log_interval) {
            self.control.note(format!("Done image [{done:<3}/ {count}], {rate}"));
        }
    }
}

/// Images per second, printed as in MMDetection.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rate {
    fps: f64,
}

impl Rate {
    fn of(seconds: &[f64]) -> Self {
        Self { fps: seconds.len() as f64 / seconds.iter().sum::<f64>() }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fps: {:.1} img / s, times per image: {:.1} ms / img", self.fps, 1e3 / self.fps)
    }
}

/// The line for several repetitions: each rounded to a tenth, and the mean of the rounded values.
fn overall(repetitions: &[f64]) -> String {
    let column = |value: fn(f64) -> f64| {
        let rounded: Vec<f64> = repetitions.iter().map(|&fps| (value(fps) * 10.0).round() / 10.0).collect();
        let mean = rounded.iter().sum::<f64>() / rounded.len().max(1) as f64;
        format!("{rounded:?}[{mean:.1}]")
    };
    format!("Overall fps: {} img / s, times per image: {} ms / img", column(|fps| fps), column(|fps| 1e3 / fps))
}

impl fmt::Display for InferReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let amp = match self.amp {
            Amp::Off => "float32",
            Amp::Bf16 => "bfloat16",
            Amp::Fp16 => "float16",
        };
        writeln!(f, "{}, {} thread(s), {amp}, {} of {}", self.device, self.threads, self.images, self.source)?;
        writeln!(f, "{} to {} detections in an image", self.detections[0], self.detections[1])?;
        writeln!(f, "median {:.1} ms, {:.1} to {:.1} ms", self.ms.median, self.ms.min, self.ms.max)?;
        writeln!(f, "peak memory {:.1} MiB", self.peak_memory_bytes as f64 / (1 << 20) as f64)?;
        match self.repetitions.as_slice() {
            [fps] => write!(f, "Overall {}", Rate { fps: *fps }),
            several => f.write_str(&overall(several)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_printed_as_in_mmdetection() {
        assert_eq!(Rate::of(&[0.05, 0.03]).to_string(), "fps: 25.0 img / s, times per image: 40.0 ms / img");
        assert_eq!(
            overall(&[10.04, 20.26]),
            "Overall fps: [10.0, 20.3][15.2] img / s, times per image: [99.6, 49.4][74.5] ms / img"
        );
    }
}
