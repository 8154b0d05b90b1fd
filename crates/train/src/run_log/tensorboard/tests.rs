use std::process::Command;

use fnet_protocol::outlet;

use super::*;

#[test]
fn a_record_is_framed_by_its_length_and_two_checksums() {
    let framed = record(b"abc");
    assert_eq!(framed.len(), 8 + 4 + 3 + 4);
    assert_eq!(&framed[..8], &3u64.to_le_bytes());
    // CRC-32C of "123456789" is e3069283 (RFC 3720); masked as TFRecord does.
    assert_eq!(masked_crc(b"123456789"), 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8));
}

#[test]
fn two_writers_that_start_in_the_same_second_use_two_files() {
    let folder = tempfile::tempdir().unwrap();
    let first = TensorBoard::create(folder.path(), None).unwrap();
    let second = TensorBoard::create(folder.path(), None).unwrap();
    assert_ne!(first.path(), second.path());
}

/// A script that prints what TensorBoard's reader finds in a folder.
const READ_BACK: &str = r#"
import sys, json
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
def settings(acc, tags):
    for tag in tags:
        data = acc.SummaryMetadata(tag).plugin_data
        if data.plugin_name == "hparams":
            found = plugin_data_pb2.HParamsPluginData.FromString(data.content).session_start_info.hparams
            return {name: getattr(value, value.WhichOneof("kind")) for name, value in found.items()}
acc = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0, "images": 0, "tensors": 0, "histograms": 0}); acc.Reload()
tags = acc.Tags()
print(json.dumps({
    "scalars": {t: [[e.step, e.value] for e in acc.Scalars(t)] for t in tags["scalars"]},
    "texts": {t: [[e.step, e.tensor_proto.string_val[0].decode()] for e in acc.Tensors(t)]
              for t in tags["tensors"] if acc.SummaryMetadata(t).plugin_data.plugin_name == "text"},
    "curves": {t: [[e.step, [d.size for d in e.tensor_proto.tensor_shape.dim], list(e.tensor_proto.float_val)]
                   for e in acc.Tensors(t)]
               for t in tags["tensors"] if acc.SummaryMetadata(t).plugin_data.plugin_name == "pr_curves"},
    "histograms": {t: [[e.step, h.num, h.min, h.max, sum(h.bucket)] for e in acc.Histograms(t) for h in [e.histogram_value]]
                   for t in tags["histograms"]},
    "settings": settings(acc, tags["tensors"]),
    "images": {t: [[e.step, e.width, e.height, len(e.encoded_image_string)] for e in acc.Images(t)] for t in tags["images"]},
}))
"#;

/// What TensorBoard reads from a folder. `None`, with a SKIPPED line, if the package is not installed.
pub(in crate::run_log) fn read_back(folder: &Path) -> Option<serde_json::Value> {
    outlet::flush_all();
    let python = fnet_test_support::python()?;
    let available = Command::new(&python).args(["-c", "import tensorboard"]).output();
    if !available.is_ok_and(|output| output.status.success()) {
        fnet_test_support::skip(".venv has no tensorboard package");
        return None;
    }
    let output = Command::new(&python).args(["-c", READ_BACK]).arg(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn tensorboard_reads_scalars_texts_and_images() {
    let folder = tempfile::tempdir().unwrap();
    let mut png = Vec::new();
    let image = image::RgbImage::from_pixel(4, 3, image::Rgb([200, 10, 10]));
    image.write_to(&mut io::Cursor::new(&mut png), image::ImageFormat::Png).unwrap();
    let size = png.len();
    let mut writer = TensorBoard::create(folder.path(), None).unwrap();
    writer.scalar("train/loss", 0, 0.0);
    writer.scalar("train/loss", 5, 1.5);
    writer.scalar("train/loss", 10, -2.0);
    writer.text("val/bbox_mAP_copypaste", 11, "0.1 é");
    writer.image("val/image", 11, (4, 3), png);
    writer.flush();
    // A job that resumes from step 7 discards what was written for step 10.
    let mut resumed = TensorBoard::create(folder.path(), Some(7)).unwrap();
    resumed.scalar("train/loss", 8, 3.0);
    resumed.flush();
    let Some(read) = read_back(folder.path()) else { return };
    assert_eq!(read["scalars"], serde_json::json!({"train/loss": [[0, 0.0], [5, 1.5], [8, 3.0]]}));
    assert_eq!(read["images"], serde_json::json!({"val/image": []}), "discarded as well");

    let folder = tempfile::tempdir().unwrap();
    let mut writer = TensorBoard::create(folder.path(), None).unwrap();
    writer.text("val/bbox_mAP_copypaste", 11, "0.1 é");
    writer.image("val/image", 11, (4, 3), vec![0; size]);
    writer.precision_by_recall("curve", 2, &[1.0, 0.5, 0.25]);
    writer.histogram("weights", 3, &[0.0, 1.0, 1.0, 4.0, f32::NAN]);
    let settings = [("optimizer.lr", "0.5"), ("train.ema", "true"), ("data.root", "\"a b\"")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
    writer.settings(settings.iter().map(|(name, value)| (name, value)));
    writer.flush();
    let read = read_back(folder.path()).unwrap();
    assert_eq!(read["texts"], serde_json::json!({"val/bbox_mAP_copypaste/text_summary": [[11, "0.1 é"]]}));
    assert_eq!(read["images"], serde_json::json!({"val/image": [[11, 4, 3, size]]}));
    let counts = [1000.0, 500.0, 0.0, 3000.0, 500.0, 0.0, 0.0, 0.0, 0.0, 0.0, 500.0, 1000.0];
    let curve = [&counts[..], &[0.25, 0.5, 1.0, 1.0, 0.5, 0.0]].concat();
    assert_eq!(read["curves"], serde_json::json!({"curve": [[2, [6, 3], curve]]}));
    assert_eq!(read["histograms"], serde_json::json!({"weights": [[3, 4.0, 0.0, 4.0, 4.0]]}));
    assert_eq!(read["settings"], serde_json::json!({"optimizer.lr": 0.5, "train.ema": true, "data.root": "a b"}));
}
