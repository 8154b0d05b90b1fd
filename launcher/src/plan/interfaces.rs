//! The network interfaces of this machine.

use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use rustix::net::netdevice;

use crate::error::{Doing, Error, Result};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// For example `eth0`.
    pub name: String,
    pub is_up: bool,
    pub addresses: Vec<IpAddr>,
}

pub fn all() -> Result<Vec<Interface>> {
    let mut first = std::ptr::null_mut();
    // SAFETY: `first` outlives the call, which stores a list in it that is freed below.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(io::Error::last_os_error()).doing(|| "listing the network interfaces".to_owned());
    }
    let mut found: Vec<Interface> = Vec::new();
    let mut next = first;
    // SAFETY: a member of the list, which has not been freed, or null at its end.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        // SAFETY: the name is a C string.
        let name = unsafe { CStr::from_ptr(entry.ifa_name) }.to_string_lossy();
        let index = found.iter().position(|interface| interface.name == name).unwrap_or_else(|| {
            let is_up = entry.ifa_flags & libc::IFF_UP.cast_unsigned() != 0;
            found.push(Interface { name: name.into_owned(), is_up, addresses: Vec::new() });
            found.len() - 1
        });
        // SAFETY: the address is null or belongs to the list.
        found[index].addresses.extend(unsafe { ip_address(entry.ifa_addr) });
    }
    // SAFETY: the list of the call above; nothing refers to it any more.
    unsafe { libc::freeifaddrs(first) };
    Ok(found)
}

/// The IP address in a socket address of any family.
///
/// # Safety
/// `address` is null, or has the size of its family.
unsafe fn ip_address(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: as the caller's; reads as many bytes as the family has.
    unsafe {
        match i32::from(address.as_ref()?.sa_family) {
            libc::AF_INET => {
                let address = address.cast::<libc::sockaddr_in>().read_unaligned();
                Some(IpAddr::from(address.sin_addr.s_addr.to_ne_bytes()))
            }
            libc::AF_INET6 => {
                let address = address.cast::<libc::sockaddr_in6>().read_unaligned();
                Some(IpAddr::from(address.sin6_addr.s6_addr))
            }
            _ => None,
        }
    }
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
    // The call needs any socket.
    netdevice::index_to_name(UdpSocket::bind("0.0.0.0:0").ok()?, index).ok()
}

/// The address of an interface at which workers of other machines reach those here, of the family of `like` if it has one.
pub fn address_for_workers(name: &str, like: IpAddr) -> Option<IpAddr> {
    let found = all().ok()?.into_iter().filter(|one| one.name == name).flat_map(|one| one.addresses);
    let is_local = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    found.filter(|address| !is_local(address)).min_by_key(|address| address.is_ipv4() != like.is_ipv4())
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
        let index = netdevice::name_to_index(UdpSocket::bind("0.0.0.0:0").unwrap(), "lo").unwrap();
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
}
