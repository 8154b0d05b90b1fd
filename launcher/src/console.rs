//! What users see: results on stdout, lines on stderr, and a live line on a terminal.

use std::cell::Cell;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use fnet_protocol::cli::{ColorChoice, LaunchOptions};

use crate::output::{self, Stream};

/// Interval of progress lines if there is no live line.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);
/// Least time between two states of the live line.
const LIVE_INTERVAL: Duration = Duration::from_millis(100);

/// Prints for users.
pub struct Console {
    quiet: bool,
    colored: bool,
    interactive: bool,
    /// When progress was last shown, and its key.
    last_progress: Cell<Option<(Instant, (&'static str, u64))>>,
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

    /// Whether to show a live line.
    pub fn is_live(&self) -> bool {
        self.interactive && !self.quiet
    }

    /// Prints a line of the launcher; not with --quiet.
    pub fn say(&self, line: &str) {
        self.talk(&format!("fnet-launch: {line}"));
    }

    /// Prints text verbatim; not with --quiet.
    pub fn talk(&self, text: &str) {
        if !self.quiet {
            self.print(text);
        }
    }

    /// Prints a line even with --quiet.
    pub fn error(&self, line: &str) {
        let (on, off) = if self.colored { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
        self.print(&format!("{on}fnet-launch: {line}{off}"));
    }

    /// Prints text verbatim, also with --quiet.
    pub fn print(&self, text: &str) {
        output::write(Stream::Err, format!("{text}\n").as_bytes());
    }

    /// Prints a result to stdout.
    pub fn result(&self, text: &str) {
        output::write(Stream::Out, format!("{text}\n").as_bytes());
    }

    /// Passes the stdout of rank 0 through.
    pub fn pass_through(&self, bytes: &[u8]) {
        output::write(Stream::Out, bytes);
    }

    /// Updates the live line, or prints a line at intervals; at once when `key` changes or with `is_last`. `line` makes the
    /// text for a number of columns, or for a line of its own.
    pub fn progress(
        &self,
        key: (&'static str, u64),
        is_last: bool,
        now: Instant,
        line: impl FnOnce(Option<usize>) -> String,
    ) {
        let interval = if self.interactive { LIVE_INTERVAL } else { PLAIN_INTERVAL };
        let is_due =
            self.last_progress.get().is_none_or(|(at, last)| now.duration_since(at) >= interval || last != key);
        if self.quiet || !(is_due || is_last) {
            return;
        }
        self.last_progress.set(Some((now, key)));
        if self.interactive {
            output::show_line(Some(line(Some(output::columns()))));
        } else {
            self.say(&line(None));
        }
    }

    /// Removes the live line.
    pub fn clear_line(&self) {
        output::show_line(None);
    }
}
