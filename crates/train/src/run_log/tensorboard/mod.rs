//! A writer of TensorBoard event files: scalars, text, images, histograms, precision by recall, and settings of a run.
//!
//! An event file is a sequence of TFRecords, each holding one `Event` message: length, masked CRC-32C of the length,
//! the message, masked CRC-32C of the message.

mod proto;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;
use proto::{Content, Event, HparamValue, Summary, Value, What};

use fnet_common::logger;
use fnet_protocol::outlet::Outlet;

/// The objects of a curve of precision by recall, and the precision below which counts are not exact.
const OBJECTS: f64 = 1000.0;
const LEAST_PRECISION: f64 = 1e-3;
/// Buckets of a histogram.
const BUCKETS: usize = 60;

/// Writes an event file in a folder for `tensorboard --logdir`, without blocking on the disk.
pub struct TensorBoard {
    /// Records up to the next [`TensorBoard::flush`].
    buffer: Vec<u8>,
    file: Arc<Outlet>,
    path: PathBuf,
}

impl TensorBoard {
    /// Starts a new event file in `folder`, which is created if it does not exist.
    ///
    /// With `resumed_at`, TensorBoard discards events of earlier files from this step on.
    /// Errors: when the folder or the file cannot be written.
    pub fn create(folder: &Path, resumed_at: Option<u64>) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        // TensorBoard reads the files of a folder in the order of their names.
        let name = |n| format!("events.out.tfevents.{:010}.{host}.{}.{n}", now.as_secs(), std::process::id());
        let mut attempt = 0;
        let (file, path) = loop {
            let path = folder.join(name(attempt));
            match File::create_new(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => attempt += 1,
                other => break (other?, path),
            }
        };
        // Missing points leave a gap in the curve.
        let missing = |count: u64| {
            log::warn!("{count} groups of events are missing in TensorBoard: the disk was too slow");
            None
        };
        let file = logger::outlet_to(file, &path, Box::new(missing))?;
        let mut writer = Self { buffer: Vec::new(), file: Arc::new(file), path };
        writer.event(0, What::FileVersion("brain.Event:2".into()));
        if let Some(step) = resumed_at {
            writer.event(step, What::SessionLog(proto::SessionLog { status: 1 }));
        }
        writer.flush();
        Ok(writer)
    }

    /// A second writer of the same file, for another thread.
    pub fn second(&self) -> Self {
        Self { buffer: Vec::new(), file: Arc::clone(&self.file), path: self.path.clone() }
    }

    /// The event file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a number.
    pub fn scalar(&mut self, tag: &str, step: u64, value: f64) {
        self.summary(
            step,
            Value { tag: tag.into(), metadata: None, content: Some(Content::SimpleValue(value as f32)) },
        );
    }

    /// Writes a text, shown as Markdown.
    pub fn text(&mut self, tag: &str, step: u64, text: &str) {
        let tensor = proto::TensorProto {
            dtype: 7,
            tensor_shape: shape(&[1]),
            float_val: Vec::new(),
            string_val: vec![text.as_bytes().to_vec()],
        };
        self.plugin(&format!("{tag}/text_summary"), step, "text", Vec::new(), tensor);
    }

    /// Writes precision at ascending recalls from 0 to 1.
    pub fn precision_by_recall(&mut self, tag: &str, step: u64, precision: &[f64]) {
        let count = precision.len();
        // From the lowest threshold of scores to the highest, that is by falling recall.
        let recall = |place: usize| place as f64 / count.saturating_sub(1).max(1) as f64;
        let points: Vec<(f64, f64)> = (0..count).rev().map(|place| (recall(place), precision[place])).collect();
        let row = |value: &dyn Fn(f64, f64) -> f64| {
            points.iter().map(|&(recall, precision)| value(recall, precision) as f32).collect::<Vec<f32>>()
        };
        // The counts of a thousand objects: TensorBoard leaves out the points at the end whose counts are 0.
        let rows = [
            row(&|recall, _| OBJECTS * recall),
            row(&|recall, precision| OBJECTS * recall * (1.0 - precision) / precision.max(LEAST_PRECISION)),
            row(&|_, _| 0.0),
            row(&|recall, _| OBJECTS * (1.0 - recall)),
            row(&|_, precision| precision),
            row(&|recall, _| recall),
        ];
        let tensor = proto::TensorProto {
            dtype: 1,
            tensor_shape: shape(&[6, count]),
            float_val: rows.concat(),
            string_val: Vec::new(),
        };
        let data = proto::PrCurvePlugin { version: 0, num_thresholds: count as u32 };
        self.plugin(tag, step, "pr_curves", data.encode_to_vec(), tensor);
    }

    /// Writes the settings of a run, values as TOML, for the dashboard of hyperparameters.
    pub fn settings<'s>(&mut self, values: impl IntoIterator<Item = (&'s String, &'s String)>) {
        let value = |text: &str| match (text.parse::<f64>(), text.parse::<bool>()) {
            (Ok(number), _) => HparamValue::Number(number),
            (_, Ok(flag)) => HparamValue::Bool(flag),
            _ => HparamValue::Text(text.trim_matches('"').to_owned()),
        };
        let hparams = values.into_iter().map(|(name, text)| (name.clone(), proto::Hparam { value: Some(value(text)) }));
        let start_time_secs = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let session_start = Some(proto::SessionStart { hparams: hparams.collect(), start_time_secs });
        let data = proto::HparamsPlugin { version: 0, session_start };
        let tensor =
            proto::TensorProto { dtype: 1, tensor_shape: shape(&[]), float_val: vec![0.0], string_val: Vec::new() };
        self.plugin("_hparams_/session_start_info", 0, "hparams", data.encode_to_vec(), tensor);
    }

    /// Writes how often values occur.
    pub fn histogram(&mut self, tag: &str, step: u64, values: &[f32]) {
        let finite = || values.iter().map(|&value| f64::from(value)).filter(|value| value.is_finite());
        let (min, max) = finite().fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), v| (min.min(v), max.max(v)));
        if min > max {
            return;
        }
        let width = ((max - min) / BUCKETS as f64).max(f64::MIN_POSITIVE);
        let mut bucket = vec![0.0; BUCKETS];
        finite().for_each(|value| bucket[(((value - min) / width) as usize).min(BUCKETS - 1)] += 1.0);
        let content = proto::Histogram {
            min,
            max,
            num: finite().count() as f64,
            sum: finite().sum(),
            sum_squares: finite().map(|value| value * value).sum(),
            bucket_limit: (1..=BUCKETS).map(|place| min + width * place as f64).collect(),
            bucket,
        };
        self.summary(step, Value { tag: tag.into(), metadata: None, content: Some(Content::Histogram(content)) });
    }

    /// Writes an RGB image of `size` (width, height) that is already encoded as PNG or JPEG.
    pub fn image(&mut self, tag: &str, step: u64, size: (u32, u32), encoded: Vec<u8>) {
        let (width, height) = (size.0 as i32, size.1 as i32);
        let image = proto::Image { height, width, colorspace: 3, encoded_image_string: encoded };
        self.summary(step, Value { tag: tag.into(), metadata: None, content: Some(Content::Image(image)) });
    }

    /// Writes everything so far, so that a running TensorBoard shows it.
    pub fn flush(&mut self) {
        self.file.push(std::mem::take(&mut self.buffer));
    }

    /// Writes a tensor that a part of TensorBoard interprets.
    fn plugin(&mut self, tag: &str, step: u64, name: &str, content: Vec<u8>, tensor: proto::TensorProto) {
        let plugin_data = Some(proto::PluginData { plugin_name: name.into(), content });
        let metadata = Some(proto::SummaryMetadata { plugin_data });
        self.summary(step, Value { tag: tag.into(), metadata, content: Some(Content::Tensor(tensor)) });
    }

    fn summary(&mut self, step: u64, value: Value) {
        self.event(step, What::Summary(Summary { value: vec![value] }));
    }

    fn event(&mut self, step: u64, what: What) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let event = Event { wall_time: now.as_secs_f64(), step: step as i64, what: Some(what) };
        self.buffer.extend(record(&event.encode_to_vec()));
    }
}

fn shape(sides: &[usize]) -> Option<proto::TensorShape> {
    Some(proto::TensorShape { dim: sides.iter().map(|&side| proto::Dimension { size: side as i64 }).collect() })
}

/// Frames a message as a TFRecord.
fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let parts: [&[u8]; 4] = [&length, &masked_crc(&length).to_le_bytes(), message, &masked_crc(message).to_le_bytes()];
    parts.concat()
}

/// TFRecord's checksum: CRC-32C, rotated and shifted so that a checksum of checksums is no weaker.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
pub(in crate::run_log) mod tests;
