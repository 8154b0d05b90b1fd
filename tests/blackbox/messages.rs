//! What no user may see in any message or log: words of a library about itself, a crash, a message without a text.

use std::fs;
use std::path::Path;

/// Parts of lines that only a library or a crash writes.
const RAW: [&str; 14] = [
    "panicked at",
    "terminate called",
    "what():  ",
    "std::bad_alloc",
    "Segmentation fault",
    "AddressSanitizer",
    "double free",
    "free(): invalid",
    "corrupted size",
    "Corrupt JPEG data",
    "libpng ",
    "OMP: ",
    "OpenBLAS",
    "c10::Error",
];

/// Ends of lines after which a text is missing.
const EMPTY: [&str; 6] = ["error:", "warning:", "fnet-launch:", "fnet-worker:", "failed:", "because"];

/// Fails if a line of `text`, which `source` wrote, is not fit for a user.
pub fn assert_fit(source: &str, text: &str) {
    let unfit: Vec<&str> = text.lines().filter(|line| !is_fit(line)).collect();
    assert!(unfit.is_empty(), "{source}: a raw or empty message: {unfit:?}\nin\n{text}");
}

/// The same for all logs in a folder.
pub fn assert_logs_fit(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        // A link may lead out of the folder.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            assert_logs_fit(&path);
        } else if path.extension().is_some_and(|extension| extension == "log") || path.ends_with("stderr.txt") {
            assert_fit(&path.display().to_string(), &String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()));
        }
    }
}

fn is_fit(line: &str) -> bool {
    let line = line.trim_end();
    // A test ordered this panic.
    line.contains("panicked at crates/train/src/fault.rs")
        || !(RAW.iter().any(|raw| line.contains(raw)) || EMPTY.iter().any(|end| line.ends_with(end)) || is_of_c10(line))
}

/// `[W1130 01:41:17.570 file.cpp:12] text`, also of a rank and behind the launcher's mark of a worker.
fn is_of_c10(line: &str) -> bool {
    let starts = line.match_indices('[').map(|(at, _)| (&line[..at], &line[at + 1..]));
    starts.into_iter().any(|(before, rest)| {
        let mut rest = rest.chars();
        let severity = matches!(rest.next(), Some('I' | 'W' | 'E' | 'F'));
        // The log quotes such lines behind words of its own.
        severity && rest.take(4).filter(char::is_ascii_digit).count() == 4 && !before.contains("libtorch: ")
    })
}

#[test]
fn a_line_that_no_user_should_see_is_found() {
    for line in [
        "[W1130 01:41:17.570 reducer.cpp:12] Warning: Grad strides do not match",
        "[rank1]:[E1130 01:41:17 ProcessGroup.cpp:1] [PG 1] timeout",
        "1 | [W1130 01:41:17.570 a.cpp:12] b",
        "thread 'main' panicked at src/main.rs:1:1:",
        "fnet-launch: ",
        "  error:",
    ] {
        assert!(!is_fit(line), "{line}");
    }
    for line in [
        "",
        "thread 'main' panicked at crates/train/src/fault.rs:1:1:",
        "[2026-11-30 01:41:17] step 1",
        "debug: note 1 of libtorch: [W1130 01:41:17.570 a.cpp:12] b",
        "error: the disk is full",
        "[Watch]",
    ] {
        assert!(is_fit(line), "{line}");
    }
}
