//! The kernel's count of processes it killed for memory in this process's control group (version 1 and 2).

use std::fs;
use std::path::{Path, PathBuf};

/// The file with the count, and the count at the start.
pub struct KillCount {
    file: Option<PathBuf>,
    before: u64,
}

impl KillCount {
    /// Reads the count of the group that this process is in.
    pub fn now() -> Self {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let file = files(&groups, Path::new("/sys/fs/cgroup")).into_iter().find(|file| file.is_file());
        let before = file.as_deref().map_or(0, count);
        Self { file, before }
    }

    /// What to say if processes were killed since.
    pub fn finding(&self) -> Option<String> {
        let file = self.file.as_deref()?;
        let killed = count(file).saturating_sub(self.before);
        (killed > 0).then(|| {
            format!(
                "the memory limit of its control group was reached, and the kernel ended it ({}); use a smaller batch, \
                 fewer workers or loader threads, or raise the limit",
                file.display()
            )
        })
    }
}

/// Candidates for the count, the group's own first, then the root as a container sees it.
fn files(groups: &str, root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let path = path.trim_start_matches('/');
        if controllers.is_empty() {
            files.push(root.join(path).join("memory.events"));
        } else if controllers.split(',').any(|name| name == "memory") {
            files.push(root.join("memory").join(path).join("memory.oom_control"));
        }
    }
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
    fn the_count_is_that_of_kills() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("memory.events");
        fs::write(&file, "low 0\noom 3\noom_kill 2\noom_group_kill 1\n").unwrap();
        assert_eq!(count(&file), 2);
        let since = KillCount { file: Some(file.clone()), before: 2 };
        assert_eq!(since.finding(), None);
        fs::write(&file, "oom_kill 3\n").unwrap();
        assert!(since.finding().unwrap().contains("memory limit"));
    }
}
