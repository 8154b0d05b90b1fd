//! The connection of a node to the coordinator, and its part in the job. With a single node it does nothing.

use std::cell::RefCell;
use std::net::TcpListener;
use std::rc::Rc;
use std::time::{Duration, Instant};

use fnet_protocol::links::Links;
use fnet_protocol::message::StopReason;
use fnet_protocol::{env, exit};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::coordinator::HEARTBEAT_INTERVAL;
use super::follower::Follower;
use super::listener::Listener;
use super::message::{Lead, StartAttempt, ToCoordinator, ToNode, Wanted};
use super::probe::Prober;
use super::sender::Sender;
use super::token::Token;
use super::wire;
use crate::attempt::result::AttemptResult;
use crate::attempt::status::RankStatus;
use crate::attempt::{Action, Attempt};
use crate::console::Console;
use crate::error::{Doing, Error, Result};
use crate::plan::interfaces;
use crate::plan::rendezvous::{self, Nodes, RankRange};
use crate::signals::{self, OrStop, Request, Signals};

/// Time for the last messages of a node to be sent.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(3);

/// The workers of this node, and since when their status is known.
type SharedStatuses = Rc<RefCell<(Vec<RankStatus>, Instant)>>;

/// The nodes of a job, seen from one of them.
pub struct Cluster {
    link: Option<Link>,
}

/// The connection to the coordinator.
pub(super) struct Link {
    sender: Sender,
    messages: mpsc::Receiver<ToNode>,
    statuses: SharedStatuses,
    heartbeat: JoinHandle<()>,
    /// The coordinator in messages to the user, such as `node 0 (10.0.0.1)`.
    coordinator: String,
    /// Address at which this node has reached node 0; `None` on node 0 itself.
    address: Option<String>,
    follower: Follower,
    /// Node 0's file in the work folder, until no other node has to find it any more.
    token: Option<Token>,
    /// What was reported about nodes that have joined or left, or are slow.
    membership: Membership,
    prober: Prober,
    closing: Closing,
}

/// Lines about nodes that have joined or left, or are slow, until the status takes them; and whether something is wrong.
pub type Membership = Rc<RefCell<Vec<(String, bool)>>>;

/// What a node waits for at the end.
pub(super) enum Closing {
    /// Node 0: the other nodes.
    Listener(Listener),
    /// Other nodes: the last messages.
    Writer(JoinHandle<()>),
}

/// An attempt that all nodes start together.
pub struct AttemptStart {
    /// Number of the attempt, from 0.
    pub number: u32,
    /// The socket of the store, on node 0.
    pub store: Option<TcpListener>,
    /// The port of the store.
    pub port: u16,
    /// The nodes, with the ranks of this node's workers.
    pub nodes: Nodes,
    /// What node 0 wants.
    pub wanted: Wanted,
    /// The links between several nodes, on node 0.
    pub links: Option<Links>,
}

/// A message from another node or the coordinator.
pub struct NodeMessage(ToNode);

/// Sends heartbeats until nobody receives.
async fn send_heartbeats(sender: Sender, statuses: SharedStatuses) {
    loop {
        tokio::time::sleep(HEARTBEAT_INTERVAL).await;
        let workers = {
            let (workers, at) = &*statuses.borrow();
            workers.iter().map(|status| status.after(at.elapsed())).collect()
        };
        if !sender.send(ToCoordinator::Heartbeat { workers }).await {
            return;
        }
    }
}

impl Link {
    pub(super) fn new(
        (sender, messages): (Sender, mpsc::Receiver<ToNode>),
        coordinator: String,
        address: Option<String>,
        closing: Closing,
    ) -> Self {
        let statuses = Rc::new(RefCell::new((Vec::new(), Instant::now())));
        Self {
            heartbeat: tokio::task::spawn_local(send_heartbeats(sender.clone(), Rc::clone(&statuses))),
            sender,
            messages,
            statuses,
            coordinator,
            address,
            follower: Follower::default(),
            token: None,
            membership: Membership::default(),
            prober: Prober::default(),
            closing,
        }
    }

    /// The same with the file of node 0 in the work folder.
    pub(super) fn with_token(self, token: Option<Token>) -> Self {
        Self { token, ..self }
    }

    /// The same with a part in probes of the network.
    pub(super) fn with_prober(self, prober: Prober) -> Self {
        Self { prober, ..self }
    }

    /// The next message. Cancel safe.
    async fn next(&mut self) -> ToNode {
        loop {
            if self.follower.is_alone() {
                return std::future::pending().await;
            }
            match self.messages.recv().await.unwrap_or_else(|| ToNode::Lost("it has ended".to_owned())) {
                ToNode::PrepareProbe { probe } => self.prober.prepare(probe, &self.sender),
                ToNode::RunProbe { probe, node, addresses } => self.prober.run(probe, node, addresses, &self.sender),
                message => return message,
            }
        }
    }

    async fn send(&self, message: ToCoordinator) {
        // If nobody receives, the loss of the coordinator is about to be noticed.
        let _ = self.sender.send(message).await;
    }

    fn say_membership(&self, text: String, is_warning: bool, console: &Console) {
        match is_warning {
            true => console.error(&format!("warning: {text}")),
            false => console.say(&text),
        }
        self.membership.borrow_mut().push((text, is_warning));
    }

    /// Waits until node 0 has let this node join. Returns the name of node 0's file in the work folder.
    pub(super) async fn welcome(&mut self) -> Result<Option<String>> {
        loop {
            match self.next().await {
                ToNode::Welcome { token } => return Ok(token),
                ToNode::Refused { code, message } => return Err(Error::new(code, message)),
                ToNode::Lost(reason) => return Err(self.lost_coordinator(&reason)),
                _ => {}
            }
        }
    }

    fn lost_coordinator(&self, reason: &str) -> Error {
        Error::new(exit::WORKER_LOST, format!("{} is lost: {reason}", self.coordinator))
    }

    /// Waits until all nodes start.
    async fn start(&mut self, console: &Console, signals: &mut Signals) -> Result<OrStop<StartAttempt>> {
        loop {
            let message = tokio::select! {
                message = self.next() => message,
                request = signals.next() => match request {
                    Request::Stop(reason) => {
                        let stop = self.follower.stop(reason, false);
                        self.send(stop).await;
                        return Ok(Err(reason));
                    }
                    Request::Pause => { signals::stop_self(); continue }
                },
            };
            match message {
                ToNode::Start(start) => return Ok(Ok(*start)),
                ToNode::Stop(stop) => return Ok(Err(stop.reason)),
                ToNode::News { text } => console.say(&text),
                ToNode::Membership { text, is_warning } => self.say_membership(text, is_warning, console),
                ToNode::Refused { code, message } => return Err(Error::new(code, message)),
                ToNode::Lost(reason) => return Err(self.lost_coordinator(&reason)),
                _ => {}
            }
        }
    }
}

impl Cluster {
    /// A single node.
    pub fn single() -> Self {
        Self { link: None }
    }

    /// Several nodes.
    pub(super) fn over(link: Link) -> Self {
        Self { link: Some(link) }
    }

    /// What was reported about nodes that have joined or left.
    pub fn membership(&self) -> Membership {
        self.link.as_ref().map(|link| Rc::clone(&link.membership)).unwrap_or_default()
    }

    /// Opens the store and waits until all nodes start the next attempt, which is number `number` of a single node.
    /// Errors: the port of the store is taken, the nodes do not match or do not join in time, or one is lost.
    pub async fn begin(
        &mut self,
        nodes: &Nodes,
        number: u32,
        wanted: Wanted,
        console: &Console,
        signals: &mut Signals,
    ) -> Result<OrStop<AttemptStart>> {
        let Some(link) = &mut self.link else {
            let store = rendezvous::bind(nodes)?;
            let port = port_of(&store)?;
            let (store, nodes) = (Some(store), nodes.clone());
            return Ok(Ok(AttemptStart { number, store, port, nodes, wanted, links: None }));
        };
        let stores = match &link.closing {
            Closing::Listener(listener) => listener.open_store(),
            _ => Ok(Vec::new()),
        };
        let mut stores = stores.doing(|| "opening a port for the workers' store".to_owned())?;
        let lead = stores.first().map(port_of).transpose()?.map(|port| Lead { port, wanted });
        link.send(ToCoordinator::Ready { lead }).await;
        let start = match link.start(console, signals).await? {
            Ok(start) => start,
            Err(reason) => return Ok(Err(reason)),
        };
        link.follower.begin(start.attempt);
        // Nodes report that they are ready after they have found it; with MIN:MAX others may come later.
        link.token = link.token.take().filter(|_| nodes.min.is_some());
        let address = link.address.clone().or(start.address).unwrap_or_else(|| nodes.address.clone());
        // The one at which the nodes have reached this one.
        let is_there = |store: &TcpListener| store.local_addr().is_ok_and(|at| wire::host(at) == address);
        let store =
            stores.iter().position(is_there).or((!stores.is_empty()).then_some(0)).map(|at| stores.swap_remove(at));
        let interface = match interfaces::of_scope(&address).filter(|_| nodes.interface.is_empty()) {
            Some(name) => rendezvous::interface(Some(&name), |key| std::env::var(key).ok()),
            None => nodes.interface.clone(),
        };
        if let Some((_, name)) = interface.iter().find(|(key, _)| key == env::GLOO_SOCKET_IFNAME) {
            interfaces::check_for_workers(name, &interfaces::all()?)?;
        }
        let ranks = Some(RankRange {
            first: start.first_rank,
            world_size: start.world_size,
            full_world_size: start.full_world_size,
        });
        let nodes = Nodes { address, rank: start.node, ranks, interface, ..nodes.clone() };
        let Lead { port, wanted } = start.lead;
        Ok(Ok(AttemptStart { number: start.attempt, store, port, nodes, wanted, links: start.links }))
    }

    /// Tells the other nodes what node 0 waits for before it is ready.
    pub async fn wait_for(&self, text: &str) {
        if let Some(link) = &self.link {
            link.send(ToCoordinator::Waits { text: text.to_owned() }).await;
        }
    }

    /// The next message; none with a single node.
    pub async fn next(&mut self) -> NodeMessage {
        match &mut self.link {
            Some(link) => NodeMessage(link.next().await),
            None => std::future::pending().await,
        }
    }

    /// Passes a message on to the attempt.
    pub fn deliver(
        &mut self,
        NodeMessage(message): NodeMessage,
        attempt: &mut Attempt,
        console: &Console,
        now: Instant,
    ) -> Vec<Action> {
        let Some(link) = &mut self.link else { return Vec::new() };
        match message {
            ToNode::Membership { text, is_warning } => {
                link.say_membership(text, is_warning, console);
                Vec::new()
            }
            message => link.follower.deliver(message, attempt, now),
        }
    }

    /// Reports a stop that was requested on this node.
    pub async fn stop(&mut self, reason: StopReason, again: bool) {
        if let Some(link) = &mut self.link {
            let stop = link.follower.stop(reason, again);
            link.send(stop).await;
        }
    }

    /// Reports the workers of this node.
    pub async fn report(&mut self, attempt: &Attempt, now: Instant) {
        let Some(link) = &mut self.link else { return };
        *link.statuses.borrow_mut() = (attempt.statuses(now), now);
        for message in link.follower.report(attempt) {
            link.send(message).await;
        }
    }

    /// Reports the result of this node, and waits for the result of all nodes.
    pub async fn finish(&mut self, result: AttemptResult, console: &Console, signals: &mut Signals) -> AttemptResult {
        let Some(link) = &mut self.link else { return result };
        link.statuses.borrow_mut().0.clear();
        link.send(link.follower.ended(&result)).await;
        if let Some(result) = link.follower.result_alone(&result, &link.coordinator) {
            return result;
        }
        loop {
            let message = tokio::select! {
                message = link.next() => message,
                request = signals.next() => {
                    if let Request::Stop(reason) = request {
                        let stop = link.follower.stop(reason, signals.is_second_interrupt(reason));
                        link.send(stop).await;
                    }
                    continue;
                }
            };
            match message {
                ToNode::News { text } => console.say(&text),
                ToNode::Membership { text, is_warning } => link.say_membership(text, is_warning, console),
                message => {
                    if let Some(result) = link.follower.result_of_all(message, &result, &link.coordinator) {
                        return result;
                    }
                }
            }
        }
    }

    /// Leaves the job. An error is reported to the other nodes; node 0 waits until they have left.
    pub async fn leave(self, error: Option<&Error>) {
        let Some(link) = self.link else { return };
        if let Some(error) = error {
            link.send(ToCoordinator::Broken { code: error.code, message: error.message().to_owned() }).await;
        }
        link.heartbeat.abort();
        // The connection ends once all messages are written and the sender is gone.
        drop(link.sender);
        match link.closing {
            Closing::Listener(listener) => listener.close().await,
            Closing::Writer(task) => {
                let _ = tokio::time::timeout(LEAVE_TIMEOUT, task).await;
            }
        }
    }
}

fn port_of(store: &TcpListener) -> Result<u16> {
    Ok(store.local_addr().doing(|| "reading the port of the store".to_owned())?.port())
}
