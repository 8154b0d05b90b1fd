//! The port of node 0, to which the other nodes connect. Connections that are not from fnet nodes are ignored.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::time::{Duration, Instant};

use fnet_protocol::listen::listen;
use fnet_protocol::message;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::auth::{self, Denial, Side};
use super::coordinator::{Action, Coordinator, Event, HEARTBEAT_INTERVAL, LOCAL};
use super::message::{ConnectionId, Hello, MAX_LINE, PROTOCOL, ToCoordinator, ToNode};
use super::queue;
use super::strangers::{Reason, Strangers};
use super::wire::{self, Reader};
use crate::plan::secret::Secret;

/// Time for a connection to send its hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum length of a line before the other side has proven to know the secret.
const MAX_FIRST_LINE: usize = 1 << 16;
/// Time for nodes to leave after node 0 is done.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Capacity of the event queue.
const QUEUE: usize = 1024;

/// Sends what happens on the connections to the coordinator.
pub type Events = mpsc::Sender<(ConnectionId, Event)>;

/// The writer of a connection.
struct Writer {
    messages: mpsc::Sender<ToNode>,
    task: JoinHandle<()>,
}

/// A new connection.
struct Arrival {
    connection: ConnectionId,
    writer: Writer,
}

/// The running coordinator.
pub struct Listener {
    /// Receives the messages of node 0 itself, on the connection [`LOCAL`].
    pub events: Events,
    /// Where it listens.
    pub addresses: Vec<SocketAddr>,
    leave: mpsc::Sender<()>,
    task: JoinHandle<()>,
}

impl Listener {
    /// Accepts connections and runs the coordinator; its messages to node 0 go to `local`.
    pub fn open(
        listeners: Vec<StdListener>,
        secret: Option<Secret>,
        coordinator: Coordinator,
        local: mpsc::Sender<ToNode>,
    ) -> io::Result<Self> {
        let (events, incoming) = mpsc::channel(QUEUE);
        let (leave, left) = mpsc::channel(1);
        let (arrivals, arrived) = mpsc::channel(1);
        let strangers = Rc::<RefCell<Strangers>>::default();
        let port = Rc::new(Port {
            events: events.clone(),
            arrivals,
            secret,
            next: Cell::new(LOCAL),
            strangers: Rc::clone(&strangers),
            meets_at: RefCell::new((listeners.len() == 1).then(String::new)),
        });
        let addresses = listeners.iter().map(StdListener::local_addr).collect::<io::Result<Vec<_>>>()?;
        for listener in listeners {
            listener.set_nonblocking(true)?;
            tokio::task::spawn_local(accept(TcpListener::from_std(listener)?, Rc::clone(&port)));
        }
        let task = tokio::task::spawn_local(run(coordinator, incoming, arrived, local, left, strangers));
        Ok(Self { events, addresses, leave, task })
    }

    /// Opens a free port for the store of the workers, one socket at each address; node 0 learns later which one is used.
    pub fn open_store(&self) -> io::Result<Vec<StdListener>> {
        let is_all = self.addresses.iter().any(|address| address.ip().is_unspecified());
        listen(if is_all { &[] } else { &self.addresses }, 0)
    }

    /// Waits some seconds for the nodes to receive the last messages and leave, and, if the job cannot start, for absent nodes
    /// to join and receive the reason.
    pub async fn close(self) {
        drop(self.leave);
        let _ = self.task.await;
    }
}

/// What all connections of the port share.
struct Port {
    events: Events,
    arrivals: mpsc::Sender<Arrival>,
    secret: Option<Secret>,
    next: Cell<ConnectionId>,
    strangers: Rc<RefCell<Strangers>>,
    /// With several addresses, the one that the first node has reached: the workers meet there, so all nodes must reach it.
    /// Empty with a single one.
    meets_at: RefCell<Option<String>>,
}

impl Port {
    /// Whether nodes may come to this address of node 0.
    fn is_met_at(&self, address: &str) -> bool {
        let mut meets_at = self.meets_at.borrow_mut();
        let at = meets_at.get_or_insert_with(|| address.to_owned());
        at.is_empty() || at == address
    }
}

async fn accept(listener: TcpListener, port: Rc<Port>) {
    loop {
        let Ok((stream, address)) = listener.accept().await else {
            // Out of descriptors, or the other side is already gone.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let connection = port.next.get() + 1;
        port.next.set(connection);
        let task = tokio::task::spawn_local(serve(stream, address, connection, Rc::clone(&port)));
        port.strangers.borrow_mut().open(connection, address.ip(), task.abort_handle());
    }
}

/// Reads a connection to its end.
async fn serve(stream: TcpStream, address: SocketAddr, connection: ConnectionId, port: Rc<Port>) {
    let _ = stream.set_nodelay(true);
    let local_address = stream.local_addr().map(wire::host).unwrap_or_default();
    let introduced = tokio::time::timeout(HELLO_TIMEOUT, introduce(stream, &local_address, &port)).await;
    let introduced = introduced.unwrap_or(Err(Some(Reason::Stranger)));
    port.strangers.borrow_mut().close(connection, introduced.as_ref().err().copied().flatten());
    let Ok((hello, mut reader, writer)) = introduced else { return };
    let (messages, outgoing) = queue::channel();
    let (written, mut is_written) = oneshot::channel::<()>();
    let task = tokio::task::spawn_local(async move {
        wire::write_all(writer, outgoing).await;
        drop(written);
    });
    // The coordinator is gone only when the job is over.
    let _ = port.arrivals.send(Arrival { connection, writer: Writer { messages, task } }).await;
    let address = wire::host(address);
    let _ = port.events.send((connection, Event::Hello { hello, address, local_address })).await;
    let why = loop {
        let message = tokio::select! {
            message = reader.message() => message,
            // Nothing more is sent to it, so it has some seconds to read the last messages and leave.
            _ = &mut is_written => match tokio::time::timeout(LEAVE_TIMEOUT, until_end(&mut reader)).await {
                Ok(()) | Err(_) => Ok(None),
            },
        };
        match message {
            Ok(Some(message)) => {
                let _ = port.events.send((connection, Event::Message(message))).await;
            }
            Ok(None) => break wire::ENDED.to_owned(),
            Err(error) => break wire::broken(&error),
        }
    };
    let _ = port.events.send((connection, Event::Closed(why))).await;
}

/// Reads to the end of a connection that is not used any more.
async fn until_end(reader: &mut Reader<OwnedReadHalf>) {
    while let Ok(Some(_)) = reader.line().await {}
}

/// Receives the introduction of the other side, and greets it; with a secret, after both have proven to know it. The error
/// says whether it is a stranger: a node may come to another address.
async fn introduce(
    stream: TcpStream,
    local_address: &str,
    port: &Port,
) -> Result<(Hello, Reader<OwnedReadHalf>, wire::Writer<OwnedWriteHalf>), Option<Reason>> {
    let max = if port.secret.is_some() { MAX_FIRST_LINE } else { MAX_LINE };
    let (reading, writing) = stream.into_split();
    let (mut reader, mut writer) = (Reader::new(reading, max), wire::Writer::new(writing));
    let hello = |line: &[u8]| match message::from_line(line) {
        Ok(ToCoordinator::Hello(hello)) if hello.is_sound() => Some(hello),
        _ => None,
    };
    if let Some(secret) = &port.secret {
        auth::exchange(secret, Side::Coordinator, &mut reader, &mut writer).await.map_err(|denial| {
            Some(match denial {
                Denial::OtherSecret => Reason::OtherSecret,
                Denial::Stranger(line) if hello(&line).is_some() => Reason::NoSecret,
                _ => Reason::Stranger,
            })
        })?;
    }
    let greeting = ToNode::Greeting { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION").to_owned() };
    let first = reader.line().await.ok().flatten().ok_or(Some(Reason::Stranger))?;
    let hello = hello(&first);
    if hello.is_some() && !port.is_met_at(local_address) {
        return Err(None);
    }
    // Others learn from it which program this is.
    writer.write(&greeting).await.map_err(|_| Some(Reason::Stranger))?;
    match hello {
        Some(hello) => Ok((hello, reader, writer)),
        None if auth::is_challenge(&first) => Err(Some(Reason::HasSecret)),
        None => Err(Some(Reason::Stranger)),
    }
}

/// Passes events to the coordinator and executes its actions, until all nodes have left.
async fn run(
    mut coordinator: Coordinator,
    mut events: mpsc::Receiver<(ConnectionId, Event)>,
    mut arrivals: mpsc::Receiver<Arrival>,
    local: mpsc::Sender<ToNode>,
    mut left: mpsc::Receiver<()>,
    strangers: Rc<RefCell<Strangers>>,
) {
    let mut writers = Writers { open: HashMap::new(), local: Some(local), closing: Vec::new() };
    let mut heartbeat = tokio::time::interval(HEARTBEAT_INTERVAL);
    heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut deadline = None;
    loop {
        let is_untold = coordinator.has_untold_nodes(Instant::now());
        let is_over = deadline.is_some() && writers.open.is_empty() && !is_untold;
        let end = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let actions = tokio::select! {
            biased;
            () = std::future::ready(()), if is_over => break,
            () = end, if !is_untold => break,
            // The writer of a connection arrives before its hello.
            Some(arrival) = arrivals.recv() => {
                writers.open.insert(arrival.connection, arrival.writer);
                Vec::new()
            }
            Some((connection, event)) = events.recv() => {
                if matches!(event, Event::Closed(_)) {
                    writers.close(connection);
                }
                coordinator.on_event(connection, event, Instant::now())
            }
            _ = heartbeat.tick() => {
                let mut actions = coordinator.on_tick(Instant::now());
                let line = strangers.borrow_mut().line(Instant::now());
                actions.extend(line.map(|text| Action::Send(LOCAL, ToNode::News { text })));
                actions
            }
            _ = left.recv(), if deadline.is_none() => {
                deadline = Some(tokio::time::Instant::now() + LEAVE_TIMEOUT);
                Vec::new()
            }
        };
        writers.execute(actions, &mut coordinator);
    }
    let _ = tokio::time::timeout(LEAVE_TIMEOUT, writers.flush()).await;
}

/// The writers of all connections.
struct Writers {
    open: HashMap<ConnectionId, Writer>,
    /// Node 0 itself; if it is dropped, node 0 takes the coordinator for lost.
    local: Option<mpsc::Sender<ToNode>>,
    /// Closed connections whose last messages may not be written yet.
    closing: Vec<JoinHandle<()>>,
}

impl Writers {
    /// Executes actions, and those that follow if a node has stopped reading.
    fn execute(&mut self, actions: Vec<Action>, coordinator: &mut Coordinator) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Send(LOCAL, message) => {
                    self.local = self.local.take().filter(|local| queue::offer(local, message));
                }
                Action::Send(connection, message) => {
                    let Some(writer) = self.open.get(&connection) else { continue };
                    // If the connection has ended, its reader reports a better reason.
                    if !queue::offer(&writer.messages, message) && !writer.messages.is_closed() {
                        self.close(connection);
                        let closed = Event::Closed(queue::NOT_READING.to_owned());
                        actions.extend(coordinator.on_event(connection, closed, Instant::now()));
                    }
                }
                Action::Close(connection) => self.close(connection),
            }
        }
    }

    fn close(&mut self, connection: ConnectionId) {
        self.closing.retain(|task| !task.is_finished());
        self.closing.extend(self.open.remove(&connection).map(|writer| writer.task));
    }

    /// Waits until all messages are written.
    async fn flush(self) {
        for task in self.closing.into_iter().chain(self.open.into_values().map(|writer| writer.task)) {
            let _ = task.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::coordinator::{Timeouts, tests::hello};
    use super::*;

    #[test]
    fn a_node_that_does_not_read_is_lost_and_fills_no_memory() {
        let run = async {
            let now = Instant::now();
            let timeouts = Timeouts { join: Duration::from_secs(300), silence: Duration::from_secs(60) };
            let mut coordinator = Coordinator::new(hello(0, 2), timeouts, now);
            let (local, mut received) = mpsc::channel(1 << 20);
            let mut writers = Writers { open: HashMap::new(), local: Some(local), closing: Vec::new() };
            // Connection 1 is never read.
            let (messages, _unread) = queue::channel();
            writers.open.insert(1, Writer { messages, task: tokio::spawn(std::future::pending()) });
            let (address, local_address) = ("10.0.0.2".into(), "10.0.0.1".into());
            let joined = Event::Hello { hello: hello(1, 1), address, local_address };
            let actions = coordinator.on_event(1, joined, now);
            writers.execute(actions, &mut coordinator);
            for _ in 0..10 * queue::CAPACITY {
                let heartbeats = coordinator.on_tick(now);
                writers.execute(heartbeats, &mut coordinator);
            }
            assert!(writers.open.contains_key(&1), "heartbeats close no connection");
            for _ in 0..2 * queue::CAPACITY {
                writers.execute(vec![Action::Send(1, ToNode::PeerFailed { rank: 0 })], &mut coordinator);
            }
            assert!(writers.open.is_empty() && writers.closing.len() == 1);
            drop(writers);
            let mut news = Vec::new();
            while let Ok(message) = received.try_recv() {
                if let ToNode::News { text } | ToNode::Membership { text, .. } = message {
                    news.push(text);
                }
            }
            assert!(news.iter().any(|text| text.contains("has left (it does not read")), "{news:?}");
        };
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run);
    }
}
