//! The message of fixed length in which rank 0 sends its address to the other ranks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use fnet_common::{Error, Result};

use super::dial::first_that_answers;

/// Bytes of the message.
pub(super) const LENGTH: usize = 4096;
/// Timeout of a connection to one address.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// The address to listen on so that rank 0 accepts connections at all of `addresses`, which belong to one family.
pub(super) fn every(addresses: &[IpAddr]) -> IpAddr {
    match addresses {
        [address] => *address,
        [IpAddr::V6(_), ..] => Ipv6Addr::UNSPECIFIED.into(),
        _ => Ipv4Addr::UNSPECIFIED.into(),
    }
}

/// Rank 0's address for ranks on the same machine.
pub(super) fn loopback(addresses: &[IpAddr]) -> IpAddr {
    match addresses {
        [IpAddr::V6(_), ..] => Ipv6Addr::LOCALHOST.into(),
        _ => Ipv4Addr::LOCALHOST.into(),
    }
}

/// Writes the port and as many addresses as fit into the message, one per line.
pub(super) fn describe(port: u16, addresses: &[IpAddr]) -> String {
    let mut text = port.to_string();
    for line in addresses.iter().map(|address| format!("\n{address}")) {
        if text.len() + line.len() <= LENGTH {
            text.push_str(&line);
        }
    }
    text
}

/// Reads the message.
/// Errors: a bug if it is malformed.
pub(super) fn parse(message: &[u8]) -> Result<(u16, Vec<IpAddr>)> {
    let text = String::from_utf8_lossy(message);
    let mut lines = text.trim_end_matches('\0').lines();
    let port = lines.next().and_then(|line| line.parse().ok());
    let addresses = lines.map(str::parse).collect::<Result<_, _>>();
    match (port, addresses) {
        (Some(port), Ok(addresses)) => Ok((port, addresses)),
        _ => Err(Error::bug(format!("rank 0 sent {:?} as its address", text.trim_end_matches('\0')))),
    }
}

/// The first of rank 0's addresses that answers.
/// Errors: a distributed error that names the addresses that were tried.
pub(super) fn reachable(addresses: &[IpAddr], port: u16) -> Result<String> {
    let all = addresses.iter().map(|&address| SocketAddr::new(address, port));
    first_that_answers(all, DIAL_TIMEOUT).map(|address| address.ip().to_string()).map_err(|failures| {
        let tried: Vec<_> = failures.iter().map(|(address, error)| format!("{}: {error}", address.ip())).collect();
        Error::distributed(format!(
            "rank 0 cannot be reached on port {port}: {}; set GLOO_SOCKET_IFNAME on rank 0's machine to the network \
             interface to use",
            if tried.is_empty() { "it has no address except loopback".to_owned() } else { tried.join(", ") }
        ))
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use fnet_common::ErrorKind;

    use super::*;

    #[test]
    fn the_address_of_rank_0_arrives_as_it_was_sent() {
        let addresses: Vec<IpAddr> = vec!["10.0.0.1".parse().unwrap(), "fd00::2".parse().unwrap()];
        let mut message = describe(29500, &addresses).into_bytes();
        message.resize(LENGTH, 0);
        assert_eq!(parse(&message).unwrap(), (29500, addresses));
        let many = vec!["fd00:1111:2222:3333:4444:5555:6666:7777".parse().unwrap(); 500];
        assert!(describe(1, &many).len() <= LENGTH);
        assert_eq!(parse(&[0; 8]).unwrap_err().kind(), ErrorKind::Bug);
    }

    #[test]
    fn the_listener_has_the_only_address_or_the_family_of_the_addresses() {
        let (v4, v6): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "fd00::2".parse().unwrap());
        assert_eq!([every(&[v4]), every(&[v6])], [v4, v6]);
        assert_eq!([every(&[v6, v6]), loopback(&[v6])].map(|address| address.to_string()), ["::", "::1"]);
        for addresses in [&[v4, v4][..], &[]] {
            assert_eq!(
                [every(addresses), loopback(addresses)].map(|address| address.to_string()),
                ["0.0.0.0", "127.0.0.1"]
            );
        }
    }

    #[test]
    fn the_first_reachable_address_is_used_and_an_error_names_all_that_were_tried() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let [silent, answers]: [IpAddr; 2] = ["127.0.0.2".parse().unwrap(), "127.0.0.1".parse().unwrap()];
        assert_eq!(reachable(&[silent, answers], port).unwrap(), "127.0.0.1");
        let error = reachable(&[silent], port).unwrap_err().to_string();
        assert!(error.contains("127.0.0.2: ") && error.contains(&port.to_string()), "{error}");
        assert!(reachable(&[], port).unwrap_err().to_string().contains("no address"));
    }
}
