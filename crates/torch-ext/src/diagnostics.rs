//! What libtorch and Gloo print for people through C++'s `std::cerr`: warnings of any thread, and their logs.

use std::ffi::c_char;
use std::sync::OnceLock;

use crate::error::{RawError, Result, check};

unsafe extern "C" {
    fn fnet_take_diagnostics(take: unsafe extern "C" fn(*const c_char, usize)) -> *mut RawError;
}

static TAKE: OnceLock<fn(&Diagnostic<'_>)> = OnceLock::new();

/// How serious the library takes a line to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// A remark or a warning, or a line that does not say.
    Note,
    /// Something failed.
    Error,
}

/// A line that a library has printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Diagnostic<'a> {
    /// By the letter that c10 and glog begin with.
    pub severity: Severity,
    /// What it says, without time, file and line.
    pub text: &'a str,
    /// The whole line.
    pub line: &'a str,
}

impl<'a> Diagnostic<'a> {
    /// Takes `[E1130 01:41:17.570 file.cpp:12] text` and `[rank0]:[W1130 01:41:17 file.cpp:12] text` apart.
    fn of(line: &'a str) -> Self {
        let plain = Self { severity: Severity::Note, text: line, line };
        let rest = line.strip_prefix("[rank").and_then(|rest| Some(rest.split_once("]:")?.1)).unwrap_or(line);
        let Some((head, text)) = rest.strip_prefix('[').and_then(|rest| rest.split_once("] ")) else { return plain };
        let mut head = head.chars();
        match (head.next(), head.next()) {
            (Some('I' | 'W'), Some('0'..='9')) => Self { text, ..plain },
            (Some('E' | 'F'), Some('0'..='9')) => Self { severity: Severity::Error, text, ..plain },
            _ => plain,
        }
    }
}

/// From now on `take` gets each line in place of stderr, on the thread that printed it; it must neither panic nor block.
/// To be called before other threads are started; only the first one counts.
pub fn capture(take: fn(&Diagnostic<'_>)) -> Result<()> {
    if TAKE.set(take).is_err() {
        return Ok(());
    }
    // SAFETY: the function is valid to the end of the process.
    check(unsafe { fnet_take_diagnostics(taken) })
}

/// # Safety
/// `text` is `length` bytes.
unsafe extern "C" fn taken(text: *const c_char, length: usize) {
    // SAFETY: as the caller promises.
    let bytes = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), length) };
    if let (Some(take), false) = (TAKE.get(), bytes.is_empty()) {
        take(&Diagnostic::of(&String::from_utf8_lossy(bytes)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tch::{Device, Kind, Tensor};

    use super::*;

    static TAKEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

    #[test]
    fn lines_are_taken_apart() {
        let apart = |line| {
            let Diagnostic { severity, text, .. } = Diagnostic::of(line);
            (severity, text)
        };
        assert_eq!(apart("[W1130 01:41:17.5 a.cpp:12] Warning: b"), (Severity::Note, "Warning: b"));
        assert_eq!(apart("[rank1]:[E1130 01:41:17.5 a.cpp:12] [PG 1] b"), (Severity::Error, "[PG 1] b"));
        for line in ["[Watch] b", "[E1130 without an end", "b", "[]", "[rank0] b"] {
            assert_eq!(apart(line), (Severity::Note, line));
        }
    }

    /// In a process of its own, whose stderr must stay empty.
    #[test]
    fn warnings_of_all_threads_are_taken_and_nothing_reaches_stderr() {
        let body = "diagnostics::tests::body_warnings";
        let program = std::env::current_exe().unwrap();
        let output = std::process::Command::new(program).args(["--exact", body, "--ignored"]).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}{stderr}");
        assert_eq!(stderr, "");
    }

    #[test]
    #[ignore = "run by another test, in a process of its own"]
    fn body_warnings() {
        capture(|diagnostic| TAKEN.lock().unwrap().push(format!("{:?} {}", diagnostic.severity, diagnostic.text)))
            .unwrap();
        let warn = || {
            let zeros = |size: i64| Tensor::zeros([size], (Kind::Float, Device::Cpu));
            let _ = zeros(2).add_out(&zeros(3), &zeros(2));
        };
        warn();
        std::thread::spawn(warn).join().unwrap();
        let taken = TAKEN.lock().unwrap();
        let count =
            taken.iter().filter(|line| line.starts_with("Note Warning: An output with one or more elements")).count();
        assert_eq!(count, 2, "{taken:?}");
    }
}
