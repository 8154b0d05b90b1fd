//! What users see: lines on stderr, and a progress bar on a terminal.

use std::cell::Cell;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use fnet_protocol::cli::{ColorChoice, LaunchOptions};
use fnet_protocol::message::{Phase, Progress};

use crate::output::{self, Bar, Stream};
use crate::text;

/// Interval of progress lines if there is no bar.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// Prints for users.
pub struct Console {
    quiet: bool,
    colored: bool,
    interactive: bool,
    /// When the last progress line was printed, and its phase and epoch.
    last_progress: Cell<Option<(Instant, Phase, u64)>>,
}

impl Console {
    /// Follows the options, and whether stderr is a terminal.
    pub fn new(options: &LaunchOptions) -> Self {
        let fancy = match options.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => io::stderr().is_terminal(),
        };
        let no_color =
            options.color == ColorChoice::Auto && std::env::var_os("NO_COLOR").is_some_and(|text| !text.is_empty());
        Self {
            quiet: options.quiet,
            colored: fancy && !no_color,
            interactive: fancy && io::stderr().is_terminal(),
            last_progress: Cell::new(None),
        }
    }

    /// Whether to show a progress bar.
    pub fn has_bar(&self) -> bool {
        self.interactive && !self.quiet
    }

    /// Prints a line of the launcher; not with --quiet.
    pub fn say(&self, line: &str) {
        if !self.quiet {
            self.print(&format!("fnet-launch: {line}"));
        }
    }

    /// Prints a line even with --quiet.
    pub fn error(&self, line: &str) {
        let (on, off) = if self.colored { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
        self.print(&format!("{on}fnet-launch: {line}{off}"));
    }

    /// Prints text verbatim, above the bar.
    pub fn print(&self, text: &str) {
        output::write(Stream::Err, format!("{text}\n").as_bytes());
    }

    /// Passes the stdout of rank 0 through.
    pub fn pass_through(&self, bytes: &[u8]) {
        output::write(Stream::Out, bytes);
    }

    /// Updates the bar, or prints a line at intervals. `slowest` is the rank for which the others wait, and for how many
    /// seconds of a step.
    pub fn progress(&self, progress: &Progress, slowest: Option<(usize, f64)>, now: Instant) {
        if self.quiet {
            return;
        }
        if self.interactive {
            output::show_bar(Some(Bar {
                position: progress.step,
                length: progress.total_steps,
                prefix: heading(progress),
                message: numbers(progress, slowest),
            }));
            return;
        }
        let due = self.last_progress.get().is_none_or(|(at, phase, epoch)| {
            now.duration_since(at) >= PLAIN_INTERVAL
                || phase_group(phase) != phase_group(progress.phase)
                || epoch != progress.epoch
        });
        if due || progress.step == progress.total_steps {
            self.last_progress.set(Some((now, progress.phase, progress.epoch)));
            self.print(&format!(
                "fnet-launch: {} {}/{} {}",
                heading(progress),
                progress.step,
                progress.total_steps,
                numbers(progress, slowest)
            ));
        }
    }

    /// Removes the bar.
    pub fn clear_bar(&self) {
        output::show_bar(None);
    }
}

/// The name of a phase for the user; the parts of a training step share one.
fn phase_group(phase: Phase) -> &'static str {
    match phase {
        Phase::Evaluation | Phase::Summary => "evaluate",
        Phase::Checkpoint => "save",
        Phase::Start | Phase::Index | Phase::Unknown => "start",
        Phase::Data | Phase::Forward | Phase::Backward | Phase::AllReduce | Phase::Optimizer => "train",
    }
}

fn heading(progress: &Progress) -> String {
    let what = phase_group(progress.phase);
    if progress.epochs > 0 { format!("{what} epoch {}/{}", progress.epoch, progress.epochs) } else { what.to_owned() }
}

fn numbers(progress: &Progress, slowest: Option<(usize, f64)>) -> String {
    let mut parts = Vec::new();
    if let Some(loss) = progress.loss {
        parts.push(format!("loss {loss:.4}"));
    }
    if let Some(speed) = progress.images_per_second {
        parts.push(format!("{speed:.1} img/s"));
    }
    if let Some(memory) = progress.memory_bytes {
        parts.push(text::bytes(memory));
    }
    if let Some((rank, seconds)) = slowest {
        parts.push(format!("slowest rank {rank} (+{seconds:.2} s)"));
    }
    if let Some(eta) = progress.eta_seconds {
        parts.push(format!("ETA {}", text::clock(eta)));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_progress_contains_what_is_known() {
        let progress = Progress {
            phase: Phase::Backward,
            epoch: 2,
            epochs: 12,
            loss: Some(0.12345),
            images_per_second: Some(3.21),
            memory_bytes: Some(3 << 29),
            eta_seconds: Some(61.0),
            ..Progress::default()
        };
        assert_eq!(heading(&progress), "train epoch 2/12");
        assert_eq!(numbers(&progress, None), "loss 0.1235, 3.2 img/s, 1.5 GiB, ETA 1:01");
        let expected = "loss 0.1235, 3.2 img/s, 1.5 GiB, slowest rank 3 (+0.25 s), ETA 1:01";
        assert_eq!(numbers(&progress, Some((3, 0.25))), expected);
        assert_eq!(numbers(&Progress::default(), None), "");
    }
}
