//! `evaluate`: the metrics of results files, and the comparison of two.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use fnet_common::text::count;
use fnet_common::{Error, Result};
use fnet_config::{Evaluation, Metric};
use fnet_data::{Dataset, Severity, check_before_job, check_classes};
use fnet_evaluate::metrics::{Difference, GroundTruth, Resampling, difference};
use fnet_evaluate::report::{self, Evaluated, Run};
use fnet_evaluate::results_file::ResultsFile;
use fnet_protocol::cli;

/// Evaluates one or two results files and prints their metrics, or JSON, with `print`. `say` gets messages.
/// Errors: if the config, the data or a results file is wrong, or the page cannot be written.
pub fn evaluate(arguments: &cli::Evaluate, say: &dyn Fn(&str), print: impl Fn(&str) -> Result<()>) -> Result<()> {
    let config = fnet_data::load_config(&arguments.config, &arguments.set)?.config;
    let dataset = Dataset::open(&config.data, arguments.split)?;
    let dataset = Arc::new(dataset.without_repetitions());
    check_classes(&config, &[&dataset])?;
    let asked: Vec<Metric> = arguments.eval.iter().copied().map(Metric::from).collect();
    let files: Vec<ResultsFile> =
        arguments.results.iter().map(|path| ResultsFile::read(path, &dataset)).collect::<Result<_>>()?;
    let mut kinds = asked.clone();
    for file in &files {
        let own = file.kinds(&asked)?;
        // Two files are compared by what both have.
        if kinds.is_empty() || own.len() < kinds.len() {
            kinds = own
        }
    }
    dataset.diagnostics().lines(Severity::Warning).iter().for_each(|warning| say(warning));
    check_before_job(&config, &[&dataset], &kinds)?.iter().for_each(|warning| say(warning));
    let settings = &config.evaluation;
    let resampling = Resampling { count: arguments.resamples, seed: arguments.seed };
    let differences = match files.as_slice() {
        [first, second] => differences(&dataset, [first, second], &kinds, settings, resampling)?,
        _ => Vec::new(),
    };
    let mut runs = Vec::new();
    for (path, file) in arguments.results.iter().zip(files) {
        let results = Evaluated::new(Arc::clone(&dataset), file, &kinds, settings, arguments.out.is_some())?;
        runs.push(Run { name: path.display().to_string(), results: Some(results), ..Run::default() });
    }
    let compared = text(&differences, dataset.len(), resampling);
    if arguments.json {
        print(&to_json(&runs, &differences, resampling)?)?;
    } else {
        for Run { name, results, .. } in &runs {
            let table = results.as_ref().map(|results| results.metrics.table()).unwrap_or_default();
            if runs.len() > 1 { print(&format!("{name}\n{table}\n"))? } else { print(&table)? }
        }
        if !compared.is_empty() {
            print(&compared.join("\n"))?;
        }
    }
    if let Some(path) = &arguments.out {
        let page = write_page(path, &mut runs, &compared, say)?;
        if arguments.json { say(&page) } else { print(&page)? }
    }
    Ok(())
}

/// Draws the images and writes the page. Returns where it is.
/// Errors: if an annotation file was changed, or the page cannot be written.
pub(super) fn write_page(path: &Path, runs: &mut [Run], compared: &[String], say: &dyn Fn(&str)) -> Result<String> {
    let (images, notes) = report::choose_and_draw(runs)?;
    if let Some(first) = runs.first_mut() {
        first.notes.extend(notes);
    }
    for run in &*runs {
        run.notes.iter().for_each(|note| say(&format!("{}: {note}", run.name)));
    }
    report::write(path, runs, images, compared)?;
    Ok(format!("the page is {}", path.display()))
}

fn differences(
    dataset: &Dataset,
    files: [&ResultsFile; 2],
    kinds: &[Metric],
    settings: &Evaluation,
    resampling: Resampling,
) -> Result<Vec<(Metric, Difference)>> {
    let truth = GroundTruth::of(dataset)?;
    let mut found = Vec::new();
    // Recall without classes has no average precision.
    for &kind in kinds.iter().filter(|kind| **kind != Metric::Proposal) {
        let detections = files.map(|file| file.of_kind(kind));
        found.extend(difference(&truth, detections, kind, settings, resampling)?.map(|difference| (kind, difference)));
    }
    Ok(found)
}

/// The comparison as lines of text.
fn text(differences: &[(Metric, Difference)], images: usize, resampling: Resampling) -> Vec<String> {
    if differences.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![format!(
        "AP of the second minus the first; 95% of {} ({}, seed {}) are in the interval:",
        count(resampling.count, "paired bootstrap resample"),
        count(images, "image"),
        resampling.seed
    )];
    for (kind, difference) in differences {
        let ([first, second], [low, high]) = (difference.values, difference.interval);
        let conclusion = match (difference.is_significant(), second > first) {
            (false, _) => "no significant difference",
            (true, true) => "the second is better",
            (true, false) => "the first is better",
        };
        let change = second - first;
        lines.push(format!("{:<5}{change:>+8.3}   [{low:+.3}, {high:+.3}]   {conclusion}", kind.prefix()));
    }
    lines
}

fn to_json(runs: &[Run], differences: &[(Metric, Difference)], resampling: Resampling) -> Result<String> {
    let results = runs.iter().filter_map(|run| run.results.as_ref()).map(|results| {
        let metrics = &results.metrics;
        json!({
            "file": results.file.path.display().to_string(),
            "images": metrics.images,
            "detections": metrics.detections,
            "metrics": metrics.to_json(),
            "notes": metrics.notes,
        })
    });
    let compared = differences.iter().map(|(kind, difference)| {
        json!({
            "metric": kind.name_of("mAP"),
            "values": difference.values,
            "difference": difference.values[1] - difference.values[0],
            "interval": difference.interval,
            "level": 0.95,
            "second_better": difference.second_better,
            "resamples": resampling.count,
            "seed": resampling.seed,
        })
    });
    let value = json!({ "results": results.collect::<Value>(), "comparison": compared.collect::<Value>() });
    serde_json::to_string_pretty(&value).map_err(|error| Error::bug(error.to_string()))
}
