//! stdout and stderr through [`outlet`]s: a reader that has stopped (a pager, a paused terminal, a stuck ssh) must not block
//! the supervision. Lines that do not fit into the queue are dropped and counted; a notice takes their place once the reader
//! continues.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use fnet_protocol::outlet::{self, Outlet};
use terminal_size::Width;

/// An output stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// stdout, for programs.
    Out,
    /// stderr, for users.
    Err,
}

/// The outlets of stdout and stderr; stdout has none if both are one terminal, so that the live line is not overwritten.
struct Outlets {
    out: Option<Outlet>,
    errors: Arc<Outlet>,
}

// A process has one stdout and one stderr.
static OUTLETS: OnceLock<Outlets> = OnceLock::new();
/// The newest live line, or its removal, until the thread of stderr takes it.
static LINE: Mutex<Option<Option<String>>> = Mutex::new(None);
/// Removes the line that the cursor is in.
const CLEAR: &[u8] = b"\r\x1b[2K";

/// Starts the threads. Until then, and in tests, output is written directly.
pub fn start() -> io::Result<()> {
    let errors = Arc::new(Outlet::start_in_parts(
        "stderr",
        writer_with_line()?,
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

/// Writes to stderr, with the live line below.
fn writer_with_line() -> io::Result<impl FnMut(&[u8], &dyn Fn()) + Send + 'static> {
    let stderr = duplicate(io::stderr().as_fd())?;
    let mut shown = String::new();
    Ok(move |piece: &[u8], taken: &dyn Fn()| {
        let new = LINE.lock().unwrap_or_else(PoisonError::into_inner).take();
        let new = new.map(Option::unwrap_or_default);
        if piece.is_empty() && new.as_ref().is_none_or(|new| *new == shown) {
            return;
        }
        if !shown.is_empty() {
            outlet::write_to(&stderr, CLEAR, taken);
        }
        outlet::write_to(&stderr, piece, taken);
        shown = new.unwrap_or_else(|| std::mem::take(&mut shown));
        // The terminal may have become narrower since the line was made.
        let fitting: String = shown.chars().take(columns()).collect();
        outlet::write_to(&stderr, fitting.as_bytes(), taken);
    })
}

/// Columns of the terminal of stderr for the live line. A terminal shows Ctrl-C as `^C` after it, and some wrap after their last
/// column; a part on the next row would stay there.
pub fn columns() -> usize {
    const FREE: usize = 3;
    let size = terminal_size::terminal_size_of(io::stderr());
    size.map_or(80, |(Width(columns), _)| usize::from(columns)).saturating_sub(FREE).max(1)
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

/// Shows the live line below the lines of stderr; `None` removes it.
pub fn show_line(line: Option<String>) {
    let Some(Outlets { errors, .. }) = OUTLETS.get() else { return };
    let not_taken = LINE.lock().unwrap_or_else(PoisonError::into_inner).replace(line);
    if not_taken.is_none() {
        // The thread takes the line with the next piece.
        errors.push(Vec::new());
    }
}
