//! CPUs, memory, disk, shared memory, limits, ports.

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::path::Path;

use rustix::process::Resource;

use super::Finding;
use crate::limits::{self, Memory};
use crate::topology::{self, Topology};
use crate::{checks, text};

const GIB: u64 = 1 << 30;

/// What can be told of the machine, with the kernel's files below `root`.
pub fn findings(root: &Path) -> Vec<Finding> {
    let mut findings = vec![
        processors(&Topology::read(root, &topology::allowed())),
        memory(limits::memory(root)),
        disk(Path::new("."), "disk", 10 * GIB, "free some space, or give --work-dir on another disk"),
        disk(
            Path::new("/dev/shm"),
            "shared memory",
            GIB,
            "give the container more (docker run --shm-size=8g); NCCL keeps its buffers there",
        ),
        open_files(
            rustix::process::getrlimit(Resource::Nofile).current,
            rustix::process::getrlimit(Resource::Nofile).maximum,
        ),
        locked_memory(rustix::process::getrlimit(Resource::Memlock).current),
        ports(),
    ];
    let (folder, why) = checks::writable(&std::env::current_dir().unwrap_or_default().join("work_dirs"));
    if let Some(why) = why {
        let found = format!("{} cannot be written to: {why}", folder.display());
        findings.push(Finding::doubtful("work folder", found, "run in another folder, or give --work-dir"));
    }
    findings
}

fn processors(topology: &Topology) -> Finding {
    let cpus = topology.cpus().len();
    let nodes = match topology.nodes.len() {
        0 | 1 => String::new(),
        count => format!(" on {count} memory nodes"),
    };
    let found = format!("{} with {}{nodes}", text::count(topology.cores.len(), "core"), text::count(cpus, "thread"));
    match topology.quota {
        #[expect(clippy::cast_precision_loss, reason = "a number of CPUs")]
        Some(quota) if quota < cpus as f64 => {
            let found = format!("{found}, of which the control group allows {quota:.1} CPUs' worth of time");
            Finding::good_if(quota >= 1.0, "processors", found, "give the container more CPUs (docker run --cpus)")
        }
        _ => Finding::good_if(cpus > 0, "processors", found, "the system does not say how many"),
    }
}

fn memory(memory: Memory) -> Finding {
    let limit = memory
        .limit
        .map_or_else(String::new, |limit| format!(", the limit of the control group is {}", text::bytes(limit)));
    let found = format!("{} of {} available{limit}", text::bytes(memory.available), text::bytes(memory.total));
    let remedy = match memory.limit {
        Some(_) => "a worker needs 2 GiB or more; raise the limit (docker run --memory, Slurm --mem)",
        None => "a worker needs 2 GiB or more; close other programs",
    };
    Finding::good_if(memory.available >= 2 * GIB, "memory", found, remedy)
}

fn disk(folder: &Path, what: &'static str, least: u64, remedy: &'static str) -> Finding {
    match checks::free_space(folder) {
        Some(free) => {
            let found = format!("{} free in {}", text::bytes(free), folder.display());
            Finding::good_if(free >= least, what, found, remedy)
        }
        None => Finding::doubtful(what, format!("{} is not there", folder.display()), remedy),
    }
}

fn open_files(soft: Option<u64>, hard: Option<u64>) -> Finding {
    let number = |limit: Option<u64>| limit.map_or_else(|| "any number".to_owned(), |limit| limit.to_string());
    let found = format!("{} per process, up to {} if need be", number(soft), number(hard));
    Finding::good_if(
        hard.is_none_or(|hard| hard >= 4096),
        "open files",
        found,
        "raise it: ulimit -Hn 65536, or docker run --ulimit nofile=65536",
    )
}

/// InfiniBand and pinned host memory need pages that stay in memory.
fn locked_memory(limit: Option<u64>) -> Finding {
    let found = limit.map_or_else(|| "no limit".to_owned(), text::bytes);
    let remedy = "NCCL over InfiniBand needs more: ulimit -l unlimited, or docker run --ulimit memlock=-1";
    let has_infiniband = Path::new("/sys/class/infiniband").is_dir();
    Finding::good_if(!has_infiniband || limit.is_none_or(|limit| limit >= GIB), "locked memory", found, remedy)
}

fn ports() -> Finding {
    let v6 = if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() { " and ::1" } else { ", without IPv6" };
    match TcpListener::bind((Ipv4Addr::LOCALHOST, 0)) {
        Ok(_) => Finding::good("ports", format!("a port of 127.0.0.1{v6} can be bound")),
        Err(error) => {
            let remedy = "the ranks meet on a TCP port; bring the loopback interface up";
            Finding::bad("ports", format!("127.0.0.1: {error}"), remedy)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn limits_of_a_container_are_named() {
        let small = memory(Memory { total: 4 * GIB, available: GIB, limit: Some(4 * GIB) });
        assert_eq!(small.verdict, Verdict::Doubtful);
        assert!(small.found.contains("control group is 4.0 GiB"), "{}", small.found);
        assert!(small.remedy.is_some_and(|remedy| remedy.contains("docker run --memory")));
        let topology = Topology { quota: Some(0.5), ..Topology::read(Path::new("/none"), &"0-3".parse().unwrap()) };
        let few = processors(&topology);
        assert_eq!(few.verdict, Verdict::Doubtful);
        assert_eq!(few.found, "4 cores with 4 threads, of which the control group allows 0.5 CPUs' worth of time");
        assert_eq!(open_files(Some(1024), Some(2048)).verdict, Verdict::Doubtful);
        assert_eq!(open_files(Some(1024), None).verdict, Verdict::Good);
    }

    #[test]
    fn a_folder_that_is_not_there_is_no_reason_to_give_up() {
        assert_eq!(disk(Path::new("/none/such"), "disk", GIB, "x").verdict, Verdict::Doubtful);
        assert_eq!(disk(Path::new("/"), "disk", 0, "x").verdict, Verdict::Good);
    }
}
