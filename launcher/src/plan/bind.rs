//! CPUs and threads of each worker: a pure function of the machine, the devices and the user's settings.

use fnet_protocol::cli::{Bind, CpuList};

use super::topology::{Core, Topology};
use crate::error::{Error, Result};
use crate::text;

/// The inputs of the decision.
#[derive(Debug, Clone)]
pub struct Inputs<'a> {
    /// `--bind`.
    pub option: &'a Bind,
    /// The CPUs.
    pub topology: &'a Topology,
    /// What is near the GPU of each worker; `None` for CPU workers.
    pub gpus: Option<&'a [Near]>,
    /// Number of workers of this node.
    pub workers: usize,
    /// The user's settings.
    pub user: &'a UserSettings,
}

/// NUMA node and CPUs near a GPU.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Near {
    /// Its NUMA node, if known.
    pub node: Option<usize>,
    /// CPUs near it; empty if unknown.
    pub cpus: CpuList,
}

/// OpenMP variables that the user has set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserSettings {
    /// OMP_NUM_THREADS.
    pub threads: Option<String>,
    /// Name and value of GOMP_CPU_AFFINITY, KMP_AFFINITY, or an OMP_PLACES that lists CPUs.
    pub cpus: Option<(String, String)>,
}

impl UserSettings {
    /// Reads the environment.
    pub fn read(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let lookup = |name: &str| lookup(name).filter(|value| !value.trim().is_empty());
        let named = |name: &str| lookup(name).map(|value| (name.to_owned(), value));
        // Values such as `cores` apply within the CPUs of the worker; lists of CPUs do not.
        let places = named("OMP_PLACES").filter(|(_, value)| value.contains('{'));
        Self {
            threads: lookup("OMP_NUM_THREADS"),
            cpus: named("GOMP_CPU_AFFINITY").or_else(|| named("KMP_AFFINITY")).or(places),
        }
    }
}

/// CPUs and threads of the workers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Binding {
    /// The share of each worker; empty if workers are not bound.
    pub shares: Vec<Share>,
    /// OMP_NUM_THREADS of each worker, unless the user has set it.
    pub threads: Option<usize>,
    /// The reason, for the user.
    pub reason: String,
}

/// The share of one worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    pub cpus: CpuList,
    /// The preferred NUMA node.
    pub node: Option<usize>,
}

/// Decides.
/// Errors: lists of `--bind` that do not match the workers or the CPUs that this process may use (exit code 2).
pub fn decide(inputs: &Inputs<'_>) -> Result<Binding> {
    let (shares, reason) = match inputs.option {
        Bind::None => (Vec::new(), "--bind none".to_owned()),
        Bind::Lists(lists) => (listed(inputs, lists)?, "--bind lists their CPUs".to_owned()),
        Bind::Auto => automatic(inputs),
    };
    let threads = inputs.user.threads.is_none().then(|| threads(inputs, &shares));
    Ok(Binding { shares, threads, reason })
}

/// Threads per worker; equal for all, because results must not depend on which worker computes.
fn threads(inputs: &Inputs<'_>, shares: &[Share]) -> usize {
    let all = match inputs.topology.cpus().len() {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        count => count,
    };
    let within = inputs.topology.quota.map_or(all, |quota| all.min(quota.ceil() as usize));
    let each = within / inputs.workers.max(1);
    let smallest = shares.iter().map(|share| share.cpus.len()).min().unwrap_or(usize::MAX);
    each.min(smallest).max(1)
}

fn listed(inputs: &Inputs<'_>, lists: &[CpuList]) -> Result<Vec<Share>> {
    if lists.len() != inputs.workers {
        return Err(Error::usage(format!(
            "--bind {}: {} for {}; give one list per worker, separated by ;",
            inputs.option,
            text::count(lists.len(), "list"),
            text::count(inputs.workers, "worker")
        )));
    }
    let allowed = inputs.topology.cpus();
    let forbidden = lists.iter().map(|list| list.without(&allowed)).find(|rest| !rest.is_empty());
    if let Some(forbidden) = forbidden.filter(|_| !allowed.is_empty()) {
        return Err(Error::usage(format!(
            "--bind {}: this process may not use {forbidden}, only {allowed} (this machine, taskset, or the limits of its \
             container or batch job)",
            inputs.option
        )));
    }
    Ok(lists.iter().map(|list| share(inputs.topology, list.clone())).collect())
}

/// A share, with the NUMA node of all its CPUs if there are several nodes.
fn share(topology: &Topology, cpus: CpuList) -> Share {
    let holds_all = |(_, all): &&(usize, CpuList)| cpus.without(all).is_empty();
    let node = topology.nodes.iter().filter(|_| topology.nodes.len() > 1).find(holds_all).map(|(node, _)| *node);
    Share { cpus, node }
}

fn automatic(inputs: &Inputs<'_>) -> (Vec<Share>, String) {
    let Inputs { topology, workers, .. } = *inputs;
    if let Some((name, value)) = &inputs.user.cpus {
        return (Vec::new(), format!("{name}={value} is set"));
    }
    let cpus = topology.cpus();
    if cpus.is_empty() {
        return (Vec::new(), "the CPUs of this machine are unknown".to_owned());
    }
    if cpus.len() < workers {
        let (cpus, workers) = (text::count(cpus.len(), "CPU"), text::count(workers, "worker"));
        return (Vec::new(), format!("{cpus} for {workers}"));
    }
    let all: Vec<&Core> = topology.cores.iter().collect();
    let Some(gpus) = inputs.gpus else {
        return match workers {
            1 => (Vec::new(), "a single worker may use all".to_owned()),
            _ => (divide(topology, &all, workers), "the cores are divided equally".to_owned()),
        };
    };
    match homes(topology, gpus) {
        Ok(homes) => (near(topology, &homes), "the cores near each GPU are divided among its workers".to_owned()),
        Err(_) if workers == 1 => (Vec::new(), "a single worker may use all".to_owned()),
        Err(why) => (divide(topology, &all, workers), format!("{why}, so the cores are divided equally")),
    }
}

/// For each worker the cores near its GPU; those of two GPUs are equal or disjoint.
fn homes<'a>(topology: &'a Topology, gpus: &[Near]) -> std::result::Result<Vec<Vec<&'a Core>>, String> {
    let mut homes: Vec<Vec<&Core>> = Vec::new();
    for (index, gpu) in gpus.iter().enumerate() {
        let of_node = gpu.node.and_then(|node| topology.nodes.iter().find(|(number, _)| *number == node));
        let cpus = of_node.map(|(_, cpus)| cpus).filter(|cpus| !cpus.is_empty()).unwrap_or(&gpu.cpus);
        if cpus.is_empty() {
            return Err(format!("the CPUs near the GPU of worker {index} are unknown"));
        }
        let home: Vec<&Core> = topology.cores.iter().filter(|core| !core.cpus.within(cpus).is_empty()).collect();
        if home.is_empty() {
            return Err(format!("this process may not use the CPUs near the GPU of worker {index} ({cpus})"));
        }
        homes.push(home);
    }
    for home in &homes {
        let sharing = homes.iter().filter(|other| *other == home).count();
        let cpus: usize = home.iter().map(|core| core.cpus.len()).sum();
        if cpus < sharing {
            return Err(format!("{} near {} GPUs", text::count(cpus, "CPU"), sharing));
        }
        if homes.iter().any(|other| other != home && other.iter().any(|core| home.contains(core))) {
            return Err("the CPUs near the GPUs overlap".to_owned());
        }
    }
    Ok(homes)
}

/// Workers with the same home divide it.
fn near(topology: &Topology, homes: &[Vec<&Core>]) -> Vec<Share> {
    let share = |index: usize| {
        let sharing: Vec<usize> = (0..homes.len()).filter(|&other| homes[other] == homes[index]).collect();
        let position = sharing.iter().position(|&other| other == index).unwrap_or(0);
        divide(topology, &homes[index], sharing.len()).swap_remove(position)
    };
    (0..homes.len()).map(share).collect()
}

/// Equal parts of adjacent cores, whole cores if there are enough. The remainder belongs to every part, so that no worker is
/// slower than another.
fn divide(topology: &Topology, cores: &[&Core], parts: usize) -> Vec<Share> {
    let threads: Vec<CpuList> = if cores.len() >= parts {
        cores.iter().map(|core| core.cpus.clone()).collect()
    } else {
        cores.iter().flat_map(|core| core.cpus.iter()).map(|cpu| CpuList::from_iter([cpu])).collect()
    };
    let each = (threads.len() / parts.max(1)).max(1);
    let rest = &threads[(each * parts).min(threads.len())..];
    threads
        .chunks(each)
        .take(parts)
        .map(|part| share(topology, part.iter().chain(rest).flat_map(CpuList::iter).collect()))
        .collect()
}

impl Binding {
    /// One line per worker, or one for all.
    pub fn lines(&self) -> Vec<String> {
        if self.shares.is_empty() {
            return vec![format!("workers may use all CPUs: {}", self.reason)];
        }
        let line = |(index, share): (usize, &Share)| {
            let node = share.node.map_or_else(String::new, |node| format!(", memory of node {node}"));
            format!("worker {index}: CPUs {}{node}", share.cpus)
        };
        let heading = format!("CPUs of the workers: {}", self.reason);
        std::iter::once(heading).chain(self.shares.iter().enumerate().map(line)).collect()
    }
}

#[cfg(test)]
#[path = "bind/tests.rs"]
mod tests;
