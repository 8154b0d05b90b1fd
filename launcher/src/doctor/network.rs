//! The network between the nodes, and their clocks.
//!
//! With several nodes, `doctor` brings them together as a job does, and measures the network between them.

use std::time::Duration;

use fnet_protocol::cli::LaunchOptions;
use fnet_protocol::exit;
use fnet_protocol::links::Links;

use super::diagnosis::Diagnosis;
use crate::console::Console;
use crate::error::{Doing, Error, Result};
use crate::nodes;
use crate::plan::rendezvous::{self, Nodes};
use crate::signals::Signals;

/// Time for the nodes to find each other.
const RENDEZVOUS_TIMEOUT: Duration = Duration::from_secs(60);
/// A larger offset makes logs and file ages misleading.
const MAX_OFFSET: f64 = 1.0;

/// Whether the clock is synchronized; with several nodes also whether they find each other, and what is between them.
/// Errors: invalid options of several nodes (exit code 2); a stop was requested.
pub fn diagnose(options: &LaunchOptions, console: &Console) -> Result<Vec<Diagnosis>> {
    let nodes = rendezvous::resolve(options, |name| std::env::var(name).ok())?;
    let mut diagnoses = vec![own_clock(nodes.count)];
    if nodes.count > 1 {
        let seconds = RENDEZVOUS_TIMEOUT.as_secs();
        console
            .say(&format!("run doctor with the same options on all nodes now; waiting for them at most {seconds} s"));
        diagnoses.push(Diagnosis::good("network", format!("node 0 at {}, {}", nodes.address, nodes.trust())));
        diagnoses.extend(measure(options, &nodes, console)?);
    }
    Ok(diagnoses)
}

/// Whether a service synchronizes the clock, according to the kernel.
fn own_clock(nodes: usize) -> Diagnosis {
    // SAFETY: all zeroes is a valid `timex`; without modes the call only fills it.
    let mut time: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `time` outlives the call.
    let state = unsafe { libc::adjtimex(&raw mut time) };
    let is_set = state >= 0 && state != libc::TIME_ERROR && time.status & libc::STA_UNSYNC == 0;
    let found = if is_set { "synchronized by a time service" } else { "not synchronized by a time service" };
    let remedy = "start one on every node: systemd-timesyncd, chrony or ntpd (timedatectl set-ntp true)";
    match nodes {
        1 if !is_set => Diagnosis::good("clock", format!("{found}; this matters only with several nodes")),
        _ => Diagnosis::good_if(is_set, "clock", found, remedy),
    }
}

/// Brings the nodes together.
fn measure(options: &LaunchOptions, nodes: &Nodes, console: &Console) -> Result<Vec<Diagnosis>> {
    let doing = || "starting the event loop".to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().doing(doing)?;
    let measuring = async {
        let mut signals = Signals::install().doing(|| "installing the signal handlers".to_owned())?;
        nodes::measure(options, nodes, RENDEZVOUS_TIMEOUT, console, &mut signals).await
    };
    let measured = tokio::task::LocalSet::new().block_on(&runtime, measuring);
    // A name lookup in progress must not delay the exit.
    runtime.shutdown_background();
    Ok(match measured {
        Ok(Err(reason)) => return Err(Error::new(reason.exit_code(), "stopped on request")),
        Ok(Ok(None)) => vec![Diagnosis::good("nodes", "all were measured; node 0 shows what was found")],
        Ok(Ok(Some(links))) => judge(&links),
        Err(error) if error.code == exit::USAGE => return Err(error),
        Err(error) => vec![Diagnosis::doubtful(
            "nodes",
            error.message().replace('\n', "; "),
            "run doctor on all nodes at the same time; check --master-addr, and that no firewall blocks the master port",
        )],
    })
}

fn judge(links: &Links) -> Vec<Diagnosis> {
    let count = links.nodes.len();
    let mut diagnoses = vec![Diagnosis::good("nodes", format!("all {count} are there"))];
    let slow: Vec<String> = links.slow().into_iter().map(|slow| links.explain(slow)).collect();
    let remedy = "check the links of these nodes (`ethtool` shows their speed), firewalls and switches between them";
    let found = [links.table(), slow.join("\n")].join("\n");
    diagnoses.push(Diagnosis::good_if(slow.is_empty(), "links", found.trim_end(), remedy));
    let of_first = links.pairs.iter().filter(|pair| pair.nodes[0] == 0);
    let known = of_first.filter_map(|pair| Some((pair.nodes[1], pair.clock_offset?, pair.latency_ms? / 2e3)));
    let offsets: Vec<(usize, f64, f64)> = known.collect();
    let text = |&(node, offset, error): &(usize, f64, f64)| {
        format!("{}: {offset:+.3} s (+/- {error:.3} s)", links.nodes.get(node).map_or("a node", String::as_str))
    };
    if !offsets.is_empty() {
        let found = format!("offsets from node 0: {}", offsets.iter().map(text).collect::<Vec<_>>().join(", "));
        let is_good = offsets.iter().all(|(_, offset, error)| offset.abs() - error <= MAX_OFFSET);
        let remedy = "synchronize the clocks with a time service: systemd-timesyncd, chrony or ntpd";
        diagnoses.push(Diagnosis::good_if(is_good, "clocks", found, remedy));
    }
    diagnoses
}

#[cfg(test)]
mod tests {
    use fnet_protocol::links::Pair;

    use super::super::diagnosis::Rating;
    use super::*;

    #[test]
    fn clocks_that_are_apart_and_slow_links_are_doubtful() {
        let judged = |gbit, offset, latency| {
            let nodes = vec!["node 0 (a)".to_owned(), "node 1 (b)".to_owned(), "node 2 (c)".to_owned()];
            let pair = |nodes, gbit, clock_offset| Pair {
                nodes,
                latency_ms: Some(latency),
                gbit_per_s: Some(gbit),
                clock_offset,
            };
            let pairs = vec![pair([0, 1], gbit, Some(offset)), pair([1, 2], 9.0, None), pair([0, 2], 9.0, Some(0.0))];
            let diagnoses = judge(&Links { nodes, pairs });
            diagnoses.into_iter().map(|one| one.rating).collect::<Vec<_>>()
        };
        use Rating::{Doubtful, Good};
        assert_eq!(judged(9.0, 0.4, 0.1), [Good, Good, Good]);
        assert_eq!(judged(9.0, -7.0, 0.1), [Good, Good, Doubtful]);
        assert_eq!(judged(9.0, 1.5, 1600.0), [Good, Good, Good], "the error is too large to judge");
        assert_eq!(judged(1.0, 0.0, 0.1), [Good, Doubtful, Good]);
    }
}
