//! Reports training: rank 0 writes the logs, and every rank sends its progress to the launcher.

use std::path::Path;
use std::time::Duration;

use indexmap::{IndexMap, IndexSet};
use serde_json::Map;
use tch::Device;

use fnet_checkpoint::native::TrainProgress;
use fnet_common::process;
use fnet_common::{Context, Result};
use fnet_config::{OptimizerKind, Resolved};
use fnet_data::Skipped;
use fnet_distributed::Communicator;
use fnet_protocol::client::Client;
use fnet_protocol::message::{Evaluated, Phase, Progress};

use super::progress::{StepIndex, TrainSchedule};
use super::train_state::{Skip, StepOutcome};
use crate::run_log::{RunInfo, RunLog, TrainStep, Window};

/// Reports one rank's training.
pub struct Reporter {
    control: Client,
    schedule: TrainSchedule,
    total_steps: u64,
    /// The logs, on rank 0.
    pub log: Option<RunLog>,
    window: Window,
    /// Numbers for TensorBoard alone.
    speed: Window,
    /// `window` as it was after the last update.
    held: Window,
    momentum: f64,
    images_per_step: usize,
    device: Device,
    skipped_images: u64,
    skipped_updates: u64,
    /// Images of the current epoch that this rank skipped.
    left_out: Vec<String>,
    /// Seconds that this rank spent on each part of the job since they were last gathered.
    times: IndexMap<String, f64>,
}

impl Reporter {
    /// Starts the logs in `work_dir` on rank 0. Other ranks write nothing.
    /// Errors: an environment error if the folder cannot be written.
    pub fn new(
        resolved: &Resolved,
        work_dir: &Path,
        communicator: &Communicator,
        control: &Client,
        schedule: TrainSchedule,
        progress: TrainProgress,
        window: Option<Window>,
    ) -> Result<Self> {
        let config = &resolved.config;
        let interval = config.log.interval;
        let window = window.and_then(|window| window.resumed(progress.step as u64, interval));
        let info = RunInfo {
            name: &resolved.name,
            config,
            environment: vec![
                ("Workers".into(), communicator.world_size().to_string()),
                ("Device".into(), format!("{:?}", communicator.device())),
                ("Threads per worker".into(), tch::get_num_threads().to_string()),
            ],
            start_step: progress.step as u64,
            start_epoch: progress.epoch as u64,
            total_steps: schedule.total_steps(progress) as u64,
        };
        let mut log = if communicator.rank() == 0 { Some(RunLog::create(work_dir, info)?) } else { None };
        if let Some(log) = &mut log {
            control.started(log.text_path());
            window.iter().for_each(|window| log.make_up(window));
        }
        let window = window.unwrap_or_else(|| Window::new(interval));
        Ok(Self {
            log,
            held: window.clone(),
            window,
            speed: Window::new(interval),
            control: control.clone(),
            momentum: match config.optimizer.kind {
                OptimizerKind::AdamW => config.optimizer.betas[0],
                OptimizerKind::Sgd => config.optimizer.momentum,
            },
            images_per_step: config.data.samples_per_gpu * communicator.world_size(),
            device: communicator.device(),
            schedule,
            total_steps: schedule.total_steps(progress) as u64,
            skipped_images: 0,
            skipped_updates: 0,
            left_out: Vec::new(),
            times: IndexMap::new(),
        })
    }

    /// Logs the images that could not be read and were replaced.
    pub fn skipped(&mut self, images: &[Skipped]) {
        for image in images {
            self.skipped_images += 1;
            log::warn!(
                "skipped {} (image id {}): {}; {} skipped so far",
                image.file,
                image.image_id,
                image.reason,
                self.skipped_images
            );
            self.left_out.push(image.to_string());
        }
    }

    /// Logs the images that the ranks skipped in an epoch. All ranks call this together at its end.
    pub fn gather_left_out(&mut self, communicator: &Communicator, epoch: usize) -> Result<()> {
        let own = std::mem::take(&mut self.left_out).join("\n");
        let all = communicator.all_gather_bytes(own.as_bytes()).context("gathering the names of skipped images")?;
        // Groups are padded with repeated images, so an image may appear twice.
        let texts: Vec<_> = all.iter().map(|bytes| String::from_utf8_lossy(bytes)).collect();
        let images: IndexSet<&str> = texts.iter().flat_map(|text| text.lines()).collect();
        let images: Vec<String> = images.into_iter().map(str::to_owned).collect();
        if let Some(log) = &mut self.log {
            log.left_out("train", epoch, &images);
        }
        Ok(())
    }

    /// Adds the time that this rank spent on a part of the job.
    pub fn spent(&mut self, part: &str, time: Duration) {
        *self.times.entry(part.to_owned()).or_default() += time.as_secs_f64();
    }

    /// Logs where the time of each rank went since the last call, during or after `epoch`. All ranks call this together.
    pub fn gather_times(&mut self, communicator: &Communicator, epoch: usize) -> Result<()> {
        let own = serde_json::to_vec(&std::mem::take(&mut self.times)).unwrap_or_default();
        let all = communicator.all_gather_bytes(&own).context("gathering the times of all ranks")?;
        let ranks: Vec<IndexMap<String, f64>> =
            all.iter().map(|bytes| serde_json::from_slice(bytes).unwrap_or_default()).collect();
        if let (Some(log), true) = (&mut self.log, ranks.iter().any(|parts| !parts.is_empty())) {
            log.times(epoch, &ranks);
        }
        Ok(())
    }

    /// Logs one step.
    pub fn step(&mut self, index: StepIndex, outcome: &StepOutcome, learning_rate: f64, data: f64, seconds: f64) {
        let at = format!("step {} of epoch {}", index.step_in_epoch + 1, index.epoch + 1);
        if outcome.skipped.is_some() {
            self.skipped_updates += 1;
            let (why, count) = (why_skipped(outcome), self.skipped_updates);
            log::warn!("{at} did not update the weights: {why}; {count} such steps in this run");
        } else if outcome.bad.is_some() {
            log::warn!("{at}: {}; its update will be skipped", what_was_not_finite(outcome));
        }
        let times = outcome.times;
        let work = (times.backward + times.step_vote - times.waited).max(0.0);
        let other = (seconds - data - times.forward - times.backward - times.step_vote - times.optimizer).max(0.0);
        let parts = [("data", data), ("forward", times.forward), ("backward", work), ("waiting", times.waited)];
        self.speed.begin();
        for (part, seconds) in parts.into_iter().chain([("optimizer", times.optimizer), ("other", other)]) {
            *self.times.entry(part.to_owned()).or_default() += seconds;
            self.speed.put(&format!("time/{part}"), seconds);
        }
        let memory = process::peak_memory(self.device);
        let speed = [("time/step", seconds), ("speed/images_per_second", self.images_per_step as f64 / seconds)];
        let speed = speed.into_iter().chain([("memory/peak_MiB", (memory >> 20) as f64)]);
        speed.for_each(|(name, value)| self.speed.put(name, value));
        let step = index.step as u64 + 1;
        let window = &mut self.window;
        window.begin();
        window.put("data_time", data);
        outcome.report.losses.iter().for_each(|&(name, value)| window.put(name, value));
        let more = [("grad_norm", outcome.grad_norm), ("loss_scale", outcome.loss_scale), ("time", Some(seconds))];
        more.into_iter().for_each(|(name, value)| value.into_iter().for_each(|value| window.put(name, value)));
        let at = TrainStep {
            epoch: index.epoch + 1,
            iter: index.step_in_epoch + 1,
            iters_per_epoch: self.schedule.steps_of(index.epoch),
            step,
            lr: learning_rate,
            momentum: self.momentum,
            memory: self.device.is_cuda().then_some(memory >> 20),
        };
        window.end(at);
        self.speed.end(at);
        if index.updates {
            self.held = window.clone();
        }
        if let Some(log) = &mut self.log {
            log.step(window, &self.speed, seconds);
        }
        self.control.progress(Progress {
            phase: Phase::Data,
            epoch: index.epoch as u64 + 1,
            epochs: self.schedule.epochs as u64,
            step,
            total_steps: self.total_steps,
            loss: Some(outcome.report.total()),
            losses: match self.log {
                Some(_) => outcome.report.losses.iter().map(|&(name, value)| (name.to_owned(), value.into())).collect(),
                None => Map::new(),
            },
            learning_rate: Some(learning_rate),
            images_per_second: Some(self.images_per_step as f64 / seconds),
            memory_bytes: Some(memory),
            eta_seconds: self.log.as_ref().map(|log| log.remaining_seconds(step)),
            waited_seconds: Some(outcome.times.waited),
            step_seconds: Some(seconds),
            data_seconds: Some(data),
        });
    }

    /// The values since the last log line, as they were after the last update.
    pub fn held_window(&self) -> &Window {
        &self.held
    }

    /// Logs the evaluation of `images` images at `progress`; `learning_rate` is that of the last update.
    pub fn evaluated(
        &mut self,
        progress: TrainProgress,
        learning_rate: f64,
        metrics: &IndexMap<String, f64>,
        images: usize,
    ) {
        // COCO's mark of a number that is undefined is -1.
        let defined =
            metrics.iter().map(|(name, &value)| (name.clone(), Some(value).filter(|&value| value >= 0.0).into()));
        self.control.evaluated(Evaluated { epoch: progress.epoch as u64, metrics: defined.collect() });
        if let Some(log) = &mut self.log {
            log.evaluation(progress.epoch, progress.step as u64, images, learning_rate, metrics);
        }
    }
}

fn why_skipped(outcome: &StepOutcome) -> String {
    match (outcome.skipped, &outcome.bad) {
        (Some(Skip::Overflow), _) => {
            let scale = outcome.loss_scale.unwrap_or(1.0);
            format!("a gradient overflowed float16 at loss scale {scale}, which is halved")
        }
        (_, Some(_)) => what_was_not_finite(outcome),
        (_, None) => "a loss of an earlier step of this update was not finite".to_owned(),
    }
}

fn what_was_not_finite(outcome: &StepOutcome) -> String {
    let bad = outcome.bad.as_deref().unwrap_or_default();
    format!("{} not finite ({bad})", outcome.report.not_finite.join(", "))
}
