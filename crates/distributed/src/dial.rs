//! Waits until the store accepts connections. c10d's own client does not keep its deadline (it restarts it with another
//! pause), does not say which addresses it tried, and prints its stack frames.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::thread::sleep;
use std::time::{Duration, Instant};

use fnet_common::{Error, Result};
use fnet_protocol::stop;

/// Timeout of one attempt at one address.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between attempts.
const PAUSE: Duration = Duration::from_millis(100);
/// A warning is logged after waiting this long.
const WARN_AFTER: Duration = Duration::from_secs(10);

/// Waits until one of the host's addresses accepts a connection, and returns how much of `timeout` is left.
/// Errors: a distributed error with the last failure of each address, after the timeout or if this process is asked to
/// stop.
pub(super) fn wait_for_server(host: &str, port: u16, timeout: Duration) -> Result<Duration> {
    let begin = Instant::now();
    let mut warned = false;
    loop {
        let left = |at_least| timeout.saturating_sub(begin.elapsed()).max(at_least);
        let Err(why) = attempt(host, port, left(Duration::from_millis(1)).min(ATTEMPT_TIMEOUT)) else {
            return Ok(left(Duration::from_secs(1)));
        };
        let waited = begin.elapsed();
        let failed = |how: String| Error::distributed(format!("the store at {host}:{port} {how} ({why})"));
        if waited >= timeout {
            let hint = "is rank 0 running, is MASTER_ADDR its machine, is MASTER_PORT its port, and does a firewall \
                        block the connection?";
            return Err(failed(format!("did not answer within {} s: {hint}", timeout.as_secs_f64())));
        }
        if stop::requested().is_some() {
            return Err(failed("did not answer before this rank was asked to stop".into()));
        }
        if waited >= WARN_AFTER && !warned {
            log::warn!("still waiting for the store at {host}:{port} after {} s ({why})", waited.as_secs());
            warned = true;
        }
        sleep(PAUSE.min(left(Duration::ZERO)));
    }
}

/// Tries every address of the host once; the error says why each failed.
fn attempt(host: &str, port: u16, timeout: Duration) -> Result<(), String> {
    let addresses: Vec<SocketAddr> = match (host, port).to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => return Err(format!("the host name {host:?} has no address: {error}")),
    };
    first_that_answers(addresses, timeout).map(|_| ()).map_err(|failures| {
        let failures: Vec<_> = failures.iter().map(|(address, error)| format!("{address}: {error}")).collect();
        failures.join(", ")
    })
}

/// The first address that accepts a connection within `timeout`; otherwise why each failed.
pub(super) fn first_that_answers(
    addresses: impl IntoIterator<Item = SocketAddr>,
    timeout: Duration,
) -> Result<SocketAddr, Vec<(SocketAddr, io::Error)>> {
    let mut failures = Vec::new();
    for address in addresses {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(_) => return Ok(address),
            Err(error) => failures.push((address, error)),
        }
    }
    Err(failures)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use fnet_common::ErrorKind;

    use super::*;

    fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    #[test]
    fn a_late_server_is_waited_for() {
        let port = free_port();
        let server = std::thread::spawn(move || {
            sleep(Duration::from_millis(300));
            TcpListener::bind(("127.0.0.1", port)).unwrap().accept().unwrap();
        });
        let left = wait_for_server("127.0.0.1", port, Duration::from_secs(60)).unwrap();
        assert!(left < Duration::from_millis(59_800));
        server.join().unwrap();
    }

    /// https://github.com/pytorch/pytorch/issues/69197: every node dials and times out without a hint.
    #[test]
    fn a_missing_server_is_an_error_at_the_deadline_that_names_the_addresses() {
        let (port, begin) = (free_port(), Instant::now());
        let error = wait_for_server("127.0.0.1", port, Duration::from_millis(300)).unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(10));
        assert_eq!(error.kind(), ErrorKind::PeerLost);
        let message = error.to_string();
        let start = format!("the store at 127.0.0.1:{port} did not answer within 0.3 s: is rank 0 running");
        assert!(message.starts_with(&start), "{message}");
        assert!(message.contains(&format!("(127.0.0.1:{port}: Connection refused")), "{message}");
    }

    #[test]
    fn a_host_without_an_address_is_named() {
        let error = wait_for_server("no-such-host.invalid", 1, Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().contains("the host name \"no-such-host.invalid\" has no address"), "{error}");
    }
}
