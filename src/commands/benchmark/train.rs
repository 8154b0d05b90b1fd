//! `benchmark train`: measures the time of training steps and of their parts.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use serde::Serialize;
use tch::{Device, Tensor};

use fnet_common::process;
use fnet_common::{Error, Result};
use fnet_data::{Batch, Images, Target};
use fnet_distributed::Communicator;
use fnet_model::StepRandom;
use fnet_protocol::cli::BenchmarkTrain;
use fnet_protocol::client::Client;
use fnet_protocol::exit;
use fnet_protocol::message::{Phase, Progress};
use fnet_protocol::spread::Spread;
use fnet_train::{StepIndex, StepTimes, StepVote, TrainState};

use super::profile::Profile;
use super::{simulated, synthetic};
use crate::commands::stdout::publish;

/// Positive proposals per image in the losses. Their number determines the time of the mask head, so it must be the same in
/// every measurement.
const POSITIVES: usize = 10;
/// Warm-up steps.
const WARM_UP: usize = 3;
/// Maximum number of steps that synchronize with the GPU after each part, to measure the parts separately.
const SPLIT_STEPS: usize = 10;
/// The step index for random numbers of all steps, so that all sample the same proposals.
const STEP: u64 = 0;

/// The results of `benchmark train`.
#[derive(Debug, Serialize)]
struct TrainReport {
    device: String,
    world_size: usize,
    threads_per_worker: i32,
    /// Images per worker and step.
    batch: usize,
    height: usize,
    width: usize,
    iters: usize,
    /// Objects in each image.
    objects_per_image: usize,
    /// Positive proposals in each step of one worker.
    positives: usize,
    /// A step, measured on the host.
    ms: Spread,
    /// Over all measured steps, from the start of the first until the device has finished the last.
    images_per_second: f64,
    /// On a GPU, measured in separate steps with synchronization after each part.
    parts_ms: Parts,
    /// Operators and waits per step by kind, if the devices of worker 0 are simulated.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    counts_per_step: BTreeMap<String, f64>,
    /// Peak memory of worker 0: of the device, or of the process on the CPU.
    peak_memory_bytes: u64,
    /// Seconds from the start of worker 0's process to the end of its first step.
    start_to_first_step_seconds: Option<f64>,
    /// One more step, by operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<Profile>,
}

/// Medians of the parts of a step in milliseconds.
#[derive(Debug, Serialize)]
struct Parts {
    /// Copy of the images to a GPU, and their normalization there; training overlaps the copy with the previous step.
    data: f64,
    forward: f64,
    backward: f64,
    /// The cost of other workers: backward with all-reduce minus backward without it, plus the exchange of losses.
    all_reduce: f64,
    /// Of that, the time in which this worker only waited: for sums of gradients after its own backward pass, and in the
    /// exchange of losses.
    exposed_communication: f64,
    optimizer: f64,
}

/// Runs `benchmark train` on this rank.
/// Errors: what the user can fix (config, memory), a lost peer, or a bug.
pub fn benchmark_train(arguments: &BenchmarkTrain, control: &Client) -> Result<i32> {
    let mut config = fnet_data::load_config(&arguments.config, &arguments.set)?.config;
    config.validate_for_training()?;
    config.optimizer.lr = 0.0;
    config.train.accumulate = 1;
    let sampler = &mut config.model.roi_head.sampler;
    sampler.positive_fraction = POSITIVES as f64 / sampler.count as f64;
    let shape = arguments.shape();
    let size = (shape.height.next_multiple_of(32), shape.width.next_multiple_of(32));
    let count = arguments.batch.unwrap_or(config.data.samples_per_gpu);

    let communicator = Communicator::from_environment()?;
    if arguments.profile && communicator.device().is_cuda() {
        return Err(Error::usage(
            "--profile measures operators on the CPU; add --device cpu, or run the worker under NVIDIA's nsys for a GPU",
        ));
    }
    let mut bench =
        Bench { train_state: TrainState::new(&config, &communicator)?, communicator: &communicator, control, step: 0 };
    let (batch, first_step) = bench.warm_up(count, size, config.model.num_classes)?;
    let (mut steps, mut times) = (Vec::new(), Vec::new());
    process::synchronize(communicator.device())?;
    let (before, begun) = (simulated::counts(), Instant::now());
    for iter in 0..arguments.iters {
        let started = Instant::now();
        times.push(bench.step(&batch, true)?.0);
        steps.push(started.elapsed().as_secs_f64());
        control.progress(Progress {
            phase: Phase::Forward,
            step: iter as u64 + 1,
            total_steps: arguments.iters as u64,
            images_per_second: steps.last().map(|seconds| (count * communicator.world_size()) as f64 / seconds),
            ..Progress::default()
        });
    }
    let counts_per_step = simulated::per_step(&before, &simulated::counts(), arguments.iters);
    process::synchronize(communicator.device())?;
    let seconds = begun.elapsed().as_secs_f64();
    let peak_memory_bytes = process::peak_memory(communicator.device());
    // On the CPU, each part is finished when it returns.
    let (times, data) =
        if communicator.device().is_cuda() { bench.split(&batch, arguments.iters)? } else { (times, Vec::new()) };
    let profile = arguments.profile.then(|| Profile::of(|| bench.step(&batch, true).map(drop))).transpose()?;
    let alone = if communicator.world_size() > 1 { bench.backward_alone(&batch, arguments.iters)? } else { None };
    if communicator.rank() == 0 {
        let ms = Spread::of_seconds(steps.iter().copied());
        let report = TrainReport {
            device: format!("{:?}", communicator.device()),
            world_size: communicator.world_size(),
            threads_per_worker: tch::get_num_threads(),
            batch: count,
            height: size.0,
            width: size.1,
            iters: arguments.iters,
            objects_per_image: synthetic::OBJECTS,
            positives: POSITIVES * count,
            ms,
            images_per_second: (count * communicator.world_size() * arguments.iters) as f64 / seconds,
            parts_ms: parts(&times, &data, alone),
            counts_per_step,
            peak_memory_bytes,
            start_to_first_step_seconds: first_step,
            profile,
        };
        publish(&report, &report.to_string(), arguments.json)?;
    }
    drop(bench);
    communicator.leave()?;
    Ok(exit::SUCCESS)
}

struct Bench<'a> {
    train_state: TrainState<'a>,
    communicator: &'a Communicator,
    control: &'a Client,
    step: usize,
}

impl Bench<'_> {
    /// Makes the batch and runs the warm-up steps. Returns the batch and the age of the process after the first step.
    fn warm_up(&mut self, count: usize, size: (usize, usize), num_classes: usize) -> Result<(Batch, Option<f64>)> {
        let batch = self.batch(count, size, num_classes)?;
        let mut first_step = None;
        for _ in 0..WARM_UP {
            let (_, positives) = self.step(&batch, true)?;
            first_step = first_step.or_else(|| process::age().map(|age| age.as_secs_f64()));
            if positives != POSITIVES * count && simulated::computes() {
                return Err(Error::bug(format!(
                    "{positives} positive proposals instead of {}: measurements would not be comparable",
                    POSITIVES * count
                )));
            }
        }
        Ok((batch, first_step))
    }

    /// Noise images with objects where the network proposes boxes. The objects' own boxes count as proposals, too, so each
    /// object gives two positives, which is more than are sampled.
    fn batch(&self, count: usize, size: (usize, usize), num_classes: usize) -> Result<Batch> {
        let images = synthetic::images(count, size, 0);
        let metas = synthetic::metas(count, size);
        let mut random = StepRandom::new(self.train_state.seed(), self.communicator.rank(), STEP);
        let proposals = self.train_state.model.training_proposals(&images, &metas, &mut random)?;
        let targets: Option<Vec<Target>> = proposals
            .iter()
            .map(|boxes| {
                let boxes = if simulated::computes() { rows(boxes)? } else { synthetic::boxes(size) };
                Ok(synthetic::objects(&boxes, size, num_classes))
            })
            .collect::<Result<_>>()?;
        // All ranks must fail together, or the others would wait.
        if self.communicator.any(targets.is_none())? {
            return Err(Error::usage(format!(
                "the network proposes fewer than {} separate boxes in an image of {}x{}; choose a larger --shape",
                synthetic::OBJECTS,
                size.0,
                size.1
            )));
        }
        Ok(Batch { images, metas, targets: targets.unwrap_or_default() })
    }

    /// One step with or without all-reduce. Returns its times and its number of positive proposals.
    fn step(&mut self, batch: &Batch, all_reduce: bool) -> Result<(StepTimes, usize)> {
        let index =
            StepIndex { epoch: 0, step_in_epoch: self.step, step: STEP as usize, micro_steps: 1, updates: all_reduce };
        self.step += 1;
        let outcome =
            self.train_state.train_step(batch, index, 0.0, StepVote::default(), self.communicator, self.control)?;
        Ok((outcome.times, outcome.positives))
    }

    /// Times of the parts with synchronization after each one, and of copying the images.
    fn split(&mut self, batch: &Batch, iters: usize) -> Result<(Vec<StepTimes>, Vec<f64>)> {
        self.train_state.synchronize_timing(true);
        let (mut times, mut data) = (Vec::new(), Vec::new());
        for _ in 0..iters.min(SPLIT_STEPS) {
            let started = Instant::now();
            let images = Images::Values(batch.images.values(self.communicator.device())?);
            process::synchronize(self.communicator.device())?;
            data.push(started.elapsed().as_secs_f64());
            let batch = Batch { images, metas: batch.metas.clone(), targets: batch.targets.clone() };
            times.push(self.step(&batch, true)?.0);
        }
        Ok((times, data))
    }

    /// Median seconds of a backward pass without all-reduce.
    fn backward_alone(&mut self, batch: &Batch, iters: usize) -> Result<Option<f64>> {
        let mut seconds = Vec::new();
        for _ in 0..iters.min(5) {
            seconds.push(self.step(batch, false)?.0.backward);
            self.train_state.optimizer.clear_gradients()?;
        }
        Ok(Some(Spread::of_seconds(seconds).median))
    }
}

/// The boxes of proposals `[k, 5]`.
fn rows(proposals: &Tensor) -> Result<Vec<[f32; 4]>> {
    let values = Vec::<f32>::try_from(proposals.f_to_device(Device::Cpu)?.f_reshape([-1])?)?;
    Ok(values.chunks_exact(5).map(|row| [row[0], row[1], row[2], row[3]]).collect())
}

/// `alone`: milliseconds of a backward pass without all-reduce.
fn parts(times: &[StepTimes], data: &[f64], alone: Option<f64>) -> Parts {
    let median = |part: fn(&StepTimes) -> f64| Spread::of_seconds(times.iter().map(part)).median;
    let together = median(|times| times.backward);
    let backward = alone.map_or(together, |alone| alone.min(together));
    Parts {
        data: Spread::of_seconds(data.iter().copied()).median,
        forward: median(|times| times.forward),
        backward,
        all_reduce: together - backward + median(|times| times.step_vote),
        exposed_communication: median(|times| times.waited),
        optimizer: median(|times| times.optimizer),
    }
}

impl fmt::Display for TrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts { data, forward, backward, all_reduce, exposed_communication, optimizer } = self.parts_ms;
        writeln!(
            f,
            "{} worker(s) on {}, {} thread(s) each, {} image(s) of {}x{} per step",
            self.world_size, self.device, self.threads_per_worker, self.batch, self.height, self.width
        )?;
        writeln!(
            f,
            "{} objects per image, {} positive proposals per step, learning rate 0",
            self.objects_per_image, self.positives
        )?;
        writeln!(
            f,
            "step        {:>9.1} ms (median of {}; {:.1} to {:.1}), {:.3} img/s",
            self.ms.median, self.iters, self.ms.min, self.ms.max, self.images_per_second
        )?;
        if !self.counts_per_step.is_empty() {
            let counts = self.counts_per_step.iter().map(|(kind, count)| format!("{count:.1} {kind}s"));
            writeln!(f, "  simulated GPU, per step: {}", counts.collect::<Vec<_>>().join(", "))?;
        }
        for (name, ms) in [
            ("data", data),
            ("forward", forward),
            ("backward", backward),
            ("all-reduce", all_reduce),
            ("  exposed", exposed_communication),
            ("optimizer", optimizer),
        ] {
            writeln!(f, "  {name:<10}{ms:>9.1} ms")?;
        }
        write!(f, "peak memory {:>9.1} MiB", self.peak_memory_bytes as f64 / (1 << 20) as f64)?;
        if let Some(seconds) = self.start_to_first_step_seconds {
            write!(f, "\nfirst step  {seconds:>9.2} s after the start of the process")?;
        }
        if let Some(profile) = &self.profile {
            write!(f, "\n{}", profile.table())?;
        }
        Ok(())
    }
}
