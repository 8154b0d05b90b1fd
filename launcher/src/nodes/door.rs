//! Node 0's port: where the other nodes come in. Whatever is no fnet node is left out and does no harm.

use std::collections::HashMap;
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
    messages: mpsc::UnboundedSender<ToNode>,
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
    pub fn open(listener: StdListener, hub: Hub, own: mpsc::UnboundedSender<ToNode>) -> io::Result<Self> {
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
    let (messages, outgoing) = mpsc::unbounded_channel();
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
    own: mpsc::UnboundedSender<ToNode>,
    mut left: mpsc::Receiver<()>,
) {
    let mut lines: HashMap<Line, Writer> = HashMap::new();
    let mut closing: Vec<JoinHandle<()>> = Vec::new();
    let mut pulse = tokio::time::interval(PULSE);
    pulse.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut deadline = None;
    loop {
        let is_over = deadline.is_some() && lines.is_empty();
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
                lines.insert(arrival.line, arrival.writer);
                Vec::new()
            }
            Some((line, event)) = events.recv() => {
                let is_closed = matches!(event, Event::Closed(_));
                let actions = hub.on(line, event, Instant::now());
                if is_closed {
                    closing.extend(lines.remove(&line).map(|writer| writer.task));
                }
                actions
            }
            _ = pulse.tick() => hub.tick(Instant::now()),
            _ = left.recv(), if deadline.is_none() => {
                deadline = Some(tokio::time::Instant::now() + LEAVE);
                Vec::new()
            }
        };
        for action in actions {
            match action {
                Action::Tell(OWN_LINE, message) => {
                    let _ = own.send(message);
                }
                Action::Tell(line, message) => {
                    if let Some(writer) = lines.get(&line) {
                        let _ = writer.messages.send(message);
                    }
                }
                Action::Close(line) => closing.extend(lines.remove(&line).map(|writer| writer.task)),
            }
        }
    }
    closing.extend(lines.into_values().map(|writer| writer.task));
    let all = async {
        for task in closing {
            let _ = task.await;
        }
    };
    let _ = tokio::time::timeout(LEAVE, all).await;
}
