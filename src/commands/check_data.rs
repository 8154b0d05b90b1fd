//! `check-data`: reports all problems in the data sets of a config.

use std::fmt::Write as _;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use fnet_common::text::{count, printable};
use fnet_common::{Error, Result};
use fnet_data::{Checked, CocoDataset, Diagnostic, Diagnostics, Scope, Severity, Split, check};
use fnet_protocol::cli::CheckData;
use fnet_protocol::exit;

/// Checks the sets of a config, prints the diagnostics, and returns the exit code: that of wrong data if there is an error
/// among them.
/// Errors: if the config is wrong, or stdout cannot be written.
pub fn check_data(arguments: &CheckData, print: impl FnOnce(&str) -> Result<()>) -> Result<i32> {
    let config = fnet_data::load_config_for_check(&arguments.config, &arguments.set)?.config;
    let splits = match arguments.split {
        Some(split) => vec![split],
        None if config.data.test.ann_file.is_empty() => vec![Split::Train, Split::Val],
        None => vec![Split::Train, Split::Val, Split::Test],
    };
    let keep = if arguments.json { usize::MAX } else { arguments.list.max(1) };
    let scope = Scope { keep, headers: true, decode: arguments.decode };
    let bar = Bar::new(arguments.decode);
    let (sets, diagnostics) = check(&config, &splits, scope, &|split, done, all| bar.show(split, done, all));
    bar.finish();
    let text = text(&sets, &diagnostics, arguments.list);
    if arguments.json {
        eprint!("{text}");
        let json =
            serde_json::to_string_pretty(&to_json(&sets, &diagnostics)).map_err(|e| Error::bug(e.to_string()))?;
        print(&json)?;
    } else {
        print(text.trim_end())?;
    }
    Ok(if diagnostics.number_of(Severity::Error) > 0 { exit::DATA } else { exit::SUCCESS })
}

/// A progress bar over the images of a set, if stderr is a terminal.
struct Bar {
    bar: ProgressBar,
    verb: &'static str,
}

impl Bar {
    fn new(decode: bool) -> Self {
        let style = ProgressStyle::with_template("{msg} [{bar:30}] {human_pos}/{human_len} images, {eta} left");
        let bar = ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar, verb: if decode { "decoding" } else { "reading the headers of" } }
    }

    fn show(&self, split: Split, done: usize, all: usize) {
        if self.bar.length() != Some(all as u64) || done == 1 {
            self.bar.set_length(all as u64);
            self.bar.reset();
            self.bar.set_message(format!("{} data.{}", self.verb, split.name()));
        }
        self.bar.inc(1);
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// The report as text: the kept diagnostics, a table by code, and a summary of each set.
fn text(sets: &[Checked], diagnostics: &Diagnostics, listed: usize) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{text}");
    };
    if listed > 0 {
        for (code, count) in diagnostics.counts() {
            let of_code: Vec<&Diagnostic> =
                diagnostics.kept().iter().filter(|diagnostic| diagnostic.code == code).collect();
            of_code.iter().for_each(|diagnostic| line(diagnostic.to_string()));
            if count > of_code.len() {
                line(format!("... and {} more of {code} (--list N or --json for all)", count - of_code.len()));
            }
        }
        if !diagnostics.is_empty() {
            line(String::new());
        }
    }
    for row in table(diagnostics) {
        line(row);
    }
    sets.iter().flat_map(summary).for_each(&mut line);
    let [errors, warnings, notes] =
        [Severity::Error, Severity::Warning, Severity::Note].map(|severity| diagnostics.number_of(severity));
    line(match (errors, warnings + notes) {
        (0, 0) => "No problems found.".into(),
        (0, _) => format!("No errors: training would start. {}, {}.", count(warnings, "warning"), count(notes, "note")),
        _ => format!(
            "{}: training would not start. {}, {}.",
            count(errors, "error"),
            count(warnings, "warning"),
            count(notes, "note")
        ),
    });
    out
}

/// One row per code, aligned.
fn table(diagnostics: &Diagnostics) -> Vec<String> {
    let counts = diagnostics.counts();
    if counts.is_empty() {
        return Vec::new();
    }
    let mut rows = vec![["severity", "code", "count", "action"].map(str::to_owned)];
    rows.extend(counts.into_iter().map(|(code, count)| {
        let description = code.description();
        [description.severity.to_string(), code.to_string(), count.to_string(), description.action.to_owned()]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let [severity, code, count] = [0, 1, 2].map(width);
    let aligned =
        rows.iter().map(|row| format!("{:severity$}  {:code$}  {:>count$}  {}", row[0], row[1], row[2], row[3]));
    aligned.chain([String::new()]).collect()
}

/// A line for each annotation file of a set.
fn summary(set: &Checked) -> Vec<String> {
    let Some(dataset) = &set.dataset else { return vec![format!("data.{}: not usable", set.split.name())] };
    let line = |(part, samples): (&CocoDataset, usize)| {
        let name = if dataset.is_validation_part() { "data.val" } else { part.field() };
        let epoch = if samples == part.len() { String::new() } else { format!("; {samples} images per epoch") };
        format!(
            "{name}: {}: {} of {}, {} of {} and {} are used{epoch}",
            printable(&part.annotation_file().to_string_lossy()),
            part.len(),
            count(part.listed().images, "image"),
            part.object_count(),
            count(part.listed().annotations, "annotation"),
            count(part.categories().len(), "class")
        )
    };
    dataset.parts().map(line).collect()
}

/// The report as JSON.
fn to_json(sets: &[Checked], diagnostics: &Diagnostics) -> Value {
    let part = |(part, samples): (&CocoDataset, usize)| {
        let names: Vec<&str> = part.categories().iter().map(|category| category.name.as_str()).collect();
        json!({
            "set": part.split().name(), "usable": true, "annotation_file": part.annotation_file(), "images": part.len(),
            "images_per_epoch": samples, "objects": part.object_count(), "listed_images": part.listed().images,
            "listed_annotations": part.listed().annotations, "classes": names,
        })
    };
    let set = |set: &Checked| match &set.dataset {
        Some(dataset) => dataset.parts().map(part).collect(),
        None => vec![json!({"set": set.split.name(), "usable": false})],
    };
    let sets: Vec<Value> = sets.iter().flat_map(set).collect();
    let counts: serde_json::Map<String, Value> =
        diagnostics.counts().into_iter().map(|(code, count)| (code.to_string(), json!(count))).collect();
    json!({
        "errors": diagnostics.number_of(Severity::Error),
        "warnings": diagnostics.number_of(Severity::Warning),
        "notes": diagnostics.number_of(Severity::Note),
        "counts": counts,
        "sets": sets,
        "findings": diagnostics.kept(),
    })
}
