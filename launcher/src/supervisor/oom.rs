//! Whether the kernel killed a worker because memory ran out, from its counters for control groups (version 1 and 2) and for
//! the machine.

use std::cell::RefCell;
use std::fs;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use fnet_protocol::cgroup::{self, Version};
use fnet_protocol::fault;
use rustix::fs::OFlags;
use rustix::io::Errno;

/// The out-of-memory kills since the start of an attempt.
pub struct OomKills {
    /// The text of the launcher's /proc/PID/cgroup.
    groups: String,
    /// The file with the counter of the launcher's control group.
    own: Option<PathBuf>,
    own_before: u64,
    machine_before: u64,
    log: RefCell<KernelLog>,
}

const GROUPS: &str = "/sys/fs/cgroup";
const MACHINE: &str = "/proc/vmstat";

impl OomKills {
    /// Reads the counters of the machine and of this process's control group.
    pub fn from_now() -> Self {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = file_of(&groups, Path::new(GROUPS));
        Self {
            own_before: own.as_deref().map_or(0, count),
            own,
            machine_before: count(Path::new(MACHINE)),
            groups,
            log: RefCell::new(KernelLog::from_now()),
        }
    }

    /// The reason why the killed worker `process`, with `groups` as the text of its /proc/PID/cgroup, ran out of memory; `None`
    /// if the kernel did not kill it for that.
    pub fn explain(&self, process: i32, groups: &str) -> Option<String> {
        // In version 1 a dead process has left its group, so the group of an injected fault is found by its name.
        let group =
            self.fault_group(process).map(|folder| count_file(&folder)).or_else(|| file_of(groups, Path::new(GROUPS)));
        // A separate group was created for this worker, so all its kills are new.
        let before = if group == self.own { self.own_before } else { 0 };
        let in_group = group.as_deref().map_or(0, count).saturating_sub(before);
        let on_machine = count(Path::new(MACHINE)).saturating_sub(self.machine_before);
        // The counter of the machine includes kills in control groups of other jobs.
        let is_other = in_group == 0 && on_machine > 0 && self.log.borrow_mut().has_killed(process) == Some(false);
        if is_other { None } else { judge(in_group, on_machine, group.as_deref()) }
    }

    /// The control group of a worker with an injected out-of-memory fault.
    fn fault_group(&self, process: i32) -> Option<PathBuf> {
        let (folder, _) = fault::control_group(&self.groups, Path::new(GROUPS), u32::try_from(process).ok()?)?;
        folder.is_dir().then_some(folder)
    }

    /// Removes the control group of an injected fault after the exit of the worker.
    pub fn remove_fault_group(&self, process: i32) {
        if let Some(folder) = self.fault_group(process) {
            // A group with processes cannot be removed, and stays.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// The kernel log since the start of an attempt.
struct KernelLog {
    /// `None` if this process may not read it, or has other process ids than the kernel.
    file: Option<fs::File>,
    text: String,
}

impl KernelLog {
    fn from_now() -> Self {
        let opened =
            fs::File::options().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open("/dev/kmsg");
        let file = opened.ok().filter(|_| is_first_process_namespace());
        let file = file.and_then(|mut file| file.seek(SeekFrom::End(0)).ok().map(|_| file));
        Self { file, text: String::new() }
    }

    /// Whether the kernel has killed this process for memory, if known.
    fn has_killed(&mut self, process: i32) -> Option<bool> {
        let file = self.file.as_mut()?;
        let mut record = [0; 8192];
        loop {
            match file.read(&mut record) {
                Ok(0) => break,
                Ok(length) => self.text += &String::from_utf8_lossy(&record[..length]),
                // Older records were overwritten; continue with the next one.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::PIPE) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return None,
            }
        }
        Some(self.text.contains(&format!("Killed process {process} (")))
    }
}

/// Whether process ids here are those of the kernel log.
fn is_first_process_namespace() -> bool {
    const FIRST: &str = "pid:[4026531836]";
    fs::read_link("/proc/self/ns/pid").is_ok_and(|name| name == Path::new(FIRST))
}

/// The file with the counter of a group.
fn count_file(folder: &Path) -> PathBuf {
    let second = folder.join("memory.events");
    if second.is_file() { second } else { folder.join("memory.oom_control") }
}

/// The reason for kills in the worker's control group or on the machine.
fn judge(in_group: u64, on_machine: u64, group: Option<&Path>) -> Option<String> {
    const REMEDY: &str = "use a smaller batch, fewer workers or loader threads";
    match group {
        Some(group) if in_group > 0 => Some(format!(
            "out of memory: the limit of its control group was reached, and the kernel killed it ({}); {REMEDY}, or raise \
             the limit",
            group.display()
        )),
        _ if on_machine > 0 => Some(format!(
            "out of memory: the machine had none left, and the kernel killed it ({MACHINE}, oom_kill); {REMEDY}, or stop \
             other programs"
        )),
        _ => None,
    }
}

/// The file with the counter of a process's group, or of the root as a container sees it.
fn file_of(groups: &str, root: &Path) -> Option<PathBuf> {
    files(groups, root).into_iter().find(|file| file.is_file())
}

/// Candidates for that file: the group's own, then the root as a container sees it.
fn files(groups: &str, root: &Path) -> Vec<PathBuf> {
    let own = cgroup::groups(groups, "memory").map(|(version, path)| match version {
        Version::Two => root.join(path).join("memory.events"),
        Version::One => root.join("memory").join(path).join("memory.oom_control"),
    });
    let mut files: Vec<PathBuf> = own.collect();
    files.extend([root.join("memory.events"), root.join("memory/memory.oom_control")]);
    files
}

fn count(file: &Path) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_control_groups_are_read() {
        let root = Path::new("/g");
        assert_eq!(files("0::/job/a\n", root)[0], Path::new("/g/job/a/memory.events"));
        assert_eq!(files("5:cpu,memory:/job\n1:name=x:/y\n", root)[0], Path::new("/g/memory/job/memory.oom_control"));
    }

    #[test]
    fn the_kernel_log_names_killed_processes() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(
            &mut file,
            b"6,1,2,-;Memory cgroup out of memory: Killed process 171 (python) total-vm:1\n",
        )
        .unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut log = KernelLog { file: Some(file), text: String::new() };
        assert_eq!(
            (log.has_killed(17), log.has_killed(171), log.has_killed(1)),
            (Some(false), Some(true), Some(false))
        );
        assert_eq!(KernelLog { file: None, text: String::new() }.has_killed(171), None);
    }

    #[test]
    fn the_counter_is_that_of_kills() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("memory.events");
        fs::write(&file, "low 0\noom 3\noom_kill 2\noom_group_kill 1\n").unwrap();
        assert_eq!(count(&file), 2);
    }

    #[test]
    fn the_group_explains_a_kill_before_the_machine_does() {
        let group = Path::new("/g/memory.events");
        assert!(judge(1, 1, Some(group)).unwrap().contains("its control group"));
        assert!(judge(0, 1, Some(group)).unwrap().contains("the machine had none left"));
        assert_eq!(judge(0, 0, Some(group)), None);
    }
}
