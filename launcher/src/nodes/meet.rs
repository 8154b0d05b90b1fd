//! How the nodes of a job come together.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use fnet_protocol::cli::Place;
use fnet_protocol::message::StopReason;
use tokio::sync::Notify;

use super::cluster::{Cluster, Ending, Link, Says, SharedBeats};
use super::dial::{self, Way};
use super::door::{self, Door};
use super::hub::{Hub, PULSE, Patience, REMIND};
use super::message::{Beat, Hello, ToHub, ToNode};
use super::{hello, interfaces, queue, wire};
use crate::error::{Doing, Error, Result};
use crate::plan::Plan;
use crate::rendezvous::{self, Nodes};
use crate::show::Show;
use crate::signals::Signals;

/// Time between two rounds of dialling.
const REDIAL: Duration = Duration::from_secs(1);

type SharedShow = Rc<RefCell<Show>>;

/// The nodes have met, or were told not to.
pub enum Met {
    /// Node 0 is reached.
    Ready(Cluster),
    /// A stop was requested before.
    Stopped(StopReason),
}

/// Brings the nodes together: opens the port on node 0, reaches it from the others.
///
/// # Errors
/// If the port is taken, or node 0 is not reached in time (exit code 6).
pub async fn meet(place: &Place, plan: &Plan, config: &str, show: &SharedShow, requests: &mut Signals) -> Result<Met> {
    if plan.nodes.count == 1 {
        return Ok(Met::Ready(Cluster::alone()));
    }
    let hello = hello::of(place, plan, config);
    let patience = Patience {
        join: Duration::from_secs_f64(place.join_timeout),
        silence: Duration::from_secs_f64(place.node_timeout),
    };
    let link = if plan.nodes.rank == 0 {
        open(plan, hello, patience, show).await?
    } else {
        match reach(plan, &hello, patience, show, requests).await? {
            Ok(way) => follow(plan.nodes.rank, way, patience.silence),
            Err(reason) => return Ok(Met::Stopped(reason)),
        }
    };
    Ok(Met::Ready(Cluster::over(link)))
}

/// Node 0: opens the port.
async fn open(plan: &Plan, hello: Hello, patience: Patience, show: &SharedShow) -> Result<Link> {
    let nodes = &plan.nodes;
    let port = nodes.port.unwrap_or(0);
    let listener = door::listen(port).map_err(|error| rendezvous::cannot_listen(nodes, port, &error))?;
    warn_if_foreign(nodes, port, show).await;
    let (own, hears) = queue::channel();
    let hub = Hub::new(hello, patience, Instant::now());
    let door = Door::open(listener, hub, own).doing(|| format!("listening on port {port}"))?;
    let says = Says::Near(door.events.clone());
    Ok(Link::new(0, says, hears, "node 0".to_owned(), None, Ending::Near(door)))
}

async fn warn_if_foreign(nodes: &Nodes, port: u16, show: &SharedShow) {
    const PATIENCE: Duration = Duration::from_secs(5);
    let found = tokio::time::timeout(PATIENCE, tokio::net::lookup_host((nodes.address.as_str(), port))).await;
    let text = match found {
        Ok(Ok(addresses)) => {
            let addresses: Vec<_> = addresses.collect();
            interfaces::all().ok().and_then(|all| interfaces::foreign(&nodes.address, &addresses, &all))
        }
        Ok(Err(error)) => Some(format!("--master-addr {} means nothing on node 0 itself: {error}", nodes.address)),
        Err(_) => {
            Some(format!("--master-addr {}: the name is not answered in {} s", nodes.address, PATIENCE.as_secs()))
        }
    };
    if let Some(text) = text {
        show.borrow().error(&format!("warning: {text}"));
    }
}

/// Another node: dials until node 0 is reached, saying at first and from time to time what is in the way.
async fn reach(
    plan: &Plan,
    hello: &Hello,
    patience: Patience,
    show: &SharedShow,
    requests: &mut Signals,
) -> Result<std::result::Result<Way, StopReason>> {
    let (host, port) = (plan.nodes.address.as_str(), plan.nodes.port.unwrap_or(0));
    let deadline = tokio::time::Instant::now() + patience.join;
    let mut said: Option<Instant> = None;
    let mut last = None;
    loop {
        let round = async {
            let tried = tokio::time::timeout_at(deadline, dial::try_once(host, port, hello)).await;
            if !matches!(tried, Ok(Ok(_))) {
                tokio::time::sleep_until(deadline.min(tokio::time::Instant::now() + REDIAL)).await;
            }
            tried
        };
        let tried = match requests.unless_stopped(round).await {
            Ok(tried) => tried,
            Err(reason) => return Ok(Err(reason)),
        };
        match tried {
            Ok(Ok(way)) => return Ok(Ok(way)),
            Ok(Err(miss)) => {
                if said.is_none_or(|at| at.elapsed() >= REMIND) {
                    said = Some(Instant::now());
                    let text = dial::in_short(host, port, &miss);
                    show.borrow()
                        .say(&format!("waiting for node 0, {} s at most: {text}", patience.join.as_secs_f64()));
                }
                last = Some(miss);
            }
            Err(_) => {}
        }
        if tokio::time::Instant::now() >= deadline {
            let why = last.map_or_else(
                || format!("{host}, port {port}, does not answer"),
                |miss| dial::explain(host, port, &miss),
            );
            let seconds = patience.join.as_secs_f64();
            return Err(Error::environment(format!("{why}\nnode 0 was looked for for {seconds} s (--join-timeout)")));
        }
    }
}

/// Another node: hears and speaks over the way to node 0.
fn follow(node: usize, way: Way, silence: Duration) -> Link {
    let Way { mut reader, writer, address } = way;
    let (says, outgoing) = queue::channel();
    let task = tokio::task::spawn_local(wire::write_all(writer, outgoing));
    let (heard, hears) = queue::channel();
    let is_full = Rc::new(Notify::new());
    let overflow = Rc::clone(&is_full);
    tokio::task::spawn_local(async move {
        let why = loop {
            let message = tokio::select! {
                message = tokio::time::timeout(silence, reader.message()) => message,
                () = overflow.notified() => break queue::NOT_READ.to_owned(),
            };
            match message {
                // While nobody takes it, node 0 waits too.
                Ok(Ok(Some(message))) => drop(heard.send(message).await),
                Ok(Ok(None)) => break wire::ENDED.to_owned(),
                Ok(Err(error)) => break wire::broken(&error),
                Err(_) => break format!("gave no sign of life for {} s (--node-timeout)", silence.as_secs_f64()),
            }
        };
        let _ = heard.send(ToNode::Lost(why)).await;
    });
    let host = wire::host(address);
    Link::new(node, Says::Far(says, is_full), hears, format!("node 0 ({host})"), Some(host), Ending::Far(task))
}

/// Signs of life, also while nothing happens.
pub(super) async fn pulse(says: Says, beats: SharedBeats) {
    loop {
        tokio::time::sleep(PULSE).await;
        let seen = {
            let (seen, at) = &*beats.borrow();
            seen.iter().map(|one| Beat::from(&one.later(at.elapsed()))).collect()
        };
        if !says.say(ToHub::Beats { seen }).await {
            return;
        }
    }
}
