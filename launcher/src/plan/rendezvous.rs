//! The rendezvous of nodes and ranks: number of nodes, address, port.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use fnet_protocol::cli::LaunchOptions;
use fnet_protocol::env;

use crate::error::{Error, Result};

/// Default port with several nodes, as in dist_train.sh.
const DEFAULT_PORT: u16 = 29_500;
/// A smaller PORT was meant for something else.
const MIN_PORT: u16 = 1024;

/// The nodes of a job, and the rank of this one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nodes {
    /// Number of nodes.
    pub count: usize,
    /// Rank of this node.
    pub rank: usize,
    /// Name or address of node 0.
    pub address: String,
    /// Port on node 0: of the store with a single node (`None` for a free one), of the launchers with several nodes.
    pub port: Option<u16>,
    /// The ranks of this node's workers, once the nodes have joined.
    pub ranks: Option<RankRange>,
    /// Variables that select the network interface of the workers.
    pub interface: Vec<(String, String)>,
}

/// The ranks of a node's workers; nodes may have different numbers of workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankRange {
    /// Rank of the first worker.
    pub first: usize,
    /// Number of workers of all nodes.
    pub world_size: usize,
}

impl Nodes {
    /// The ranks of this node's `workers`; before the nodes have joined, as if all nodes had as many.
    pub fn rank_range(&self, workers: usize) -> RankRange {
        self.ranks.unwrap_or(RankRange { first: self.rank * workers, world_size: self.count * workers })
    }
}

/// Combines options and environment. With a single node, MASTER_ADDR, MASTER_PORT and PORT of the environment are ignored:
/// no other node has to find the store, and variables left over from other programs do no harm.
///
/// # Errors
/// Invalid values (exit code 2).
pub fn resolve(options: &LaunchOptions, lookup: impl Fn(&str) -> Option<String>) -> Result<Nodes> {
    let lookup = |name: &str| lookup(name).filter(|text| !text.trim().is_empty());
    let number = |flag: Option<usize>, name: &str, default: usize| match (flag, lookup(name)) {
        (Some(value), _) => Ok(value),
        (None, None) => Ok(default),
        (None, Some(text)) => {
            text.trim().parse().map_err(|_| Error::usage(format!("{name}={text}: expected a whole number")))
        }
    };
    let interface = interface(options.iface.as_deref(), lookup);
    let count = number(options.nnodes, env::NNODES, 1)?;
    if count == 0 {
        return Err(Error::usage("the number of nodes is 0 (--nnodes, NNODES); expected 1 or more"));
    }
    if count == 1 {
        if let Some(rank @ 1..) = options.node_rank {
            return Err(Error::usage(format!("--node-rank {rank} needs --nnodes {} or more", rank + 1)));
        }
        let address = options.master_addr.as_deref().map_or_else(|| Ipv4Addr::LOCALHOST.to_string(), without_brackets);
        let port = options.master_port.filter(|&port| port != 0);
        return Ok(Nodes { count, rank: 0, address, port, ranks: None, interface });
    }
    let rank = number(options.node_rank, env::NODE_RANK, 0)?;
    if rank >= count {
        return Err(Error::usage(format!("node rank {rank} of {count} nodes: expected 0 to {}", count - 1)));
    }
    let Some(address) = options.master_addr.clone().or_else(|| lookup(env::MASTER_ADDR)) else {
        return Err(Error::usage(format!(
            "the address of node 0 is missing; give --master-addr (or MASTER_ADDR) on every one of the {count} nodes"
        )));
    };
    let (address, port) = (without_brackets(&address), Some(port(options, lookup)?));
    Ok(Nodes { count, rank, address, port, ranks: None, interface })
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

fn port(options: &LaunchOptions, lookup: impl Fn(&str) -> Option<String>) -> Result<u16> {
    if let Some(port) = options.master_port {
        return if port == 0 {
            Err(Error::usage("--master-port 0: several nodes need a fixed port"))
        } else {
            Ok(port)
        };
    }
    if let Some(text) = lookup(env::MASTER_PORT) {
        let port = text.trim().parse().ok().filter(|&port: &u16| port != 0);
        return port.ok_or_else(|| Error::usage(format!("MASTER_PORT={text}: expected a port, 1 to 65535")));
    }
    let port = lookup(env::PORT).and_then(|text| text.trim().parse().ok());
    Ok(port.filter(|&port| port >= MIN_PORT).unwrap_or(DEFAULT_PORT))
}

/// Binds the port of the store of a single node; rank 0 inherits the socket, so no other program can take the port.
///
/// # Errors
/// The port is taken or not allowed (exit code 6).
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
    fn several_nodes_read_the_environment_and_options_win() {
        let variables = [("NNODES", "2"), ("NODE_RANK", "1"), ("MASTER_ADDR", "a"), ("PORT", "4000")];
        let nodes = with("", &variables).unwrap();
        assert_eq!(nodes, Nodes { count: 2, rank: 1, address: "a".into(), port: Some(4000), ..Nodes::default() });
        let nodes = with("--node-rank 0 --master-addr b --master-port 5000", &variables).unwrap();
        assert_eq!(nodes, Nodes { count: 2, address: "b".into(), port: Some(5000), ..Nodes::default() });
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
        for flags in ["--nnodes 2", "--nnodes 0", "--nnodes 2 --node-rank 2 --master-addr a", "--node-rank 1"] {
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
            assert_eq!(with(&format!("--master-addr {given}"), &[]).unwrap().address, expected);
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
        assert_eq!(nodes.rank_range(4), RankRange { first: 8, world_size: 12 });
        let joined = Nodes { ranks: Some(RankRange { first: 5, world_size: 9 }), ..nodes };
        assert_eq!(joined.rank_range(4), RankRange { first: 5, world_size: 9 });
    }
}
