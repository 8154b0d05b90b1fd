//! What the JSON logs of a work folder say about a run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use fnet_common::text::count;
use fnet_common::{Error, Result};

/// The most points of a curve on the page; more are averaged in groups.
const MOST_POINTS: usize = 5000;
/// Numbers of a line that are no curves.
const NO_CURVES: [&str; 2] = ["epoch", "iter"];

/// What the logs of a work folder say.
#[derive(Debug, Default)]
pub struct Logs {
    /// The logs, in the order in which they were written.
    pub files: Vec<PathBuf>,
    /// Description of the machine, from the last log.
    environment: String,
    train: Vec<Point>,
    evaluations: Vec<Point>,
    /// Seconds by part, by epoch and rank.
    times: BTreeMap<u64, Vec<IndexMap<String, f64>>>,
    /// Images that could not be read, by set.
    left_out: BTreeMap<String, BTreeSet<String>>,
    /// Lines that are no JSON.
    damaged: usize,
}

/// The numbers of a line.
#[derive(Debug)]
struct Point {
    epoch: u64,
    iter: u64,
    values: Map<String, Value>,
}

impl Logs {
    /// Reads the logs of a folder, oldest first. What a resumed job did again counts once.
    /// Errors: a log cannot be read.
    pub fn read(folder: &Path) -> Result<Self> {
        let wrong = |path: &Path, error: std::io::Error| Error::data(format!("{}: {error}", path.display()));
        let mut logs = Self::default();
        let entries = std::fs::read_dir(folder).map_err(|error| wrong(folder, error))?;
        logs.files.extend(entries.flatten().map(|entry| entry.path()));
        logs.files.retain(|path| path.to_string_lossy().ends_with(".log.json") && path.is_file());
        logs.files.sort();
        for path in logs.files.clone() {
            let text = std::fs::read(&path).map_err(|error| wrong(&path, error))?;
            logs.add(&String::from_utf8_lossy(&text));
        }
        Ok(logs)
    }

    /// Adds the lines of one log.
    fn add(&mut self, text: &str) {
        let mut is_first = true;
        for line in text.lines() {
            let Ok(Value::Object(values)) = serde_json::from_str(line) else {
                self.damaged += usize::from(!line.trim().is_empty());
                continue;
            };
            let number = |name: &str| values.get(name).and_then(Value::as_u64).unwrap_or(0);
            let (epoch, iter) = (number("epoch"), number("iter"));
            match values.get("mode").and_then(Value::as_str) {
                Some("train") => {
                    if std::mem::take(&mut is_first) {
                        self.train.retain(|point| (point.epoch, point.iter) < (epoch, iter));
                        self.evaluations.retain(|point| point.epoch < epoch);
                        self.times.retain(|&of, _| of < epoch);
                    }
                    self.train.push(Point { epoch, iter, values });
                }
                Some("val") => {
                    self.evaluations.retain(|point| point.epoch < epoch);
                    self.evaluations.push(Point { epoch, iter, values });
                }
                Some("times") => self.add_times(number("in_epoch"), values.get("ranks")),
                Some("left_out") => {
                    let set = values.get("set").and_then(Value::as_str).unwrap_or_default().to_owned();
                    let images = values.get("images").and_then(Value::as_array).into_iter().flatten();
                    let names = images.filter_map(Value::as_str).map(str::to_owned);
                    self.left_out.entry(set).or_default().extend(names);
                }
                _ => {
                    if let Some(text) = values.get("env_info").and_then(Value::as_str) {
                        text.clone_into(&mut self.environment);
                    }
                }
            }
        }
    }

    fn add_times(&mut self, epoch: u64, ranks: Option<&Value>) {
        let sums = self.times.entry(epoch).or_default();
        for (rank, parts) in ranks.and_then(Value::as_array).into_iter().flatten().enumerate() {
            if sums.len() <= rank {
                sums.push(IndexMap::new());
            }
            for (part, seconds) in parts.as_object().into_iter().flatten() {
                *sums[rank].entry(part.clone()).or_default() += seconds.as_f64().unwrap_or(0.0);
            }
        }
    }

    /// The curves, times and facts for the page.
    pub fn to_json(&self) -> Value {
        // Lines do not have the number of steps per epoch.
        let iters = self.train.iter().map(|point| point.iter).max().unwrap_or(1).max(1);
        let at = |point: &Point| point.epoch.saturating_sub(1) as f64 + point.iter as f64 / iters as f64;
        let by_rank = self.times.values().fold(Vec::new(), |mut sums: Vec<IndexMap<String, f64>>, ranks| {
            sums.resize_with(sums.len().max(ranks.len()), IndexMap::new);
            for (sum, parts) in sums.iter_mut().zip(ranks) {
                parts.iter().for_each(|(part, seconds)| *sum.entry(part.clone()).or_default() += seconds);
            }
            sums
        });
        json!({
            "environment": self.environment,
            "starts": self.files.len(),
            "train": curves(&self.train, at),
            "evaluations": curves(&self.evaluations, |point| point.epoch as f64),
            "times": by_rank,
        })
    }

    /// What the page says about the logs as such.
    pub fn notes(&self) -> Vec<String> {
        let left_out = self.left_out.iter().map(|(set, images)| {
            format!("{} of the {set} set could not be read and were skipped", count(images.len(), "image"))
        });
        let damaged = (self.damaged > 0)
            .then(|| format!("{} of the logs could not be read and were left out", count(self.damaged, "line")));
        left_out.chain(damaged).collect()
    }
}

/// `{name: {x, y}}` for every number of the lines.
fn curves(points: &[Point], at: impl Fn(&Point) -> f64) -> Value {
    let mut curves: IndexMap<&str, (Vec<f64>, Vec<f64>)> = IndexMap::new();
    for point in points {
        for (name, value) in &point.values {
            // Undefined metrics are -1, losses that are not finite null.
            let value = value.as_f64().filter(|&value| value != -1.0 && !NO_CURVES.contains(&name.as_str()));
            if let Some(value) = value {
                let (x, y) = curves.entry(name).or_default();
                x.push((at(point) * 1e5).round() / 1e5);
                y.push(value);
            }
        }
    }
    let entries = curves.into_iter().map(|(name, (x, y))| {
        let group = x.len().div_ceil(MOST_POINTS).max(1);
        (name.to_owned(), json!({ "x": means(&x, group), "y": means(&y, group) }))
    });
    Value::Object(entries.collect())
}

fn means(values: &[f64], group: usize) -> Vec<f64> {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    if group == 1 { values.to_vec() } else { values.chunks(group).map(mean).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_resumed_job_did_again_counts_once() {
        let folder = tempfile::tempdir().unwrap();
        let line = |epoch: u64, iter: u64, loss: f64| {
            format!("{}\n", json!({"mode": "train", "epoch": epoch, "iter": iter, "loss": loss}))
        };
        let times = |epoch: u64, data: f64| {
            format!("{}\n", json!({"mode": "times", "in_epoch": epoch, "ranks": [{"data": data}, {"data": 1.0}]}))
        };
        let left_out = |epoch: u64, images: &[&str]| {
            let count = images.len();
            let line = json!({"mode": "left_out", "set": "train", "in_epoch": epoch, "count": count, "images": images});
            format!("{line}\n")
        };
        let value = |epoch: u64, ap: f64| format!("{}\n", json!({"mode": "val", "epoch": epoch, "bbox_mAP": ap}));
        let skipped = left_out(1, &["a.jpg", "b.jpg"]);
        let first = [line(1, 10, 3.0), line(1, 20, 2.0), times(1, 5.0), skipped, value(1, 0.1)];
        let again = [line(2, 10, 9.0), times(2, 7.0), left_out(2, &["a.jpg"]), value(2, 0.9)];
        std::fs::write(folder.path().join("1.log.json"), [first.concat(), again.concat()].concat()).unwrap();
        let env = "{\"env_info\": \"GPU: none\"}\n{\"mode\": \"tra".to_owned();
        let skipped = left_out(2, &["a.jpg", "c.jpg"]);
        let second = [line(2, 10, 1.5), line(2, 20, 1.0), times(2, 4.0), skipped, value(2, -1.0), env];
        std::fs::write(folder.path().join("2.log.json"), second.concat()).unwrap();
        let logs = Logs::read(folder.path()).unwrap();
        let json = logs.to_json();
        assert_eq!(json["train"]["loss"], json!({"x": [0.5, 1.0, 1.5, 2.0], "y": [3.0, 2.0, 1.5, 1.0]}));
        assert_eq!(json["evaluations"]["bbox_mAP"], json!({"x": [1.0], "y": [0.1]}), "-1 is undefined");
        assert_eq!(json["times"], json!([{"data": 9.0}, {"data": 2.0}]));
        assert_eq!((&json["environment"], &json["starts"]), (&json!("GPU: none"), &json!(2)));
        let left_out = "3 images of the train set could not be read and were skipped";
        assert_eq!(logs.notes(), [left_out, "1 line of the logs could not be read and were left out"]);
    }
}
