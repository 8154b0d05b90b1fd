//! Formatting for users.

use std::ffi::OsString;
use std::time::Duration;

use fnet_protocol::cli::CpuList;
pub use fnet_protocol::text::count;
use fnet_protocol::text::shell_word;

/// A command line that a shell splits into these arguments.
pub fn shell_line(arguments: &[OsString]) -> String {
    let quoted: Vec<String> = arguments.iter().map(|argument| shell_word(&argument.to_string_lossy())).collect();
    quoted.join(" ")
}

/// `1:02:03` or `2:03`.
pub fn clock(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds).map_or(0, |time| time.as_secs());
    let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// `1.5 GiB`.
pub fn bytes(count: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
    let mut value = count as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") }
}

/// `a`, `a and b`, `a, b and c`.
pub fn list(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [rest @ .., last] => format!("{} and {last}", rest.join(", ")),
    }
}

/// `rank 3`, `ranks 0-2,5`, as lists of CPUs are written.
pub fn ranks(numbers: &[usize]) -> String {
    let list: CpuList = numbers.iter().copied().collect();
    format!("rank{} {list}", if numbers.len() == 1 { "" } else { "s" })
}

/// Name of a signal, and its usual cause.
pub fn signal(number: i32) -> (String, &'static str) {
    let (name, meaning) = match number {
        0 => ("an unknown signal", "the operating system does not report how it exited"),
        1 => ("SIGHUP", "its terminal was closed"),
        2 => ("SIGINT", "interrupted"),
        3 => ("SIGQUIT", "terminated by another process"),
        4 => ("SIGILL", "a crash: an instruction that this CPU does not support"),
        6 => ("SIGABRT", "a crash: native code aborted; see its last lines"),
        7 => ("SIGBUS", "a crash: often a full disk or /dev/shm under a mapped file"),
        8 => ("SIGFPE", "a crash: an arithmetic error"),
        9 => ("SIGKILL", "by a user, a batch system, or the kernel if memory ran out"),
        10 => ("SIGUSR1", "terminated by another process"),
        11 => ("SIGSEGV", "a crash in native code"),
        12 => ("SIGUSR2", "terminated by another process"),
        13 => ("SIGPIPE", "its output was closed"),
        15 => ("SIGTERM", "terminated by another process"),
        24 => ("SIGXCPU", "its CPU time limit was exceeded"),
        25 => ("SIGXFSZ", "its file size limit was exceeded"),
        31 => ("SIGSYS", "a sandbox forbids a system call"),
        _ => return (format!("signal {number}"), "terminated by another process"),
    };
    (name.to_owned(), meaning)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_line_can_be_pasted() {
        let line = ["fnet-launch", "train", "my cfg.toml", "--set=a=[1, 2]", "it's", ""].map(OsString::from);
        assert_eq!(shell_line(&line), r"fnet-launch train 'my cfg.toml' '--set=a=[1, 2]' 'it'\''s' ''");
    }

    #[test]
    fn times_and_sizes_are_short() {
        assert_eq!((clock(62.9), clock(3723.0), clock(f64::NAN)), ("1:02".into(), "1:02:03".into(), "0:00".into()));
        assert_eq!((bytes(10), bytes(1536)), ("10 B".into(), "1.5 KiB".into()));
        assert_eq!((ranks(&[3]), ranks(&[0, 1, 2, 5])), ("rank 3".into(), "ranks 0-2,5".into()));
        let names = |count: usize| ["a", "b", "c"][..count].iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!([0, 1, 2, 3].map(|count| list(&names(count))), ["", "a", "a and b", "a, b and c"]);
    }
}
