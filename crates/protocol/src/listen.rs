//! The addresses at which a job listens: its own, and no others.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

/// Attempts to find a port that is free at several addresses.
const ATTEMPTS: usize = 16;

/// The addresses to listen at, given those that this machine finds for `host`, by which others reach it. None means all: a
/// machine often finds its own name, or `localhost`, at a loopback address, at which others do not look.
fn addresses(host: &str, found: impl IntoIterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let is_name = host.parse::<IpAddr>().is_err() && !host.contains('%');
    let mut addresses = distinct(found);
    if addresses.iter().any(|address| address.ip().is_unspecified()) {
        return Vec::new();
    }
    addresses.retain(|address| !is_name || !address.ip().to_canonical().is_loopback());
    addresses
}

/// The addresses without repetitions, in their order.
pub fn distinct(found: impl IntoIterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in found {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

/// [`listen`] at the addresses that this machine finds for `host`, by which others reach it.
pub fn listen_as(host: &str, found: impl IntoIterator<Item = SocketAddr>, port: u16) -> io::Result<Vec<TcpListener>> {
    listen(&addresses(host, found), port)
}

/// Listens with one port at those of the addresses that belong to this machine; at all addresses if none does, because it is
/// then reached through a translation. The port 0 is a free one.
/// Errors: the port is taken or not allowed.
pub fn listen(addresses: &[SocketAddr], port: u16) -> io::Result<Vec<TcpListener>> {
    let mut attempt = 1;
    loop {
        match try_to_listen(addresses, port) {
            Err(error) if port == 0 && attempt < ATTEMPTS && error.kind() == io::ErrorKind::AddrInUse => attempt += 1,
            other => return other,
        }
    }
}

fn try_to_listen(addresses: &[SocketAddr], mut port: u16) -> io::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for &(mut address) in addresses {
        address.set_port(port);
        match TcpListener::bind(address) {
            Ok(listener) => {
                port = listener.local_addr()?.port();
                listeners.push(listener);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
            Err(error) => return Err(error),
        }
    }
    if listeners.is_empty() {
        listeners.push(everywhere(port)?);
    }
    Ok(listeners)
}

/// All addresses of this machine, over IPv6 and IPv4.
fn everywhere(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))) {
        // A machine without IPv6.
        Err(error) if is_without_v6(&error) => TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))),
        other => other,
    }
}

fn is_without_v6(error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    /// Where a job listens whose `host` has these addresses.
    fn of(host: &str, found: &[&str]) -> Vec<TcpListener> {
        let found: Vec<SocketAddr> = found.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 0)).collect();
        listen_as(host, found, 0).unwrap()
    }

    #[test]
    fn a_job_listens_at_its_own_addresses_and_at_all_only_if_it_has_none() {
        for (host, found, expected) in [
            ("127.0.0.2", &["127.0.0.2"][..], &["127.0.0.2"][..]),
            ("n0", &["127.0.1.1", "127.0.0.3"], &["::"]),
            ("localhost", &["::1", "127.0.0.1"], &["::"]),
            ("0.0.0.0", &["0.0.0.0"], &["::"]),
            // Of no machine, or of another one.
            ("192.0.2.7", &["192.0.2.7"], &["::"]),
            ("n0", &[], &["::"]),
            ("10.0.0.0", &["127.0.0.2", "192.0.2.7", "127.0.0.2", "127.0.0.3"], &["127.0.0.2", "127.0.0.3"]),
        ] {
            let sockets = of(host, found);
            let at: Vec<SocketAddr> = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
            let ips: Vec<String> = at.iter().map(|address| address.ip().to_string().replace("0.0.0.0", "::")).collect();
            assert_eq!(ips, expected, "{host} {found:?}");
            assert!(at.iter().all(|address| address.port() == at[0].port()), "{at:?}");
        }
        let port = of("127.0.0.2", &["127.0.0.2"])[0].local_addr().unwrap().port();
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    }

    #[test]
    fn a_port_that_is_taken_is_an_error() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let held = TcpListener::bind(taken).unwrap();
        assert_eq!(listen(&[taken], taken.port()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(held);
    }
}
