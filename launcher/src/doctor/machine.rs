//! CPUs, memory, disk, shared memory, limits, ports.

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::path::Path;

use rustix::process::Resource;

use super::diagnosis::Diagnosis;
use crate::plan::checks;
use crate::plan::host_memory::{self, Memory};
use crate::plan::topology::{self, Topology};
use crate::text;

const GIB: u64 = 1 << 30;

/// The machine, with the kernel's files below `root`.
pub fn diagnose(root: &Path) -> Vec<Diagnosis> {
    let mut diagnoses = vec![
        processors(&Topology::read(root, &topology::allowed())),
        memory(host_memory::memory(root)),
        disk(Path::new("."), "disk", 10 * GIB, "free some space, or use --work-dir on another disk"),
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
        let found = format!("{} is not writable: {why}", folder.display());
        diagnoses.push(Diagnosis::doubtful("work folder", found, "run in another folder, or use --work-dir"));
    }
    diagnoses
}

fn processors(topology: &Topology) -> Diagnosis {
    let cpus = topology.cpus().len();
    let nodes = match topology.nodes.len() {
        0 | 1 => String::new(),
        count => format!(" on {count} NUMA nodes"),
    };
    let found = format!("{} with {}{nodes}", text::count(topology.cores.len(), "core"), text::count(cpus, "thread"));
    match topology.quota {
        #[expect(clippy::cast_precision_loss, reason = "a number of CPUs")]
        Some(quota) if quota < cpus as f64 => {
            let found = format!("{found}; the control group allows {quota:.1} CPUs");
            Diagnosis::good_if(quota >= 1.0, "processors", found, "give the container more CPUs (docker run --cpus)")
        }
        _ => Diagnosis::good_if(cpus > 0, "processors", found, "the number of CPUs is unknown"),
    }
}

fn memory(memory: Memory) -> Diagnosis {
    let limit = memory
        .limit
        .map_or_else(String::new, |limit| format!(", the limit of the control group is {}", text::bytes(limit)));
    let found = format!("{} of {} available{limit}", text::bytes(memory.available), text::bytes(memory.total));
    let remedy = match memory.limit {
        Some(_) => "a worker needs 2 GiB or more; raise the limit (docker run --memory, Slurm --mem)",
        None => "a worker needs 2 GiB or more; stop other programs",
    };
    Diagnosis::good_if(memory.available >= 2 * GIB, "memory", found, remedy)
}

fn disk(folder: &Path, what: &'static str, min: u64, remedy: &'static str) -> Diagnosis {
    match checks::free_space(folder) {
        Some(free) => {
            let found = format!("{} free in {}", text::bytes(free), folder.display());
            Diagnosis::good_if(free >= min, what, found, remedy)
        }
        None => Diagnosis::doubtful(what, format!("{} does not exist", folder.display()), remedy),
    }
}

fn open_files(soft: Option<u64>, hard: Option<u64>) -> Diagnosis {
    let number = |limit: Option<u64>| limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
    let found = format!("{} per process, at most {}", number(soft), number(hard));
    Diagnosis::good_if(
        hard.is_none_or(|hard| hard >= 4096),
        "open files",
        found,
        "raise it: ulimit -Hn 65536, or docker run --ulimit nofile=65536",
    )
}

/// InfiniBand and pinned host memory need locked pages.
fn locked_memory(limit: Option<u64>) -> Diagnosis {
    let found = limit.map_or_else(|| "unlimited".to_owned(), text::bytes);
    let remedy = "NCCL over InfiniBand needs more: ulimit -l unlimited, or docker run --ulimit memlock=-1";
    let has_infiniband = Path::new("/sys/class/infiniband").is_dir();
    Diagnosis::good_if(!has_infiniband || limit.is_none_or(|limit| limit >= GIB), "locked memory", found, remedy)
}

fn ports() -> Diagnosis {
    let v6 = if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() { " and ::1" } else { ", without IPv6" };
    match TcpListener::bind((Ipv4Addr::LOCALHOST, 0)) {
        Ok(_) => Diagnosis::good("ports", format!("ports of 127.0.0.1{v6} can be bound")),
        Err(error) => {
            let remedy = "the ranks connect through a TCP port; bring the loopback interface up";
            Diagnosis::bad("ports", format!("127.0.0.1: {error}"), remedy)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::diagnosis::Rating;
    use super::*;

    #[test]
    fn limits_of_a_container_are_named() {
        let small = memory(Memory { total: 4 * GIB, available: GIB, limit: Some(4 * GIB) });
        assert_eq!(small.rating, Rating::Doubtful);
        assert!(small.found.contains("control group is 4.0 GiB"), "{}", small.found);
        assert!(small.remedy.is_some_and(|remedy| remedy.contains("docker run --memory")));
        let topology = Topology { quota: Some(0.5), ..Topology::read(Path::new("/none"), &"0-3".parse().unwrap()) };
        let few = processors(&topology);
        assert_eq!(few.rating, Rating::Doubtful);
        assert_eq!(few.found, "4 cores with 4 threads; the control group allows 0.5 CPUs");
        assert_eq!(open_files(Some(1024), Some(2048)).rating, Rating::Doubtful);
        assert_eq!(open_files(Some(1024), None).rating, Rating::Good);
    }

    #[test]
    fn a_folder_that_does_not_exist_is_not_fatal() {
        assert_eq!(disk(Path::new("/none/such"), "disk", GIB, "x").rating, Rating::Doubtful);
        assert_eq!(disk(Path::new("/"), "disk", 0, "x").rating, Rating::Good);
    }
}
