//! Metrics as aligned text.

use fnet_common::text::count;
use fnet_config::Metric;

use super::Metrics;
use super::scores::{Scores, limit_of_first};

/// Name and meaning of the precision rows.
const PRECISION: [(&str, &str); 6] = [
    ("AP", "average over the IoU thresholds"),
    ("AP50", "IoU .50"),
    ("AP75", "IoU .75"),
    ("APs", "objects smaller than 32x32 pixels"),
    ("APm", "objects of 32x32 to 96x96"),
    ("APl", "objects larger than 96x96"),
];

/// Formats a number: `-` if it is undefined.
fn value(number: f64) -> String {
    if number < 0.0 { "-".into() } else { format!("{number:.3}") }
}

/// A row of the summary: name, meaning, and a function that returns its number.
type Row = (String, String, Box<dyn Fn(&Scores) -> f64>);

fn rows(metrics: &Metrics) -> Vec<Row> {
    let limits = &metrics.settings.proposal_nums;
    let mut rows: Vec<Row> = Vec::new();
    // Precision is not meaningful for proposals, which have no classes.
    if metrics.with_classes().next().is_some() {
        let precision = (0..).zip(PRECISION);
        rows.extend(precision.map(|(index, (name, meaning))| -> Row {
            (name.into(), meaning.into(), Box::new(move |scores| scores.precision[index]))
        }));
    }
    for (index, limit) in limits.iter().enumerate() {
        let meaning = if index == 0 { "recall with this many detections per image" } else { "" };
        rows.push((format!("AR@{limit}"), meaning.into(), Box::new(move |scores| scores.recall[index])));
    }
    for (offset, name) in ["ARs", "ARm", "ARl"].into_iter().enumerate() {
        let index = limits.len() + offset;
        rows.push((name.into(), PRECISION[3 + offset].1.into(), Box::new(move |scores| scores.recall[index])));
    }
    rows
}

impl Metrics {
    /// The rows of the table: name, meaning, and a number for each metric; `None` if it is undefined.
    pub fn rows(&self) -> Vec<(String, String, Vec<Option<f64>>)> {
        let numbers = |number: &dyn Fn(&Scores) -> f64| {
            self.scores.values().map(|scores| Some(number(scores)).filter(|&value| value >= 0.0)).collect()
        };
        rows(self).into_iter().map(|(name, meaning, number)| (name, meaning, numbers(&*number))).collect()
    }

    /// A table of average precision and recall, after a table of the classes with `evaluation.classwise`.
    pub fn table(&self) -> String {
        match self.settings.classwise {
            true => format!("{}\n{}", by_class(self), summary(self)),
            false => summary(self),
        }
    }
}

fn summary(metrics: &Metrics) -> String {
    let (first, most) = (limit_of_first(&metrics.settings), metrics.settings.most_detections());
    let limits = match metrics.with_classes().next() {
        None => format!("class-agnostic recall; ARs to ARl use maxDets={most}"),
        Some(_) if first == most => format!("AP uses maxDets={most}"),
        Some(_) => format!("AP uses maxDets={first}; the rows below use maxDets={most}"),
    };
    let mut lines =
        vec![format!("{}, {}; {limits}", count(metrics.images, "image"), count(metrics.detections, "detection"))];
    let rows = rows(metrics);
    let width = rows.iter().map(|(name, ..)| name.len()).max().unwrap_or(0).max(9);
    let mut header = format!("{:width$}", "");
    for &kind in metrics.scores.keys() {
        header += &format!("{:>9}", kind.prefix());
    }
    lines.push(header);
    for (index, (name, meaning, number)) in rows.iter().enumerate() {
        let mut line = format!("{name:width$}");
        for (&kind, scores) in &metrics.scores {
            let is_precision = index < PRECISION.len() && metrics.with_classes().next().is_some();
            let hidden = kind == Metric::Proposal && is_precision;
            line += &format!("{:>9}", if hidden { String::new() } else { value(number(scores)) });
        }
        lines.push(format!("{line}   {meaning}").trim_end().to_owned());
    }
    lines.extend(metrics.notes.iter().map(|note| format!("Note: {note}")));
    lines.join("\n")
}

fn by_class(metrics: &Metrics) -> String {
    // The width is in characters, which aligns non-Latin names as far as the terminal's font allows.
    let width = metrics.classes.iter().map(|name| name.chars().count()).max().unwrap_or(0).max("class".len());
    let line = |name: &str, cells: Vec<String>| {
        let padding = " ".repeat(width - name.chars().count());
        format!("{name}{padding}{}", cells.iter().map(|cell| format!("{cell:>9}")).collect::<String>())
    };
    let mut lines =
        vec![line("class", metrics.with_classes().map(|(kind, _)| format!("{} AP", kind.prefix())).collect())];
    for (index, name) in metrics.classes.iter().enumerate() {
        lines.push(line(name, metrics.with_classes().map(|(_, scores)| value(scores.by_class[index])).collect()));
    }
    lines.join("\n")
}
