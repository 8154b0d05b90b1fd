//! What the kernel knows about a worker that hangs: stopped, blocked in the kernel, reading a file.

use std::fs;
use std::path::{Path, PathBuf};

/// Maximum number of threads to list.
const MAX_THREADS: usize = 4;

/// Resident memory of the process `pid` in bytes.
pub fn resident_bytes(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kilobytes =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
    kilobytes.map(|kilobytes: u64| kilobytes << 10)
}

/// What blocks the process `pid`, if the kernel shows it.
pub fn describe_blocked(pid: i32) -> Option<String> {
    describe(&threads(&Path::new("/proc").join(pid.to_string())))
}

/// A thread according to /proc.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Thread {
    name: String,
    /// `T` stopped, `D` blocked in the kernel, `S` asleep, `R` running, `Z` zombie.
    state: char,
    /// The system call on a file that it is in, and the file, if known.
    file: Option<(&'static str, String)>,
}

fn threads(process: &Path) -> Vec<Thread> {
    let Ok(entries) = fs::read_dir(process.join("task")) else { return Vec::new() };
    let mut folders: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    folders.sort();
    folders.iter().filter_map(|folder| thread(process, folder)).collect()
}

fn thread(process: &Path, folder: &Path) -> Option<Thread> {
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    let state = rest.trim_start().chars().next()?;
    let call = fs::read_to_string(folder.join("syscall")).unwrap_or_default();
    let file = file_call(&call).and_then(|(call, descriptor)| match descriptor {
        Some(number) => {
            let target = fs::read_link(process.join("fd").join(number.to_string())).ok()?;
            // Threads wait for work on pipes and sockets.
            target.is_absolute().then(|| (call, target.display().to_string()))
        }
        None => Some((call, String::new())),
    });
    Some(Thread { name: name.to_owned(), state, file })
}

/// The system call on a file in a line of /proc/PID/syscall (number, then arguments in hexadecimal), and its descriptor.
fn file_call(line: &str) -> Option<(&'static str, Option<u64>)> {
    let mut words = line.split_whitespace();
    let number: i64 = words.next()?.parse().ok()?;
    let descriptor = words.next().and_then(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok());
    let name = match number {
        libc::SYS_read | libc::SYS_pread64 | libc::SYS_readv => "read",
        libc::SYS_write | libc::SYS_pwrite64 | libc::SYS_writev => "write",
        libc::SYS_fsync | libc::SYS_fdatasync => "fsync",
        libc::SYS_openat => return Some(("open", None)),
        _ => return None,
    };
    Some((name, Some(descriptor?)))
}

fn describe(threads: &[Thread]) -> Option<String> {
    if threads.iter().any(|thread| matches!(thread.state, 'T' | 't')) {
        return Some("it is stopped, by SIGSTOP or a debugger; kill -CONT continues it".to_owned());
    }
    let in_call = |thread: &&Thread| thread.file.is_some();
    let mut found: Vec<String> = threads
        .iter()
        .filter(in_call)
        .take(MAX_THREADS)
        .filter_map(|thread| {
            let (call, file) = thread.file.as_ref()?;
            let of = if file.is_empty() { " of a file".to_owned() } else { format!(" of {file}") };
            let how = if thread.state == 'D' { " that does not return from the kernel" } else { "" };
            Some(format!("its thread {} is in a {call}{of}{how}", thread.name))
        })
        .collect();
    let blocked = threads.iter().filter(|thread| thread.state == 'D' && thread.file.is_none()).take(MAX_THREADS);
    found.extend(
        blocked.map(|thread| format!("its thread {} is blocked in the kernel (disk, network drive)", thread.name)),
    );
    (!found.is_empty()).then(|| found.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread(state: char, file: Option<(&'static str, &str)>) -> Thread {
        Thread { name: "loader-0".into(), state, file: file.map(|(call, path)| (call, path.to_owned())) }
    }

    #[test]
    fn a_stopped_process_and_one_that_waits_for_a_disk_are_distinguished() {
        assert!(describe(&[thread('T', None)]).unwrap().contains("SIGSTOP"));
        let reads = describe(&[thread('S', None), thread('S', Some(("read", "/mnt/a.jpg")))]).unwrap();
        assert_eq!(reads, "its thread loader-0 is in a read of /mnt/a.jpg");
        assert!(describe(&[thread('D', None)]).unwrap().contains("network drive"));
        assert_eq!(describe(&[thread('S', None), thread('R', None)]), None);
    }

    #[test]
    fn system_calls_on_files_are_distinguished_from_waiting() {
        let line = format!("{} 0x7 0x7f 0x10 0x0", libc::SYS_read);
        assert_eq!(file_call(&line), Some(("read", Some(7))));
        assert_eq!(file_call("running"), None);
        assert_eq!(file_call(&format!("{} 0x1", libc::SYS_futex)), None);
    }

    #[test]
    fn this_process_can_be_inspected() {
        let found = threads(Path::new("/proc/self"));
        assert!(!found.is_empty() && found.iter().all(|thread| !thread.name.is_empty()));
    }
}
