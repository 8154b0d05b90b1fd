//! A node's part in a job of several nodes: hears what is decided, tells what happens here. With one node it does
//! nothing.

use std::cell::RefCell;
use std::net::TcpListener;
use std::rc::Rc;
use std::time::{Duration, Instant};

use fnet_protocol::message::StopReason;
use fnet_protocol::{env, exit};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::door::{self, Door, Events};
use super::hub::{Event, OWN_LINE};
use super::interfaces;
use super::meet::pulse;
use super::message::{Beat, End, How, Start, Stop, ToHub, ToNode};
use super::queue;
use super::verdict::{self, Fate, Final};
use crate::error::{Doing, Error, Result};
use crate::hang::Seen;
use crate::job::{Action, Job, Outcome};
use crate::rendezvous::{self, Nodes, Spot};
use crate::show::Show;
use crate::signals::{self, Request, Signals};

/// Time for the last words of a node to be taken.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// What is known of this node's workers, and since when.
pub(super) type SharedBeats = Rc<RefCell<(Vec<Seen>, Instant)>>;

/// The nodes of a job, seen from one of them.
pub struct Cluster {
    link: Option<Link>,
}

/// The way to the hub.
pub(super) struct Link {
    says: Says,
    hears: mpsc::Receiver<ToNode>,
    beats: SharedBeats,
    pulse: JoinHandle<()>,
    /// What the hub is to people, as `node 0 (10.0.0.1)`.
    hub: String,
    /// Address at which this node reaches the store; node 0 hears it from the hub.
    address: Option<String>,
    node: usize,
    first_rank: usize,
    attempt: u32,
    told_failure: bool,
    told_stop: bool,
    lost: Option<Lost>,
    ending: Ending,
}

/// The hub is not reached any more.
struct Lost {
    why: String,
    /// Whether a worker here had failed before.
    after_a_failure: bool,
}

/// To say something to the hub.
#[derive(Clone)]
pub(super) enum Says {
    /// From node 0 itself.
    Near(Events),
    /// Over the network; the hub is told to be lost when it takes nothing more.
    Far(mpsc::Sender<ToHub>, Rc<Notify>),
}

/// What is waited for at the end.
pub(super) enum Ending {
    /// The other nodes.
    Near(Door),
    /// The last words.
    Far(JoinHandle<()>),
}

/// An attempt begins, or does not.
pub enum Begun {
    /// All nodes start.
    Start(Meeting),
    /// A stop was requested before.
    Stopped(StopReason),
}

/// Where the workers meet.
pub struct Meeting {
    /// Attempts before this one.
    pub attempt: u32,
    /// The store's socket, on node 0.
    pub store: Option<TcpListener>,
    /// The store's port.
    pub port: u16,
    /// The nodes, with the workers' place among those of the others.
    pub nodes: Nodes,
    /// Whether node 0 has the job go on from its newest checkpoint; of several nodes only.
    pub resume: Option<bool>,
}

/// How an attempt ended.
pub struct Agreed {
    /// How.
    pub outcome: Outcome,
    /// Whether any worker had begun its work.
    pub was_ready: bool,
    /// Whether a stop was requested.
    pub stop_requested: bool,
    /// Steps in the newest checkpoint that was written.
    pub saved_step: Option<u64>,
    /// How long it ran.
    pub ran: Duration,
    /// A node that is gone, so that the job cannot start again.
    pub gone: Option<String>,
}

impl Says {
    /// Whether somebody listens.
    pub(super) async fn say(&self, message: ToHub) -> bool {
        match self {
            Says::Near(events) => events.send((OWN_LINE, Event::Said(message))).await.is_ok(),
            Says::Far(sender, is_full) => {
                let taken = queue::offer(sender, message);
                // If the connection has ended, the reader of it says so better.
                if !taken && !sender.is_closed() {
                    is_full.notify_one();
                }
                taken
            }
        }
    }
}

impl Link {
    pub(super) fn new(
        node: usize,
        says: Says,
        hears: mpsc::Receiver<ToNode>,
        hub: String,
        address: Option<String>,
        ending: Ending,
    ) -> Self {
        let beats = Rc::new(RefCell::new((Vec::new(), Instant::now())));
        Self {
            pulse: tokio::task::spawn_local(pulse(says.clone(), Rc::clone(&beats))),
            says,
            hears,
            beats,
            hub,
            address,
            node,
            first_rank: 0,
            attempt: 0,
            told_failure: false,
            told_stop: false,
            lost: None,
            ending,
        }
    }

    async fn next(&mut self) -> ToNode {
        match &self.lost {
            Some(_) => std::future::pending().await,
            None => self.hears.recv().await.unwrap_or_else(|| ToNode::Lost("it has ended".to_owned())),
        }
    }

    async fn say(&self, message: ToHub) {
        // When nobody listens, the loss of the hub is about to be heard.
        let _ = self.says.say(message).await;
    }

    /// Waits until all nodes start.
    async fn start(
        &mut self,
        show: &RefCell<Show>,
        requests: &mut Signals,
    ) -> Result<std::result::Result<Start, StopReason>> {
        loop {
            let message = tokio::select! {
                message = self.next() => message,
                request = requests.next() => match request {
                    Request::Stop(reason) => {
                        self.say(ToHub::Stop(Stop { reason, again: false })).await;
                        return Ok(Err(reason));
                    }
                    Request::Pause => { signals::stop_self(); continue }
                },
            };
            match message {
                ToNode::Start(start) if start.attempt == self.attempt => return Ok(Ok(start)),
                ToNode::Stop(stop) => return Ok(Err(stop.reason)),
                ToNode::News { text } => show.borrow().say(&text),
                ToNode::Refused { code, message } => return Err(Error::new(code, message)),
                ToNode::Lost(why) => {
                    return Err(Error::new(exit::WORKER_LOST, format!("{} is lost: {why}", self.hub)));
                }
                _ => {}
            }
        }
    }

    /// The end of the attempt as this node alone can tell it, without the hub.
    fn alone(&self, end: End, lost: &Lost) -> End {
        let order = |first: bool| Some(usize::from(!first));
        verdict::merge(&[
            Final {
                name: "this node".to_owned(),
                first_rank: self.first_rank,
                failed_as: order(lost.after_a_failure),
                is_gone: false,
                fate: Fate::Ended(end),
            },
            Final {
                name: self.hub.clone(),
                first_rank: 0,
                failed_as: order(!lost.after_a_failure),
                is_gone: true,
                fate: Fate::Lost { code: exit::WORKER_LOST, reason: lost.why.clone() },
            },
        ])
    }
}

impl Cluster {
    /// One node.
    pub fn alone() -> Self {
        Self { link: None }
    }

    /// Several nodes.
    pub(super) fn over(link: Link) -> Self {
        Self { link: Some(link) }
    }

    /// Opens the store and waits until all nodes start attempt number `attempt`.
    ///
    /// # Errors
    /// If the store's port is taken, the nodes do not fit together or do not come in time, or one is lost.
    pub async fn begin(
        &mut self,
        nodes: &Nodes,
        attempt: u32,
        resume: bool,
        show: &RefCell<Show>,
        requests: &mut Signals,
    ) -> Result<Begun> {
        let Some(link) = &mut self.link else {
            let store = rendezvous::bind(nodes)?;
            let port = port_of(&store)?;
            return Ok(Begun::Start(Meeting { attempt, store: Some(store), port, nodes: nodes.clone(), resume: None }));
        };
        let store = match link.node {
            0 => Some(door::listen(0).doing(|| "opening a port for the workers' store".to_owned())?),
            _ => None,
        };
        let port = store.as_ref().map(port_of).transpose()?;
        (link.attempt, link.told_failure, link.told_stop) = (attempt, false, false);
        link.say(ToHub::Ready { attempt, port, resume }).await;
        let start = match link.start(show, requests).await? {
            Ok(start) => start,
            Err(reason) => return Ok(Begun::Stopped(reason)),
        };
        link.first_rank = start.first_rank;
        let address = link.address.clone().or(start.address).unwrap_or_else(|| nodes.address.clone());
        let spot = Some(Spot { first_rank: start.first_rank, world: start.world });
        let interface = match interfaces::of_scope(&address).filter(|_| nodes.interface.is_empty()) {
            Some(name) => rendezvous::interface(Some(&name), |key| std::env::var(key).ok()),
            None => nodes.interface.clone(),
        };
        if let Some((_, name)) = interface.iter().find(|(key, _)| key == env::GLOO_SOCKET_IFNAME) {
            interfaces::check_for_workers(name, &interfaces::all()?)?;
        }
        let nodes = Nodes { address, spot, interface, ..nodes.clone() };
        Ok(Begun::Start(Meeting { attempt, store, port: start.port, nodes, resume: Some(start.resume) }))
    }

    /// What is heard next; never anything with one node.
    pub async fn next(&mut self) -> News {
        match &mut self.link {
            Some(link) => News(link.next().await),
            None => std::future::pending().await,
        }
    }

    /// Tells the job what was heard.
    pub fn react(&mut self, News(message): News, job: &mut Job, now: Instant) -> Vec<Action> {
        let Some(link) = &mut self.link else { return Vec::new() };
        match message {
            ToNode::Beats { seen } => {
                job.hear_of_others(seen.iter().map(Beat::seen).collect(), now);
                Vec::new()
            }
            ToNode::PeerFailed { rank } => job.peer_failed(rank, now),
            ToNode::Stop(stop) => {
                link.told_stop = true;
                let mut actions = Vec::new();
                if job.stop_reason().is_none() {
                    actions.extend(job.stop(stop.reason, now));
                }
                if stop.again {
                    actions.extend(job.stop(stop.reason, now));
                }
                actions
            }
            ToNode::News { text } => vec![Action::Say(text)],
            ToNode::Lost(why) | ToNode::Refused { message: why, .. } => {
                link.lost = Some(Lost { why, after_a_failure: link.told_failure });
                job.peer_failed(0, now)
            }
            ToNode::Greeting { .. } | ToNode::Start(_) | ToNode::Agreed { .. } | ToNode::Unknown => Vec::new(),
        }
    }

    /// Tells the others of a stop that was requested here.
    pub async fn stop(&mut self, reason: StopReason, again: bool) {
        if let Some(link) = &mut self.link {
            link.told_stop = true;
            link.say(ToHub::Stop(Stop { reason, again })).await;
        }
    }

    /// Tells the others what has become of the workers here.
    pub async fn observe(&mut self, job: &Job, now: Instant) {
        let Some(link) = &mut self.link else { return };
        *link.beats.borrow_mut() = (job.seen(now), now);
        if let Some(rank) = job.failed_rank().filter(|_| !link.told_failure) {
            link.told_failure = true;
            link.say(ToHub::Failing { attempt: link.attempt, rank }).await;
        }
        if let Some(reason) = job.stop_reason().filter(|_| !link.told_stop) {
            link.told_stop = true;
            link.say(ToHub::Stop(Stop { reason, again: false })).await;
        }
    }

    /// All workers here have ended; waits until those of the other nodes have, and says how the attempt ended for all.
    pub async fn agree(&mut self, here: Agreed, only_echoes: bool, requests: &mut Signals) -> Agreed {
        let Some(link) = &mut self.link else { return here };
        link.beats.borrow_mut().0.clear();
        let end = end_of(here, only_echoes);
        link.say(ToHub::Ended { attempt: link.attempt, end: end.clone() }).await;
        loop {
            if let Some(lost) = &link.lost {
                return agreed(link.alone(end, lost));
            }
            let message = tokio::select! {
                message = link.next() => message,
                request = requests.next() => {
                    if let Request::Stop(reason) = request {
                        let again = std::mem::replace(&mut link.told_stop, true);
                        link.say(ToHub::Stop(Stop { reason, again })).await;
                    }
                    continue;
                }
            };
            match message {
                ToNode::Agreed { attempt, end } if attempt == link.attempt => return agreed(end),
                ToNode::Lost(why) | ToNode::Refused { message: why, .. } => {
                    link.lost = Some(Lost { why, after_a_failure: link.told_failure });
                }
                _ => {}
            }
        }
    }

    /// The end. With an error the other nodes are told; node 0 waits until they have left.
    pub async fn leave(self, error: Option<&Error>) {
        let Some(link) = self.link else { return };
        if let Some(error) = error {
            link.say(ToHub::Broken { code: error.code, message: error.message().to_owned() }).await;
        }
        link.pulse.abort();
        // Nothing more is said, so that the connection ends when all is written.
        drop(link.says);
        match link.ending {
            Ending::Near(door) => door.close().await,
            Ending::Far(writing) => {
                let _ = tokio::time::timeout(LAST_WORDS, writing).await;
            }
        }
    }
}

/// Something that another node or the hub has to say.
pub struct News(ToNode);

fn port_of(store: &TcpListener) -> Result<u16> {
    Ok(store.local_addr().doing(|| "asking for the store's port".to_owned())?.port())
}

fn end_of(here: Agreed, is_echo: bool) -> End {
    let how = match here.outcome {
        Outcome::Done => How::Done,
        Outcome::Stopped { reason, saved } => How::Stopped { reason, saved },
        Outcome::Failed(cause) => How::Failed { cause, is_echo },
    };
    End {
        how,
        was_ready: here.was_ready,
        stop_requested: here.stop_requested,
        saved_step: here.saved_step,
        seconds: here.ran.as_secs_f64(),
        gone: here.gone,
    }
}

fn agreed(end: End) -> Agreed {
    let outcome = match end.how {
        How::Done => Outcome::Done,
        How::Stopped { reason, saved } => Outcome::Stopped { reason, saved },
        How::Failed { cause, .. } => Outcome::Failed(cause),
    };
    Agreed {
        outcome,
        was_ready: end.was_ready,
        stop_requested: end.stop_requested,
        saved_step: end.saved_step,
        ran: Duration::try_from_secs_f64(end.seconds).unwrap_or_default(),
        gone: end.gone,
    }
}
