//! How the nodes of a job come together.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use fnet_protocol::cli::{CommandLine, LaunchOptions, WorkerCommand};
use fnet_protocol::links::Links;
use fnet_protocol::listen::listen_as;
use fnet_protocol::{env, exit};
use tokio::sync::Notify;

use super::coordinator::{Coordinator, EARLY_FAILURE_GRACE, Elastic, REMINDER_INTERVAL, Timeouts};
use super::dial::{self, Connection};
use super::link::{Closing, Cluster, Link};
use super::listener::Listener;
use super::message::{Hello, ToNode, Wanted};
use super::probe::Prober;
use super::sender::Sender;
use super::token::{self, Token};
use super::{hello, queue, wire};
use crate::attempt::restart::RestartBudget;
use crate::console::Console;
use crate::error::{Doing, Error, Result};
use crate::plan::rendezvous::{self, Nodes};
use crate::plan::{Plan, interfaces};
use crate::signals::{OrStop, Signals};

/// Pause between two attempts to reach node 0.
const REDIAL_INTERVAL: Duration = Duration::from_secs(1);
/// Time to look up the address of node 0 on node 0 itself.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Joins the nodes of a job: opens the port on node 0, reaches it from the others.
/// Errors: the port is taken, or node 0 is not reached in time (exit code 6).
pub async fn join(
    options: &LaunchOptions,
    plan: &Plan,
    config: &BTreeMap<String, String>,
    token: &mut Option<Token>,
    console: &Console,
    signals: &mut Signals,
) -> Result<OrStop<Cluster>> {
    if plan.nodes.count == 1 {
        return Ok(Ok(Cluster::single()));
    }
    let program = plan.program.clone();
    let build = tokio::task::spawn_blocking(move || hello::build(&program)).await.unwrap_or_default();
    let hello = Hello { build, ..hello::of(options, plan, config) };
    let timeouts = timeouts(options);
    let elastic = Elastic {
        settle: Duration::from_secs_f64(options.elastic_settle),
        grow_after: options.elastic_grow_after.map(Duration::from_secs_f64),
    };
    let name = token.as_ref().map(Token::name);
    let coordinate = |hello| {
        let coordinator = Coordinator::new(hello, timeouts, Instant::now()).with_elastic(elastic);
        coordinator.with_probes(options.expect_bandwidth).with_token(name)
    };
    let mut link = match connect(&plan.nodes, hello, timeouts, coordinate, console, signals).await? {
        Ok(link) => link,
        Err(reason) => return Ok(Err(reason)),
    };
    if plan.nodes.rank == 0 {
        return Ok(Ok(Cluster::over(link.with_token(token.take()))));
    }
    let check = async {
        match (link.welcome().await?, &plan.command) {
            (Some(token), WorkerCommand::Train(train)) => token::find(train.folder(), token).await,
            _ => Ok(()),
        }
    };
    match signals.unless_stopped(check).await {
        Ok(Ok(())) => Ok(Ok(Cluster::over(link))),
        Ok(Err(error)) => {
            Cluster::over(link).leave(Some(&error)).await;
            Err(error)
        }
        Err(reason) => Ok(Err(reason)),
    }
}

/// Measures the network between the nodes as before a job, for `doctor`: they have this time to come. The links are those that
/// node 0 reports; the other nodes have none.
pub async fn measure(
    options: &LaunchOptions,
    nodes: &Nodes,
    time: Duration,
    console: &Console,
    signals: &mut Signals,
) -> Result<OrStop<Option<Links>>> {
    let nodes = &Nodes { min: None, ..nodes.clone() };
    let (hello, timeouts) = (hello::of_doctor(nodes), Timeouts { join: time, ..timeouts(options) });
    let coordinate = |hello| Coordinator::new(hello, timeouts, Instant::now()).with_probes(None);
    let link = match connect(nodes, hello, timeouts, coordinate, console, signals).await? {
        Ok(link) => link,
        Err(reason) => return Ok(Err(reason)),
    };
    let mut cluster = Cluster::over(link);
    let wanted = Wanted { resume: false, generation: None, budget: RestartBudget::new(options) };
    let started = cluster.begin(nodes, 0, wanted, console, signals).await;
    cluster.leave(started.as_ref().err()).await;
    Ok(started?.map(|start| start.links))
}

/// Opens the port on node 0, with the coordinator that `coordinate` makes; reaches it from the others.
async fn connect(
    nodes: &Nodes,
    hello: Hello,
    timeouts: Timeouts,
    coordinate: impl FnOnce(Hello) -> Coordinator,
    console: &Console,
    signals: &mut Signals,
) -> Result<OrStop<Link>> {
    if nodes.rank == 0 {
        return open(nodes, coordinate(hello), console).await.map(Ok);
    }
    let reached = reach(nodes, &hello, timeouts, console, signals).await?;
    Ok(reached.map(|connection| follow(nodes, connection, timeouts.silence)))
}

fn timeouts(options: &LaunchOptions) -> Timeouts {
    Timeouts {
        join: Duration::from_secs_f64(options.join_timeout),
        silence: Duration::from_secs_f64(options.node_timeout),
    }
}

/// Reports to the other nodes of a job why this one fails or stops before it has joined: node 0 to those that connect to its
/// port, the others to node 0. They may still be starting, so this takes some seconds.
pub async fn report_failure(
    options: &LaunchOptions,
    line: &CommandLine,
    logs: &Path,
    error: &Error,
    console: &Console,
) {
    let nodes = match rendezvous::resolve(options, |name| std::env::var(name).ok()) {
        Ok(nodes) if nodes.count > 1 => nodes,
        _ => return,
    };
    let is_stop = [exit::STOPPED, exit::INTERRUPTED].contains(&error.code);
    // A job of MIN:MAX nodes starts without one that was stopped.
    if is_stop && nodes.min.is_some() {
        return;
    }
    let timeouts = timeouts(options);
    let hello = hello::of_failed(&nodes, line, logs, error);
    let grace = EARLY_FAILURE_GRACE.min(timeouts.join);
    console.say(&format!("reporting this to the other nodes (at most {} s)", grace.as_secs_f64()));
    if nodes.rank == 0 {
        let reason = (error.code, format!("node 0 ({}) failed: {}", hello.host, error.message()));
        let coordinator = Coordinator::of_failed(hello, reason, timeouts, Instant::now());
        let listening = listen_for(&nodes).await.1;
        let (secret, local) = (nodes.secret.clone(), queue::channel().0);
        if let Ok(listener) = listening.and_then(|sockets| Listener::open(sockets, secret, coordinator, local)) {
            listener.close().await;
        }
        return;
    }
    let tell = async {
        loop {
            if let Ok(mut connection) = dial::try_once(&nodes, &hello).await {
                // With the answer, the message has arrived.
                let _ = connection.reader.message::<ToNode>().await;
                return;
            }
            tokio::time::sleep(REDIAL_INTERVAL).await;
        }
    };
    let _ = tokio::time::timeout(grace, tell).await;
}

/// Node 0 opens the port.
async fn open(nodes: &Nodes, coordinator: Coordinator, console: &Console) -> Result<Link> {
    let port = nodes.port.unwrap_or(0);
    let (warning, listening) = listen_for(nodes).await;
    let sockets = listening.map_err(|error| rendezvous::cannot_listen(nodes, port, &error))?;
    if let Some(text) = warning {
        console.error(&format!("warning: {text}"));
    }
    let (local, messages) = queue::channel();
    let listener = Listener::open(sockets, nodes.secret.clone(), coordinator, local)
        .doing(|| format!("listening on port {port}"))?;
    let at: Vec<String> = listener.addresses.iter().map(|&address| wire::host(address)).collect();
    let at = if at == ["::"] || at == ["0.0.0.0"] { "all addresses".to_owned() } else { at.join(" and ") };
    console.say(&format!("listening at {at}, port {port}, {}", nodes.trust()));
    let sender = Sender::Local(listener.events.clone());
    let link = Link::new((sender, messages), "node 0".to_owned(), None, Closing::Listener(listener));
    Ok(link.with_prober(Prober::new(nodes.secret.clone(), None)))
}

/// Listens at the addresses that `--master-addr` has on node 0. The first part is a warning if it has none.
async fn listen_for(nodes: &Nodes) -> (Option<String>, io::Result<Vec<TcpListener>>) {
    let (address, port) = (nodes.address.as_str(), nodes.port.unwrap_or(0));
    let found = tokio::time::timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host((address, port))).await;
    let found: Result<Vec<SocketAddr>, String> = match found {
        Ok(Ok(found)) => Ok(found.collect()),
        Ok(Err(error)) => Err(format!("--master-addr {address} cannot be resolved on node 0 itself: {error}")),
        Err(_) => {
            let seconds = LOOKUP_TIMEOUT.as_secs();
            Err(format!("--master-addr {address}: looking up the name took more than {seconds} s"))
        }
    };
    let warning = match &found {
        Ok(found) => interfaces::all().ok().and_then(|all| interfaces::external(address, found, &all)),
        Err(why) => Some(why.clone()),
    };
    (warning, listen_as(address, found.unwrap_or_default(), port))
}

/// The other nodes dial until they reach node 0; the first obstacle and later reminders are printed.
async fn reach(
    nodes: &Nodes,
    hello: &Hello,
    timeouts: Timeouts,
    console: &Console,
    signals: &mut Signals,
) -> Result<OrStop<Connection>> {
    let (host, port, seconds) = (nodes.address.as_str(), nodes.port.unwrap_or(0), timeouts.join.as_secs_f64());
    let deadline = tokio::time::Instant::now() + timeouts.join;
    let mut last_reminder: Option<Instant> = None;
    let mut last_error = None;
    loop {
        let round = async {
            let tried = tokio::time::timeout_at(deadline, dial::try_once(nodes, hello)).await;
            if !matches!(tried, Ok(Ok(_))) {
                tokio::time::sleep_until(deadline.min(tokio::time::Instant::now() + REDIAL_INTERVAL)).await;
            }
            tried
        };
        match signals.unless_stopped(round).await {
            Err(reason) => return Ok(Err(reason)),
            Ok(Ok(Ok(connection))) => return Ok(Ok(connection)),
            Ok(Ok(Err(error))) if error.is_about_secret().0 => {
                return Err(Error::usage(dial::explain(host, port, &error)));
            }
            Ok(Ok(Err(error))) => {
                if last_reminder.is_none_or(|at| at.elapsed() >= REMINDER_INTERVAL) {
                    last_reminder = Some(Instant::now());
                    let why = dial::explain_in_one_line(host, port, &error);
                    console.say(&format!("waiting for node 0, at most {seconds} s: {why}"));
                }
                last_error = Some(error);
            }
            Ok(Err(_)) => {}
        }
        if tokio::time::Instant::now() >= deadline {
            let (why, code) = match last_error {
                Some(error) if error.is_about_secret().1 => (dial::explain(host, port, &error), exit::USAGE),
                Some(error) => (dial::explain(host, port, &error), exit::ENVIRONMENT),
                None => (format!("{host}, port {port}, does not answer"), exit::ENVIRONMENT),
            };
            return Err(Error::new(code, format!("{why}\nnode 0 was not reached within {seconds} s (--join-timeout)")));
        }
    }
}

/// Sends and receives over the connection to node 0.
fn follow(nodes: &Nodes, connection: Connection, silence: Duration) -> Link {
    let Connection { mut reader, writer, address, local } = connection;
    let (sender, outgoing) = queue::channel();
    let writing = tokio::task::spawn_local(wire::write_all(writer, outgoing));
    let (incoming, messages) = queue::channel();
    let is_full = Rc::new(Notify::new());
    let overflow = Rc::clone(&is_full);
    tokio::task::spawn_local(async move {
        let why = loop {
            let message = tokio::select! {
                message = tokio::time::timeout(silence, reader.message()) => message,
                () = overflow.notified() => break queue::NOT_READING.to_owned(),
            };
            match message {
                // While the queue is full, node 0 waits.
                Ok(Ok(Some(message))) => drop(incoming.send(message).await),
                Ok(Ok(None)) => break wire::ENDED.to_owned(),
                Ok(Err(error)) => break wire::broken(&error),
                Err(_) => break format!("sent no heartbeat for {} s (--node-timeout)", silence.as_secs_f64()),
            }
        };
        let _ = incoming.send(ToNode::Lost(why)).await;
    });
    let host = wire::host(address);
    let channel = (Sender::Remote(sender, is_full), messages);
    let prober = Prober::new(nodes.secret.clone(), Some(own_address(nodes, local.ip().to_canonical(), &host)));
    Link::new(channel, format!("node 0 ({host})"), Some(host), Closing::Writer(writing)).with_prober(prober)
}

/// The address at which the workers of other nodes reach those of this one: that of the chosen interface, else that from which
/// it has reached node 0, at `host`.
fn own_address(nodes: &Nodes, local: IpAddr, host: &str) -> IpAddr {
    let is_key = |(key, _): &&(String, String)| key == env::GLOO_SOCKET_IFNAME;
    let given = nodes.interface.iter().find(is_key).map(|(_, name)| name.clone());
    let set = || std::env::var(env::GLOO_SOCKET_IFNAME).ok().filter(|name| !name.is_empty());
    let name = given.or_else(set).or_else(|| interfaces::of_scope(host));
    name.and_then(|name| interfaces::address_for_workers(&name, local)).unwrap_or(local)
}
