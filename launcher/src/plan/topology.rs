//! The CPUs of this machine: allowed CPUs, cores and NUMA nodes.

use std::fs;
use std::path::{Path, PathBuf};

use fnet_protocol::cgroup::{self, Version};
use fnet_protocol::cli::CpuList;

/// A core, with the hardware threads that this process may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Core {
    /// Its hardware threads.
    pub cpus: CpuList,
    /// Its NUMA node.
    pub node: usize,
}

/// The CPUs that this process may use.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Topology {
    /// The cores in the order of NUMA nodes and numbers; empty if unknown.
    pub cores: Vec<Core>,
    /// The NUMA nodes of the machine with all their CPUs.
    pub nodes: Vec<(usize, CpuList)>,
    /// The CPU quota of the control group in CPUs, if there is one.
    pub quota: Option<f64>,
}

impl Topology {
    /// Reads the kernel's files below `root` (`/`) for a process that may use `allowed`.
    pub fn read(root: &Path, allowed: &CpuList) -> Self {
        let nodes = nodes(&root.join("sys/devices/system/node"));
        let node_of = |cpu| nodes.iter().find(|(_, cpus)| cpus.contains(cpu)).map_or(0, |(node, _)| *node);
        let mut cores: Vec<Core> = Vec::new();
        for cpu in allowed.iter() {
            if cores.iter().any(|core| core.cpus.contains(cpu)) {
                continue;
            }
            let file = root.join(format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"));
            let siblings = list(&file).map(|siblings| siblings.within(allowed)).filter(|all| all.contains(cpu));
            let cpus = siblings.unwrap_or_else(|| CpuList::from_iter([cpu]));
            cores.push(Core { cpus, node: node_of(cpu) });
        }
        cores.sort_by_key(|core| (core.node, core.cpus.iter().next()));
        Self { cores, nodes, quota: quota(root) }
    }

    /// All CPUs that this process may use.
    pub fn cpus(&self) -> CpuList {
        self.cores.iter().flat_map(|core| core.cpus.iter()).collect()
    }
}

/// The CPUs that this process may use, according to taskset, control groups and batch systems; empty if unknown.
pub fn allowed() -> CpuList {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else { return CpuList::default() };
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect()
}

pub fn list(file: &Path) -> Option<CpuList> {
    fs::read_to_string(file).ok()?.parse().ok()
}

fn nodes(folder: &Path) -> Vec<(usize, CpuList)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let node = |entry: fs::DirEntry| {
        let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
        // The list of a node without CPUs is empty, which does not parse.
        Some((number, list(&entry.path().join("cpulist")).unwrap_or_default()))
    };
    let mut nodes: Vec<(usize, CpuList)> = entries.filter_map(|entry| node(entry.ok()?)).collect();
    nodes.sort();
    nodes
}

/// The smallest CPU quota of this process's control group and its parents.
fn quota(root: &Path) -> Option<f64> {
    let limit = |(version, folder): (Version, PathBuf)| match version {
        Version::One => quota_v1(&folder),
        Version::Two => quota_v2(&folder),
    };
    cgroup::folders(root, &["cpu", "cpu,cpuacct"]).into_iter().filter_map(limit).reduce(f64::min)
}

/// `cpu.max`: `200000 100000`, or `max 100000`.
fn quota_v2(group: &Path) -> Option<f64> {
    let text = fs::read_to_string(group.join("cpu.max")).ok()?;
    let (quota, period) = text.trim().split_once(' ')?;
    share(quota.parse().ok()?, period.parse().ok()?)
}

/// `cpu.cfs_quota_us` (-1 for none) over `cpu.cfs_period_us`.
fn quota_v1(group: &Path) -> Option<f64> {
    let number = |name: &str| fs::read_to_string(group.join(name)).ok()?.trim().parse::<f64>().ok();
    share(number("cpu.cfs_quota_us")?, number("cpu.cfs_period_us")?)
}

fn share(quota: f64, period: f64) -> Option<f64> {
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

#[cfg(test)]
mod tests {
    use super::super::tests::write;
    use super::*;

    #[test]
    fn cores_are_ordered_by_node_and_contain_the_allowed_siblings() {
        let root = tempfile::tempdir().unwrap();
        // Siblings have distant numbers on most machines.
        for cpu in 0..8 {
            let file = format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            write(root.path(), &file, &format!("{},{}\n", cpu % 4, cpu % 4 + 4));
        }
        write(root.path(), "sys/devices/system/node/node0/cpulist", "1,3,5,7\n");
        write(root.path(), "sys/devices/system/node/node1/cpulist", "0,2,4,6\n");
        write(root.path(), "sys/devices/system/node/node2/cpulist", "\n");
        let topology = Topology::read(root.path(), &"0-6".parse().unwrap());
        let cores: Vec<_> = topology.cores.iter().map(|core| (core.cpus.to_string(), core.node)).collect();
        assert_eq!(cores, [("1,5", 0), ("3", 0), ("0,4", 1), ("2,6", 1)].map(|(cpus, node)| (cpus.into(), node)));
        assert_eq!((topology.nodes.len(), topology.quota), (3, None));
        assert_eq!(topology.cpus().to_string(), "0-6");
    }

    #[test]
    fn without_the_kernels_files_every_cpu_is_a_core() {
        let root = tempfile::tempdir().unwrap();
        let topology = Topology::read(root.path(), &"0-2".parse().unwrap());
        assert_eq!(topology.cores.len(), 3);
        assert!(topology.cores.iter().all(|core| core.node == 0));
    }

    #[test]
    fn the_smallest_limit_of_both_versions_of_control_groups_counts() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "proc/self/cgroup", "0::/a/b\n");
        write(root.path(), "sys/fs/cgroup/a/cpu.max", "150000 100000\n");
        write(root.path(), "sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
        assert_eq!(quota(root.path()), Some(1.5));
        write(root.path(), "proc/self/cgroup", "4:cpu,cpuacct:/gone\n");
        write(root.path(), "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "400000\n");
        write(root.path(), "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
        assert_eq!(quota(root.path()), Some(4.0));
        write(root.path(), "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
        assert_eq!(quota(root.path()), None);
    }
}
