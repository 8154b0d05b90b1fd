//! The rendezvous of nodes and ranks: number of nodes, address, port.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use fnet_protocol::cli::{LaunchOptions, NodeCount};
use fnet_protocol::env;

use super::secret::Secret;
use crate::error::{Error, Result};

/// Default port with several nodes, as in dist_train.sh.
const DEFAULT_PORT: u16 = 29_500;
/// A smaller PORT was meant for something else.
const MIN_PORT: u16 = 1024;

/// The nodes of a job, and the rank of this one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nodes {
    /// Number of nodes; MAX of `--nnodes MIN:MAX`.
    pub count: usize,
    /// MIN of `--nnodes MIN:MAX`.
    pub min: Option<usize>,
    /// Rank of this node; with MIN:MAX the one that it would like to have, until an attempt starts.
    pub rank: usize,
    /// Name or address of node 0.
    pub address: String,
    /// Port on node 0: of the store with a single node (`None` for a free one), of the launchers with several nodes.
    pub port: Option<u16>,
    /// The ranks of this node's workers, once the nodes have joined.
    pub ranks: Option<RankRange>,
    /// Variables that select the network interface of the workers.
    pub interface: Vec<(String, String)>,
    /// With several nodes: what their launchers must prove to know.
    pub secret: Option<Secret>,
}

/// The ranks of a node's workers; nodes may have different numbers of workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankRange {
    /// Rank of the first worker.
    pub first: usize,
    /// Number of workers of all nodes.
    pub world_size: usize,
    /// The same if all nodes were there.
    pub full_world_size: usize,
}

impl Nodes {
    /// Whether strangers are kept out.
    pub fn trust(&self) -> &'static str {
        match self.secret {
            Some(_) => "with a job secret",
            None => "without a job secret: whoever reaches it can take part (FNET_JOB_SECRET, --secret-file)",
        }
    }

    /// The ranks of this node's `workers`; before the nodes have joined, as if all nodes had as many.
    pub fn rank_range(&self, workers: usize) -> RankRange {
        let world_size = self.count * workers;
        self.ranks.unwrap_or(RankRange { first: self.rank * workers, world_size, full_world_size: world_size })
    }
}

/// A variable of torchrun, with the prefix that Kubernetes' training operators give it or without, which takes precedence.
fn of_torchrun(lookup: impl Fn(&str) -> Option<String>, name: &str) -> Option<(String, String)> {
    [name.to_owned(), format!("PET_{name}")].into_iter().find_map(|name| lookup(&name).map(|value| (name, value)))
}

/// The number of nodes of a step of Slurm that has a task on each of several nodes, if the tasks know the address of node 0.
fn nodes_of_step(options: &LaunchOptions, lookup: impl Fn(&str) -> Option<String>) -> Option<usize> {
    let number = |name: &str| lookup(name)?.trim().parse::<usize>().ok();
    let nodes @ 2.. = number(env::SLURM_STEP_NUM_NODES)? else { return None };
    let has_address = options.master_addr.is_some() || of_torchrun(&lookup, env::MASTER_ADDR).is_some();
    (has_address && number(env::SLURM_STEP_NUM_TASKS) == Some(nodes)).then_some(nodes)
}

/// Refuses to run a job of one node where the environment says that several nodes were started, and neither `--nnodes`,
/// NNODES or PET_NNODES nor Slurm's step says how many the job has: each of them would train alone.
/// Errors: the number of nodes is missing; the message has the options to give (exit code 2).
pub fn refuse_solo(options: &LaunchOptions, lookup: impl Fn(&str) -> Option<String>) -> Result<()> {
    let lookup = |name: &str| lookup(name).filter(|text| !text.trim().is_empty());
    if options.nnodes.is_some()
        || of_torchrun(lookup, env::NNODES).is_some()
        || nodes_of_step(options, lookup).is_some()
    {
        return Ok(());
    }
    let number = |name: &str| lookup(name)?.trim().parse::<usize>().ok();
    let is_only_task = number(env::SLURM_STEP_NUM_TASKS) == Some(1);
    let is_one_machine = number(env::WORLD_SIZE) == number(env::LOCAL_WORLD_SIZE);
    for (name, is_fine, remedy) in [
        (
            env::SLURM_NNODES,
            is_only_task,
            "MASTER_ADDR to each task of `srun --ntasks-per-node=1`, as scripts/slurm/train.sh does",
        ),
        (env::WORLD_SIZE, is_one_machine, "--nnodes \"$WORLD_SIZE\" --node-rank \"$RANK\""),
    ] {
        if let Some(count @ 2..) = number(name).filter(|_| !is_fine) {
            return Err(Error::usage(format!(
                "{name}={}: {count} nodes, but --nnodes is not given, so each node would train alone. Give {remedy}; or \
                 --nnodes 1 if this node shall work alone",
                lookup(name).unwrap_or_default()
            )));
        }
    }
    Ok(())
}

/// Combines options and environment; NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT are also read with the prefix PET_, and
/// PET_RDZV_ENDPOINT is the address of node 0, whose host name it has. Without them, what Kubernetes or Slurm says of this node
/// counts. With a single node, MASTER_ADDR, MASTER_PORT and PORT of the environment are ignored,
/// and so is `--master-addr`: no other node has to find the store, and variables left over from other programs do no harm.
/// Errors: invalid values (exit code 2).
pub fn resolve(options: &LaunchOptions, lookup: impl Fn(&str) -> Option<String>) -> Result<Nodes> {
    let variable = &lookup;
    let lookup = |name: &str| variable(name).filter(|text| !text.trim().is_empty());
    let interface = interface(options.iface.as_deref(), lookup);
    let nnodes = match (options.nnodes, of_torchrun(lookup, env::NNODES)) {
        (Some(given), _) => given,
        (None, None) => NodeCount { max: nodes_of_step(options, lookup).unwrap_or(1), min: None },
        (None, Some((name, text))) => {
            text.trim().parse().map_err(|why| Error::usage(format!("{name}={text}: {why}")))?
        }
    };
    let NodeCount { max: count, min } = nnodes;
    if count == 1 {
        if let Some(rank @ 1..) = options.node_rank {
            return Err(Error::usage(format!("--node-rank {rank} needs --nnodes {} or more", rank + 1)));
        }
        let is_v6 = |address: &str| without_brackets(address).parse::<Ipv6Addr>().is_ok();
        let address = match options.master_addr.as_deref().is_some_and(is_v6) {
            true => Ipv6Addr::LOCALHOST.to_string(),
            false => Ipv4Addr::LOCALHOST.to_string(),
        };
        let port = options.master_port.filter(|&port| port != 0);
        return Ok(Nodes { count, rank: 0, address, port, interface, ..Nodes::default() });
    }
    let endpoint = lookup(env::PET_RDZV_ENDPOINT).filter(|_| of_torchrun(lookup, env::MASTER_ADDR).is_none());
    let (host, endpoint_port) = endpoint.as_deref().map_or((None, None), |text| {
        let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
        (Some(host.to_owned()), port.parse::<u16>().ok())
    });
    let of_cluster = |name: &str| lookup(name).map(|value| (name.to_owned(), value));
    let variable_rank = of_torchrun(lookup, env::NODE_RANK)
        .or_else(|| [env::JOB_COMPLETION_INDEX, env::SLURM_NODEID].into_iter().find_map(of_cluster));
    let rank = match (options.node_rank, variable_rank, &host) {
        (Some(rank), ..) => rank,
        (None, Some((name, text)), _) => {
            text.trim().parse().map_err(|_| Error::usage(format!("{name}={text}: expected a whole number")))?
        }
        // Such a job has MIN:MAX nodes, which only wish for a rank.
        (None, None, Some(host)) => {
            usize::from(!is_own_name(host, &rustix::system::uname().nodename().to_string_lossy()))
        }
        (None, None, None) => 0,
    };
    if rank >= count && min.is_none() {
        return Err(Error::usage(format!("node rank {rank} of {count} nodes: expected 0 to {}", count - 1)));
    }
    let variable_address = of_torchrun(lookup, env::MASTER_ADDR).map(|(_, value)| value);
    let Some(address) = options.master_addr.clone().or(variable_address).or(host) else {
        return Err(Error::usage(format!(
            "the address of node 0 is missing; give --master-addr (or MASTER_ADDR) on every one of the {count} nodes"
        )));
    };
    let (address, port) = (without_brackets(&address), Some(port(options, lookup, endpoint_port)?));
    let secret = Secret::find(options, variable)?;
    Ok(Nodes { count, min, rank, address, port, ranks: None, interface, secret })
}

/// `[::1]` as `::1`: brackets are needed only before a port.
fn without_brackets(address: &str) -> String {
    let address = address.trim();
    address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address).to_owned()
}

/// The variables of Gloo and NCCL for a network interface (`--iface`), unless the user has set them.
pub fn interface(name: Option<&str>, lookup: impl Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    let Some(name) = name else { return Vec::new() };
    let names = [env::GLOO_SOCKET_IFNAME, env::NCCL_SOCKET_IFNAME];
    names.iter().filter(|key| lookup(key).is_none()).map(|key| ((*key).to_owned(), name.to_owned())).collect()
}

/// Whether `host` is a name of this machine, in full or without its domain, as pods have it.
fn is_own_name(host: &str, own: &str) -> bool {
    host == own || host.split('.').next() == own.split('.').next()
}

fn port(options: &LaunchOptions, lookup: impl Fn(&str) -> Option<String>, of_endpoint: Option<u16>) -> Result<u16> {
    if let Some(port) = options.master_port {
        return if port == 0 {
            Err(Error::usage("--master-port 0: several nodes need a fixed port"))
        } else {
            Ok(port)
        };
    }
    if let Some((name, text)) = of_torchrun(&lookup, env::MASTER_PORT) {
        let port = text.trim().parse().ok().filter(|&port: &u16| port != 0);
        return port.ok_or_else(|| Error::usage(format!("{name}={text}: expected a port, 1 to 65535")));
    }
    if let Some(port) = of_endpoint {
        return Ok(port);
    }
    let port = lookup(env::PORT).and_then(|text| text.trim().parse().ok());
    Ok(port.filter(|&port| port >= MIN_PORT).unwrap_or(DEFAULT_PORT))
}

/// Binds the port of the store of a single node; rank 0 inherits the socket, so no other program can take the port.
/// Errors: the port is taken or not allowed (exit code 6).
pub fn bind(nodes: &Nodes) -> Result<TcpListener> {
    let port = nodes.port.unwrap_or(0);
    let is_v6 = nodes.address.parse::<Ipv6Addr>().is_ok();
    let address: SocketAddr =
        if is_v6 { (Ipv6Addr::LOCALHOST, port).into() } else { (Ipv4Addr::LOCALHOST, port).into() };
    TcpListener::bind(address).map_err(|error| cannot_listen(nodes, port, &error))
}

/// The error of a port that is taken or not allowed.
pub fn cannot_listen(nodes: &Nodes, port: u16, error: &std::io::Error) -> Error {
    let (who, remedy) = match nodes.count {
        1 => ("ranks", ", or omit it for a free one"),
        _ => ("nodes", " on every node"),
    };
    Error::environment(format!(
        "cannot listen on port {port} for the other {who}: {error}; choose another one with --master-port{remedy}"
    ))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use fnet_protocol::cli::Launch;
    use fnet_protocol::exit;

    use super::*;

    fn with(flags: &str, variables: &[(&str, &str)]) -> Result<Nodes> {
        let line = format!("fnet-launch {flags} train cfg.toml");
        let options = Launch::from_arguments(line.split_whitespace().map(OsString::from)).unwrap().options;
        resolve(&options, |name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn a_single_node_ignores_what_other_programs_left_behind() {
        let leaked = [("PORT", "22"), ("MASTER_PORT", "x"), ("MASTER_ADDR", "gone.example"), ("NODE_RANK", "7")];
        let nodes = with("", &leaked).unwrap();
        assert_eq!(nodes, Nodes { count: 1, address: "127.0.0.1".into(), ..Nodes::default() });
        assert_eq!(with("--master-port 4000", &[]).unwrap().port, Some(4000));
    }

    #[test]
    fn several_nodes_without_a_number_of_nodes_are_refused_with_the_options_to_give() {
        let refuse = |flags: &str, variables: &[(&str, &str)]| {
            let line = format!("fnet-launch {flags} train cfg.toml");
            let options = Launch::from_arguments(line.split_whitespace().map(OsString::from)).unwrap().options;
            let value =
                |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            refuse_solo(&options, value)
        };
        for (name, value, remedy) in [
            ("WORLD_SIZE", "2", "--nnodes \"$WORLD_SIZE\" --node-rank \"$RANK\""),
            ("SLURM_NNODES", "8", "srun --ntasks-per-node=1"),
        ] {
            let error = refuse("", &[(name, value)]).unwrap_err();
            assert_eq!(error.code, exit::USAGE);
            let text = error.message();
            assert!(text.starts_with(&format!("{name}={value}: ")) && text.contains(remedy), "{text}");
            assert!(
                refuse("--nnodes 1", &[(name, value)]).is_ok() && refuse("", &[(name, value), ("NNODES", "1")]).is_ok()
            );
            assert!(refuse("", &[(name, "1")]).is_ok() && refuse("", &[(name, "")]).is_ok());
        }
        // One launcher in an allocation of several nodes, and what a job of one machine has left behind.
        assert!(refuse("", &[("SLURM_NNODES", "2"), ("SLURM_STEP_NUM_TASKS", "1")]).is_ok());
        assert!(refuse("", &[("WORLD_SIZE", "8"), ("LOCAL_WORLD_SIZE", "8")]).is_ok());
    }

    #[test]
    fn several_nodes_read_the_environment_and_options_win() {
        let variables = [("NNODES", "2"), ("NODE_RANK", "1"), ("MASTER_ADDR", "a"), ("PORT", "4000")];
        let nodes = with("", &variables).unwrap();
        assert_eq!(nodes, Nodes { count: 2, rank: 1, address: "a".into(), port: Some(4000), ..Nodes::default() });
        let nodes = with("--node-rank 0 --master-addr b --master-port 5000", &variables).unwrap();
        assert_eq!(nodes, Nodes { count: 2, address: "b".into(), port: Some(5000), ..Nodes::default() });
    }

    /// Kubeflow's Trainer sets all of them, its PyTorchJob with an elastic policy the endpoint.
    #[test]
    fn the_variables_of_kubernetes_operators_are_read() {
        let trainer = [
            ("PET_NNODES", "2"),
            ("PET_NODE_RANK", "1"),
            ("PET_MASTER_ADDR", "job-0-0.job"),
            ("PET_MASTER_PORT", "29400"),
        ];
        let expected =
            Nodes { count: 2, rank: 1, address: "job-0-0.job".into(), port: Some(29_400), ..Nodes::default() };
        assert_eq!(with("", &trainer).unwrap(), expected);
        assert_eq!(with("--nnodes 1", &trainer).unwrap().count, 1);
        let own = [&trainer[..], &[("NNODES", "3"), ("NODE_RANK", "2"), ("MASTER_PORT", "1")]].concat();
        let nodes = with("", &own).unwrap();
        assert_eq!((nodes.count, nodes.rank, nodes.port), (3, 2, Some(1)));
        let elastic = [("PET_NNODES", "1:3"), ("PET_RDZV_ENDPOINT", "job-worker-0:23456")];
        let nodes = with("", &elastic).unwrap();
        assert_eq!((nodes.count, nodes.min, nodes.rank, nodes.port), (3, Some(1), 1, Some(23_456)));
        assert_eq!(nodes.address, "job-worker-0");
        let indexed = [("JOB_COMPLETION_INDEX", "1"), ("NNODES", "2"), ("MASTER_ADDR", "job-node-0-0.job")];
        assert_eq!(with("", &indexed).unwrap().rank, 1);
        assert_eq!(with("", &[&indexed[..], &[("NODE_RANK", "0")]].concat()).unwrap().rank, 0);
        assert!(
            is_own_name("job-worker-0", "job-worker-0.job.space.svc") && !is_own_name("job-worker-0", "job-worker-1")
        );
        assert!(with("", &[("PET_NNODES", "x")]).unwrap_err().message().starts_with("PET_NNODES=x: "));
    }

    #[test]
    fn the_tasks_of_a_slurm_step_are_nodes_if_each_node_has_one_and_they_know_the_first() {
        let step = |tasks: &str, address: &str| {
            let names = ["SLURM_STEP_NUM_NODES", "SLURM_STEP_NUM_TASKS", "SLURM_NODEID", "MASTER_ADDR"];
            let values = ["3", tasks, "2", address];
            let nodes = with("", &names.into_iter().zip(values).collect::<Vec<_>>()).unwrap();
            (nodes.count, nodes.rank)
        };
        assert_eq!((step("3", "a"), step("6", "a"), step("3", "")), ((3, 2), (1, 0), (1, 0)));
    }

    #[test]
    fn master_port_wins_and_a_port_below_1024_is_ignored() {
        let base = "--nnodes 2 --master-addr a";
        assert_eq!(with(base, &[("PORT", "4000"), ("MASTER_PORT", "5000")]).unwrap().port, Some(5000));
        assert_eq!(with(base, &[("PORT", "22")]).unwrap().port, Some(29_500));
        assert_eq!(with(base, &[("PORT", "http")]).unwrap().port, Some(29_500));
        assert_eq!(with(base, &[("MASTER_PORT", "http")]).unwrap_err().code, exit::USAGE);
    }

    #[test]
    fn invalid_values_are_refused() {
        for flags in ["--nnodes 2", "--nnodes 2 --node-rank 2 --master-addr a", "--node-rank 1"] {
            assert_eq!(with(flags, &[]).unwrap_err().code, exit::USAGE, "{flags}");
        }
    }

    #[test]
    fn a_port_that_is_taken_says_so() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let nodes = Nodes { count: 1, address: "127.0.0.1".into(), port: Some(port), ..Nodes::default() };
        let error = bind(&nodes).unwrap_err();
        assert_eq!(error.code, exit::ENVIRONMENT);
        assert!(error.message().contains(&port.to_string()), "{error}");
    }

    #[test]
    fn brackets_around_an_address_are_removed() {
        for (given, expected) in [("[::1]", "::1"), ("::1", "::1"), ("fe80::1%eth0", "fe80::1%eth0"), ("n0", "n0")] {
            assert_eq!(with(&format!("--nnodes 2 --master-addr {given}"), &[]).unwrap().address, expected);
            assert_eq!(with("--nnodes 2", &[("MASTER_ADDR", given)]).unwrap().address, expected);
        }
    }

    #[test]
    fn gloo_and_nccl_use_the_interface_unless_the_user_has_set_another() {
        let names = |nodes: Nodes| nodes.interface.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(with("--iface eth1", &[]).unwrap()), ["GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"]);
        let own = [("NCCL_SOCKET_IFNAME", "ib0")];
        assert_eq!(names(with("--iface eth1", &own).unwrap()), ["GLOO_SOCKET_IFNAME"]);
        assert!(names(with("", &own).unwrap()).is_empty());
    }

    #[test]
    fn until_the_nodes_have_joined_all_count_as_equal() {
        let nodes = Nodes { count: 3, rank: 2, ..Nodes::default() };
        assert_eq!(nodes.rank_range(4), RankRange { first: 8, world_size: 12, full_world_size: 12 });
        let range = RankRange { first: 5, world_size: 9, full_world_size: 12 };
        assert_eq!(Nodes { ranks: Some(range), ..nodes }.rank_range(4), range);
    }
}
