//! The local address that the other ranks connect to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};

use torch_ext::distributed::GlooOptions;

use fnet_protocol::env;

use super::placement::{RankPlacement, Rendezvous};

/// The interface or address that peers connect to: the interface that the user chose, loopback if all ranks are on this
/// node, otherwise the local address of the route to the store.
pub(super) fn gloo_options(place: &RankPlacement, rendezvous: &Rendezvous) -> GlooOptions {
    if let Some(interface) = std::env::var(env::GLOO_SOCKET_IFNAME).ok().filter(|name| !name.is_empty()) {
        return GlooOptions { interface: Some(interface), hostname: None };
    }
    if place.local_world_size == Some(place.world_size) {
        return GlooOptions { interface: None, hostname: Some("127.0.0.1".into()) };
    }
    GlooOptions { interface: None, hostname: address_towards(&rendezvous.host, rendezvous.port) }
}

/// The local address of the route to a host. Connecting a UDP socket sends nothing; it makes the kernel choose the local
/// address. On the store's node, that is the address by which peers know it. If the host has several addresses, the first
/// one with a route is used.
fn address_towards(host: &str, port: u16) -> Option<String> {
    let local = |remote: SocketAddr| {
        let any: IpAddr = if remote.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(remote).ok()?;
        match socket.local_addr().ok()? {
            // A link-local address is ambiguous without its interface.
            SocketAddr::V6(address) if address.scope_id() != 0 => {
                Some(format!("{}%{}", address.ip(), address.scope_id()))
            }
            address => Some(address.ip().to_string()),
        }
    };
    (host, port).to_socket_addrs().ok()?.find_map(local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_local_address_has_the_family_of_the_store() {
        assert_eq!(address_towards("127.0.0.1", 1).as_deref(), Some("127.0.0.1"));
        if UdpSocket::bind("[::1]:0").is_ok() {
            assert_eq!(address_towards("::1", 1).as_deref(), Some("::1"));
        } else {
            eprintln!("SKIPPED the IPv6 half: this machine has no IPv6");
        }
        assert_eq!(address_towards("no-such-host.invalid", 1), None);
    }
}
