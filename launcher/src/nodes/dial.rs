//! How the other nodes reach node 0: names, addresses, and what answers there.

use std::fmt::Write;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use fnet_protocol::{listen, message};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::auth::{self, Denial, Side};
use super::message::{Hello, MAX_LINE, PROTOCOL, ToCoordinator, ToNode};
use super::wire::{Reader, Writer};
use crate::plan::interfaces;
use crate::plan::rendezvous::Nodes;
use crate::plan::secret::{SAME_REMEDY, Secret};

/// Time to connect to an address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the other side to send its greeting.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to node 0.
pub struct Connection {
    /// Receives messages.
    pub reader: Reader<tokio::net::tcp::OwnedReadHalf>,
    /// Sends messages.
    pub writer: Writer<tokio::net::tcp::OwnedWriteHalf>,
    /// The address of node 0.
    pub address: SocketAddr,
    /// The address of this node.
    pub local: SocketAddr,
}

/// Why node 0 was not reached.
#[derive(Debug)]
pub enum DialError {
    /// Its name cannot be resolved.
    Name(io::Error),
    /// Each address failed for a reason.
    Addresses(Vec<(SocketAddr, AddressError)>),
}

/// Why one address failed.
#[derive(Debug)]
pub enum AddressError {
    /// The operating system reports an error.
    Os(io::Error),
    /// No connection within this time.
    NoConnection(Duration),
    /// Connected, but no greeting within this time.
    NoGreeting(Duration),
    /// Connected, but the connection was closed.
    Closed,
    /// Another program answers; its first line begins like this.
    OtherProgram(String),
    /// Another version of fnet.
    Version(String),
    /// Node 0 has no secret, or another one.
    Secret(&'static str),
}

impl DialError {
    /// Whether the secrets of the nodes differ: at all addresses or at any.
    pub fn is_about_secret(&self) -> (bool, bool) {
        let Self::Addresses(tried) = self else { return (false, false) };
        let is_about = |(_, error): &(SocketAddr, AddressError)| matches!(error, AddressError::Secret(_));
        (!tried.is_empty() && tried.iter().all(is_about), tried.iter().any(is_about))
    }
}

/// Tries all addresses of node 0 at once; the first connection to it is used.
pub async fn try_once(nodes: &Nodes, hello: &Hello) -> Result<Connection, DialError> {
    let (host, port) = (nodes.address.as_str(), nodes.port.unwrap_or(0));
    let found = tokio::net::lookup_host((host, port)).await.map_err(DialError::Name)?;
    let addresses = listen::distinct(found);
    let mut trying = JoinSet::new();
    for &address in &addresses {
        trying.spawn(async move {
            let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
            (address, connected)
        });
    }
    let mut errors = Vec::new();
    while let Some(tried) = trying.join_next().await {
        let Ok((address, connected)) = tried else { continue };
        let greeted = match connected {
            Err(_) => Err(AddressError::NoConnection(CONNECT_TIMEOUT)),
            Ok(Err(error)) => Err(AddressError::Os(error)),
            Ok(Ok(stream)) => greet(stream, address, hello, nodes.secret.as_ref()).await,
        };
        match greeted {
            Ok(connection) => return Ok(connection),
            Err(error) => errors.push((address, error)),
        }
    }
    errors.sort_by_key(|(address, _)| addresses.iter().position(|one| one == address));
    Err(DialError::Addresses(errors))
}

/// Introduces this node and checks the greeting of the other side, if there is a secret after both have proven to know it.
async fn greet(
    stream: TcpStream,
    address: SocketAddr,
    hello: &Hello,
    secret: Option<&Secret>,
) -> Result<Connection, AddressError> {
    // Short messages must not be delayed; without this option they still arrive.
    let _ = stream.set_nodelay(true);
    let local = stream.local_addr().map_err(AddressError::Os)?;
    let (reading, writing) = stream.into_split();
    let (mut reader, mut writer) = (Reader::new(reading, MAX_LINE), Writer::new(writing));
    let greeting = async {
        if let Some(secret) = secret {
            auth::exchange(secret, Side::Node, &mut reader, &mut writer).await?;
        }
        writer.write(&ToCoordinator::Hello(hello.clone())).await?;
        reader.line().await?.ok_or(Denial::Closed)
    };
    let line = match tokio::time::timeout(GREETING_TIMEOUT, greeting).await {
        Err(_) => return Err(AddressError::NoGreeting(GREETING_TIMEOUT)),
        Ok(Err(denial)) => return Err(denied(denial)),
        Ok(Ok(line)) => line,
    };
    match message::from_line(&line) {
        Ok(ToNode::Greeting { protocol: PROTOCOL, .. }) => Ok(Connection { reader, writer, address, local }),
        Ok(ToNode::Greeting { version, .. }) => Err(AddressError::Version(version)),
        _ if auth::is_challenge(&line) => Err(AddressError::Secret("node 0 has a job secret, and this node has none")),
        _ => Err(AddressError::OtherProgram(snippet(&line))),
    }
}

fn denied(denial: Denial) -> AddressError {
    match denial {
        Denial::Closed => AddressError::Closed,
        Denial::Io(error) if error.kind() == io::ErrorKind::ConnectionReset => AddressError::Closed,
        Denial::Io(error) => AddressError::Os(error),
        Denial::Protocol(protocol) => AddressError::Version(format!("with version {protocol} of the messages")),
        Denial::OtherSecret => AddressError::Secret("node 0 has another job secret than this node"),
        Denial::Stranger(line) if matches!(message::from_line(&line), Ok(ToNode::Greeting { .. })) => {
            AddressError::Secret("node 0 has no job secret, and this node has one")
        }
        Denial::Stranger(line) => AddressError::OtherProgram(snippet(&line)),
    }
}

/// The beginning of another program's message, safe to print.
fn snippet(line: &[u8]) -> String {
    const MAX: usize = 60;
    let text = String::from_utf8_lossy(&line[..line.len().min(MAX_LINE)]);
    let clean: String = text.trim().chars().map(|c| if c.is_control() { '?' } else { c }).take(MAX).collect();
    if text.trim().chars().count() > MAX { clean + "..." } else { clean }
}

/// Why node 0 was not reached, with all addresses.
pub fn explain(host: &str, port: u16, error: &DialError) -> String {
    match error {
        DialError::Name(error) => {
            let error = error.to_string();
            let error = error.strip_prefix("failed to lookup address information: ").unwrap_or(&error);
            format!("the name {host} (--master-addr, MASTER_ADDR) cannot be resolved on this machine: {error}")
        }
        DialError::Addresses(tried) => {
            let mut text = format!("cannot reach node 0 at {host}, port {port}; tried");
            for (address, error) in tried {
                let address = SocketAddr::new(address.ip().to_canonical(), address.port());
                let _ = write!(text, "\n  {address}: {}", reason(error));
            }
            let is_unrouted = |error: &AddressError| match error {
                AddressError::NoConnection(_) => true,
                AddressError::Os(error) => is_no_route(error),
                _ => false,
            };
            if tried.iter().all(|(_, error)| is_unrouted(error))
                && let Ok(all) = interfaces::all()
            {
                let _ = write!(text, "\n  this machine has {}", interfaces::list(&all));
            }
            text
        }
    }
}

fn is_no_route(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable)
}

fn reason(error: &AddressError) -> String {
    match error {
        AddressError::Os(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            "nothing listens there: is node 0 running with this --master-port?".to_owned()
        }
        AddressError::Os(error) if is_no_route(error) => {
            format!("{error}: there is no route from the networks of this machine")
        }
        AddressError::Os(error) => error.to_string(),
        AddressError::NoConnection(time) => {
            format!(
                "no answer within {} s: check firewalls, the network, and whether the machine is on",
                time.as_secs()
            )
        }
        AddressError::NoGreeting(time) => {
            format!("the port is open, but no fnet job answered within {} s", time.as_secs())
        }
        AddressError::Closed => {
            "the port is open, but the connection was closed: is this the port of an fnet job?".to_owned()
        }
        AddressError::OtherProgram(text) => format!("another program listens there, not an fnet job; it says {text:?}"),
        AddressError::Secret(how) => format!("{how}; {SAME_REMEDY}"),
        AddressError::Version(version) => {
            format!(
                "node 0 runs fnet {version}, which is incompatible with this version ({})",
                env!("CARGO_PKG_VERSION")
            )
        }
    }
}

/// The same in one line, for a node that keeps waiting.
pub fn explain_in_one_line(host: &str, port: u16, error: &DialError) -> String {
    let text = explain(host, port, error);
    text.lines().map(str::trim).collect::<Vec<_>>().join("; ").replacen("tried; ", "tried ", 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn every_address_is_named_with_its_reason() {
        let error = DialError::Addresses(vec![
            (at("10.0.0.1:29500"), AddressError::Os(io::ErrorKind::ConnectionRefused.into())),
            (at("[fd00::1]:29500"), AddressError::NoConnection(CONNECT_TIMEOUT)),
            (at("10.0.0.2:29500"), AddressError::OtherProgram(snippet(b"SSH-2.0-OpenSSH_9.2\x1b[2J\r\n"))),
        ]);
        let text = explain("n0", 29500, &error);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "cannot reach node 0 at n0, port 29500; tried");
        assert!(lines[1].starts_with("  10.0.0.1:29500: nothing listens there"), "{text}");
        assert!(lines[2].starts_with("  [fd00::1]:29500: no answer within 5 s"), "{text}");
        assert!(lines[3].ends_with("it says \"SSH-2.0-OpenSSH_9.2?[2J\""), "{text}");
        assert_eq!(lines.len(), 4, "another program is not a problem of the network: {text}");
        assert!(!explain_in_one_line("n0", 29500, &error).contains('\n'));
    }

    #[test]
    fn a_wrong_network_lists_the_available_networks() {
        let unreachable = io::Error::from(io::ErrorKind::NetworkUnreachable);
        let text =
            explain("10.9.9.9", 1, &DialError::Addresses(vec![(at("10.9.9.9:1"), AddressError::Os(unreachable))]));
        assert!(text.contains("no route") && text.contains("this machine has lo (127.0.0.1"), "{text}");
    }

    #[test]
    fn a_name_that_cannot_be_resolved_is_named() {
        let text = explain("nowhere.invalid", 1, &DialError::Name(io::Error::other("Name or service not known")));
        assert!(
            text.contains("nowhere.invalid (--master-addr") && text.contains("Name or service not known"),
            "{text}"
        );
    }
}
