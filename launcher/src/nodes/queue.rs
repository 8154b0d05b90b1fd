//! Bounded queues of messages to another node; senders never wait.
//!
//! Heartbeats are dropped when a queue is half full, because the next one replaces them. All other messages must arrive: if
//! the queue is full, the other side has stopped reading and counts as lost.

use tokio::sync::mpsc::{self, Receiver, Sender};

use super::message::{ToCoordinator, ToNode};

/// Capacity of a queue in messages.
pub const CAPACITY: usize = 1024;
/// Why a node with a full queue is lost.
pub const NOT_READING: &str = "it does not read its messages";

/// A message in a queue.
pub trait Message {
    /// Whether a later message replaces it.
    fn is_heartbeat(&self) -> bool;
}

impl Message for ToNode {
    fn is_heartbeat(&self) -> bool {
        matches!(self, Self::Heartbeat { .. })
    }
}

impl Message for ToCoordinator {
    fn is_heartbeat(&self) -> bool {
        matches!(self, Self::Heartbeat { .. })
    }
}

/// A new queue.
pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
    mpsc::channel(CAPACITY)
}

/// Queues or drops a message. `false` if the other side has stopped reading, or is gone.
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
    fn heartbeats_are_dropped_and_other_messages_fail_if_the_queue_is_full() {
        let (sender, mut receiver) = mpsc::channel(8);
        for _ in 0..100 {
            assert!(offer(&sender, ToCoordinator::Heartbeat { workers: Vec::new() }));
        }
        for rank in 0..4 {
            assert!(offer(&sender, ToCoordinator::Failing { attempt: 0, rank }));
        }
        assert!(!offer(&sender, ToCoordinator::Failing { attempt: 0, rank: 4 }));
        assert!(offer(&sender, ToCoordinator::Heartbeat { workers: Vec::new() }));
        assert_eq!(receiver.len(), 8);
        while receiver.try_recv().is_ok() {}
        assert!(offer(&sender, ToCoordinator::Failing { attempt: 0, rank: 4 }));
        drop(receiver);
        assert!(!offer(&sender, ToCoordinator::Heartbeat { workers: Vec::new() }));
    }
}
