//! Options that take several values.

use std::ffi::{OsStr, OsString};

/// Rewrites `--set a=1 b=2` and `--eval bbox segm` as one option per value (`--set=a=1 --set=b=2`), so that clap takes the
/// next word as a positional argument: values of `--set` contain a `=`, and `--eval` has a fixed list of values.
/// `--resume` takes at most one value, whose name ends like a checkpoint's; `--resume=auto` is `--auto-resume`.
pub fn one_value_each(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut written = Vec::new();
    // The option whose values may follow, and whether it still lacks its first one.
    let mut open: Option<(&'static str, bool)> = None;
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            close(&mut open, &mut written);
            written.push(argument);
            written.extend(arguments);
            return written;
        }
        if let Some(option) = option_of(&argument) {
            close(&mut open, &mut written);
            open = Some((option, argument == option));
            if argument == AUTO {
                written.push("--auto-resume".into());
            } else if argument != option {
                written.push(argument);
            }
        } else if let Some((option, lacks_value)) = open
            && (lacks_value || option != RESUME)
            && is_value(option, &argument.to_string_lossy())
        {
            written.push(joined(option, &argument));
            open = Some((option, false));
        } else {
            close(&mut open, &mut written);
            written.push(argument);
        }
    }
    close(&mut open, &mut written);
    written
}

/// The only one of these options that may stand without a value.
pub const RESUME: &str = "--resume";
const AUTO: &str = "--resume=auto";

/// Leaves an option without a value for clap to report; `=` keeps it from taking the next argument.
fn close(open: &mut Option<(&'static str, bool)>, written: &mut Vec<OsString>) {
    match open.take() {
        Some((RESUME, true)) => written.push(RESUME.into()),
        Some((option, true)) => written.push(joined(option, OsStr::new(""))),
        _ => {}
    }
}

/// The option with several values at the start of an argument (`--set`, `--set=a=1`).
fn option_of(argument: &OsStr) -> Option<&'static str> {
    let text = argument.to_string_lossy();
    ["--set", "--cfg-options", "--eval", RESUME]
        .into_iter()
        .find(|option| text.strip_prefix(option).is_some_and(|rest| rest.is_empty() || rest.starts_with('=')))
}

/// Whether an argument after `option` belongs to it.
pub fn is_value(option: &str, text: &str) -> bool {
    match option {
        // MMDetection has the last one; clap reports that it is not supported.
        "--eval" => matches!(text, "bbox" | "segm" | "proposal" | "proposal_fast"),
        RESUME if text == "auto" => true,
        RESUME => !text.starts_with('-') && [".ckpt", ".pth", ".pt"].iter().any(|ending| text.ends_with(ending)),
        _ => text.contains('=') && !text.starts_with('-'),
    }
}

fn joined(option: &str, value: &OsStr) -> OsString {
    if option == RESUME && value == "auto" {
        return "--auto-resume".into();
    }
    let mut whole = OsString::from(option);
    whole.push("=");
    whole.push(value);
    whole
}
