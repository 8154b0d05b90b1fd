//! How a node sends messages to the coordinator.

use std::rc::Rc;

use tokio::sync::{Notify, mpsc};

use super::coordinator::{Event, LOCAL};
use super::listener::Events;
use super::message::ToCoordinator;
use super::queue;

/// Sends messages to the coordinator.
#[derive(Clone)]
pub(super) enum Sender {
    /// On node 0.
    Local(Events),
    /// Over the network; the second part is notified if the queue overflows.
    Remote(mpsc::Sender<ToCoordinator>, Rc<Notify>),
}

impl Sender {
    /// `false` if nobody receives.
    pub(super) async fn send(&self, message: ToCoordinator) -> bool {
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
