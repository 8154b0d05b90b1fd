//! The memory of this machine, within the limit of the control group.

use std::fs;
use std::path::Path;

use fnet_protocol::cgroup::{self, Version};

/// Bytes of memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Total memory of the machine, or the limit of the control group if that is smaller.
    pub total: u64,
    /// Available memory.
    pub available: u64,
    /// The limit of the control group, if it is smaller than the machine.
    pub limit: Option<u64>,
}

/// Reads the kernel's files below `root` (`/`); zeros if unknown.
pub fn memory(root: &Path) -> Memory {
    let text = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    let field = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        rest.trim().split(' ').next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    let machine =
        Memory { total: field("MemTotal:").unwrap_or(0), available: field("MemAvailable:").unwrap_or(0), limit: None };
    let within = |memory: Memory, (limit, used): (u64, u64)| {
        if limit >= memory.total {
            return memory;
        }
        let available = memory.available.min(limit.saturating_sub(used));
        Memory { total: limit, available, limit: Some(limit) }
    };
    let folders = cgroup::folders(root, &["memory"]).into_iter();
    folders.filter_map(|(version, folder)| limit(version, &folder)).fold(machine, within)
}

/// Limit and usage of a control group. Reclaimable file pages count as free.
fn limit(version: Version, folder: &Path) -> Option<(u64, u64)> {
    let [limit, used, inactive] = match version {
        Version::Two => ["memory.max", "memory.current", "inactive_file "],
        Version::One => ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "],
    };
    let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    // `max` is not a number, and means no limit.
    let (limit, used) = (number(limit)?, number(used)?);
    let statistics = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let cached = statistics.lines().find_map(|line| line.strip_prefix(inactive)?.trim().parse().ok());
    Some((limit, used.saturating_sub(cached.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::super::tests::write;
    use super::*;

    #[test]
    fn the_control_group_counts_if_it_allows_less_than_the_machine() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert_eq!(memory(root), Memory::default());
        write(root, "proc/meminfo", "MemTotal: 100 kB\nMemAvailable:   60 kB\n");
        let machine = Memory { total: 102_400, available: 61_440, limit: None };
        assert_eq!(memory(root), machine);
        write(root, "proc/self/cgroup", "3:cpu:/x\n0::/job/a\n");
        write(root, "sys/fs/cgroup/job/a/memory.max", "max\n");
        write(root, "sys/fs/cgroup/job/a/memory.current", "5000\n");
        assert_eq!(memory(root), machine);
        write(root, "sys/fs/cgroup/job/memory.max", "40000\n");
        write(root, "sys/fs/cgroup/job/memory.current", "30000\n");
        write(root, "sys/fs/cgroup/job/memory.stat", "anon 1\ninactive_file 10000\n");
        assert_eq!(memory(root), Memory { total: 40_000, available: 20_000, limit: Some(40_000) });
        write(root, "proc/self/cgroup", "4:memory:/gone\n");
        write(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "50000\n");
        write(root, "sys/fs/cgroup/memory/memory.usage_in_bytes", "10000\n");
        assert_eq!(memory(root), Memory { total: 50_000, available: 40_000, limit: Some(50_000) });
    }
}
