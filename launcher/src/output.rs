//! stdout and stderr through [`outlet`]s: a reader that has stopped (a pager, a paused terminal, a stuck ssh) must not block
//! the supervision. Lines that do not fit into the queue are dropped and counted; a notice takes their place once the reader
//! continues.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use fnet_protocol::outlet::{self, Outlet};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// An output stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// stdout, for programs.
    Out,
    /// stderr, for users.
    Err,
}

/// The state of the progress bar.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bar {
    /// Completed steps.
    pub position: u64,
    /// Total steps.
    pub length: u64,
    /// Text before the bar.
    pub prefix: String,
    /// Text after the bar.
    pub message: String,
}

/// The outlets of stdout and stderr; stdout has none if both are one terminal, so that the bar is not overwritten.
struct Outlets {
    out: Option<Outlet>,
    errors: Arc<Outlet>,
}

// A process has one stdout and one stderr.
static OUTLETS: OnceLock<Outlets> = OnceLock::new();
/// The newest state of the bar, or its removal, until the thread of stderr takes it.
static BAR: Mutex<Option<Option<Bar>>> = Mutex::new(None);

/// Starts the threads. Until then, and in tests, output is written directly.
pub fn start() -> io::Result<()> {
    let errors = Arc::new(Outlet::start_in_parts(
        "stderr",
        writer_with_bar()?,
        Box::new(|count| {
            Some(format!("fnet-launch: {count} lines were dropped here because stderr was blocked\n").into_bytes())
        }),
    )?);
    let out = if is_one_terminal() {
        None
    } else {
        let (stdout, for_people) = (duplicate(io::stdout().as_fd())?, Arc::clone(&errors));
        let write = move |piece: &[u8], taken: &dyn Fn()| outlet::write_to(&stdout, piece, taken);
        Some(Outlet::start_in_parts(
            "stdout",
            write,
            Box::new(move |count| {
                // In stdout, programs could not distinguish the notice from the data.
                let text = format!("fnet-launch: {count} lines of stdout were dropped because it was blocked\n");
                for_people.push_lines(text.into_bytes());
                None
            }),
        )?)
    };
    let _ = OUTLETS.set(Outlets { out, errors });
    Ok(())
}

/// Writes to stderr, with the bar below.
fn writer_with_bar() -> io::Result<impl FnMut(&[u8], &dyn Fn()) + Send + 'static> {
    let stderr = duplicate(io::stderr().as_fd())?;
    let mut shown: Option<ProgressBar> = None;
    Ok(move |piece: &[u8], taken: &dyn Fn()| {
        match BAR.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(Some(bar)) => draw(shown.get_or_insert_with(new_bar), bar),
            Some(None) => shown.take().into_iter().for_each(|bar| bar.finish_and_clear()),
            None => {}
        }
        match &shown {
            Some(bar) if !piece.is_empty() => bar.suspend(|| outlet::write_to(&stderr, piece, taken)),
            _ => outlet::write_to(&stderr, piece, taken),
        }
    })
}

fn duplicate(stream: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    stream.try_clone_to_owned()
}

/// Whether stdout and stderr are the same terminal.
fn is_one_terminal() -> bool {
    let device = |stream: BorrowedFd<'_>| rustix::fs::fstat(stream).ok().map(|stat| stat.st_rdev);
    io::stdout().is_terminal()
        && io::stderr().is_terminal()
        && device(io::stdout().as_fd()) == device(io::stderr().as_fd())
}

/// Writes whole lines to a stream.
pub fn write(stream: Stream, bytes: &[u8]) {
    match (OUTLETS.get(), stream) {
        (Some(Outlets { out: Some(out), .. }), Stream::Out) => out.push_lines(bytes.to_vec()),
        (Some(Outlets { errors, .. }), _) => errors.push_lines(bytes.to_vec()),
        (None, Stream::Out) => outlet::write_to(io::stdout().as_fd(), bytes, &|| {}),
        (None, Stream::Err) => outlet::write_to(io::stderr().as_fd(), bytes, &|| {}),
    }
}

/// Shows the bar below the lines of stderr; `None` removes it.
pub fn show_bar(bar: Option<Bar>) {
    let Some(Outlets { errors, .. }) = OUTLETS.get() else { return };
    let not_taken = BAR.lock().unwrap_or_else(PoisonError::into_inner).replace(bar);
    if not_taken.is_none() {
        // The thread takes the state of the bar with the next piece.
        errors.push(Vec::new());
    }
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg}") {
        bar.set_style(style);
    }
    bar
}

fn draw(bar: &ProgressBar, state: Bar) {
    bar.set_length(state.length);
    bar.set_position(state.position);
    bar.set_prefix(state.prefix);
    bar.set_message(state.message);
}
