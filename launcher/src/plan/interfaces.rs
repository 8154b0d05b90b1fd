//! The network interfaces of this machine.

use std::net::{IpAddr, SocketAddr};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use crate::error::{Error, Result};

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// For example `eth0`.
    pub name: String,
    /// Whether it is up.
    pub is_up: bool,
    /// Its IP addresses.
    pub addresses: Vec<IpAddr>,
}

/// All interfaces.
pub fn all() -> Result<Vec<Interface>> {
    let entries =
        getifaddrs().map_err(|error| Error::environment(format!("listing the network interfaces: {error}")))?;
    let mut found: Vec<Interface> = Vec::new();
    for entry in entries {
        let index = found.iter().position(|interface| interface.name == entry.interface_name).unwrap_or_else(|| {
            let is_up = entry.flags.contains(InterfaceFlags::IFF_UP);
            found.push(Interface { name: entry.interface_name.clone(), is_up, addresses: Vec::new() });
            found.len() - 1
        });
        let address = entry.address.as_ref().and_then(|address| {
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        });
        found[index].addresses.extend(address);
    }
    Ok(found)
}

/// Refuses an interface that does not exist, is down or has no address (exit code 6).
pub fn check(wanted: &str, all: &[Interface]) -> Result<()> {
    let wrong = match all.iter().find(|interface| interface.name == wanted) {
        None => "no such network interface",
        Some(interface) if !interface.is_up => "this network interface is down",
        Some(interface) if interface.addresses.is_empty() => "this network interface has no address",
        Some(_) => return Ok(()),
    };
    Err(Error::environment(format!("--iface {wanted}: {wrong}; this machine has {}", list(all))))
}

/// The name of the interface in the scope of an address (`fe80::1%4`).
pub fn of_scope(address: &str) -> Option<String> {
    let index = address.split_once('%')?.1.parse().ok()?;
    nix::net::if_::if_indextoname(index).ok()?.into_string().ok()
}

/// Refuses an interface with only link-local addresses (exit code 6): launchers can reach node 0 through them, but workers
/// exchange their addresses, and the scope after the `%` is valid on one machine only.
pub fn check_for_workers(name: &str, all: &[Interface]) -> Result<()> {
    let is_local = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let addresses = all.iter().filter(|one| one.name == name).flat_map(|one| &one.addresses);
    if addresses.clone().any(|address| !is_local(address)) {
        return Ok(());
    }
    Err(Error::environment(format!(
        "node 0 has a link-local address, and {name} has no other one, at which the workers of other machines could \
         reach those here; add one, or choose another interface with --iface; this machine has {}",
        list(all)
    )))
}

/// `lo (127.0.0.1), eth0 (10.0.0.1, down)`.
pub fn list(all: &[Interface]) -> String {
    let text = |interface: &Interface| {
        let mut parts: Vec<String> = interface.addresses.iter().map(ToString::to_string).collect();
        if interface.addresses.is_empty() {
            parts.push("no address".to_owned());
        }
        if !interface.is_up {
            parts.push("down".to_owned());
        }
        format!("{} ({})", interface.name, parts.join(", "))
    };
    let texts: Vec<String> = all.iter().map(text).collect();
    if texts.is_empty() { "no network interfaces".to_owned() } else { texts.join(", ") }
}

/// A warning on node 0 if none of the `addresses` of node 0 belongs to this machine. They may still be right, behind address
/// translation. <https://github.com/pytorch/pytorch/issues/69197>
pub fn external(host: &str, addresses: &[SocketAddr], all: &[Interface]) -> Option<String> {
    let is_ours = |address: &SocketAddr| {
        let ip = address.ip().to_canonical();
        ip.is_loopback() || ip.is_unspecified() || all.iter().any(|interface| interface.addresses.contains(&ip))
    };
    if addresses.iter().any(is_ours) {
        return None;
    }
    let mut ips: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
    ips.dedup();
    let meaning = if ips == [host] { String::new() } else { format!(" ({})", ips.join(", ")) };
    Some(format!(
        "--master-addr {host}{meaning} is not an address of this machine, which is node 0 and has {}; the other nodes \
         connect to that address. Is --node-rank 0 given on the right machine?",
        list(all)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, is_up: bool, addresses: &[&str]) -> Interface {
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        Interface { name: name.into(), is_up, addresses }
    }

    fn machine() -> [Interface; 4] {
        [
            interface("lo", true, &["127.0.0.1", "::1"]),
            interface("eth0", true, &["10.0.0.1", "fd00::1"]),
            interface("eth1", false, &["10.1.0.1"]),
            interface("ib0", true, &[]),
        ]
    }

    #[test]
    fn an_unusable_interface_is_refused_with_a_list_of_all() {
        assert!(check("eth0", &machine()).is_ok());
        for (name, expected) in [("eth7", "no such"), ("eth1", "is down"), ("ib0", "has no address")] {
            let error = check(name, &machine()).unwrap_err();
            assert_eq!(error.code, fnet_protocol::exit::ENVIRONMENT);
            assert!(error.message().contains(expected), "{error}");
            assert!(
                error.message().contains("eth0 (10.0.0.1, fd00::1), eth1 (10.1.0.1, down), ib0 (no address)"),
                "{error}"
            );
        }
    }

    #[test]
    fn an_interface_with_only_link_local_addresses_is_not_for_workers() {
        let machine = [interface("eth0", true, &["fe80::1", "10.0.0.1"]), interface("eth1", true, &["fe80::2"])];
        assert!(check_for_workers("eth0", &machine).is_ok());
        let error = check_for_workers("eth1", &machine).unwrap_err();
        assert!(error.message().contains("eth1 has no other one") && error.message().contains("--iface"), "{error}");
        let index = nix::net::if_::if_nametoindex("lo").unwrap();
        assert_eq!(of_scope(&format!("fe80::1%{index}")).as_deref(), Some("lo"));
        assert_eq!((of_scope("fe80::1"), of_scope("10.0.0.1%x")), (None, None));
    }

    #[test]
    fn an_address_of_another_machine_is_noticed_on_node_0() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let machine = machine();
        assert_eq!(external("n0", &[at("10.9.9.9:1"), at("10.0.0.1:1")], &machine), None);
        assert_eq!(external("::1", &[at("[::1]:1")], &machine), None);
        assert_eq!(external("127.0.1.1", &[at("127.0.1.1:1")], &machine), None, "as in Debian's /etc/hosts");
        let text = external("n0", &[at("10.9.9.9:1")], &machine).unwrap();
        assert!(text.contains("n0 (10.9.9.9)") && text.contains("eth0 (10.0.0.1"), "{text}");
    }

    #[test]
    fn this_machine_has_a_loopback_interface() {
        let all = all().unwrap();
        assert!(all.iter().any(|interface| interface.addresses.iter().any(IpAddr::is_loopback)), "{all:?}");
    }
}
