//! Where the ranks meet.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use fnet_protocol::cli::Place;
use fnet_protocol::env;

use crate::error::{Error, Result};

/// Port of dist_train.sh, for several nodes that name none.
const DEFAULT_PORT: u16 = 29_500;
/// Ports below belong to the system; a PORT that small was meant for something else.
const LEAST_PORT: u16 = 1024;

/// Which node this is and where node 0 is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nodes {
    /// Number of nodes.
    pub count: usize,
    /// Rank of this one.
    pub rank: usize,
    /// Name or address of node 0.
    pub address: String,
    /// Port on node 0: of the store with a single node (`None` for any free one), of the launchers with several.
    pub port: Option<u16>,
    /// Place of this node's workers among all, once the nodes have met.
    pub spot: Option<Spot>,
    /// Variables that lead the workers' traffic over the network interface of the user's choice.
    pub interface: Vec<(String, String)>,
}

/// Place of a node's workers among those of all nodes, which may have different numbers of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    /// Rank of the first one.
    pub first_rank: usize,
    /// Workers of all nodes.
    pub world: usize,
}

impl Nodes {
    /// Place of this node's `workers`; before the nodes have met, as if all had as many.
    pub fn spot(&self, workers: usize) -> Spot {
        self.spot.unwrap_or(Spot { first_rank: self.rank * workers, world: self.count * workers })
    }
}

/// Combines flags and environment. With a single node, MASTER_ADDR, MASTER_PORT and PORT of the environment are not read:
/// nobody else has to find the store, and a variable left over from another program cannot do harm.
///
/// # Errors
/// Values that make no sense (exit code 2).
pub fn resolve(place: &Place, lookup: impl Fn(&str) -> Option<String>) -> Result<Nodes> {
    let lookup = |name: &str| lookup(name).filter(|text| !text.trim().is_empty());
    let number = |flag: Option<usize>, name: &str, default: usize| match (flag, lookup(name)) {
        (Some(value), _) => Ok(value),
        (None, None) => Ok(default),
        (None, Some(text)) => {
            text.trim().parse().map_err(|_| Error::usage(format!("{name}={text}: expected a whole number")))
        }
    };
    let interface = interface(place.iface.as_deref(), lookup);
    let count = number(place.nnodes, env::NNODES, 1)?;
    if count == 0 {
        return Err(Error::usage("the number of nodes is 0 (--nnodes, NNODES); expected 1 or more"));
    }
    if count == 1 {
        if let Some(rank @ 1..) = place.node_rank {
            return Err(Error::usage(format!("--node-rank {rank} needs --nnodes {} or more", rank + 1)));
        }
        let address = place.master_addr.as_deref().map_or_else(|| Ipv4Addr::LOCALHOST.to_string(), without_brackets);
        let port = place.master_port.filter(|&port| port != 0);
        return Ok(Nodes { count, rank: 0, address, port, spot: None, interface });
    }
    let rank = number(place.node_rank, env::NODE_RANK, 0)?;
    if rank >= count {
        return Err(Error::usage(format!("node rank {rank} of {count} nodes: expected 0 to {}", count - 1)));
    }
    let Some(address) = place.master_addr.clone().or_else(|| lookup(env::MASTER_ADDR)) else {
        return Err(Error::usage(format!(
            "{count} nodes, but nothing says where node 0 is; give --master-addr (or MASTER_ADDR) on every node"
        )));
    };
    let (address, port) = (without_brackets(&address), Some(port(place, lookup)?));
    Ok(Nodes { count, rank, address, port, spot: None, interface })
}

/// `[::1]` as `::1`: with the brackets that a port after it would need.
fn without_brackets(address: &str) -> String {
    let address = address.trim();
    address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address).to_owned()
}

/// The name of a network interface (`--iface`) as Gloo and NCCL read it, unless the user has told them otherwise.
pub fn interface(name: Option<&str>, lookup: impl Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    let Some(name) = name else { return Vec::new() };
    let names = [env::GLOO_SOCKET_IFNAME, env::NCCL_SOCKET_IFNAME];
    names.iter().filter(|key| lookup(key).is_none()).map(|key| ((*key).to_owned(), name.to_owned())).collect()
}

fn port(place: &Place, lookup: impl Fn(&str) -> Option<String>) -> Result<u16> {
    if let Some(port) = place.master_port {
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
    Ok(port.filter(|&port| port >= LEAST_PORT).unwrap_or(DEFAULT_PORT))
}

/// Binds the store's port of a single node; rank 0 inherits the socket, so no other program can take the port in between.
///
/// # Errors
/// If the port is taken or not allowed (exit code 6).
pub fn bind(nodes: &Nodes) -> Result<TcpListener> {
    let port = nodes.port.unwrap_or(0);
    let is_v6 = nodes.address.parse::<Ipv6Addr>().is_ok();
    let address: SocketAddr =
        if is_v6 { (Ipv6Addr::LOCALHOST, port).into() } else { (Ipv4Addr::LOCALHOST, port).into() };
    TcpListener::bind(address).map_err(|error| cannot_listen(nodes, port, &error))
}

/// The error of a port that is taken or not allowed.
pub fn cannot_listen(nodes: &Nodes, port: u16, error: &std::io::Error) -> Error {
    let (whom, remedy) = match nodes.count {
        1 => ("ranks", ", or leave it out for a free one"),
        _ => ("nodes", " on every node"),
    };
    Error::environment(format!(
        "cannot listen on port {port} for the other {whom}: {error}; choose another one with --master-port{remedy}"
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
        let place = Launch::from_arguments(line.split_whitespace().map(OsString::from)).unwrap().place;
        resolve(&place, |name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn a_single_node_ignores_what_other_programs_left_behind() {
        let leaked = [("PORT", "22"), ("MASTER_PORT", "x"), ("MASTER_ADDR", "gone.example"), ("NODE_RANK", "7")];
        let nodes = with("", &leaked).unwrap();
        assert_eq!(nodes, Nodes { count: 1, address: "127.0.0.1".into(), ..Nodes::default() });
        assert_eq!(with("--master-port 4000", &[]).unwrap().port, Some(4000));
    }

    #[test]
    fn several_nodes_read_the_environment_and_flags_win() {
        let variables = [("NNODES", "2"), ("NODE_RANK", "1"), ("MASTER_ADDR", "a"), ("PORT", "4000")];
        let nodes = with("", &variables).unwrap();
        assert_eq!(nodes, Nodes { count: 2, rank: 1, address: "a".into(), port: Some(4000), ..Nodes::default() });
        let nodes = with("--node-rank 0 --master-addr b --master-port 5000", &variables).unwrap();
        assert_eq!(nodes, Nodes { count: 2, address: "b".into(), port: Some(5000), ..Nodes::default() });
    }

    #[test]
    fn master_port_wins_and_a_port_below_1024_is_not_ours() {
        let base = "--nnodes 2 --master-addr a";
        assert_eq!(with(base, &[("PORT", "4000"), ("MASTER_PORT", "5000")]).unwrap().port, Some(5000));
        assert_eq!(with(base, &[("PORT", "22")]).unwrap().port, Some(29_500));
        assert_eq!(with(base, &[("PORT", "http")]).unwrap().port, Some(29_500));
        assert_eq!(with(base, &[("MASTER_PORT", "http")]).unwrap_err().code, exit::USAGE);
    }

    #[test]
    fn nonsense_is_refused() {
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
    fn an_address_in_brackets_is_one_without() {
        for (given, expected) in [("[::1]", "::1"), ("::1", "::1"), ("fe80::1%eth0", "fe80::1%eth0"), ("n0", "n0")] {
            assert_eq!(with(&format!("--master-addr {given}"), &[]).unwrap().address, expected);
            assert_eq!(with("--nnodes 2", &[("MASTER_ADDR", given)]).unwrap().address, expected);
        }
    }

    #[test]
    fn the_interface_is_told_to_gloo_and_nccl_unless_the_user_has() {
        let names = |nodes: Nodes| nodes.interface.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(with("--iface eth1", &[]).unwrap()), ["GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"]);
        let own = [("NCCL_SOCKET_IFNAME", "ib0")];
        assert_eq!(names(with("--iface eth1", &own).unwrap()), ["GLOO_SOCKET_IFNAME"]);
        assert!(names(with("", &own).unwrap()).is_empty());
    }

    #[test]
    fn until_the_nodes_have_met_all_count_as_alike() {
        let nodes = Nodes { count: 3, rank: 2, ..Nodes::default() };
        assert_eq!(nodes.spot(4), Spot { first_rank: 8, world: 12 });
        let met = Nodes { spot: Some(Spot { first_rank: 5, world: 9 }), ..nodes };
        assert_eq!(met.spot(4), Spot { first_rank: 5, world: 9 });
    }
}
