//! The connection of a node to the coordinator, and its part in the job. With a single node it does nothing.

use std::cell::RefCell;
use std::net::TcpListener;
use std::rc::Rc;
use std::time::{Duration, Instant};

use fnet_protocol::message::StopReason;
use fnet_protocol::{env, exit};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::coordinator::{Event, HEARTBEAT_INTERVAL, LOCAL};
use super::listener::{Events, Listener};
use super::merge_results::merge;
use super::message::{StartAttempt, StopRequest, ToCoordinator, ToNode};
use super::queue;
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
    node: usize,
    first_rank: usize,
    attempt: u32,
    sent_failure: bool,
    sent_stop: bool,
    sent_saved: bool,
    /// Node 0's file in the work folder, until all nodes have found it.
    token: Option<Token>,
    lost: Option<Lost>,
    closing: Closing,
}

/// The connection to the coordinator is lost.
struct Lost {
    reason: String,
    /// Whether a worker of this node had failed before.
    after_failure: bool,
}

/// Sends messages to the coordinator.
#[derive(Clone)]
pub(super) enum Sender {
    /// On node 0.
    Local(Events),
    /// Over the network; the second part is notified if the queue overflows.
    Remote(mpsc::Sender<ToCoordinator>, Rc<Notify>),
}

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
    /// With several nodes: whether node 0 resumes from its newest checkpoint.
    pub resume: Option<bool>,
}

/// A message from another node or the coordinator.
pub struct NodeMessage(ToNode);

impl Sender {
    /// `false` if nobody receives.
    async fn send(&self, message: ToCoordinator) -> bool {
        match self {
            Sender::Local(events) => events.send((LOCAL, Event::Message(message))).await.is_ok(),
            Sender::Remote(sender, is_full) => {
                let sent = queue::offer(sender, message);
                // If the connection has ended, its reader reports a better reason.
                if !sent && !sender.is_closed() {
                    is_full.notify_one();
                }
                sent
            }
        }
    }
}

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
        node: usize,
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
            node,
            first_rank: 0,
            attempt: 0,
            sent_failure: false,
            sent_stop: false,
            sent_saved: false,
            token: None,
            lost: None,
            closing,
        }
    }

    /// The same with the file of node 0 in the work folder.
    pub(super) fn with_token(self, token: Option<Token>) -> Self {
        Self { token, ..self }
    }

    async fn next(&mut self) -> ToNode {
        match &self.lost {
            Some(_) => std::future::pending().await,
            None => self.messages.recv().await.unwrap_or_else(|| ToNode::Lost("it has ended".to_owned())),
        }
    }

    async fn send(&self, message: ToCoordinator) {
        // If nobody receives, the loss of the coordinator is about to be noticed.
        let _ = self.sender.send(message).await;
    }

    async fn send_stop(&mut self, reason: StopReason, again: bool) {
        self.sent_stop = true;
        self.send(ToCoordinator::Stop(StopRequest { reason, again })).await;
    }

    fn set_lost(&mut self, reason: String) {
        self.lost = Some(Lost { reason, after_failure: self.sent_failure });
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
                        self.send_stop(reason, false).await;
                        return Ok(Err(reason));
                    }
                    Request::Pause => { signals::stop_self(); continue }
                },
            };
            match message {
                ToNode::Start(start) if start.attempt == self.attempt => return Ok(Ok(start)),
                ToNode::Stop(stop) => return Ok(Err(stop.reason)),
                ToNode::News { text } => console.say(&text),
                ToNode::Refused { code, message } => return Err(Error::new(code, message)),
                ToNode::Lost(reason) => return Err(self.lost_coordinator(&reason)),
                _ => {}
            }
        }
    }

    /// The result of the attempt without the coordinator.
    fn result_alone(&self, result: AttemptResult, lost: &Lost) -> AttemptResult {
        let coordinator = AttemptResult::of_lost_node(&self.coordinator, 0, exit::WORKER_LOST, &lost.reason);
        let result = result.on_node("this node");
        merge(if lost.after_failure { vec![result, coordinator] } else { vec![coordinator, result] })
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

    /// Opens the store and waits until all nodes start attempt `number`.
    ///
    /// # Errors
    /// The port of the store is taken, the nodes do not match or do not join in time, or one is lost.
    pub async fn begin(
        &mut self,
        nodes: &Nodes,
        number: u32,
        resume: bool,
        console: &Console,
        signals: &mut Signals,
    ) -> Result<OrStop<AttemptStart>> {
        let Some(link) = &mut self.link else {
            let store = rendezvous::bind(nodes)?;
            let port = port_of(&store)?;
            return Ok(Ok(AttemptStart { number, store: Some(store), port, nodes: nodes.clone(), resume: None }));
        };
        let stores = match (link.node, &link.closing) {
            (0, Closing::Listener(listener)) => listener.open_store(),
            _ => Ok(Vec::new()),
        };
        let mut stores = stores.doing(|| "opening a port for the workers' store".to_owned())?;
        let port = stores.first().map(port_of).transpose()?;
        (link.attempt, link.sent_failure, link.sent_stop, link.sent_saved) = (number, false, false, false);
        link.send(ToCoordinator::Ready { attempt: number, port, resume }).await;
        let start = match link.start(console, signals).await? {
            Ok(start) => start,
            Err(reason) => return Ok(Err(reason)),
        };
        link.first_rank = start.first_rank;
        // Nodes report that they are ready after they have found it.
        link.token = None;
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
        let ranks = Some(RankRange { first: start.first_rank, world_size: start.world_size });
        let nodes = Nodes { address, ranks, interface, ..nodes.clone() };
        Ok(Ok(AttemptStart { number, store, port: start.port, nodes, resume: Some(start.resume) }))
    }

    /// The next message; none with a single node.
    pub async fn next(&mut self) -> NodeMessage {
        match &mut self.link {
            Some(link) => NodeMessage(link.next().await),
            None => std::future::pending().await,
        }
    }

    /// Passes a message on to the attempt.
    pub fn deliver(&mut self, NodeMessage(message): NodeMessage, attempt: &mut Attempt, now: Instant) -> Vec<Action> {
        let Some(link) = &mut self.link else { return Vec::new() };
        match message {
            ToNode::Heartbeat { workers } => {
                attempt.on_remote_statuses(workers, now);
                Vec::new()
            }
            ToNode::PeerFailed { rank } => attempt.on_peer_failed(rank, now),
            ToNode::PeerSaved { step } => attempt.on_peer_saved(step, now),
            ToNode::Stop(stop) => {
                link.sent_stop = true;
                let mut actions = Vec::new();
                if attempt.stop_reason().is_none() {
                    actions.extend(attempt.on_stop(stop.reason, now));
                }
                if stop.again {
                    actions.extend(attempt.on_stop(stop.reason, now));
                }
                actions
            }
            ToNode::News { text } => vec![Action::Say(text)],
            ToNode::Lost(reason) | ToNode::Refused { message: reason, .. } => {
                link.set_lost(reason);
                attempt.on_peer_failed(0, now)
            }
            ToNode::Greeting { .. }
            | ToNode::Welcome { .. }
            | ToNode::Start(_)
            | ToNode::Ended { .. }
            | ToNode::Unknown => Vec::new(),
        }
    }

    /// Reports a stop that was requested on this node.
    pub async fn stop(&mut self, reason: StopReason, again: bool) {
        if let Some(link) = &mut self.link {
            link.send_stop(reason, again).await;
        }
    }

    /// Reports the workers of this node.
    pub async fn report(&mut self, attempt: &Attempt, now: Instant) {
        let Some(link) = &mut self.link else { return };
        *link.statuses.borrow_mut() = (attempt.statuses(now), now);
        if let Some(rank) = attempt.failed_rank().filter(|_| !link.sent_failure) {
            link.sent_failure = true;
            link.send(ToCoordinator::Failing { attempt: link.attempt, rank }).await;
        }
        if let Some(step) = attempt.emergency_step().filter(|_| !link.sent_saved) {
            link.sent_saved = true;
            link.send(ToCoordinator::Saved { attempt: link.attempt, step }).await;
        }
        if let Some(reason) = attempt.stop_reason().filter(|_| !link.sent_stop) {
            link.send_stop(reason, false).await;
        }
    }

    /// Reports the result of this node, and waits for the result of all nodes.
    pub async fn finish(&mut self, result: AttemptResult, console: &Console, signals: &mut Signals) -> AttemptResult {
        let Some(link) = &mut self.link else { return result };
        link.statuses.borrow_mut().0.clear();
        link.send(ToCoordinator::Ended { attempt: link.attempt, result: result.clone() }).await;
        loop {
            if let Some(lost) = &link.lost {
                return link.result_alone(result, lost);
            }
            let message = tokio::select! {
                message = link.next() => message,
                request = signals.next() => {
                    if let Request::Stop(reason) = request {
                        let again = link.sent_stop;
                        link.send_stop(reason, again).await;
                    }
                    continue;
                }
            };
            match message {
                ToNode::Ended { attempt, result } if attempt == link.attempt => return result,
                ToNode::Lost(reason) | ToNode::Refused { message: reason, .. } => link.set_lost(reason),
                ToNode::News { text } => console.say(&text),
                _ => {}
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
