//! Node 0's port: where the other nodes come in. Whatever is no fnet node is left out and does no harm.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fnet_protocol::message;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::hub::{Action, Event, Hub, Line, OWN_LINE, PULSE};
use super::message::{PROTOCOL, ToHub, ToNode};
use super::queue;
use super::wire::{self, Reader};

/// Time in which a connection must say hello.
const HELLO: Duration = Duration::from_secs(10);
/// Connections that may be about to say hello.
const MOST_UNKNOWN: usize = 64;
/// Time that nodes have to leave after node 0 is done.
const LEAVE: Duration = Duration::from_secs(5);
/// Events that may wait.
const QUEUE: usize = 1024;

/// What happens on the lines.
pub type Events = mpsc::Sender<(Line, Event)>;

/// How a line is written to.
struct Writer {
    messages: mpsc::Sender<ToNode>,
    task: JoinHandle<()>,
}

/// A new line, before its hello is judged.
struct Arrival {
    line: Line,
    writer: Writer,
}

/// Listens on every address of this machine, over IPv6 and IPv4.
///
/// # Errors
/// If the port is taken or not allowed.
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

/// The running hub.
pub struct Door {
    /// What node 0 itself says goes here, on [`OWN_LINE`].
    pub events: Events,
    leave: mpsc::Sender<()>,
    task: JoinHandle<()>,
}

impl Door {
    /// Lets nodes in and runs the hub; what it tells node 0 goes to `own`.
    ///
    /// # Errors
    /// If the event loop does not take the socket.
    pub fn open(listener: StdListener, hub: Hub, own: mpsc::Sender<ToNode>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let (events, incoming) = mpsc::channel(QUEUE);
        let (leave, left) = mpsc::channel(1);
        let (arrivals, arrived) = mpsc::channel(1);
        tokio::task::spawn_local(accept(listener, events.clone(), arrivals));
        let task = tokio::task::spawn_local(run(hub, incoming, arrived, own, left));
        Ok(Self { events, leave, task })
    }

    /// Waits until the nodes have heard the last word and left, for some seconds at most.
    pub async fn close(self) {
        drop(self.leave);
        let _ = self.task.await;
    }
}

async fn accept(listener: TcpListener, events: Events, arrivals: mpsc::Sender<Arrival>) {
    let unknown = Arc::new(Semaphore::new(MOST_UNKNOWN));
    let mut next = OWN_LINE;
    loop {
        let Ok((stream, address)) = listener.accept().await else {
            // Out of descriptors, or the other side is gone already.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&unknown).try_acquire_owned() else { continue };
        next += 1;
        let (events, arrivals) = (events.clone(), arrivals.clone());
        tokio::task::spawn_local(attend(stream, address, next, events, arrivals, permit));
    }
}

/// Sees a connection to its end.
async fn attend(
    mut stream: TcpStream,
    address: SocketAddr,
    line: Line,
    events: Events,
    arrivals: mpsc::Sender<Arrival>,
    permit: OwnedSemaphorePermit,
) {
    let _ = stream.set_nodelay(true);
    let arrived_at = stream.local_addr().map(wire::host).unwrap_or_default();
    let greeting = ToNode::Greeting { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION").to_owned() };
    let hello = tokio::time::timeout(HELLO, async {
        wire::write(&mut stream, &greeting).await.ok()?;
        let (reading, writing) = stream.into_split();
        let mut reader = Reader::new(reading);
        let first = reader.line().await.ok()??;
        match message::from_line(&first) {
            Ok(ToHub::Hello(hello)) if hello.is_sound() => Some((hello, reader, writing)),
            _ => None,
        }
    });
    let Ok(Some((hello, mut reader, writing))) = hello.await else { return };
    drop(permit);
    let (messages, outgoing) = queue::channel();
    let task = tokio::task::spawn_local(wire::write_all(writing, outgoing));
    // The hub is gone only when the job is over.
    let _ = arrivals.send(Arrival { line, writer: Writer { messages, task } }).await;
    let address = wire::host(address);
    let _ = events.send((line, Event::Hello { hello, address, arrived_at })).await;
    let why = loop {
        match reader.message().await {
            Ok(Some(message)) => {
                let _ = events.send((line, Event::Said(message))).await;
            }
            Ok(None) => break wire::ENDED.to_owned(),
            Err(error) => break wire::broken(&error),
        }
    };
    let _ = events.send((line, Event::Closed(why))).await;
}

/// Carries events to the hub and its decisions out, until node 0 leaves and the others have.
async fn run(
    mut hub: Hub,
    mut events: mpsc::Receiver<(Line, Event)>,
    mut arrivals: mpsc::Receiver<Arrival>,
    own: mpsc::Sender<ToNode>,
    mut left: mpsc::Receiver<()>,
) {
    let mut lines = Lines { writers: HashMap::new(), own: Some(own), closing: Vec::new() };
    let mut pulse = tokio::time::interval(PULSE);
    pulse.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut deadline = None;
    loop {
        let is_over = deadline.is_some() && lines.writers.is_empty();
        let end = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let actions = tokio::select! {
            biased;
            () = std::future::ready(()), if is_over => break,
            () = end => break,
            // A line's writer is there before its hello.
            Some(arrival) = arrivals.recv() => {
                lines.writers.insert(arrival.line, arrival.writer);
                Vec::new()
            }
            Some((line, event)) = events.recv() => {
                if matches!(event, Event::Closed(_)) {
                    lines.close(line);
                }
                hub.on(line, event, Instant::now())
            }
            _ = pulse.tick() => hub.tick(Instant::now()),
            _ = left.recv(), if deadline.is_none() => {
                deadline = Some(tokio::time::Instant::now() + LEAVE);
                Vec::new()
            }
        };
        lines.carry_out(actions, &mut hub);
    }
    let _ = tokio::time::timeout(LEAVE, lines.written()).await;
}

/// The lines on which the hub speaks.
struct Lines {
    writers: HashMap<Line, Writer>,
    /// Node 0 itself. Without it, node 0 takes the hub for lost.
    own: Option<mpsc::Sender<ToNode>>,
    /// Of lines that are closed, but perhaps not written to the end.
    closing: Vec<JoinHandle<()>>,
}

impl Lines {
    /// Carries out what the hub has decided, and what it decides when a node turns out to read no more.
    fn carry_out(&mut self, actions: Vec<Action>, hub: &mut Hub) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Tell(OWN_LINE, message) => {
                    self.own = self.own.take().filter(|own| queue::offer(own, message));
                }
                Action::Tell(line, message) => {
                    let Some(writer) = self.writers.get(&line) else { continue };
                    // If its connection has ended, the reader of it says so better.
                    if !queue::offer(&writer.messages, message) && !writer.messages.is_closed() {
                        self.close(line);
                        actions.extend(hub.on(line, Event::Closed(queue::NOT_READ.to_owned()), Instant::now()));
                    }
                }
                Action::Close(line) => self.close(line),
            }
        }
    }

    fn close(&mut self, line: Line) {
        self.closing.extend(self.writers.remove(&line).map(|writer| writer.task));
    }

    /// Waits until all is written.
    async fn written(self) {
        for task in self.closing.into_iter().chain(self.writers.into_values().map(|writer| writer.task)) {
            let _ = task.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::hub::{Patience, tests::hello};
    use super::*;

    #[test]
    fn a_node_that_reads_nothing_is_lost_and_fills_no_memory() {
        let run = async {
            let now = Instant::now();
            let patience = Patience { join: Duration::from_secs(300), silence: Duration::from_secs(60) };
            let mut hub = Hub::new(hello(0, 2), patience, now);
            let (own, mut heard) = mpsc::channel(1 << 20);
            let mut lines = Lines { writers: HashMap::new(), own: Some(own), closing: Vec::new() };
            // Line 1 takes nothing.
            let (messages, _unread) = queue::channel();
            lines.writers.insert(1, Writer { messages, task: tokio::spawn(std::future::pending()) });
            let come = Event::Hello { hello: hello(1, 1), address: "10.0.0.2".into(), arrived_at: "10.0.0.1".into() };
            let actions = hub.on(1, come, now);
            lines.carry_out(actions, &mut hub);
            for _ in 0..10 * queue::ROOM {
                let beats = hub.tick(now);
                lines.carry_out(beats, &mut hub);
            }
            assert!(lines.writers.contains_key(&1), "heartbeats end no line");
            for _ in 0..2 * queue::ROOM {
                lines.carry_out(vec![Action::Tell(1, ToNode::PeerFailed { rank: 0 })], &mut hub);
            }
            assert!(lines.writers.is_empty() && lines.closing.len() == 1);
            drop(lines);
            let mut news = Vec::new();
            while let Ok(message) = heard.try_recv() {
                if let ToNode::News { text } = message {
                    news.push(text);
                }
            }
            assert!(news.iter().any(|text| text.contains("has left (it does not read")), "{news:?}");
        };
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run);
    }
}
