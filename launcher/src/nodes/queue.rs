//! Queues of messages to another node: bounded, and nobody ever waits for room.
//!
//! Heartbeats are left out when a queue is half full, for the next one says the same anew. Any other message must
//! arrive; if there is no room for one, the other side has stopped reading and counts as lost.

use tokio::sync::mpsc::{self, Receiver, Sender};

use super::message::{ToHub, ToNode};

/// Messages that may wait for one node.
pub const ROOM: usize = 1024;
/// Why a node with a full queue is lost.
pub const NOT_READ: &str = "it does not read what it is told";

/// What a queue must know of a message.
pub trait Message {
    /// Whether a later one takes its place.
    fn is_heartbeat(&self) -> bool;
}

impl Message for ToNode {
    fn is_heartbeat(&self) -> bool {
        matches!(self, Self::Beats { .. })
    }
}

impl Message for ToHub {
    fn is_heartbeat(&self) -> bool {
        matches!(self, Self::Beats { .. })
    }
}

/// A new queue.
pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
    mpsc::channel(ROOM)
}

/// Puts a message into a queue, or leaves it out. `false` if the other side has stopped reading, or is gone.
#[must_use]
pub fn offer<T: Message>(queue: &Sender<T>, message: T) -> bool {
    if message.is_heartbeat() && queue.capacity() <= queue.max_capacity() / 2 {
        return !queue.is_closed();
    }
    queue.try_send(message).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heartbeats_give_way_and_what_must_arrive_ends_a_full_line() {
        let (sender, mut receiver) = mpsc::channel(8);
        for _ in 0..100 {
            assert!(offer(&sender, ToHub::Beats { seen: Vec::new() }));
        }
        for rank in 0..4 {
            assert!(offer(&sender, ToHub::Failing { attempt: 0, rank }));
        }
        assert!(!offer(&sender, ToHub::Failing { attempt: 0, rank: 4 }));
        assert!(offer(&sender, ToHub::Beats { seen: Vec::new() }));
        assert_eq!(receiver.len(), 8);
        while receiver.try_recv().is_ok() {}
        assert!(offer(&sender, ToHub::Failing { attempt: 0, rank: 4 }));
        drop(receiver);
        assert!(!offer(&sender, ToHub::Beats { seen: Vec::new() }));
    }
}
