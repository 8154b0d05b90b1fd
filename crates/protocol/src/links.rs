//! What was measured between the nodes of a job: latency and bandwidth of each pair, and which of them are slow.

use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};

use crate::spread::Spread;
use crate::text;

/// What is this many times slower than the median of the others is slow.
const FAR: f64 = 4.0;
/// The same for a pair whose earlier measurement is all that it can be compared with: training uses the network now.
const FALLEN: f64 = 8.0;
/// Differences in latency below this do not matter, in milliseconds.
const MIN_LATENCY_DIFFERENCE: f64 = 1.0;
/// What is expected may be this many times as much as is measured.
const TOLERATED: f64 = 10.0;

/// The links between the nodes of a job.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Links {
    /// The names of the nodes: `node 1 (b, 10.0.0.2)`.
    pub nodes: Vec<String>,
    /// Each pair that was to be measured, once.
    pub pairs: Vec<Pair>,
}

/// The link between two nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// Positions of its nodes in [`Links::nodes`], ascending.
    pub nodes: [usize; 2],
    /// Shortest round trip in milliseconds; none if there was no connection in time.
    pub latency_ms: Option<f64>,
    /// Gbit/s (1e9 bits) in the slower of both directions, which are measured at once; none if there was no time for it.
    pub gbit_per_s: Option<f64>,
    /// Seconds by which the clock of the second node is ahead, as far as half of the latency allows to say.
    pub clock_offset: Option<f64>,
}

/// A part of the network that is far slower than the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slow {
    /// All links of a node.
    Node(usize),
    /// One link.
    Pair([usize; 2]),
}

/// The links in a few numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The nodes of the pair with the lowest bandwidth.
    pub slowest: [String; 2],
    /// Its latency.
    pub latency_ms: f64,
    /// Its bandwidth.
    pub gbit_per_s: f64,
    /// Of all measured pairs.
    pub median_latency_ms: f64,
    /// Of all measured pairs.
    pub median_gbit_per_s: f64,
    /// Number of measured pairs.
    pub pairs: usize,
}

/// Latency and bandwidth; not a number if only the bandwidth is unknown.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Speed {
    latency: f64,
    gbit: f64,
}

impl Speed {
    /// That of a link without a connection.
    const NONE: Self = Self { latency: f64::INFINITY, gbit: 0.0 };

    fn of(pair: &Pair) -> Self {
        let Some(latency) = pair.latency_ms else { return Self::NONE };
        Self { latency, gbit: pair.gbit_per_s.unwrap_or(f64::NAN) }
    }

    fn median(speeds: &[Self]) -> Self {
        let of = |part: fn(&Self) -> f64| Spread::of(speeds.iter().map(part).filter(|value| !value.is_nan())).median;
        Self { latency: of(|speed| speed.latency), gbit: of(|speed| speed.gbit) }
    }

    fn is_far_below(self, usual: Self, factor: f64) -> bool {
        self.gbit * factor < usual.gbit || self.latency > usual.latency * factor + MIN_LATENCY_DIFFERENCE
    }

    fn is_none(self) -> bool {
        self.latency.is_infinite()
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} Gbit/s, {:.2} ms", gbit(self.gbit), self.latency)
    }
}

impl Links {
    fn name(&self, node: usize) -> &str {
        self.nodes.get(node).map_or("a node", String::as_str)
    }

    /// The best of a node's links.
    fn best(&self, node: usize) -> Speed {
        let links = self.pairs.iter().filter(|pair| pair.nodes.contains(&node)).map(Speed::of);
        let better = |a: Speed, b: Speed| Speed { latency: a.latency.min(b.latency), gbit: a.gbit.max(b.gbit) };
        links.reduce(better).unwrap_or(Speed::NONE)
    }

    /// The nodes and pairs that are far slower than the median of the others, and the pairs without a connection. A slow node
    /// stands for all of its pairs.
    pub fn slow(&self) -> Vec<Slow> {
        let best: Vec<Speed> = (0..self.nodes.len()).map(|node| self.best(node)).collect();
        let is_slow =
            |node: &usize| best.len() > 2 && best[*node].is_far_below(Speed::median(&without(&best, *node)), FAR);
        let nodes: Vec<usize> = (0..best.len()).filter(is_slow).collect();
        let pairs: Vec<&Pair> =
            self.pairs.iter().filter(|pair| pair.nodes.iter().all(|node| !nodes.contains(node))).collect();
        let speeds: Vec<Speed> = pairs.iter().map(|pair| Speed::of(pair)).collect();
        let is_slow = |at: usize| {
            let others = without(&speeds, at);
            speeds[at].is_none() || others.len() > 1 && speeds[at].is_far_below(Speed::median(&others), FAR)
        };
        let pairs = pairs.iter().enumerate().filter(|(at, _)| is_slow(*at)).map(|(_, pair)| Slow::Pair(pair.nodes));
        nodes.iter().map(|&node| Slow::Node(node)).chain(pairs).collect()
    }

    /// Says what is slow, and what is usual.
    pub fn explain(&self, slow: Slow) -> String {
        let (what, speed, others, of) = match slow {
            Slow::Node(node) => {
                let others: Vec<Speed> =
                    (0..self.nodes.len()).filter(|other| *other != node).map(|other| self.best(other)).collect();
                (format!("of {}", self.name(node)), self.best(node), others, "nodes")
            }
            Slow::Pair(nodes) => {
                let (here, others): (Vec<&Pair>, Vec<&Pair>) = self.pairs.iter().partition(|pair| pair.nodes == nodes);
                let speed = here.first().map_or(Speed::NONE, |pair| Speed::of(pair));
                (self.between(nodes), speed, others.into_iter().map(Speed::of).collect(), "pairs")
            }
        };
        if speed.is_none() {
            return format!("the network {what} was not measured: no connection within a second (a firewall?)");
        }
        let usual = match Speed::median(&others) {
            _ if others.is_empty() => String::new(),
            usual => format!("; median of the other {of}: {usual}"),
        };
        format!("the network {what} is slow: {speed}{usual}")
    }

    fn between(&self, [a, b]: [usize; 2]) -> String {
        format!("between {} and {}", self.name(a), self.name(b))
    }

    /// Says what is slow now, also if there are only two nodes and their link was far better `before`.
    pub fn slow_now(&self, before: Option<&Links>) -> Vec<String> {
        let slow = self.slow();
        if let (true, [now], Some([old])) = (slow.is_empty(), &self.pairs[..], before.map(|links| &links.pairs[..])) {
            let (speed, usual) = (Speed::of(now), Speed::of(old));
            let what = self.between(now.nodes);
            let is_slow = before.is_some_and(|links| links.nodes == self.nodes) && speed.is_far_below(usual, FALLEN);
            return is_slow
                .then(|| format!("the network {what} is slow: {speed}; before: {usual}"))
                .into_iter()
                .collect();
        }
        slow.into_iter().map(|slow| self.explain(slow)).collect()
    }

    /// The pairs with both numbers.
    fn measured(&self) -> impl Iterator<Item = (&Pair, Speed)> {
        let is_measured = |pair: &&Pair| pair.latency_ms.is_some() && pair.gbit_per_s.is_some();
        self.pairs.iter().filter(is_measured).map(|pair| (pair, Speed::of(pair)))
    }

    fn slowest(&self) -> Option<(&Pair, Speed)> {
        self.measured().min_by(|(_, a), (_, b)| a.gbit.total_cmp(&b.gbit))
    }

    /// The links in a few numbers; none if no pair was measured.
    pub fn summary(&self) -> Option<Summary> {
        let (pair, Speed { latency, gbit }) = self.slowest()?;
        let all: Vec<Speed> = self.measured().map(|(_, speed)| speed).collect();
        let median = Speed::median(&all);
        Some(Summary {
            slowest: pair.nodes.map(|node| self.name(node).to_owned()),
            latency_ms: latency,
            gbit_per_s: gbit,
            median_latency_ms: median.latency,
            median_gbit_per_s: median.gbit,
            pairs: all.len(),
        })
    }

    /// The pair that carries less than a tenth of what is expected, and what to tell the user.
    pub fn refusal(&self, expected: f64) -> Option<([usize; 2], String)> {
        let (pair, speed) = self.slowest().filter(|(_, speed)| speed.gbit * TOLERATED < expected)?;
        let between = self.between(pair.nodes);
        let text = format!(
            "the network {between} is too slow: {speed}, less than a tenth of the {expected} Gbit/s that are expected \
             (--expect-bandwidth). Check the link of these nodes (`ethtool` shows its speed), the switch, and what else uses \
             it; --iface selects another interface"
        );
        Some((pair.nodes, text))
    }

    /// A matrix: above the diagonal the bandwidth, below it the latency.
    pub fn table(&self) -> String {
        let mut text =
            "Gbit/s in the slower direction above the diagonal, ms of a round trip below it\n    ".to_owned();
        (0..self.nodes.len()).for_each(|node| {
            let _ = write!(text, " {node:>7}");
        });
        for (row, name) in self.nodes.iter().enumerate() {
            let _ = write!(text, "\n{row:>4}");
            for column in 0..self.nodes.len() {
                let nodes = [row.min(column), row.max(column)];
                let pair = self.pairs.iter().find(|pair| pair.nodes == nodes);
                let cell = match pair {
                    Some(pair) if row < column => pair.gbit_per_s.map(gbit),
                    Some(pair) => pair.latency_ms.map(|latency| format!("{latency:.2}")),
                    None => None,
                };
                let _ = write!(text, " {:>7}", cell.as_deref().unwrap_or("-"));
            }
            let _ = write!(text, "  {name}");
        }
        text
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b] = &self.slowest;
        let slowest = Speed { latency: self.latency_ms, gbit: self.gbit_per_s };
        if self.pairs == 1 {
            return write!(f, "network between {a} and {b}: {slowest}");
        }
        let median = Speed { latency: self.median_latency_ms, gbit: self.median_gbit_per_s };
        let pairs = text::count(self.pairs, "pair");
        write!(f, "network of {pairs} of nodes: median {median}; slowest between {a} and {b}: {slowest}")
    }
}

fn gbit(value: f64) -> String {
    match value {
        _ if value.is_nan() => "unknown".to_owned(),
        ..0.001 => "<0.001".to_owned(),
        ..1.0 => format!("{value:.3}"),
        _ => format!("{value:.2}"),
    }
}

fn without(speeds: &[Speed], at: usize) -> Vec<Speed> {
    speeds.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, &speed)| speed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Links between this many nodes, 10 Gbit/s and 0.1 ms but for those given.
    fn links(count: usize, others: &[([usize; 2], f64, f64)]) -> Links {
        let all = (0..count).flat_map(|a| (a + 1..count).map(move |b| [a, b]));
        let pair = |nodes| {
            let other = others.iter().find(|(other, ..)| *other == nodes);
            let (gbit, latency) = other.map_or((10.0, 0.1), |&(_, gbit, latency)| (gbit, latency));
            let is_there = latency.is_finite();
            let (latency_ms, gbit_per_s) = (is_there.then_some(latency), is_there.then_some(gbit));
            Pair { nodes, latency_ms, gbit_per_s, clock_offset: None }
        };
        Links {
            nodes: (0..count).map(|node| format!("node {node} (h{node})")).collect(),
            pairs: all.map(pair).collect(),
        }
    }

    #[test]
    fn what_is_far_slower_than_the_median_of_the_others_is_slow() {
        const NO: f64 = f64::INFINITY;
        type Case<'a> = (usize, &'a [([usize; 2], f64, f64)], &'a [Slow]);
        let cases: [Case<'_>; 11] = [
            (3, &[], &[]),
            // All links of one node, by bandwidth and by latency; without a connection.
            (3, &[([0, 2], 1.0, 0.1), ([1, 2], 1.1, 0.1)], &[Slow::Node(2)]),
            (4, &[([0, 1], 10.0, 40.0), ([0, 2], 10.0, 41.0), ([0, 3], 10.0, 40.0)], &[Slow::Node(0)]),
            (3, &[([0, 2], 0.0, NO), ([1, 2], 0.0, NO)], &[Slow::Node(2)]),
            // One cable.
            (3, &[([0, 1], 1.0, 0.1)], &[Slow::Pair([0, 1])]),
            (4, &[([1, 3], 10.0, 9.0)], &[Slow::Pair([1, 3])]),
            (2, &[([0, 1], 0.0, NO)], &[Slow::Pair([0, 1])]),
            // Two nodes have nothing to be compared with.
            (2, &[([0, 1], 0.001, 90.0)], &[]),
            // Within what is usual: a factor of 3, and latencies of less than a millisecond.
            (3, &[([0, 1], 3.4, 0.9)], &[]),
            // Two racks.
            (4, &[([0, 2], 1.0, 0.1), ([0, 3], 1.0, 0.1), ([1, 2], 1.0, 0.1), ([1, 3], 1.0, 0.1)], &[]),
            (
                5,
                &[([0, 4], 0.1, 0.1), ([1, 4], 0.1, 0.1), ([2, 4], 0.1, 0.1), ([3, 4], 0.1, 0.1), ([0, 1], 1.0, 0.1)],
                &[Slow::Node(4), Slow::Pair([0, 1])],
            ),
        ];
        for (count, others, expected) in cases {
            assert_eq!(links(count, others).slow(), expected, "{others:?}");
        }
        let one = links(3, &[([0, 2], 0.0931, 0.1), ([1, 2], 0.09, 0.2)]);
        assert_eq!(
            one.slow_now(None),
            [
                "the network of node 2 (h2) is slow: 0.093 Gbit/s, 0.10 ms; median of the other nodes: 10.00 Gbit/s, 0.10 ms"
            ]
        );
        let cut = links(2, &[([0, 1], 0.0, NO)]).slow_now(None);
        assert!(cut.len() == 1 && cut[0].contains("between node 0 (h0) and node 1 (h1) was not measured"), "{cut:?}");
    }

    #[test]
    fn two_nodes_are_compared_with_their_own_earlier_measurement() {
        let now = |gbit, latency| links(2, &[([0, 1], gbit, latency)]).slow_now(Some(&links(2, &[])));
        assert_eq!(now(2.0, 0.2), Vec::<String>::new());
        assert!(now(1.0, 0.1)[0].ends_with("is slow: 1.00 Gbit/s, 0.10 ms; before: 10.00 Gbit/s, 0.10 ms"));
        assert_eq!(now(10.0, 30.0).len(), 1);
        assert_eq!(links(2, &[([0, 1], 1.0, 0.1)]).slow_now(Some(&links(3, &[]))), Vec::<String>::new());
    }

    #[test]
    fn the_slowest_pair_is_summarized_and_refused_below_a_tenth() {
        let links = links(3, &[([0, 2], 0.5, 0.3)]);
        assert_eq!(
            links.summary().unwrap().to_string(),
            "network of 3 pairs of nodes: median 10.00 Gbit/s, 0.10 ms; slowest between node 0 (h0) and node 2 (h2): \
             0.500 Gbit/s, 0.30 ms"
        );
        assert_eq!(links.refusal(5.0), None);
        let (pair, text) = links.refusal(5.1).unwrap();
        assert!(
            pair == [0, 2] && text.contains("between node 0 (h0) and node 2 (h2) is too slow: 0.500 Gbit/s"),
            "{text}"
        );
        assert!(text.contains("less than a tenth of the 5.1 Gbit/s that are expected (--expect-bandwidth)"), "{text}");
        assert_eq!(Links::default().summary(), None);
        assert_eq!(
            links.table().lines().skip(1).collect::<Vec<_>>(),
            [
                "           0       1       2",
                "   0       -   10.00   0.500  node 0 (h0)",
                "   1    0.10       -   10.00  node 1 (h1)",
                "   2    0.30    0.10       -  node 2 (h2)",
            ]
        );
    }
}
