//! The logs of a work folder: text, JSON lines and TensorBoard, with the names and formats of MMDetection.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

use fnet_common::{Error, Result};
use fnet_common::{atomic, logger};
use fnet_config::{self as config, Metric};
use fnet_evaluate::metrics::Metrics;
use fnet_protocol::outlet::{FLUSH_TIMEOUT, Outlet};

use super::environment;
use super::format::{duration, rounded, rounded_rate, scientific};
use super::tensorboard::TensorBoard;
use super::tracker::Tracker;
use super::window::{TrainStep, Window};
use crate::elastic::ElasticUpdate;

/// The constants of a run.
#[derive(Debug)]
pub struct RunInfo<'a> {
    /// Name of the config.
    pub name: &'a str,
    /// The resolved config.
    pub config: &'a config::Config,
    /// Additional entries about the machine, as (name, value).
    pub environment: Vec<(String, String)>,
    /// Updates before this run: 0, or those of the checkpoint that it resumes from.
    pub start_step: u64,
    /// Epochs before this run.
    pub start_epoch: u64,
    /// Updates of the whole training.
    pub total_steps: u64,
}

/// TensorBoard's files: one by step, and one by epoch, because a resumed job discards what follows its step or epoch.
struct Boards {
    steps: TensorBoard,
    epochs: TensorBoard,
}

/// The logs of a run. Only rank 0 has one.
///
/// After [`RunLog::create`], it never fails: a full disk is reported once, and training continues. Nothing but an evaluation
/// waits for the disk, for a second if it takes nothing.
pub struct RunLog {
    total_steps: u64,
    start_step: u64,
    seconds: f64,
    /// Of the latest update; evaluations repeat it, as in MMDetection.
    momentum: Option<f64>,
    json: (Outlet, PathBuf),
    text: PathBuf,
    tensorboard: Option<Boards>,
    /// The last epoch whose slowest rank TensorBoard shows.
    slowest_shown: Option<usize>,
    /// The program of `log.command`.
    tracker: Option<Tracker>,
}

impl RunLog {
    /// Starts the logs in `work_dir`: `<timestamp>.log`, `<timestamp>.log.json`, `tensorboard/` and `config.toml`.
    /// Errors: an environment error if the folder cannot be written.
    pub fn create(work_dir: &Path, info: RunInfo<'_>) -> Result<Self> {
        let refuse = |path: &Path, error: std::io::Error| {
            Error::environment(format!("cannot write {}: {error}; choose another --work-dir", path.display()))
        };
        std::fs::create_dir_all(work_dir).map_err(|error| refuse(work_dir, error))?;
        let config = info.config.to_toml()?;
        let config_path = work_dir.join("config.toml");
        // A full disk does not stop a job that resumes.
        let is_resumed = info.start_step > 0;
        match atomic::write(&config_path, config.len() as u64, |file| file.write_all(config.as_bytes())) {
            Err(error) if is_resumed => log::warn!("{error}"),
            written => written?,
        }

        let timestamp = jiff::Zoned::now().strftime("%Y%m%d_%H%M%S").to_string();
        let text = work_dir.join(format!("{timestamp}.log"));
        logger::attach(&text)?;
        let json_path = work_dir.join(format!("{timestamp}.log.json"));
        let json = OpenOptions::new().create(true).append(true).open(&json_path);
        // Without a key `epoch`, so that MMDetection's tools skip it.
        let missing = |count: u64| Some(format!("{}\n", json!({ "mode": "missing", "count": count })).into_bytes());
        let json = json.and_then(|file| logger::outlet_to(file, &json_path, Box::new(missing)));
        let json = json.map_err(|error| refuse(&json_path, error))?;
        let folder = work_dir.join("tensorboard");
        let resumed_at = is_resumed.then_some(info.start_step + 1);
        let tensorboard = match info.config.log.tensorboard {
            true => match Boards::create(&folder, &info, resumed_at).map_err(|error| refuse(&folder, error)) {
                Err(error) if is_resumed => {
                    log::warn!("{error}; training continues without TensorBoard");
                    None
                }
                created => Some(created?),
            },
            false => None,
        };

        let mut log = Self {
            total_steps: info.total_steps,
            start_step: info.start_step,
            seconds: 0.0,
            momentum: None,
            json: (json, json_path),
            text,
            tensorboard,
            slowest_shown: None,
            tracker: Tracker::start(&info.config.log.command, work_dir),
        };
        if let Some(Boards { steps, .. }) = &mut log.tensorboard {
            steps.text("config", info.start_step, &format!("```toml\n{config}\n```"));
            let (own, default) =
                (config::leaves_of(&config)?, config::leaves_of(&config::Config::default().to_toml()?)?);
            let is_chosen = |(name, value): &(&String, &String)| default.get(*name) != Some(*value);
            steps.settings(own.iter().filter(is_chosen));
            steps.flush();
        }
        let environment = environment::describe(&info.environment);
        log::info!(target: logger::FILE_ONLY, "Environment info:\n{environment}");
        log::info!(target: logger::FILE_ONLY, "Config:\n{config}");
        let header = json!({
            "env_info": environment, "config": config, "seed": info.config.train.seed, "exp_name": info.name, "hook_msgs": {},
        });
        log.line(&header);
        Ok(log)
    }

    /// Ends a step that took `seconds`, and writes a line if `window` has one. Losses and `acc` have MMDetection's names;
    /// `time` and `data_time` are the seconds of the step and of its wait for data. `speed` has numbers for TensorBoard alone.
    pub fn step(&mut self, window: &Window, speed: &Window, seconds: f64) {
        self.seconds += seconds;
        let Some(at) = window.at() else { return };
        self.momentum = Some(at.momentum);
        if let Some(at) = window.line() {
            self.write_train(at, window);
            if let Some(Boards { steps, .. }) = &mut self.tensorboard {
                speed.means().for_each(|(name, mean)| steps.scalar(name, at.step, mean));
                steps.flush();
            }
        }
    }

    /// Writes the line of the last step before the job resumed, if no log of the work folder has it because rank 0 was lost
    /// before writing it.
    pub fn make_up(&mut self, window: &Window) {
        let Some(at) = window.line() else { return };
        self.momentum = Some(at.momentum);
        // This log's own lines are read, too.
        self.json.0.flush(FLUSH_TIMEOUT);
        let folder = self.json.1.parent().unwrap_or(Path::new("."));
        if !has_line(folder, at) {
            self.write_train(at, window);
        }
    }

    /// Logs an evaluation after `epoch` finished epochs and `step` updates over `batches` batches of images. The JSON line is in
    /// its file then.
    pub fn evaluation(&mut self, epoch: usize, step: u64, batches: usize, lr: f64, results: &IndexMap<String, f64>) {
        let entries = with_copypaste(results);
        let shown = entries.iter().map(|(name, value)| match value {
            Value::String(text) => format!("{name}: {text}"),
            number => format!("{name}: {:.4}", number.as_f64().unwrap_or(f64::NAN)),
        });
        log::info!("Epoch(val) [{epoch}][{batches}]\t{}", shown.collect::<Vec<_>>().join(", "));

        let mut line = Map::new();
        line.insert("mode".into(), json!("val"));
        line.insert("epoch".into(), json!(epoch));
        line.insert("iter".into(), json!(batches));
        line.insert("lr".into(), json!(rounded_rate(lr)));
        for (name, value) in &entries {
            let value = value.as_f64().map_or_else(|| value.clone(), |number| json!(rounded(number)));
            line.insert(name.clone(), value);
        }
        self.line(&Value::Object(line));
        // A resumed job evaluates no epoch twice, so that the results would be lost with a rank 0 that is killed now.
        self.json.0.flush(FLUSH_TIMEOUT);

        self.show_evaluation(step, lr, results);
        if let Some(Boards { epochs, .. }) = &mut self.tensorboard {
            let defined = results.iter().filter(|(_, value)| is_defined(**value));
            defined.for_each(|(name, value)| epochs.scalar(&format!("val_by_epoch/{name}"), epoch as u64, *value));
            epochs.flush();
        }
    }

    /// The numbers of an evaluation by step for TensorBoard. A resumed job repeats those of its own step, which it discards.
    pub fn show_evaluation(&mut self, step: u64, lr: f64, results: &IndexMap<String, f64>) {
        let momentum = self.momentum;
        let Some(Boards { steps, .. }) = &mut self.tensorboard else { return };
        for (name, value) in with_copypaste(results) {
            let tag = format!("val/{name}");
            match value {
                Value::String(text) => steps.text(&tag, step + 1, &text),
                number => {
                    let defined = number.as_f64().filter(|&number| is_defined(number));
                    defined.into_iter().for_each(|number| steps.scalar(&tag, step + 1, number));
                }
            }
        }
        steps.scalar("learning_rate", step + 1, lr);
        if let Some(momentum) = momentum {
            steps.scalar("momentum", step + 1, momentum);
        }
        steps.flush();
    }

    /// Adds precision by recall, of an evaluation after `epoch` epochs, to TensorBoard.
    pub fn curves(&mut self, epoch: usize, metrics: &Metrics) {
        let Some(Boards { epochs, .. }) = &mut self.tensorboard else { return };
        for (kind, scores) in metrics.scores.iter().filter(|(_, scores)| !scores.curve.is_empty()) {
            let tag = format!("precision_by_recall/{}", kind.prefix());
            epochs.precision_by_recall(&tag, epoch as u64, &scores.curve);
        }
        epochs.flush();
    }

    /// A writer of TensorBoard's file by epoch for another thread.
    pub fn second_board(&self) -> Option<TensorBoard> {
        self.tensorboard.as_ref().map(|boards| boards.epochs.second())
    }

    /// Adds histograms of the weights after `epoch` epochs to TensorBoard.
    pub fn show_weights<'t>(&mut self, epoch: usize, weights: impl Iterator<Item = (&'t str, &'t Tensor)>) {
        let Some(Boards { epochs, .. }) = &mut self.tensorboard else { return };
        for (name, tensor) in weights {
            let flat =
                tensor.f_to_device(Device::Cpu).and_then(|tensor| tensor.f_to_kind(Kind::Float)?.f_reshape([-1]));
            match flat.and_then(Vec::<f32>::try_from) {
                Ok(values) => {
                    epochs.histogram(&format!("weights/{name}"), epoch as u64, &values);
                    epochs.flush();
                }
                Err(error) => log::warn!("no histogram of {name}: {error}"),
            }
        }
    }

    /// Logs the images of the set `set` ("train" or "val") that all ranks skipped in epoch `epoch`, as `data.on_error` allows.
    /// The JSON line has no key `epoch`, so that MMDetection's tools skip it.
    pub fn left_out(&mut self, set: &str, epoch: usize, images: &[String]) {
        if images.is_empty() {
            return;
        }
        log::warn!(
            "{} of the {set} set could not be read in epoch {epoch} and were skipped:\n{}",
            match images.len() {
                1 => "1 image".into(),
                count => format!("{count} images"),
            },
            images.join("\n")
        );
        let count = images.len();
        self.line(&json!({
            "mode": "left_out", "set": set, "in_epoch": epoch, "count": count, "images": images,
        }));
    }

    /// Logs how many images an update has in a job whose nodes come and go. The JSON line has no key `epoch`, so that
    /// MMDetection's tools skip it.
    pub fn elastic(&mut self, update: &ElasticUpdate) {
        log::info!("{}", update.line());
        let ElasticUpdate { planned, images, workers, accumulate, learning_rate } = update;
        self.line(&json!({
            "mode": "elastic", "images_per_update": images, "planned_images_per_update": planned, "workers": workers,
            "accumulate": accumulate, "lr": learning_rate,
        }));
    }

    /// Logs how many seconds each rank spent on each part of the job, in epoch `epoch` or after it. The JSON line has no key
    /// `epoch`, so that MMDetection's tools skip it.
    pub fn times(&mut self, epoch: usize, ranks: &[IndexMap<String, f64>]) {
        let shown = |parts: &IndexMap<String, f64>| {
            parts.iter().map(|(part, &seconds)| (part.clone(), json!(rounded(seconds)))).collect::<Map<_, _>>()
        };
        // What follows an epoch until the job stops or evaluates is part of another one.
        if self.slowest_shown < Some(epoch) {
            self.slowest_shown = Some(epoch);
            self.show_slowest(epoch, ranks);
        }
        let ranks: Vec<Map<String, Value>> = ranks.iter().map(shown).collect();
        self.line(&json!({ "mode": "times", "in_epoch": epoch, "ranks": ranks }));
    }

    /// The rank for which the others waited in an epoch, and for how many seconds on average, for TensorBoard.
    fn show_slowest(&mut self, epoch: usize, ranks: &[IndexMap<String, f64>]) {
        let Some(Boards { epochs, .. }) = &mut self.tensorboard else { return };
        let waited: Option<Vec<f64>> = ranks.iter().map(|parts| parts.get("waiting").copied()).collect();
        let Some(waited) = waited.filter(|waited| waited.len() > 1) else { return };
        let Some((rank, least)) = waited.iter().copied().enumerate().min_by(|(_, a), (_, b)| a.total_cmp(b)) else {
            return;
        };
        let others = (waited.iter().sum::<f64>() - least) / (waited.len() - 1) as f64;
        epochs.scalar("straggler/rank", epoch as u64, rank as f64);
        epochs.scalar("straggler/seconds_waited_for_it", epoch as u64, others - least);
        epochs.flush();
    }

    /// The file of JSON lines.
    pub fn json_path(&self) -> &Path {
        &self.json.1
    }

    /// The text log.
    pub fn text_path(&self) -> &Path {
        &self.text
    }

    /// The program of `log.command`, so that it outlives the log.
    pub fn take_tracker(&mut self) -> Option<Tracker> {
        self.tracker.take()
    }

    /// Estimated remaining seconds, by the mean of this run's updates.
    pub fn remaining_seconds(&self, step: u64) -> f64 {
        let done = step.saturating_sub(self.start_step).max(1);
        self.seconds / done as f64 * self.total_steps.saturating_sub(step) as f64
    }

    fn write_train(&mut self, at: &TrainStep, window: &Window) {
        let is_time = |name: &str| matches!(name, "time" | "data_time");
        let time = window.mean("time").unwrap_or(0.0);
        let data_time = window.mean("data_time").unwrap_or(0.0);
        let values: Vec<(String, f64)> =
            window.means().filter(|(name, _)| !is_time(name)).map(|(name, mean)| (name.to_owned(), mean)).collect();

        let eta = duration(self.remaining_seconds(at.step));
        let memory = at.memory.map_or_else(String::new, |memory| format!("memory: {memory}, "));
        let shown: Vec<String> = values.iter().map(|(name, value)| format!("{name}: {value:.4}")).collect();
        log::info!(
            "Epoch [{}][{}/{}]\tlr: {}, eta: {eta}, time: {time:.3}, data_time: {data_time:.3}, {memory}{}",
            at.epoch,
            at.iter,
            at.iters_per_epoch,
            scientific(at.lr),
            shown.join(", ")
        );

        let mut line = Map::new();
        line.insert("mode".into(), json!("train"));
        line.insert("epoch".into(), json!(at.epoch));
        line.insert("iter".into(), json!(at.iter));
        line.insert("lr".into(), json!(rounded_rate(at.lr)));
        if let Some(memory) = at.memory {
            line.insert("memory".into(), json!(memory));
        }
        line.insert("data_time".into(), json!(rounded(data_time)));
        for (name, value) in &values {
            line.insert(name.clone(), json!(rounded(*value)));
        }
        line.insert("time".into(), json!(rounded(time)));
        self.line(&Value::Object(line));

        if let Some(Boards { steps, .. }) = &mut self.tensorboard {
            for (name, value) in &values {
                steps.scalar(&format!("train/{name}"), at.step, *value);
            }
            steps.scalar("learning_rate", at.step, at.lr);
            steps.scalar("momentum", at.step, at.momentum);
            steps.flush();
        }
    }

    fn line(&mut self, value: &Value) {
        let line = format!("{value}\n").into_bytes();
        if let Some(tracker) = &mut self.tracker {
            tracker.push(line.clone());
        }
        self.json.0.push(line);
    }
}

/// Undefined metrics are -1.
fn is_defined(metric: f64) -> bool {
    metric >= 0.0
}

impl Boards {
    fn create(folder: &Path, info: &RunInfo<'_>, resumed_at: Option<u64>) -> std::io::Result<Self> {
        let epoch = resumed_at.map(|_| info.start_epoch + 1);
        Ok(Self {
            steps: TensorBoard::create(folder, resumed_at)?,
            epochs: TensorBoard::create(&folder.join("by_epoch"), epoch)?,
        })
    }
}

/// Whether a log of the folder has the line of this step.
fn has_line(folder: &Path, at: &TrainStep) -> bool {
    let is_log = |path: &PathBuf| path.to_string_lossy().ends_with(".log.json");
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let texts = entries.filter(is_log).filter_map(|path| std::fs::read_to_string(path).ok());
    let (epoch, iter) = (format!("\"epoch\":{},", at.epoch), format!("\"iter\":{},", at.iter));
    let is_line = |line: &str| line.starts_with("{\"mode\":\"train\"") && line.contains(&epoch) && line.contains(&iter);
    texts.into_iter().any(|text| text.lines().any(is_line))
}

/// The results with MMDetection's rows for tables: `bbox_mAP_copypaste` after the six numbers of a kind.
fn with_copypaste(results: &IndexMap<String, f64>) -> Vec<(String, Value)> {
    let mut out = Vec::new();
    for (name, number) in results {
        out.push((name.clone(), json!(number)));
        for metric in [Metric::Bbox, Metric::Segm] {
            let names = metric.names();
            if names.last() != Some(name) {
                continue;
            }
            if let Some(numbers) = names.iter().map(|name| results.get(name).copied()).collect::<Option<Vec<f64>>>() {
                let row: Vec<String> = numbers.iter().map(|number| format!("{number:.3}")).collect();
                out.push((format!("{}_mAP_copypaste", metric.prefix()), json!(row.join(" "))));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests;
