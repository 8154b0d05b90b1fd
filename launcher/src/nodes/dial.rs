//! The way of the other nodes to node 0: names, addresses, and what answers there.

use std::fmt::Write;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use fnet_protocol::message;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::interfaces;
use super::message::{Hello, LONGEST_LINE, PROTOCOL, ToHub, ToNode};
use super::wire::{self, Reader};

/// Time for an address to answer at all.
const CONNECT: Duration = Duration::from_secs(5);
/// Time for what answers to say who it is.
const GREET: Duration = Duration::from_secs(10);

/// A way to node 0.
pub struct Way {
    /// What it says.
    pub reader: Reader<tokio::net::tcp::OwnedReadHalf>,
    /// To say something.
    pub writer: tokio::net::tcp::OwnedWriteHalf,
    /// Where it is.
    pub address: SocketAddr,
}

/// Why node 0 was not reached.
#[derive(Debug)]
pub enum Miss {
    /// Its name means nothing here.
    Name(io::Error),
    /// No address led to it; each with its reason.
    Addresses(Vec<(SocketAddr, Obstacle)>),
}

/// What is in the way to one address.
#[derive(Debug)]
pub enum Obstacle {
    /// The system's word.
    Error(io::Error),
    /// No answer in this time.
    Silent(Duration),
    /// Something took the connection and said nothing in this time.
    Mute(Duration),
    /// Something took the connection and ended it.
    Closed,
    /// Something else answers, and begins like this.
    Stranger(String),
    /// Another version of fnet.
    Version(String),
}

/// Tries all addresses of node 0 at once; the first that leads to it is taken.
///
/// # Errors
/// Why none did.
pub async fn try_once(host: &str, port: u16, hello: &Hello) -> Result<Way, Miss> {
    let found = tokio::net::lookup_host((host, port)).await.map_err(Miss::Name)?;
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in found {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    let mut trying = JoinSet::new();
    for &address in &addresses {
        trying.spawn(async move {
            let connected = tokio::time::timeout(CONNECT, TcpStream::connect(address)).await;
            (address, connected)
        });
    }
    let mut misses = Vec::new();
    while let Some(tried) = trying.join_next().await {
        let Ok((address, connected)) = tried else { continue };
        let met = match connected {
            Err(_) => Err(Obstacle::Silent(CONNECT)),
            Ok(Err(error)) => Err(Obstacle::Error(error)),
            Ok(Ok(stream)) => greet(stream, address, hello).await,
        };
        match met {
            Ok(way) => return Ok(way),
            Err(obstacle) => misses.push((address, obstacle)),
        }
    }
    misses.sort_by_key(|(address, _)| addresses.iter().position(|one| one == address));
    Err(Miss::Addresses(misses))
}

/// Says hello, and looks at who answers.
async fn greet(stream: TcpStream, address: SocketAddr, hello: &Hello) -> Result<Way, Obstacle> {
    // Short messages must not wait for each other; nothing is lost if this cannot be set.
    let _ = stream.set_nodelay(true);
    let (reading, mut writer) = stream.into_split();
    wire::write(&mut writer, &ToHub::Hello(hello.clone())).await.map_err(Obstacle::Error)?;
    let mut reader = Reader::new(reading);
    let line = match tokio::time::timeout(GREET, reader.line()).await {
        Err(_) => return Err(Obstacle::Mute(GREET)),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => return Err(Obstacle::Closed),
        Ok(Err(error)) => return Err(Obstacle::Error(error)),
        Ok(Ok(None)) => return Err(Obstacle::Closed),
        Ok(Ok(Some(line))) => line,
    };
    match message::from_line(&line) {
        Ok(ToNode::Greeting { protocol: PROTOCOL, .. }) => Ok(Way { reader, writer, address }),
        Ok(ToNode::Greeting { version, .. }) => Err(Obstacle::Version(version)),
        _ => Err(Obstacle::Stranger(snippet(&line))),
    }
}

/// The beginning of what a foreign program says, safe to print.
fn snippet(line: &[u8]) -> String {
    const MOST: usize = 60;
    let text = String::from_utf8_lossy(&line[..line.len().min(LONGEST_LINE)]);
    let clean: String = text.trim().chars().map(|c| if c.is_control() { '?' } else { c }).take(MOST).collect();
    if text.trim().chars().count() > MOST { clean + "..." } else { clean }
}

/// Why node 0 was not reached, with every address that was tried.
pub fn explain(host: &str, port: u16, miss: &Miss) -> String {
    match miss {
        Miss::Name(error) => {
            let error = error.to_string();
            let error = error.strip_prefix("failed to lookup address information: ").unwrap_or(&error);
            format!("the name {host} (--master-addr, MASTER_ADDR) means nothing on this machine: {error}")
        }
        Miss::Addresses(tried) => {
            let mut text = format!("node 0 is not reached at {host}, port {port}; tried");
            for (address, obstacle) in tried {
                let address = SocketAddr::new(address.ip().to_canonical(), address.port());
                let _ = write!(text, "\n  {address}: {}", reason(obstacle));
            }
            let is_unrouted = |obstacle: &Obstacle| match obstacle {
                Obstacle::Silent(_) => true,
                Obstacle::Error(error) => is_no_route(error),
                _ => false,
            };
            if tried.iter().all(|(_, obstacle)| is_unrouted(obstacle))
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

fn reason(obstacle: &Obstacle) -> String {
    match obstacle {
        Obstacle::Error(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            "nothing listens there: is node 0 started, with this --master-port?".to_owned()
        }
        Obstacle::Error(error) if is_no_route(error) => format!("{error}: no way there from this machine's networks"),
        Obstacle::Error(error) => error.to_string(),
        Obstacle::Silent(time) => {
            format!("no answer in {} s: a firewall, another network, or a machine that is off", time.as_secs())
        }
        Obstacle::Mute(time) => {
            format!("something takes the connection and says nothing in {} s: no fnet job?", time.as_secs())
        }
        Obstacle::Closed => "something takes the connection and ends it: no fnet job?".to_owned(),
        Obstacle::Stranger(text) => format!("another program listens there, no fnet job; it says {text:?}"),
        Obstacle::Version(version) => {
            format!("node 0 runs fnet {version}, which this one ({}) cannot talk to", env!("CARGO_PKG_VERSION"))
        }
    }
}

/// One line of it, for a job that goes on waiting.
pub fn in_short(host: &str, port: u16, miss: &Miss) -> String {
    let text = explain(host, port, miss);
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
        let miss = Miss::Addresses(vec![
            (at("10.0.0.1:29500"), Obstacle::Error(io::ErrorKind::ConnectionRefused.into())),
            (at("[fd00::1]:29500"), Obstacle::Silent(CONNECT)),
            (at("10.0.0.2:29500"), Obstacle::Stranger(snippet(b"SSH-2.0-OpenSSH_9.2\x1b[2J\r\n"))),
        ]);
        let text = explain("n0", 29500, &miss);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "node 0 is not reached at n0, port 29500; tried");
        assert!(lines[1].starts_with("  10.0.0.1:29500: nothing listens there"), "{text}");
        assert!(lines[2].starts_with("  [fd00::1]:29500: no answer in 5 s"), "{text}");
        assert!(lines[3].ends_with("it says \"SSH-2.0-OpenSSH_9.2?[2J\""), "{text}");
        assert_eq!(lines.len(), 4, "another program is no matter of networks: {text}");
        assert!(!in_short("n0", 29500, &miss).contains('\n'));
    }

    #[test]
    fn a_wrong_network_shows_the_networks_that_there_are() {
        let unreachable = io::Error::from(io::ErrorKind::NetworkUnreachable);
        let text = explain("10.9.9.9", 1, &Miss::Addresses(vec![(at("10.9.9.9:1"), Obstacle::Error(unreachable))]));
        assert!(text.contains("no way there") && text.contains("this machine has lo (127.0.0.1"), "{text}");
    }

    #[test]
    fn a_name_without_a_meaning_is_named() {
        let text = explain("nowhere.invalid", 1, &Miss::Name(io::Error::other("Name or service not known")));
        assert!(
            text.contains("nowhere.invalid (--master-addr") && text.contains("Name or service not known"),
            "{text}"
        );
    }
}
