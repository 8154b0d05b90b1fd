//! Reads the outputs of a job: checkpoints, JSON lines, metrics.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::{Map, Value};

/// A JSON object with its keys in the order of the file.
pub type Object = Map<String, Value>;

/// The bytes of every tensor of a checkpoint, by name.
pub fn tensors(checkpoint: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = fs::read(checkpoint).unwrap_or_else(|error| panic!("{}: {error}", checkpoint.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect()
}

/// [`tensors`] without the BatchNorm statistics of ranks other than 0, which are lost with their rank.
pub fn without_ranks(checkpoint: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut tensors = tensors(checkpoint);
    tensors.retain(|name, _| !name.starts_with("rank"));
    tensors
}

/// The number of steps of a checkpoint's job.
pub fn progress(checkpoint: &Path) -> usize {
    meta(checkpoint)["progress"]["step"].as_u64().unwrap() as usize
}

/// The generation of the work folder in which a checkpoint was written.
pub fn generation(checkpoint: &Path) -> u64 {
    meta(checkpoint)["state"]["generation"].as_u64().unwrap()
}

fn meta(checkpoint: &Path) -> Value {
    let bytes = fs::read(checkpoint).unwrap_or_else(|error| panic!("{}: {error}", checkpoint.display()));
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    serde_json::from_str(&header.metadata().as_ref().unwrap()["fnet.meta"]).unwrap()
}

/// Names of the tensors that differ between two checkpoints, or are in only one of them.
pub fn differences(a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    names.into_iter().filter(|name| a.get(*name) != b.get(*name)).cloned().collect()
}

/// The float32 values of a tensor's bytes.
pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

/// The files of a folder with names that end with `ending`, sorted.
pub fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.to_string_lossy().ends_with(ending));
    found.sort();
    found
}

/// The objects of all JSON lines of a job and of the jobs that resumed it, except an incomplete line.
pub fn lines(work_dir: &Path) -> Vec<Object> {
    let texts = files(work_dir, ".log.json").into_iter().map(|path| fs::read_to_string(path).unwrap());
    texts.flat_map(|text| text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect::<Vec<_>>()).collect()
}

/// The lines of one mode, `train` or `val`.
pub fn of_mode(work_dir: &Path, mode: &str) -> Vec<Object> {
    lines(work_dir).into_iter().filter(|line| line.get("mode") == Some(&Value::from(mode))).collect()
}

/// The training lines without times, which differ between equal runs.
pub fn losses(work_dir: &Path) -> Vec<Object> {
    let timeless = |mut line: Object| {
        line.retain(|name, _| !matches!(name.as_str(), "time" | "data_time"));
        line
    };
    of_mode(work_dir, "train").into_iter().map(timeless).collect()
}

/// A number of each training line.
pub fn series(work_dir: &Path, name: &str) -> Vec<f64> {
    let number = |line: &Object| line.get(name).and_then(Value::as_f64).unwrap_or_else(|| panic!("{name} in {line:?}"));
    of_mode(work_dir, "train").iter().map(number).collect()
}

/// A JSON object of a file.
pub fn object(path: &Path) -> Object {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// Asserts that two files of metrics have the same names and, within 1e-12, the same numbers.
pub fn assert_same_metrics(a: &Path, b: &Path) {
    let (a, b) = (object(a), object(b));
    assert!(a.keys().eq(b.keys()), "{a:?} {b:?}");
    for (name, value) in &a {
        let (x, y) = (value.as_f64().unwrap(), b[name].as_f64().unwrap());
        assert!((x - y).abs() <= 1e-12, "{name}: {x} and {y}");
    }
}
