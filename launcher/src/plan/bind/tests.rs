use fnet_protocol::exit;

use super::*;

fn cpus(text: &str) -> CpuList {
    text.parse().unwrap()
}

/// `nodes` NUMA nodes of `cores` cores each; the second hardware threads are numbered after all the first.
fn machine(nodes: usize, cores: usize, threads: usize) -> Topology {
    let count = nodes * cores;
    let threads_of = |core: usize| (0..threads).map(|thread| core + thread * count).collect::<CpuList>();
    Topology {
        cores: (0..count).map(|core| Core { cpus: threads_of(core), node: core / cores }).collect(),
        nodes: (0..nodes)
            .map(|node| {
                (
                    node,
                    (node * cores..(node + 1) * cores)
                        .flat_map(|core| threads_of(core).iter().collect::<Vec<_>>())
                        .collect(),
                )
            })
            .collect(),
        quota: None,
    }
}

/// The part of a machine that this process may use.
fn restricted(mut topology: Topology, allowed: &str) -> Topology {
    let allowed = cpus(allowed);
    for core in &mut topology.cores {
        core.cpus = core.cpus.within(&allowed);
    }
    topology.cores.retain(|core| !core.cpus.is_empty());
    topology
}

fn on_node(node: usize) -> Near {
    Near { node: Some(node), cpus: CpuList::default() }
}

fn of(topology: &Topology, gpus: Option<&[Near]>, workers: usize) -> Binding {
    let user = UserSettings::default();
    decide(&Inputs { option: &Bind::Auto, topology, gpus, workers, user: &user }).unwrap()
}

fn lists(binding: &Binding) -> Vec<String> {
    binding.shares.iter().map(|share| share.cpus.to_string()).collect()
}

fn nodes(binding: &Binding) -> Vec<Option<usize>> {
    binding.shares.iter().map(|share| share.node).collect()
}

#[test]
fn gpus_of_one_socket_divide_its_cores_with_their_siblings() {
    let gpus: Vec<Near> = [0, 0, 0, 0, 1, 1, 1, 1].map(on_node).into();
    let binding = of(&machine(2, 8, 2), Some(&gpus), 8);
    let expected =
        ["0-1,16-17", "2-3,18-19", "4-5,20-21", "6-7,22-23", "8-9,24-25", "10-11,26-27", "12-13,28-29", "14-15,30-31"];
    assert_eq!(lists(&binding), expected);
    assert_eq!(nodes(&binding), [0, 0, 0, 0, 1, 1, 1, 1].map(Some));
    assert_eq!(binding.threads, Some(4));
}

#[test]
fn the_order_of_the_gpus_is_that_of_the_workers() {
    let gpus = [on_node(1), on_node(0), on_node(1)];
    let binding = of(&machine(2, 4, 1), Some(&gpus), 3);
    assert_eq!(lists(&binding), ["4-5", "0-3", "6-7"]);
    assert_eq!(binding.threads, Some(2), "the same number for all, within the smallest share");
}

#[test]
fn eight_gpus_on_eight_nodes_have_a_node_each() {
    let gpus: Vec<Near> = (0..8).rev().map(on_node).collect();
    let binding = of(&machine(8, 4, 2), Some(&gpus), 8);
    assert_eq!(lists(&binding)[0], "28-31,60-63");
    assert_eq!(nodes(&binding), (0..8).rev().map(Some).collect::<Vec<_>>());
}

#[test]
fn one_gpu_has_all_of_its_socket() {
    let binding = of(&machine(2, 4, 1), Some(&[on_node(1)]), 1);
    assert_eq!((lists(&binding), nodes(&binding)), (vec!["4-7".to_owned()], vec![Some(1)]));
}

#[test]
fn a_gpu_without_a_known_node_makes_equal_parts() {
    // https://www.kernel.org/doc/Documentation/ABI/testing/sysfs-bus-pci: numa_node is -1 where firmware is silent.
    let binding = of(&machine(2, 4, 1), Some(&[on_node(0), Near::default()]), 2);
    assert_eq!(lists(&binding), ["0-3", "4-7"]);
    assert!(binding.reason.contains("the CPUs near the GPU of worker 1 are unknown"), "{}", binding.reason);
    let alone = of(&machine(2, 4, 1), Some(&[Near::default()]), 1);
    assert_eq!(lists(&alone), [""; 0]);
}

#[test]
fn the_list_of_the_gpu_counts_where_its_node_is_not_known() {
    let gpus = [Near { node: None, cpus: cpus("0-3") }, Near { node: None, cpus: cpus("4-7") }];
    assert_eq!(lists(&of(&machine(1, 8, 1), Some(&gpus), 2)), ["0-3", "4-7"]);
    let overlapping = [Near { node: None, cpus: cpus("0-5") }, Near { node: None, cpus: cpus("4-7") }];
    let binding = of(&machine(1, 8, 1), Some(&overlapping), 2);
    assert_eq!(lists(&binding), ["0-3", "4-7"]);
    assert!(binding.reason.contains("overlap"), "{}", binding.reason);
}

#[test]
fn cpus_that_may_not_be_used_are_left_alone() {
    // A batch job that was given half a socket: cpuset, Slurm and taskset all show as this.
    let binding = of(&restricted(machine(2, 8, 1), "0-3"), Some(&[on_node(0), on_node(0)]), 2);
    assert_eq!(lists(&binding), ["0-1", "2-3"]);
    let far = of(&restricted(machine(2, 8, 1), "0-3"), Some(&[on_node(0), on_node(1)]), 2);
    assert_eq!(lists(&far), ["0-1", "2-3"]);
    assert!(far.reason.contains("may not use the CPUs near the GPU of worker 1"), "{}", far.reason);
    let few = of(&restricted(machine(2, 8, 1), "0-3,8"), Some(&[on_node(0), on_node(1), on_node(1)]), 3);
    assert!(few.reason.contains("1 CPU near 2 GPUs"), "{}", few.reason);
    assert_eq!(few.shares.len(), 3);
}

#[test]
fn a_laptop_shares_its_cores_out_among_cpu_workers() {
    let binding = of(&machine(1, 4, 2), None, 2);
    assert_eq!(
        (lists(&binding), nodes(&binding)),
        (vec!["0-1,4-5".to_owned(), "2-3,6-7".to_owned()], vec![None, None])
    );
    assert_eq!(binding.threads, Some(4));
    assert_eq!(lists(&of(&machine(1, 4, 2), None, 1)), [""; 0]);
    // More workers than cores: siblings must part.
    assert_eq!(of(&machine(1, 4, 2), None, 8).shares.len(), 8);
}

#[test]
fn what_is_left_over_in_a_container_with_three_cpus_is_everyones() {
    let topology = machine(1, 3, 1);
    let binding = of(&topology, None, 2);
    assert_eq!(lists(&binding), ["0,2", "1-2"]);
    assert_eq!(binding.threads, Some(1));
    let four = of(&topology, None, 4);
    assert!(four.shares.is_empty() && four.reason == "3 CPUs for 4 workers", "{}", four.reason);
    assert_eq!(four.threads, Some(1));
}

#[test]
fn a_limit_on_cpu_time_limits_the_threads_and_not_the_cpus() {
    let topology = Topology { quota: Some(4.0), ..machine(1, 64, 1) };
    let binding = of(&topology, None, 2);
    assert_eq!(binding.threads, Some(2));
    assert_eq!(lists(&binding), ["0-31", "32-63"]);
    let half = Topology { quota: Some(0.5), ..machine(1, 64, 1) };
    assert_eq!(of(&half, None, 2).threads, Some(1));
}

#[test]
fn what_the_user_has_set_wins() {
    let topology = machine(1, 4, 1);
    let read = |name: &'static str, value: &'static str| {
        UserSettings::read(move |asked| (asked == name).then(|| value.to_owned()))
    };
    let with = |user: &UserSettings| {
        decide(&Inputs { option: &Bind::Auto, topology: &topology, gpus: None, workers: 2, user }).unwrap()
    };
    assert_eq!(with(&read("OMP_NUM_THREADS", "7")).threads, None);
    assert_eq!(with(&read("OMP_NUM_THREADS", "7")).shares.len(), 2);
    for (name, value) in [("GOMP_CPU_AFFINITY", "0-3"), ("KMP_AFFINITY", "compact"), ("OMP_PLACES", "{0,1},{2}")] {
        let binding = with(&read(name, value));
        assert!(binding.shares.is_empty());
        assert_eq!(binding.reason, format!("{name}={value} is set"));
    }
    // These mean places within the CPUs of a worker; without shares, all workers would have the same ones.
    for (name, value) in [("OMP_PROC_BIND", "true"), ("OMP_PLACES", "cores"), ("GOMP_CPU_AFFINITY", " ")] {
        assert_eq!(with(&read(name, value)).shares.len(), 2, "{name}");
    }
}

#[test]
fn lists_must_fit_the_workers_and_the_machine() {
    let topology = machine(2, 2, 1);
    let user = UserSettings::default();
    let with = |text: &str, workers| {
        let option: Bind = text.parse().unwrap();
        decide(&Inputs { option: &option, topology: &topology, gpus: None, workers, user: &user })
    };
    let binding = with("2-3;0", 2).unwrap();
    assert_eq!((lists(&binding), nodes(&binding)), (vec!["2-3".into(), "0".into()], vec![Some(1), Some(0)]));
    assert_eq!(binding.threads, Some(1), "two CPUs for each, but the smallest list has one");
    for (text, workers, expected) in [("0;1", 3, "2 lists for 3 workers"), ("0;9", 2, "may not use 9, only 0-3")] {
        let error = with(text, workers).unwrap_err();
        assert_eq!(error.code, exit::USAGE);
        assert!(error.message().contains(expected), "{error}");
    }
    assert!(with("none", 2).unwrap().shares.is_empty());
}

#[test]
fn no_cpu_is_lost_or_outside_the_machine_whatever_the_machine() {
    for (sockets, cores, threads) in [(1, 1, 1), (1, 7, 2), (2, 12, 2), (4, 3, 1)] {
        let topology = machine(sockets, cores, threads);
        for workers in 1..=sockets * cores {
            let binding = of(&topology, None, workers);
            let used: CpuList = binding.shares.iter().flat_map(|share| share.cpus.iter()).collect();
            assert!(binding.shares.is_empty() || used == topology.cpus(), "{workers} workers: {:?}", lists(&binding));
            let sizes: Vec<usize> = binding.shares.iter().map(|share| share.cpus.len()).collect();
            assert!(sizes.windows(2).all(|pair| pair[0] == pair[1]), "{sizes:?}");
            assert!(binding.threads.unwrap() * workers <= topology.cpus().len());
        }
    }
}
