//! Which nodes hold the others up for long, and whether by compute or by the network, without I/O.
//!
//! In a training step a rank does its own work and waits for the others. The node with the most work of its own waits least:
//! if it has far more than the others, it is slow by compute. The time for which even that node waits is communication: if it
//! is much of a step, the links are measured again, which shows where the network is slow.

use std::collections::BTreeMap;

use fnet_protocol::links::Links;
use fnet_protocol::spread::Spread;

use crate::attempt::status::RankStatus;

/// A node is slow by compute if it has this many times the work of the median of the others, until it has less than the second.
const SLOW: f64 = 1.3;
const EQUAL: f64 = 1.15;
/// The difference matters if it is at least this part of a step.
const MIN_PART: f64 = 0.05;
/// Communication is slow if it takes this part of a step, until it takes less than the second.
const MUCH: f64 = 0.3;
const LITTLE: f64 = 0.15;
/// The links are measured again when communication takes this many times as long as it did when they were measured last.
const WORSE: f64 = 2.0;
/// Number of seconds with a new step for which something has to last.
const PERSISTENT: u32 = 30;

/// What a node does in a step, in seconds: that of its rank with the most work.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// Number of the node.
    pub node: usize,
    /// Its name.
    pub name: String,
    /// Its own work.
    pub own: f64,
    /// The part of that in which it waits for data.
    pub data: f64,
    /// Waiting for the others.
    pub wait: f64,
}

impl Load {
    /// That of a node with these workers; `None` until all of them train.
    pub fn of(node: usize, name: String, workers: &[RankStatus]) -> Option<Self> {
        let each = workers.iter().map(|worker| {
            let usage = &worker.usage;
            Some((usage.own_seconds?, usage.data_seconds.unwrap_or(0.0), usage.wait_seconds?))
        });
        let all: Vec<_> = each.collect::<Option<_>>()?;
        let (own, data, wait) = all.into_iter().max_by(|a, b| a.0.total_cmp(&b.0))?;
        Some(Self { node, name, own, data, wait })
    }
}

/// A conclusion.
#[derive(Debug, Clone, PartialEq)]
pub enum Diagnosis {
    /// Tell the user; the second part is whether something is wrong.
    Say(String, bool),
    /// Measure the links.
    Measure,
}

/// A state that changes only after what speaks for the other one has lasted.
#[derive(Debug, Default)]
struct Lasting {
    is_on: bool,
    against: u32,
}

impl Lasting {
    /// The new state, if it changes: `begins` turns it on, and it stays on while it `stays`.
    fn note(&mut self, begins: bool, stays: bool) -> Option<bool> {
        let is_against = if self.is_on { !stays } else { begins };
        self.against = if is_against { self.against + 1 } else { 0 };
        if self.against < PERSISTENT {
            return None;
        }
        *self = Self { is_on: !self.is_on, against: 0 };
        Some(self.is_on)
    }
}

/// Watches the nodes of a job.
#[derive(Debug, Default)]
pub struct Watch {
    step: u64,
    /// By the numbers of the nodes.
    compute: BTreeMap<usize, Lasting>,
    network: Lasting,
    /// Seconds of communication and of a step.
    last: (f64, f64),
    /// Seconds of communication when the links were measured.
    measured_at: Option<f64>,
    /// Whether it was reported that the network is slow.
    was_reported: bool,
}

impl Watch {
    /// A second has passed; `step` is the newest one.
    pub fn on_tick(&mut self, step: u64, loads: &[Load]) -> Vec<Diagnosis> {
        if step == self.step || loads.len() < 2 {
            return Vec::new();
        }
        self.step = step;
        let mut diagnoses = self.by_compute(loads);
        diagnoses.extend(self.by_network(loads));
        diagnoses
    }

    fn by_compute(&mut self, loads: &[Load]) -> Vec<Diagnosis> {
        let mut diagnoses = Vec::new();
        for load in loads {
            let usual = Spread::of(loads.iter().filter(|other| other.node != load.node).map(|other| other.own)).median;
            let matters = load.own - usual >= MIN_PART * (load.own + load.wait);
            let lasting = self.compute.entry(load.node).or_default();
            let Some(is_slow) = lasting.note(matters && load.own > SLOW * usual, load.own > EQUAL * usual) else {
                continue;
            };
            let Load { name, own, data, .. } = load;
            let work = format!("its own work takes {own:.2} s of a step, that of the other nodes {usual:.2} s");
            let text = match is_slow {
                true if 2.0 * data > own - usual => format!(
                    "{name} is slow by compute, not by the network: {work}; {data:.2} s of it are waiting for data \
                     (data.workers_per_gpu, its disk)"
                ),
                true => format!("{name} is slow by compute, not by the network: {work}"),
                false => format!("{name} is no longer slow by compute: {work}"),
            };
            diagnoses.push(Diagnosis::Say(text, is_slow));
        }
        diagnoses
    }

    fn by_network(&mut self, loads: &[Load]) -> Option<Diagnosis> {
        // The node for which the others wait.
        let last = loads.iter().max_by(|a, b| a.own.total_cmp(&b.own))?;
        self.last = (last.wait, last.own + last.wait);
        let part = last.wait / self.last.1.max(f64::MIN_POSITIVE);
        let is_worse = self.measured_at.is_none_or(|before| last.wait >= WORSE * before);
        if self.network.is_on && !self.was_reported && part > MUCH && is_worse {
            // It was measured, but no link was slow then.
            self.network = Lasting::default();
        }
        match self.network.note(part > MUCH && is_worse, part > LITTLE) {
            Some(true) => {
                self.measured_at = Some(last.wait);
                Some(Diagnosis::Measure)
            }
            Some(false) => {
                self.measured_at = None;
                std::mem::take(&mut self.was_reported)
                    .then(|| Diagnosis::Say(format!("the network is no longer slow: {}", self.communication()), false))
            }
            None => None,
        }
    }

    fn communication(&self) -> String {
        format!("communication takes {:.2} s of a step of {:.2} s", self.last.0, self.last.1)
    }

    /// The links were measured during the attempt; before it, they were `before`.
    pub fn on_links(&mut self, links: &Links, before: Option<&Links>) -> Vec<Diagnosis> {
        let slow = links.slow_now(before);
        if slow.is_empty() {
            let Some(summary) = links.summary() else { return Vec::new() };
            let text = format!("{}; no link is far slower than the others: {summary}", self.communication());
            return vec![Diagnosis::Say(text, false)];
        }
        self.was_reported = true;
        let say = |what| Diagnosis::Say(format!("{what}; {}, not by compute", self.communication()), true);
        slow.into_iter().map(say).collect()
    }
}

#[cfg(test)]
mod tests {
    use fnet_protocol::links::Pair;

    use super::*;

    /// Nodes that work and wait for these times in a step.
    fn loads(times: &[(f64, f64)]) -> Vec<Load> {
        let load = |(node, &(own, wait))| Load { node, name: format!("node {node}"), own, data: 0.05, wait };
        times.iter().enumerate().map(load).collect()
    }

    /// What is found in this many seconds with a step each.
    fn pass(watch: &mut Watch, seconds: u32, loads: &[Load]) -> Vec<Diagnosis> {
        (0..seconds).flat_map(|_| watch.on_tick(watch.step + 1, loads)).collect()
    }

    fn said(diagnoses: &[Diagnosis]) -> Vec<(&str, bool)> {
        let said = diagnoses.iter().map(|diagnosis| match diagnosis {
            Diagnosis::Say(text, is_warning) => (text.as_str(), *is_warning),
            Diagnosis::Measure => ("measure", false),
        });
        said.collect()
    }

    #[test]
    fn a_node_that_is_slow_by_compute_for_long_is_named_once_and_once_when_that_is_over() {
        let mut watch = Watch::default();
        let (equal, slow) = (loads(&[(0.3, 0.0); 3]), loads(&[(0.3, 0.32), (0.3, 0.32), (0.6, 0.02)]));
        for _ in 0..5 {
            assert_eq!(pass(&mut watch, PERSISTENT - 1, &slow), [], "a disturbance");
            assert_eq!(pass(&mut watch, 1, &equal), []);
        }
        for _ in 0..100 {
            // No new step: an evaluation.
            assert_eq!(watch.on_tick(watch.step, &slow), []);
        }
        let text = "node 2 is slow by compute, not by the network: its own work takes 0.60 s of a step, that of the other \
                    nodes 0.30 s";
        assert_eq!(said(&pass(&mut watch, PERSISTENT + 100, &slow)), [(text, true)]);
        // Better, but not equal.
        assert_eq!(pass(&mut watch, 100, &loads(&[(0.3, 0.1), (0.3, 0.1), (0.37, 0.03)])), []);
        let ends = pass(&mut watch, 100, &equal);
        assert!(
            said(&ends).len() == 1 && said(&ends)[0].0.starts_with("node 2 is no longer slow by compute"),
            "{ends:?}"
        );
    }

    #[test]
    fn the_links_are_measured_when_communication_takes_long_and_what_is_slow_is_named() {
        let pair = |nodes, gbit| Pair { nodes, latency_ms: Some(0.1), gbit_per_s: Some(gbit), clock_offset: None };
        let links = |gbit| Links {
            nodes: ["a", "b", "c"].map(str::to_owned).into(),
            pairs: vec![pair([0, 1], 9.0), pair([0, 2], gbit), pair([1, 2], gbit)],
        };
        let (fast, slow) = (loads(&[(0.3, 0.02); 3]), loads(&[(0.3, 0.5), (0.32, 0.48), (0.31, 0.49)]));
        let mut watch = Watch::default();
        assert_eq!(pass(&mut watch, 100, &fast), []);
        assert_eq!(pass(&mut watch, 100, &slow), [Diagnosis::Measure]);
        let found = watch.on_links(&links(0.5), None);
        assert_eq!(
            said(&found),
            [(
                "the network of c is slow: 0.500 Gbit/s, 0.10 ms; median of the other nodes: 9.00 Gbit/s, 0.10 ms; communication \
               takes 0.48 s of a step of 0.80 s, not by compute",
                true
            )]
        );
        assert_eq!(pass(&mut watch, 100, &slow), []);
        let ends = pass(&mut watch, 100, &fast);
        assert_eq!(
            said(&ends),
            [("the network is no longer slow: communication takes 0.02 s of a step of 0.32 s", false)]
        );
        // Another time no link is slower than the others: they are measured again only when it has become worse.
        assert_eq!(pass(&mut watch, 100, &slow), [Diagnosis::Measure]);
        let found = watch.on_links(&links(9.0), None);
        assert!(said(&found)[0].0.contains("no link is far slower than the others: network of 3 pairs"), "{found:?}");
        assert_eq!(pass(&mut watch, 100, &slow), []);
        assert_eq!(pass(&mut watch, 100, &loads(&[(0.3, 1.1); 3])), [Diagnosis::Measure]);
        // A node for which the others wait is no slow network.
        assert_eq!(pass(&mut Watch::default(), PERSISTENT, &loads(&[(0.3, 0.6), (0.9, 0.0)])).len(), 1);
    }

    #[test]
    fn a_load_is_that_of_the_rank_with_the_most_work_once_all_train() {
        let worker = |own_seconds: Option<f64>| {
            let mut worker = RankStatus::default();
            (worker.usage.own_seconds, worker.usage.wait_seconds) = (own_seconds, own_seconds.map(|own| 1.0 - own));
            worker
        };
        let load = |workers: &[RankStatus]| Load::of(1, "a".into(), workers).map(|load| (load.own, load.wait));
        assert_eq!(load(&[worker(Some(0.2)), worker(Some(0.7))]).map(|(own, _)| own), Some(0.7));
        assert_eq!((load(&[worker(Some(0.2)), worker(None)]), load(&[])), (None, None));
    }
}
