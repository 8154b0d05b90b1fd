//! Who belongs to the job: pure functions.

use super::message::{Hello, PROTOCOL};

/// A node that is there already, with its address.
pub struct Present<'a> {
    /// What it said.
    pub hello: &'a Hello,
    /// Where it came from.
    pub address: &'a str,
}

/// What becomes of a node that says hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It takes part.
    Welcome,
    /// It belongs to another job, which does not concern this one.
    Stranger(String),
    /// It belongs to this job, and does not fit: the job cannot go on.
    Conflict(String),
}

/// Judges the hello of a node, beside node 0's and those that are there.
pub fn admit(first: &Hello, present: &[Present<'_>], hello: &Hello, address: &str) -> Admission {
    let who = format!("node {} ({}, {address})", hello.node, hello.host);
    if hello.protocol != PROTOCOL {
        return Admission::Conflict(format!("{who} runs another version of fnet than node 0; install the same on all"));
    }
    if hello.job != first.job {
        return Admission::Stranger(format!(
            "{who} runs `{}`, but at this port is `{}`; give each job a --master-port of its own",
            hello.job, first.job
        ));
    }
    if hello.nodes != first.nodes {
        return Admission::Conflict(format!(
            "{who} was started with --nnodes {}, node 0 ({}) with {}; give all the same",
            hello.nodes, first.host, first.nodes
        ));
    }
    let twin = (hello.node == first.node)
        .then_some((first, ""))
        .or_else(|| present.iter().find(|one| one.hello.node == hello.node).map(|one| (one.hello, one.address)));
    if let Some((twin, place)) = twin {
        let place = if place.is_empty() { twin.host.clone() } else { format!("{}, {place}", twin.host) };
        return Admission::Conflict(format!(
            "two nodes were started with --node-rank {} (NODE_RANK): {place} and {}, {address}; give each its own, 0 to {}",
            hello.node,
            hello.host,
            hello.nodes - 1
        ));
    }
    match differences(first, hello).as_slice() {
        [] => Admission::Welcome,
        all => Admission::Conflict(format!(
            "{who} does not fit node 0 ({}): {}; start all nodes with the same line, config and version",
            first.host,
            all.join("; ")
        )),
    }
}

/// What differs, a few at most, as --device is `cuda` there and `cpu` on node 0.
fn differences(first: &Hello, other: &Hello) -> Vec<String> {
    const MOST: usize = 5;
    let names = first.terms.keys().chain(other.terms.keys().filter(|name| !first.terms.contains_key(*name)));
    let value =
        |hello: &Hello, name: &str| hello.terms.get(name).map_or("not set".to_owned(), |value| format!("`{value}`"));
    let text = |name: &String| {
        let (ours, theirs) = (value(first, name), value(other, name));
        (ours != theirs).then(|| format!("{name} is {theirs} there and {ours} on node 0"))
    };
    let mut all: Vec<String> = names.filter_map(text).collect();
    if all.len() > MOST {
        let more = all.len() - MOST;
        all.truncate(MOST);
        all.push(format!("and {more} more"));
    }
    all
}

/// The rank of each node's first worker, and the number of all.
pub fn ranks(workers: &[usize]) -> (Vec<usize>, usize) {
    let mut world = 0;
    let first = workers
        .iter()
        .map(|count| {
            world += count;
            world - count
        })
        .collect();
    (first, world)
}

/// `node 1`, `nodes 1, 3`.
pub fn names(nodes: &[usize]) -> String {
    let list: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    format!("node{} {}", if nodes.len() == 1 { "" } else { "s" }, list.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(node: usize, terms: &[(&str, &str)]) -> Hello {
        Hello {
            protocol: PROTOCOL,
            node,
            nodes: 3,
            workers: 2,
            host: format!("host{node}"),
            job: "train cfg".into(),
            terms: terms.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        }
    }

    const TERMS: [(&str, &str); 2] = [("fnet", "0.1.0"), ("optimizer.lr", "0.01")];

    fn conflict(admission: Admission) -> String {
        match admission {
            Admission::Conflict(text) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_node_that_fits_is_welcome_whatever_its_number_of_workers() {
        let (first, mut second) = (hello(0, &TERMS), hello(1, &TERMS));
        second.workers = 5;
        assert_eq!(admit(&first, &[], &second, "10.0.0.2"), Admission::Welcome);
    }

    #[test]
    fn what_differs_is_named_with_both_values_and_the_node() {
        let first = hello(0, &TERMS);
        let text = conflict(admit(&first, &[], &hello(1, &[("fnet", "0.2.0"), ("optimizer.lr", "0.02")]), "10.0.0.2"));
        for part in [
            "node 1 (host1, 10.0.0.2)",
            "fnet is `0.2.0` there and `0.1.0` on node 0",
            "optimizer.lr is `0.02` there and `0.01`",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let text = conflict(admit(&first, &[], &hello(2, &TERMS[..1]), "a"));
        assert!(text.contains("optimizer.lr is not set there and `0.01` on node 0"), "{text}");
        let many: Vec<(String, String)> = (0..20).map(|number| (format!("key{number}"), "1".to_owned())).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let text = conflict(admit(&hello(0, &[]), &[], &hello(1, &many), "a"));
        assert!(text.contains("and 15 more"), "{text}");
    }

    #[test]
    fn a_rank_given_twice_names_both_machines() {
        let (first, one) = (hello(0, &TERMS), hello(1, &TERMS));
        let present = [Present { hello: &one, address: "10.0.0.2" }];
        let twin = Hello { host: "other".into(), ..one.clone() };
        let text = conflict(admit(&first, &present, &twin, "10.0.0.3"));
        assert!(text.contains("--node-rank 1 (NODE_RANK): host1, 10.0.0.2 and other, 10.0.0.3"), "{text}");
        let text = conflict(admit(&first, &[], &Hello { node: 0, ..twin }, "10.0.0.3"));
        assert!(text.contains("--node-rank 0 (NODE_RANK): host0 and other, 10.0.0.3"), "{text}");
    }

    #[test]
    fn other_numbers_of_nodes_and_other_versions_do_not_fit() {
        let first = hello(0, &TERMS);
        let text = conflict(admit(&first, &[], &Hello { nodes: 4, ..hello(1, &TERMS) }, "a"));
        assert!(text.contains("--nnodes 4, node 0 (host0) with 3"), "{text}");
        conflict(admit(&first, &[], &Hello { protocol: 99, ..hello(1, &TERMS) }, "a"));
    }

    #[test]
    fn a_node_of_another_job_does_not_concern_this_one() {
        let other = Hello { job: "train other".into(), nodes: 7, ..hello(1, &[]) };
        let admission = admit(&hello(0, &TERMS), &[], &other, "a");
        assert!(matches!(&admission, Admission::Stranger(text) if text.contains("`train other`")), "{admission:?}");
    }

    #[test]
    fn ranks_go_on_from_node_to_node() {
        assert_eq!(ranks(&[2, 1, 3]), (vec![0, 2, 3], 6));
        assert_eq!(names(&[1]), "node 1");
        assert_eq!(names(&[1, 3]), "nodes 1, 3");
    }
}
