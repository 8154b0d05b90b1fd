//! The port of node 0, to which the other nodes connect. Connections that are not from fnet nodes are ignored.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fnet_protocol::message;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::coordinator::{Action, ConnectionId, Coordinator, Event, HEARTBEAT_INTERVAL, LOCAL};
use super::message::{PROTOCOL, ToCoordinator, ToNode};
use super::queue;
use super::wire::{self, Reader};

/// Time for a connection to send its hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of connections without a hello.
const MAX_UNKNOWN: usize = 64;
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

/// Listens on all addresses of this machine, over IPv6 and IPv4.
pub fn listen(port: u16) -> io::Result<StdListener> {
    let both = StdListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
    match both {
        // A machine without IPv6.
        Err(error) if is_without_v6(&error) => StdListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))),
        other => other,
    }
}

fn is_without_v6(error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
}

/// The running coordinator.
pub struct Listener {
    /// Receives the messages of node 0 itself, on the connection [`LOCAL`].
    pub events: Events,
    leave: mpsc::Sender<()>,
    task: JoinHandle<()>,
}

impl Listener {
    /// Accepts connections and runs the coordinator; its messages to node 0 go to `local`.
    pub fn open(listener: StdListener, coordinator: Coordinator, local: mpsc::Sender<ToNode>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let (events, incoming) = mpsc::channel(QUEUE);
        let (leave, left) = mpsc::channel(1);
        let (arrivals, arrived) = mpsc::channel(1);
        tokio::task::spawn_local(accept(listener, events.clone(), arrivals));
        let task = tokio::task::spawn_local(run(coordinator, incoming, arrived, local, left));
        Ok(Self { events, leave, task })
    }

    /// Waits some seconds for the nodes to receive the last messages and leave, and, if the job cannot start, for absent nodes
    /// to join and receive the reason.
    pub async fn close(self) {
        drop(self.leave);
        let _ = self.task.await;
    }
}

async fn accept(listener: TcpListener, events: Events, arrivals: mpsc::Sender<Arrival>) {
    let unknown = Arc::new(Semaphore::new(MAX_UNKNOWN));
    let mut next = LOCAL;
    loop {
        let Ok((stream, address)) = listener.accept().await else {
            // Out of descriptors, or the other side is already gone.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&unknown).try_acquire_owned() else { continue };
        next += 1;
        let (events, arrivals) = (events.clone(), arrivals.clone());
        tokio::task::spawn_local(serve(stream, address, next, events, arrivals, permit));
    }
}

/// Reads a connection to its end.
async fn serve(
    mut stream: TcpStream,
    address: SocketAddr,
    connection: ConnectionId,
    events: Events,
    arrivals: mpsc::Sender<Arrival>,
    permit: OwnedSemaphorePermit,
) {
    let _ = stream.set_nodelay(true);
    let local_address = stream.local_addr().map(wire::host).unwrap_or_default();
    let greeting = ToNode::Greeting { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION").to_owned() };
    let hello = tokio::time::timeout(HELLO_TIMEOUT, async {
        wire::write(&mut stream, &greeting).await.ok()?;
        let (reading, writing) = stream.into_split();
        let mut reader = Reader::new(reading);
        let first = reader.line().await.ok()??;
        match message::from_line(&first) {
            Ok(ToCoordinator::Hello(hello)) if hello.is_sound() => Some((hello, reader, writing)),
            _ => None,
        }
    });
    let Ok(Some((hello, mut reader, writing))) = hello.await else { return };
    drop(permit);
    let (messages, outgoing) = queue::channel();
    let task = tokio::task::spawn_local(wire::write_all(writing, outgoing));
    // The coordinator is gone only when the job is over.
    let _ = arrivals.send(Arrival { connection, writer: Writer { messages, task } }).await;
    let address = wire::host(address);
    let _ = events.send((connection, Event::Hello { hello, address, local_address })).await;
    let why = loop {
        match reader.message().await {
            Ok(Some(message)) => {
                let _ = events.send((connection, Event::Message(message))).await;
            }
            Ok(None) => break wire::ENDED.to_owned(),
            Err(error) => break wire::broken(&error),
        }
    };
    let _ = events.send((connection, Event::Closed(why))).await;
}

/// Passes events to the coordinator and executes its actions, until all nodes have left.
async fn run(
    mut coordinator: Coordinator,
    mut events: mpsc::Receiver<(ConnectionId, Event)>,
    mut arrivals: mpsc::Receiver<Arrival>,
    local: mpsc::Sender<ToNode>,
    mut left: mpsc::Receiver<()>,
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
            _ = heartbeat.tick() => coordinator.on_tick(Instant::now()),
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
                if let ToNode::News { text } | ToNode::Membership { text } = message {
                    news.push(text);
                }
            }
            assert!(news.iter().any(|text| text.contains("has left (it does not read")), "{news:?}");
        };
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run);
    }
}
