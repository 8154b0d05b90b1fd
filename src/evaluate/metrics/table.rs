//! Metrics as aligned text.

use super::{MAX_DETECTIONS, Metrics, prefix};

/// Name, meaning, and place in the twelve numbers of every row of the summary.
const ROWS: [(&str, &str, usize); 12] = [
    ("AP", "IoU .50 to .95", 0),
    ("AP50", "IoU .50", 1),
    ("AP75", "IoU .75", 2),
    ("APs", "objects under 32x32 pixels", 3),
    ("APm", "objects of 32x32 to 96x96", 4),
    ("APl", "objects over 96x96", 5),
    ("AR@100", "recall with 100 detections a picture", 6),
    ("AR@300", "with 300", 7),
    ("AR@1000", "with 1000", 8),
    ("ARs", "objects under 32x32 pixels", 9),
    ("ARm", "objects of 32x32 to 96x96", 10),
    ("ARl", "objects over 96x96", 11),
];

/// The text of a number: `-` where it is undefined.
fn value(number: f64) -> String {
    if number < 0.0 { "-".into() } else { format!("{number:.3}") }
}

pub(super) fn summary(metrics: &Metrics) -> String {
    let mut lines = vec![format!(
        "{} pictures, {} detections; AP with {} detections a picture, the rows below it with {}",
        metrics.images, metrics.detections, MAX_DETECTIONS[0], MAX_DETECTIONS[2],
    )];
    let mut header = format!("{:9}", "");
    for &kind in metrics.scores.keys() {
        header += &format!("{:>8}", prefix(kind));
    }
    lines.push(header);
    for (name, meaning, index) in ROWS {
        let mut line = format!("{name:9}");
        for scores in metrics.scores.values() {
            let number = if index < 6 { scores.precision[index] } else { scores.recall[index - 6] };
            line += &format!("{:>8}", value(number));
        }
        lines.push(format!("{line}   {meaning}"));
    }
    lines.extend(metrics.notes.iter().map(|note| format!("Note: {note}")));
    lines.join("\n")
}

pub(super) fn by_class(metrics: &Metrics) -> String {
    // Counted in characters: names of other scripts are then aligned as far as the terminal's font allows.
    let width = metrics.classes.iter().map(|name| name.chars().count()).max().unwrap_or(0).max("class".len());
    let line = |name: &str, cells: Vec<String>| {
        let padding = " ".repeat(width - name.chars().count());
        format!("{name}{padding}{}", cells.iter().map(|cell| format!("{cell:>9}")).collect::<String>())
    };
    let mut lines = vec![line("class", metrics.scores.keys().map(|&kind| format!("{} AP", prefix(kind))).collect())];
    for (index, name) in metrics.classes.iter().enumerate() {
        lines.push(line(name, metrics.scores.values().map(|scores| value(scores.by_class[index])).collect()));
    }
    lines.join("\n")
}
