//! A writer of TensorBoard event files: scalars, text and images.
//!
//! An event file is a sequence of TFRecords, each holding one `Event` message: length, masked CRC-32C of the length,
//! the message, masked CRC-32C of the message.

mod proto;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;
use proto::{Content, Event, Summary, Value, What};

use fnet_common::logger;
use fnet_protocol::outlet::Outlet;

/// Writes an event file in a folder for `tensorboard --logdir`, without blocking on the disk.
pub struct TensorBoard {
    /// Records up to the next [`TensorBoard::flush`].
    buffer: Vec<u8>,
    file: Outlet,
    path: PathBuf,
}

impl TensorBoard {
    /// Starts a new event file in `folder`, which is created if it does not exist.
    ///
    /// With `resumed_at`, TensorBoard discards events of earlier files from this step on.
    ///
    /// # Errors
    /// When the folder or the file cannot be written.
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
        let mut writer = Self { buffer: Vec::new(), file, path };
        writer.event(0, What::FileVersion("brain.Event:2".into()));
        if let Some(step) = resumed_at {
            writer.event(step, What::SessionLog(proto::SessionLog { status: 1 }));
        }
        writer.flush();
        Ok(writer)
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
        let plugin_data = Some(proto::PluginData { plugin_name: "text".into() });
        let tensor = proto::TensorProto {
            dtype: 7,
            tensor_shape: Some(proto::TensorShape { dim: vec![proto::Dimension { size: 1 }] }),
            string_val: vec![text.as_bytes().to_vec()],
        };
        self.summary(
            step,
            Value {
                tag: format!("{tag}/text_summary"),
                metadata: Some(proto::SummaryMetadata { plugin_data }),
                content: Some(Content::Tensor(tensor)),
            },
        );
    }

    /// Writes an RGB image of `size` (width, height) that is already encoded as PNG.
    pub fn image(&mut self, tag: &str, step: u64, size: (u32, u32), png: Vec<u8>) {
        let (width, height) = (size.0 as i32, size.1 as i32);
        let image = proto::Image { height, width, colorspace: 3, encoded_image_string: png };
        self.summary(step, Value { tag: tag.into(), metadata: None, content: Some(Content::Image(image)) });
    }

    /// Writes everything so far, so that a running TensorBoard shows it.
    pub fn flush(&mut self) {
        self.file.push(std::mem::take(&mut self.buffer));
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
