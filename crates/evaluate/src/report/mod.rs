//! One self-contained HTML page about runs and results: everything that it shows is JSON inside of it, which its script draws.

mod images;
mod logs;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use fnet_common::{Error, Result, atomic};
use fnet_config::{Evaluation, Metric};
use fnet_data::Dataset;

use crate::metrics::{Analysis, GroundTruth, Metrics, analyze};
use crate::results_file::ResultsFile;

pub use images::choose_and_draw;
pub use logs::Logs;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// Forbids every connection.
const POLICY: &str = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'";

/// Evaluated results.
pub struct Evaluated {
    /// The data set.
    pub dataset: Arc<Dataset>,
    /// The detections.
    pub file: ResultsFile,
    /// The numbers.
    pub metrics: Metrics,
    /// What the page shows of boxes and masks.
    pub analyses: Vec<(Metric, Analysis)>,
    /// Indices of the detections of each image, by its id.
    by_image: HashMap<u64, Vec<usize>>,
}

impl Evaluated {
    /// Computes the metrics `kinds`, and what the page shows if it is wanted.
    /// Errors: the annotation file cannot be read, or a mask cannot be rasterized.
    pub fn new(
        dataset: Arc<Dataset>,
        file: ResultsFile,
        kinds: &[Metric],
        settings: &Evaluation,
        with_page: bool,
    ) -> Result<Self> {
        let truth = GroundTruth::of(&dataset)?;
        let mut analyses = Vec::new();
        let mut metrics = Metrics::measure(
            &truth,
            file.detections.len(),
            kinds,
            settings,
            &|kind| Ok(file.of_kind(kind)),
            &mut |kind, evaluation| {
                if with_page && kind != Metric::Proposal {
                    analyses.push((kind, analyze(&truth, evaluation, kind, settings)?));
                }
                Ok(())
            },
        )?;
        metrics.notes.extend(file.notes.iter().cloned());
        let mut by_image: HashMap<u64, Vec<usize>> = HashMap::new();
        for (place, detection) in file.detections.iter().enumerate() {
            by_image.entry(detection.image_id).or_default().push(place);
        }
        Ok(Self { dataset, file, metrics, analyses, by_image })
    }

    fn to_json(&self) -> Value {
        let table = self.metrics.rows().into_iter().map(|(name, meaning, values)| json!([name, meaning, values]));
        let kinds = self.analyses.iter().map(|(kind, analysis)| (kind.prefix().to_owned(), analysis.json.clone()));
        json!({
            "file": self.file.path.display().to_string(),
            "set": format!("data.{}", self.dataset.split().name()),
            "images": self.metrics.images,
            "detections": self.metrics.detections,
            "metrics": self.metrics.scores.keys().map(|kind| kind.prefix()).collect::<Vec<_>>(),
            "table": table.collect::<Vec<_>>(),
            "notes": self.metrics.notes,
            "kinds": kinds.collect::<serde_json::Map<_, _>>(),
        })
    }
}

/// A run or a results file on the page.
#[derive(Default)]
pub struct Run {
    /// Its name.
    pub name: String,
    /// What its logs say.
    pub logs: Option<Logs>,
    /// Its config as TOML.
    pub config: String,
    /// The results that the page shows.
    pub results: Option<Evaluated>,
    /// What is missing on the page and how to add it.
    pub notes: Vec<String>,
}

impl Run {
    fn to_json(&self) -> Value {
        let logs = self.logs.as_ref();
        let notes: Vec<String> =
            logs.map(Logs::notes).unwrap_or_default().into_iter().chain(self.notes.clone()).collect();
        json!({
            "name": self.name,
            "log": logs.map(Logs::to_json),
            "config": self.config,
            "results": self.results.as_ref().map(Evaluated::to_json),
            "notes": notes,
        })
    }
}

/// Writes the page. `images` are those of [`choose_and_draw`]; `comparison` are lines of text about the difference of two
/// results.
/// Errors: the file cannot be written, or a config is no TOML.
pub fn write(path: &Path, runs: &[Run], images: Value, comparison: &[String]) -> Result<()> {
    let data = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "created": jiff::Zoned::now().strftime("%Y-%m-%d %H:%M").to_string(),
        "runs": runs.iter().map(Run::to_json).collect::<Vec<_>>(),
        "differences": differences(runs)?,
        "comparison": comparison,
        "images": images,
    });
    let page = page(&data);
    atomic::create(path, |out| {
        let written = out.write_all(page.as_bytes());
        written.map_err(|error| Error::environment(format!("cannot write {}: {error}", path.display())))
    })
}

fn page(data: &Value) -> String {
    // No text of a class or file can end the element.
    let data = data.to_string().replace('<', "\\u003c");
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n<title>fnet report</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<noscript>This page needs JavaScript.</noscript>\n<div id=\"page\"></div>\n\
         <script type=\"application/json\" id=\"data\">{data}</script>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
    )
}

/// The fields of the configs that differ, with the value in each run; `null` if a config is missing.
fn differences(runs: &[Run]) -> Result<Value> {
    if runs.iter().any(|run| run.config.is_empty()) {
        return Ok(Value::Null);
    }
    let leaves = runs.iter().map(|run| fnet_config::leaves_of(&run.config)).collect::<fnet_config::Result<Vec<_>>>()?;
    let mut paths: Vec<&String> = leaves.iter().flatten().map(|(path, _)| path).collect();
    paths.sort();
    paths.dedup();
    let values = paths.into_iter().map(|path| (path, leaves.iter().map(|values| values.get(path)).collect::<Vec<_>>()));
    let differing = values.filter(|(_, values)| values.windows(2).any(|pair| pair[0] != pair[1]));
    Ok(differing.map(|(path, values)| json!([path, values])).collect())
}

#[cfg(test)]
mod tests;
