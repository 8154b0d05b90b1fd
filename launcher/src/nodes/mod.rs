//! Several nodes, one job: the launchers of the nodes talk to each other.
//!
//! The launcher of node 0 listens on the master port ([`listener`]); the others dial until they reach it ([`dial`]). Its
//! coordinator checks that they match ([`admission`]) and decides for all of them ([`coordinator`]);
//! each launcher supervises its own workers and follows those decisions ([`follower`], [`link`]). The store of the workers has a separate
//! port, which is announced at each start.
//!
//! Before the first attempt of its members they measure the network between them ([`probe`], [`probing`]); during it, nodes that
//! are slow are named ([`slow`]).
//!
//! With a secret, both sides of a connection prove that they know it before anything else is sent ([`auth`]). Without one, the
//! network is trusted: whoever reaches the port and speaks these messages can take part. All other connections are ignored
//! and cannot end the job ([`strangers`]).

mod admission;
mod auth;
mod coordinator;
mod dial;
mod follower;
mod hello;
mod join;
mod key;
mod link;
mod listener;
mod message;
mod probe;
mod probing;
mod queue;
mod sender;
#[cfg(test)]
mod simulation;
mod slow;
mod strangers;
mod token;
mod wire;

pub use auth::random;
pub use join::{join, measure, report_failure};
pub use link::{AttemptStart, Cluster, Membership};
pub use message::Wanted;
pub use token::Token;
