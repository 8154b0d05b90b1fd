//! When the network between the nodes is measured, without I/O: before the first attempt of nodes that have not been measured
//! together, and again when communication takes long.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use fnet_protocol::links::{Links, Pair};

use super::message::{ConnectionId, Received, ToNode};

/// Time for all nodes to prepare, and then to measure. A node that does not answer is left out.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum number of rounds, and of pairs: enough for all pairs of 64 nodes. Of more nodes, each is measured with some others.
const MAX_ROUNDS: usize = 63;
const MAX_PAIRS: usize = 8192;

/// Number of rounds of `count` nodes.
pub fn rounds(count: usize) -> usize {
    let all = (count + count % 2).saturating_sub(1);
    all.min(MAX_ROUNDS).min((2 * MAX_PAIRS / count.max(1)).max(1))
}

/// With which node a node is measured in a round: all meet in a circle around the last one, which with an odd number of nodes
/// is nobody.
pub fn partner(count: usize, node: usize, round: usize) -> Option<usize> {
    let last = (count + count % 2).saturating_sub(1);
    if last == 0 {
        return None;
    }
    let round = round % last;
    let opposite = |node: usize| (round + last - node) % last;
    let other = match node {
        // The one that is opposite to itself.
        _ if node == last => round * last.div_ceil(2) % last,
        _ if opposite(node) == node => last,
        _ => opposite(node),
    };
    (other < count).then_some(other)
}

/// The pairs of all rounds.
pub fn pairs(count: usize) -> impl Iterator<Item = [usize; 2]> {
    let in_round = move |round| (0..count).filter_map(move |node| Some([node, partner(count, node, round)?]));
    (0..rounds(count)).flat_map(in_round).filter(|[a, b]| a < b)
}

/// The probes of a job.
#[derive(Default)]
pub struct Probing {
    is_on: bool,
    number: u64,
    running: Option<Running>,
    /// Nodes that have taken part in a probe before an attempt.
    known: BTreeSet<ConnectionId>,
    /// The links before the attempt.
    pub links: Option<Links>,
}

/// A probe in progress.
struct Running {
    /// In the order of their numbers; the first is node 0.
    members: Vec<ConnectionId>,
    until: Instant,
    /// Where they listen, once they have prepared.
    addresses: BTreeMap<ConnectionId, Option<SocketAddr>>,
    is_begun: bool,
    received: BTreeMap<ConnectionId, Vec<Received>>,
}

/// Messages to nodes.
type Messages = Vec<(ConnectionId, ToNode)>;

impl Probing {
    /// Probes of a job that has them.
    pub fn on() -> Self {
        Self { is_on: true, ..Self::default() }
    }

    /// Whether these nodes have to be measured before they start together.
    pub fn is_due(&self, members: &[ConnectionId]) -> bool {
        self.is_on && members.len() > 1 && !members.iter().all(|member| self.known.contains(member))
    }

    /// Whether a probe of these nodes is in progress.
    pub fn is_running(&self, members: &[ConnectionId]) -> bool {
        self.running.as_ref().is_some_and(|running| running.members == members)
    }

    /// Begins a probe, in place of one in progress.
    pub fn begin(&mut self, members: Vec<ConnectionId>, now: Instant) -> Messages {
        if !self.is_on {
            return Vec::new();
        }
        self.number += 1;
        let probe = self.number;
        let messages = members.iter().map(|&member| (member, ToNode::PrepareProbe { probe })).collect();
        let (addresses, received) = (BTreeMap::new(), BTreeMap::new());
        self.running = Some(Running { members, until: now + PROBE_TIMEOUT, addresses, is_begun: false, received });
        messages
    }

    /// A node is ready for a probe.
    pub fn on_prepared(&mut self, of: ConnectionId, probe: u64, address: Option<SocketAddr>, now: Instant) -> Messages {
        let Some(running) = self.running.as_mut().filter(|running| probe == self.number && !running.is_begun) else {
            return Vec::new();
        };
        running.addresses.insert(of, address);
        match running.members.iter().all(|member| running.addresses.contains_key(member)) {
            true => running.measure(probe, now),
            false => Vec::new(),
        }
    }

    /// A node has measured its links.
    pub fn on_probed(&mut self, of: ConnectionId, probe: u64, received: Vec<Received>) {
        if let Some(running) = self.running.as_mut().filter(|running| probe == self.number && running.is_begun) {
            running.received.insert(of, received);
        }
    }

    /// The messages when the time to prepare is over.
    pub fn on_tick(&mut self, now: Instant) -> Messages {
        let probe = self.number;
        let late = self.running.as_mut().filter(|running| !running.is_begun && now >= running.until);
        late.map_or_else(Vec::new, |running| running.measure(probe, now))
    }

    /// Forgets the probe in progress.
    pub fn cancel(&mut self) {
        self.running = None;
    }

    /// The nodes of a probe that has ended, and its result. `names` has all nodes that are not gone.
    pub fn end(&mut self, names: &BTreeMap<ConnectionId, String>, now: Instant) -> Option<(Vec<ConnectionId>, Links)> {
        let running = self.running.as_ref()?;
        let is_missing = |member: &ConnectionId| names.contains_key(member) && !running.received.contains_key(member);
        let is_late = now >= running.until;
        if !running.is_begun || !is_late && running.members.iter().any(is_missing) {
            return None;
        }
        let Running { members, received, .. } = self.running.take()?;
        let gone = || "a node that is gone".to_owned();
        let nodes = members.iter().map(|member| names.get(member).cloned().unwrap_or_else(gone));
        let of = |[at, from]: [usize; 2]| received.get(&members[at])?.iter().find(|link| link.from == from);
        let pairs = pairs(members.len()).map(|[a, b]| {
            let (first, second) = (of([a, b]), of([b, a]));
            let both = [first, second].into_iter().flatten();
            Pair {
                nodes: [a, b],
                latency_ms: first.and_then(|link| link.latency_ms),
                gbit_per_s: both.filter_map(|link| link.gbit_per_s).min_by(f64::total_cmp),
                clock_offset: first.and_then(|link| link.clock_offset),
            }
        });
        let links = Links { nodes: nodes.collect(), pairs: pairs.collect() };
        Some((members, links))
    }

    /// These nodes may start together, with these links between them.
    pub fn accept(&mut self, members: Vec<ConnectionId>, links: Links) {
        self.known.extend(members);
        self.links = Some(links);
    }
}

impl Running {
    fn measure(&mut self, probe: u64, now: Instant) -> Messages {
        (self.is_begun, self.until) = (true, now + PROBE_TIMEOUT);
        let addresses: Vec<Option<SocketAddr>> =
            self.members.iter().map(|member| self.addresses.get(member).copied().flatten()).collect();
        let run = |node| ToNode::RunProbe { probe, node, addresses: addresses.clone() };
        self.members.iter().enumerate().map(|(node, &member)| (member, run(node))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(from: usize, latency_ms: Option<f64>, gbit: f64) -> Received {
        Received { from, latency_ms, gbit_per_s: Some(gbit), clock_offset: None }
    }

    fn names() -> BTreeMap<ConnectionId, String> {
        [0, 4, 5].map(|connection| (connection, format!("node {connection}"))).into()
    }

    fn to(messages: &Messages) -> Vec<ConnectionId> {
        messages.iter().map(|(connection, _)| *connection).collect()
    }

    #[test]
    fn nodes_are_measured_once_together_and_again_with_a_new_one() {
        let (mut probing, now) = (Probing::on(), Instant::now());
        assert!(!probing.is_due(&[0]) && !Probing::default().is_due(&[0, 4]) && probing.is_due(&[0, 4]));
        assert_eq!(to(&probing.begin(vec![0, 4], now)), [0, 4]);
        assert!(probing.on_prepared(0, 1, None, now).is_empty());
        assert!(probing.on_prepared(4, 9, None, now).is_empty(), "another probe");
        let address = "10.0.0.2:5000".parse().ok();
        let run = probing.on_prepared(4, 1, address, now);
        let addresses = vec![None, address];
        assert_eq!(run[1], (4, ToNode::RunProbe { probe: 1, node: 1, addresses }));
        probing.on_probed(0, 1, vec![received(1, Some(0.5), 9.0)]);
        assert_eq!(probing.end(&names(), now), None);
        probing.on_probed(4, 1, vec![received(0, None, 8.0)]);
        let (members, links) = probing.end(&names(), now).unwrap();
        let pair = Pair { nodes: [0, 1], latency_ms: Some(0.5), gbit_per_s: Some(8.0), clock_offset: None };
        assert_eq!((&links.nodes[1][..], &links.pairs[..]), ("node 4", &[pair][..]));
        probing.accept(members, links);
        assert!(!probing.is_due(&[0, 4]) && !probing.is_due(&[4]) && probing.is_due(&[0, 4, 5]));
    }

    #[test]
    fn a_node_that_is_gone_or_does_not_answer_holds_nothing_up_for_long() {
        let (mut probing, now) = (Probing::on(), Instant::now());
        probing.begin(vec![0, 4, 7], now);
        probing.on_prepared(0, 1, None, now);
        probing.on_prepared(4, 1, None, now);
        assert!(probing.on_tick(now).is_empty() && probing.end(&names(), now).is_none());
        let later = now + PROBE_TIMEOUT;
        assert_eq!(to(&probing.on_tick(later)), [0, 4, 7]);
        probing.on_probed(0, 1, vec![received(1, Some(0.5), 9.0)]);
        assert_eq!(probing.end(&names(), later), None, "node 4 is there");
        let (_, links) = probing.end(&names(), later + PROBE_TIMEOUT).unwrap();
        assert_eq!(links.pairs.iter().filter(|pair| pair.latency_ms.is_some()).count(), 1);
        // Another probe replaces the one in progress.
        probing.begin(vec![0, 4], later);
        probing.begin(vec![0, 5], later);
        assert!(!probing.is_running(&[0, 4]) && probing.is_running(&[0, 5]));
        assert!(probing.on_prepared(0, 2, None, later).is_empty());
    }

    #[test]
    fn all_pairs_meet_once_and_no_node_is_in_two_pairs_of_a_round() {
        for count in 2..=64 {
            let mut met = BTreeSet::new();
            for round in 0..rounds(count) {
                let partners: Vec<Option<usize>> = (0..count).map(|node| partner(count, node, round)).collect();
                assert_eq!(partners.iter().filter(|partner| partner.is_none()).count(), count % 2);
                for (node, other) in partners.iter().enumerate() {
                    let Some(other) = *other else { continue };
                    assert!(other < count && other != node && partners[other] == Some(node), "{count}: {partners:?}");
                    assert!(node > other || met.insert([node, other]), "{count}: {node} and {other} meet twice");
                }
            }
            assert_eq!(met.len(), count * (count - 1) / 2);
            assert_eq!(pairs(count).collect::<BTreeSet<_>>(), met);
        }
        // Of many nodes, each meets some.
        for count in [65, 256, 1000, 4001] {
            let met: Vec<[usize; 2]> = pairs(count).collect();
            let nodes: BTreeSet<usize> = met.iter().flatten().copied().collect();
            assert!(met.len() <= MAX_PAIRS && nodes.len() >= count - 1, "{count}: {} pairs", met.len());
        }
        assert_eq!((pairs(0).count(), pairs(1).count()), (0, 0));
    }
}
