//! Measures latency and bandwidth between this node and the others, over connections of its own.
//!
//! Launchers do that, not workers: before a start their machines are idle, a job that is refused loads nothing, connections
//! are authenticated as all others are, and during training no step has to wait for it. So it measures TCP, in rounds in which
//! each node is in one pair at most. All of it takes less than a second.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout_at};

use super::auth::{self, Denial, Side};
use super::message::{Received, ToCoordinator};
use super::probing::{partner, rounds};
use super::sender::Sender;
use super::wire::{Reader, Writer};
use crate::plan::secret::Secret;

/// Time for a probe.
const TOTAL: Duration = Duration::from_millis(950);
/// Time for its rounds; the rest is for connecting.
const ROUNDS: Duration = Duration::from_millis(650);
/// Maximum time for a round.
const MAX_ROUND: Duration = Duration::from_millis(160);
/// Maximum number of bytes in each direction of a pair.
const MAX_BYTES: u64 = 32 << 20;
const CHUNK: usize = 256 << 10;
/// Round trips of a pair, after one in which both sides wait for each other.
const PINGS: usize = 5;
/// Connections of strangers that may be open beside those of the nodes.
const MAX_STRANGERS: usize = 64;
/// Maximum length of a line.
const MAX_LINE: usize = 4096;

/// A line between two nodes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ProbeMessage {
    /// The first one, of the node that has connected.
    Intro {
        probe: u64,
        node: usize,
    },
    Ping,
    /// The reply, with the seconds since 1970.
    Pong {
        time: f64,
    },
    /// From now on, bytes without a meaning.
    Burst,
}

/// A connection to another node.
struct Peer {
    reader: Reader<OwnedReadHalf>,
    writer: Writer<OwnedWriteHalf>,
    /// How long it took to connect, which is one round trip.
    connected_in: Option<Duration>,
}

impl Peer {
    fn new(stream: TcpStream, connected_in: Option<Duration>) -> Self {
        // Short messages must not be delayed; without this option they still arrive.
        let _ = stream.set_nodelay(true);
        let (reading, writing) = stream.into_split();
        Self { reader: Reader::new(reading, MAX_LINE), writer: Writer::new(writing), connected_in }
    }

    async fn authenticate(&mut self, secret: Option<&Secret>, side: Side) -> io::Result<()> {
        let Some(secret) = secret else { return Ok(()) };
        auth::exchange(secret, side, &mut self.reader, &mut self.writer).await.map_err(|denial| match denial {
            Denial::Io(error) => error,
            _ => io::ErrorKind::PermissionDenied.into(),
        })
    }
}

impl Drop for Peer {
    /// What is still on its way must not disturb the next round.
    fn drop(&mut self) {
        let _ = self.reader.stream().get_ref().as_ref().set_zero_linger();
    }
}

/// This node's part in probes.
#[derive(Default)]
pub struct Prober {
    secret: Option<Secret>,
    /// The address at which other nodes reach this one; none on node 0, which connects to all others.
    own: Option<IpAddr>,
    listener: Option<TcpListener>,
    task: Option<JoinHandle<bool>>,
}

impl Prober {
    /// That of a node which the others reach at `own`.
    pub fn new(secret: Option<Secret>, own: Option<IpAddr>) -> Self {
        Self { secret, own, ..Self::default() }
    }

    /// Prepares for a probe, in place of an earlier one: opens a port, and reports it.
    pub(super) fn prepare(&mut self, probe: u64, to: &Sender) {
        self.listener = self.own.and_then(|own| listen(own).ok());
        let address = self.listener.as_ref().and_then(|listener| listener.local_addr().ok());
        let to = to.clone();
        self.replace(async move { to.send(ToCoordinator::ProbePrepared { probe, address }).await });
    }

    // If nobody receives, the loss of the coordinator is about to be noticed.
    fn replace(&mut self, task: impl Future<Output = bool> + 'static) {
        if let Some(task) = self.task.replace(tokio::task::spawn_local(task)) {
            task.abort();
        }
    }

    /// Measures the links to the other nodes, at these addresses, and reports what was found. This node is number `node`.
    pub(super) fn run(&mut self, probe: u64, node: usize, addresses: Vec<Option<SocketAddr>>, to: &Sender) {
        let (listener, secret, to) = (self.listener.take(), self.secret.clone(), to.clone());
        self.replace(async move {
            let received = Probe { number: probe, node, addresses, secret }.run(listener).await;
            to.send(ToCoordinator::Probed { probe, received }).await
        });
    }
}

fn listen(own: IpAddr) -> io::Result<TcpListener> {
    let listener = StdListener::bind((own, 0))?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// A probe, as this node sees it.
#[derive(Clone)]
struct Probe {
    number: u64,
    /// The number of this node.
    node: usize,
    /// Where the nodes listen, by their numbers.
    addresses: Vec<Option<SocketAddr>>,
    secret: Option<Secret>,
}

impl Probe {
    async fn run(self, listener: Option<TcpListener>) -> Vec<Received> {
        let (count, end) = (self.addresses.len(), Instant::now() + TOTAL);
        let rounds = rounds(count);
        let time = MAX_ROUND.min(ROUNDS / u32::try_from(rounds).unwrap_or(u32::MAX));
        let ends = |round: usize| end - time * u32::try_from(rounds - round - 1).unwrap_or(0);
        let partners: Vec<(usize, usize)> =
            (0..rounds).filter_map(|round| Some((round, partner(count, self.node, round)?))).collect();
        let others = partners.iter().map(|&(_, other)| other).collect();
        let mut peers = self.connect(listener, others, ends(0) - time).await;
        let mut received = Vec::new();
        for (round, other) in partners {
            let Some(peer) = peers.remove(&other) else { continue };
            received.push(measure(peer, other, self.node < other, time, ends(round)).await);
        }
        received
    }

    /// Connects to the nodes with higher numbers and accepts connections of those with lower ones.
    async fn connect(&self, listener: Option<TcpListener>, others: Vec<usize>, until: Instant) -> HashMap<usize, Peer> {
        let (mut open, mut trying) = (HashMap::new(), JoinSet::new());
        for &other in others.iter().filter(|other| **other > self.node) {
            let (probe, address) = (self.clone(), self.addresses.get(other).copied().flatten());
            trying.spawn_local(async move { probe.dial(other, address?).await.ok() });
        }
        let mut missing: Vec<usize> = others;
        while !missing.is_empty() {
            let accepted = async {
                match &listener {
                    Some(listener) => listener.accept().await,
                    None => std::future::pending().await,
                }
            };
            let has_dialled = trying.is_empty() && missing.iter().all(|&other| other > self.node);
            tokio::select! {
                () = tokio::time::sleep_until(until) => break,
                () = std::future::ready(()), if has_dialled => break,
                Ok((stream, _)) = accepted, if trying.len() < missing.len() + MAX_STRANGERS => {
                    let probe = self.clone();
                    trying.spawn_local(async move { probe.welcome(stream).await.ok().flatten() });
                }
                Some(tried) = trying.join_next() => {
                    let Some((other, peer)) = tried.ok().flatten() else { continue };
                    if let Some(at) = missing.iter().position(|one| *one == other) {
                        missing.swap_remove(at);
                        open.insert(other, peer);
                    }
                }
            }
        }
        open
    }

    async fn dial(self, other: usize, address: SocketAddr) -> io::Result<(usize, Peer)> {
        let began = Instant::now();
        let stream = TcpStream::connect(address).await?;
        let mut peer = Peer::new(stream, Some(began.elapsed()));
        peer.authenticate(self.secret.as_ref(), Side::Node).await?;
        peer.writer.write(&ProbeMessage::Intro { probe: self.number, node: self.node }).await?;
        Ok((other, peer))
    }

    /// Receives the introduction of a node; `None` if it is a stranger.
    async fn welcome(self, stream: TcpStream) -> io::Result<Option<(usize, Peer)>> {
        let mut peer = Peer::new(stream, None);
        peer.authenticate(self.secret.as_ref(), Side::Coordinator).await?;
        Ok(match peer.reader.line().await?.and_then(|line| serde_json::from_slice(&line).ok()) {
            Some(ProbeMessage::Intro { probe, node }) if probe == self.number && node < self.node => Some((node, peer)),
            _ => None,
        })
    }
}

/// Measures a link until its round ends, if both nodes are there by then. The side that has connected leads.
async fn measure(mut peer: Peer, from: usize, leads: bool, time: Duration, until: Instant) -> Received {
    let mut found = Received { from, latency_ms: peer.connected_in.map(millis), gbit_per_s: None, clock_offset: None };
    let burst = async {
        match leads {
            true => ask(&mut peer, time / 5, &mut found).await?,
            false => answer(&mut peer).await?,
        }
        let until = (Instant::now() + time * 3 / 5).min(until - time / 20);
        let sent = send(peer.writer.stream(), until);
        Ok::<_, io::Error>(tokio::join!(sent, receive(peer.reader.stream(), until)).1)
    };
    // The connection broke or the time was over before the burst: what is known until then counts.
    let burst = timeout_at(until, burst).await.ok().and_then(Result::ok);
    found.gbit_per_s = burst.and_then(|(arrivals, took)| rate(&arrivals, took));
    found
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Measures round trips for about this time, and begins the burst.
async fn ask(peer: &mut Peer, time: Duration, found: &mut Received) -> io::Result<()> {
    let (mut best, mut since) = (Duration::MAX, Instant::now());
    for ping in 0..=PINGS {
        let (sent, clock) = (Instant::now(), now());
        peer.writer.write(&ProbeMessage::Ping).await?;
        let Some(ProbeMessage::Pong { time: theirs }) = peer.reader.message().await? else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let took = sent.elapsed();
        if ping == 0 {
            // Until then, the other node may have been busy with an earlier round.
            since = Instant::now();
            continue;
        }
        if took < best {
            best = took;
            found.latency_ms = Some(found.latency_ms.map_or(millis(took), |before| before.min(millis(took))));
            found.clock_offset = Some(theirs - clock - took.as_secs_f64() / 2.0);
        }
        if since.elapsed() > time {
            break;
        }
    }
    peer.writer.write(&ProbeMessage::Burst).await
}

async fn answer(peer: &mut Peer) -> io::Result<()> {
    loop {
        match peer.reader.message().await? {
            Some(ProbeMessage::Ping) => peer.writer.write(&ProbeMessage::Pong { time: now() }).await?,
            Some(ProbeMessage::Burst) => return Ok(()),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

async fn send(to: &mut OwnedWriteHalf, until: Instant) {
    let (chunk, mut left) = (vec![0; CHUNK], MAX_BYTES);
    while left > 0 {
        let size = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
        let Ok(Ok(sent @ 1..)) = timeout_at(until, to.write(&chunk[..size])).await else { return };
        left -= sent as u64;
    }
}

/// How many bytes had arrived when, and how long that was observed.
async fn receive(mut from: impl AsyncRead + Unpin, until: Instant) -> (Vec<(Duration, u64)>, Duration) {
    let (began, mut buffer, mut arrivals, mut total) = (Instant::now(), vec![0; CHUNK], Vec::new(), 0);
    while let Ok(Ok(count @ 1..)) = timeout_at(until, from.read(&mut buffer)).await {
        total += count as u64;
        arrivals.push((began.elapsed(), total));
        if total >= MAX_BYTES {
            break;
        }
    }
    (arrivals, began.elapsed())
}

/// Gbit/s in the second half of the time since the first bytes: at first TCP is slow, or a rate limit lets a burst pass.
fn rate(arrivals: &[(Duration, u64)], took: Duration) -> Option<f64> {
    let Some(&(first, _)) = arrivals.first() else { return Some(0.0) };
    let middle = (first + took) / 2;
    let &(since, before) = arrivals.iter().rev().find(|(at, _)| *at <= middle)?;
    let &(_, total) = arrivals.last()?;
    let seconds = took.saturating_sub(since).as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "far fewer bytes")]
    let bits = (total - before) as f64 * 8.0;
    (seconds > 0.0).then(|| bits / seconds / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_second_half() {
        let at = |millis, bytes| (Duration::from_millis(millis), bytes);
        // A bucket of 1 MB passes at once, then 1 MB/s.
        let limited: Vec<_> = (0..=100).map(|ms| at(ms, 1_000_000 + ms * 1000)).collect();
        let found = rate(&limited, Duration::from_millis(100)).unwrap();
        assert!((found - 0.008).abs() < 1e-4, "{found}");
        // Nothing more came; nothing came at all; everything came at once.
        assert_eq!(rate(&[at(1, 5000)], Duration::from_millis(100)), Some(0.0));
        assert_eq!(rate(&[], Duration::from_millis(100)), Some(0.0));
        assert_eq!(rate(&[at(3, MAX_BYTES)], Duration::from_millis(3)), None);
    }

    /// What the nodes of this process that are not absent find in a probe.
    fn probe(count: usize, secrets: &[&str], absent: &[usize]) -> Vec<Vec<Received>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let mut listeners: Vec<Option<TcpListener>> =
                (0..count).map(|_| listen(IpAddr::from([127, 0, 0, 1])).ok()).collect();
            let addresses: Vec<_> = listeners.iter().map(|one| one.as_ref().unwrap().local_addr().ok()).collect();
            for address in addresses.iter().flatten() {
                // A stranger at each port.
                let mut stranger = std::net::TcpStream::connect(address).unwrap();
                io::Write::write_all(&mut stranger, b"{\"type\":\"intro\",\"probe\":6,\"node\":0}\nGET /\r\n").unwrap();
            }
            absent.iter().for_each(|&node| drop(listeners[node].take()));
            let mut run = |node: usize| {
                let secret = secrets.get(node).map(|text| Secret::of(&text.repeat(16)).unwrap());
                Probe { number: 7, node, addresses: addresses.clone(), secret }.run(listeners[node].take())
            };
            let there = (0..count).filter(|node| !absent.contains(node));
            let running: Vec<_> = there.map(|node| tokio::task::spawn_local(run(node))).collect();
            let mut received = Vec::new();
            for one in running {
                received.push(one.await.unwrap());
            }
            received
        })
    }

    #[test]
    fn every_link_is_measured_from_both_ends_in_time() {
        for secrets in [&[][..], &["a", "a", "a", "a"]] {
            let began = std::time::Instant::now();
            let received = probe(4, secrets, &[]);
            assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
            for (node, links) in received.iter().enumerate() {
                let mut from: Vec<usize> = links.iter().map(|link| link.from).collect();
                from.sort_unstable();
                assert_eq!(from, (0..4).filter(|other| *other != node).collect::<Vec<_>>(), "{links:?}");
                for link in links {
                    assert!(node > link.from || link.latency_ms.unwrap() >= 0.0, "{link:?}");
                }
            }
            assert!(received.iter().flatten().any(|link| link.gbit_per_s.unwrap_or(0.0) > 0.0), "{received:?}");
        }
    }

    #[test]
    fn a_node_that_is_gone_or_has_another_secret_is_left_out() {
        let of = |received: &[Received]| received.iter().map(|link| link.from).collect::<Vec<_>>();
        let gone = probe(3, &[], &[1]);
        assert_eq!([of(&gone[0]), of(&gone[1])], [[2], [0]]);
        let other = probe(3, &["a", "a", "b"], &[]);
        assert_eq!(other.iter().map(|received| of(received)).collect::<Vec<_>>(), [vec![1], vec![0], vec![]]);
    }
}
