//! Which CPUs each worker gets, and how many threads: a pure function of the machine, the devices and what the user has
//! set.

use fnet_protocol::cli::{Bind, CpuList};

use crate::error::{Error, Result};
use crate::text;
use crate::topology::{Core, Topology};

/// What the decision depends on.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// `--bind`.
    pub wish: &'a Bind,
    /// The CPUs.
    pub topology: &'a Topology,
    /// Where the workers' GPUs are, one entry a worker; `None` for workers on the CPU.
    pub gpus: Option<&'a [Near]>,
    /// Workers of this node.
    pub workers: usize,
    /// What the user has set.
    pub user: &'a UserSettings,
}

/// What is near a GPU.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Near {
    /// Its memory node; `None` if the system does not say.
    pub node: Option<usize>,
    /// CPUs near it; empty if the system does not say.
    pub cpus: CpuList,
}

/// Variables of OpenMP that the user has set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserSettings {
    /// OMP_NUM_THREADS.
    pub threads: Option<String>,
    /// GOMP_CPU_AFFINITY or KMP_AFFINITY, or an OMP_PLACES that lists CPUs: name and value.
    pub cpus: Option<(String, String)>,
}

impl UserSettings {
    /// Reads them.
    pub fn read(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let lookup = |name: &str| lookup(name).filter(|value| !value.trim().is_empty());
        let named = |name: &str| lookup(name).map(|value| (name.to_owned(), value));
        // Places such as `cores` are found within the CPUs of the worker; listed ones are not.
        let places = named("OMP_PLACES").filter(|(_, value)| value.contains('{'));
        Self {
            threads: lookup("OMP_NUM_THREADS"),
            cpus: named("GOMP_CPU_AFFINITY").or_else(|| named("KMP_AFFINITY")).or(places),
        }
    }
}

/// The decision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Binding {
    /// For each worker its CPUs; empty if no worker is bound.
    pub shares: Vec<Share>,
    /// OMP_NUM_THREADS of each worker, unless the user has set it.
    pub threads: Option<usize>,
    /// Why it is so.
    pub reason: String,
}

/// What one worker gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Its CPUs.
    pub cpus: CpuList,
    /// The memory node to prefer.
    pub node: Option<usize>,
}

/// Decides.
///
/// # Errors
/// Lists of `--bind` that do not fit the workers or the CPUs that this process may use (exit code 2).
pub fn decide(facts: &Facts<'_>) -> Result<Binding> {
    let (shares, reason) = match facts.wish {
        Bind::None => (Vec::new(), "--bind none".to_owned()),
        Bind::Lists(lists) => (listed(facts, lists)?, "--bind lists their CPUs".to_owned()),
        Bind::Auto => automatic(facts),
    };
    let threads = facts.user.threads.is_none().then(|| threads(facts, &shares));
    Ok(Binding { shares, threads, reason })
}

/// Equally many for every worker: results must not depend on which worker computes.
fn threads(facts: &Facts<'_>, shares: &[Share]) -> usize {
    let all = match facts.topology.cpus().len() {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        count => count,
    };
    let within = facts.topology.quota.map_or(all, |quota| all.min(quota.ceil() as usize));
    let each = within / facts.workers.max(1);
    let smallest = shares.iter().map(|share| share.cpus.len()).min().unwrap_or(usize::MAX);
    each.min(smallest).max(1)
}

fn listed(facts: &Facts<'_>, lists: &[CpuList]) -> Result<Vec<Share>> {
    if lists.len() != facts.workers {
        return Err(Error::usage(format!(
            "--bind {}: {} for {}; give one list for each, with ; between them",
            facts.wish,
            text::count(lists.len(), "list"),
            text::count(facts.workers, "worker")
        )));
    }
    let allowed = facts.topology.cpus();
    let foreign = lists.iter().map(|list| list.without(&allowed)).find(|rest| !rest.is_empty());
    if let Some(foreign) = foreign.filter(|_| !allowed.is_empty()) {
        return Err(Error::usage(format!(
            "--bind {}: this process may not use {foreign}, only {allowed} (this machine, taskset, or the limits of its \
             container or batch job)",
            facts.wish
        )));
    }
    Ok(lists.iter().map(|list| share(facts.topology, list.clone())).collect())
}

/// A share with the memory node that all of its CPUs are on, if there are several nodes.
fn share(topology: &Topology, cpus: CpuList) -> Share {
    let holds_all = |(_, all): &&(usize, CpuList)| cpus.without(all).is_empty();
    let node = topology.nodes.iter().filter(|_| topology.nodes.len() > 1).find(holds_all).map(|(node, _)| *node);
    Share { cpus, node }
}

fn automatic(facts: &Facts<'_>) -> (Vec<Share>, String) {
    let Facts { topology, workers, .. } = *facts;
    if let Some((name, value)) = &facts.user.cpus {
        return (Vec::new(), format!("{name}={value} is set"));
    }
    let cpus = topology.cpus();
    if cpus.is_empty() {
        return (Vec::new(), "the system does not say which CPUs there are".to_owned());
    }
    if cpus.len() < workers {
        let (cpus, workers) = (text::count(cpus.len(), "CPU"), text::count(workers, "worker"));
        return (Vec::new(), format!("{cpus} for {workers}"));
    }
    let all: Vec<&Core> = topology.cores.iter().collect();
    let Some(gpus) = facts.gpus else {
        return match workers {
            1 => (Vec::new(), "a single worker may use all".to_owned()),
            _ => (divide(topology, &all, workers), "the cores are shared out equally".to_owned()),
        };
    };
    match homes(topology, gpus) {
        Ok(homes) => (near(topology, &homes), "the cores near each GPU are shared out among its workers".to_owned()),
        Err(_) if workers == 1 => (Vec::new(), "a single worker may use all".to_owned()),
        Err(why) => (divide(topology, &all, workers), format!("{why}, so the cores are shared out equally")),
    }
}

/// For each worker the cores near its GPU; those of two GPUs are the same or have nothing in common.
fn homes<'a>(topology: &'a Topology, gpus: &[Near]) -> std::result::Result<Vec<Vec<&'a Core>>, String> {
    let mut homes: Vec<Vec<&Core>> = Vec::new();
    for (index, gpu) in gpus.iter().enumerate() {
        let of_node = gpu.node.and_then(|node| topology.nodes.iter().find(|(number, _)| *number == node));
        let cpus = of_node.map(|(_, cpus)| cpus).filter(|cpus| !cpus.is_empty()).unwrap_or(&gpu.cpus);
        if cpus.is_empty() {
            return Err(format!("the system does not say which CPUs are near the GPU of worker {index}"));
        }
        let home: Vec<&Core> = topology.cores.iter().filter(|core| !core.cpus.within(cpus).is_empty()).collect();
        if home.is_empty() {
            return Err(format!("this process may use none of the CPUs near the GPU of worker {index} ({cpus})"));
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
    let place = |index: usize| {
        let sharing: Vec<usize> = (0..homes.len()).filter(|&other| homes[other] == homes[index]).collect();
        let position = sharing.iter().position(|&other| other == index).unwrap_or(0);
        divide(topology, &homes[index], sharing.len()).swap_remove(position)
    };
    (0..homes.len()).map(place).collect()
}

/// Equal parts of the cores, whole ones if there are enough, side by side. What is left over belongs to every part, so that
/// no worker is slower than another.
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
    /// One line for each worker, or one for all.
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
