//! Which nodes belong to the job: pure functions.

use super::message::{Hello, PROTOCOL};

/// A node that has joined.
pub struct Present<'a> {
    /// Its introduction.
    pub hello: &'a Hello,
    /// Its address.
    pub address: &'a str,
}

/// Whether a node may join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It joins.
    Welcome,
    /// It belongs to another job; this job continues.
    OtherJob(String),
    /// It belongs to this job but does not match: the job cannot continue.
    Conflict(String),
}

/// Decides about a node, given the introductions of node 0 and of the nodes that have joined.
pub fn admit(first: &Hello, present: &[Present<'_>], hello: &Hello, address: &str) -> Admission {
    let who = format!("node {} ({}, {address})", hello.node, hello.host);
    if hello.protocol != PROTOCOL {
        return Admission::Conflict(format!(
            "{who} runs another version of fnet than node 0; install the same version on all nodes"
        ));
    }
    if hello.job != first.job {
        return Admission::OtherJob(format!(
            "{who} runs `{}`, but this port belongs to `{}`; give each job its own --master-port",
            hello.job, first.job
        ));
    }
    if (hello.nodes, hello.min_nodes) != (first.nodes, first.min_nodes) {
        return Admission::Conflict(format!(
            "{who} was started with --nnodes {}, node 0 ({}) with {}; use the same value on all nodes",
            count(hello),
            first.host,
            count(first)
        ));
    }
    // With MIN:MAX node 0 gives out the numbers.
    if first.min_nodes.is_some() {
        return compare(first, hello, &who);
    }
    let twin = (hello.node == first.node)
        .then_some((first, ""))
        .or_else(|| present.iter().find(|one| one.hello.node == hello.node).map(|one| (one.hello, one.address)));
    if let Some((twin, at)) = twin {
        let at = if at.is_empty() { twin.host.clone() } else { format!("{}, {at}", twin.host) };
        return Admission::Conflict(format!(
            "two nodes were started with --node-rank {} (NODE_RANK): {at} and {}, {address}; give each a different one, 0 to {}",
            hello.node,
            hello.host,
            hello.nodes - 1
        ));
    }
    compare(first, hello, &who)
}

fn compare(first: &Hello, hello: &Hello, who: &str) -> Admission {
    match differences(first, hello).as_slice() {
        [] => Admission::Welcome,
        all => Admission::Conflict(format!(
            "{who} does not match node 0 ({}): {}; start all nodes with the same command, config and version",
            first.host,
            all.join("; ")
        )),
    }
}

/// The value of `--nnodes`.
fn count(hello: &Hello) -> String {
    hello.min_nodes.map_or_else(|| hello.nodes.to_string(), |min| format!("{min}:{}", hello.nodes))
}

/// The first few differences, for example: --device is `cuda` there and `cpu` on node 0.
fn differences(first: &Hello, other: &Hello) -> Vec<String> {
    const MAX: usize = 5;
    let names = first.settings.keys().chain(other.settings.keys().filter(|name| !first.settings.contains_key(*name)));
    let value =
        |hello: &Hello, name: &str| hello.settings.get(name).map_or("not set".to_owned(), |value| format!("`{value}`"));
    let text = |name: &String| {
        let (ours, theirs) = (value(first, name), value(other, name));
        (ours != theirs).then(|| format!("{name} is {theirs} there and {ours} on node 0"))
    };
    let mut all: Vec<String> = names.filter_map(text).collect();
    if all.len() > MAX {
        let more = all.len() - MAX;
        all.truncate(MAX);
        all.push(format!("and {more} more"));
    }
    all
}

/// The rank of each node's first worker, and the number of all workers.
pub fn ranks(workers: &[usize]) -> (Vec<usize>, usize) {
    let mut world_size = 0;
    let first = workers
        .iter()
        .map(|count| {
            world_size += count;
            world_size - count
        })
        .collect();
    (first, world_size)
}

/// `node 1`, `nodes 1, 3`.
pub fn names(nodes: &[usize]) -> String {
    let list: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    format!("node{} {}", if nodes.len() == 1 { "" } else { "s" }, list.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(node: usize, settings: &[(&str, &str)]) -> Hello {
        Hello {
            protocol: PROTOCOL,
            node,
            nodes: 3,
            min_nodes: None,
            workers: 2,
            host: format!("host{node}"),
            job: "train cfg".into(),
            build: String::new(),
            settings: settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            failed: None,
        }
    }

    const SETTINGS: [(&str, &str); 2] = [("fnet", "0.1.0"), ("optimizer.lr", "0.01")];

    fn conflict(admission: Admission) -> String {
        match admission {
            Admission::Conflict(text) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_node_that_matches_is_welcome_with_any_number_of_workers() {
        let (first, mut second) = (hello(0, &SETTINGS), hello(1, &SETTINGS));
        second.workers = 5;
        assert_eq!(admit(&first, &[], &second, "10.0.0.2"), Admission::Welcome);
    }

    #[test]
    fn differences_are_named_with_both_values_and_the_node() {
        let first = hello(0, &SETTINGS);
        let text = conflict(admit(&first, &[], &hello(1, &[("fnet", "0.2.0"), ("optimizer.lr", "0.02")]), "10.0.0.2"));
        for part in [
            "node 1 (host1, 10.0.0.2)",
            "fnet is `0.2.0` there and `0.1.0` on node 0",
            "optimizer.lr is `0.02` there and `0.01`",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let text = conflict(admit(&first, &[], &hello(2, &SETTINGS[..1]), "a"));
        assert!(text.contains("optimizer.lr is not set there and `0.01` on node 0"), "{text}");
        let many: Vec<(String, String)> = (0..20).map(|number| (format!("key{number}"), "1".to_owned())).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let text = conflict(admit(&hello(0, &[]), &[], &hello(1, &many), "a"));
        assert!(text.contains("and 15 more"), "{text}");
    }

    #[test]
    fn a_rank_given_twice_names_both_machines() {
        let (first, one) = (hello(0, &SETTINGS), hello(1, &SETTINGS));
        let present = [Present { hello: &one, address: "10.0.0.2" }];
        let twin = Hello { host: "other".into(), ..one.clone() };
        let text = conflict(admit(&first, &present, &twin, "10.0.0.3"));
        assert!(text.contains("--node-rank 1 (NODE_RANK): host1, 10.0.0.2 and other, 10.0.0.3"), "{text}");
        let text = conflict(admit(&first, &[], &Hello { node: 0, ..twin }, "10.0.0.3"));
        assert!(text.contains("--node-rank 0 (NODE_RANK): host0 and other, 10.0.0.3"), "{text}");
    }

    #[test]
    fn other_numbers_of_nodes_and_other_versions_do_not_match() {
        let first = hello(0, &SETTINGS);
        let text = conflict(admit(&first, &[], &Hello { nodes: 4, ..hello(1, &SETTINGS) }, "a"));
        assert!(text.contains("--nnodes 4, node 0 (host0) with 3"), "{text}");
        conflict(admit(&first, &[], &Hello { protocol: 99, ..hello(1, &SETTINGS) }, "a"));
    }

    #[test]
    fn a_node_of_another_job_does_not_end_this_one() {
        let other = Hello { job: "train other".into(), nodes: 7, ..hello(1, &[]) };
        let admission = admit(&hello(0, &SETTINGS), &[], &other, "a");
        assert!(matches!(&admission, Admission::OtherJob(text) if text.contains("`train other`")), "{admission:?}");
    }

    #[test]
    fn ranks_continue_from_node_to_node() {
        assert_eq!(ranks(&[2, 1, 3]), (vec![0, 2, 3], 6));
        assert_eq!(names(&[1]), "node 1");
        assert_eq!(names(&[1, 3]), "nodes 1, 3");
    }
}
