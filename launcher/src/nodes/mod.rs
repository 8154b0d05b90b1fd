//! Several nodes, one job: the launchers talk to each other, not only the workers.
//!
//! Node 0's launcher listens at the master port ([`door`]); the others dial until they reach it ([`dial`]). It checks
//! that they belong together ([`roll`]) and decides for all of them ([`hub`], [`verdict`]); each launcher looks after
//! its own workers and does as was decided ([`cluster`]). The store of the workers has a port of its own, announced at
//! each start.
//!
//! The network is trusted: whoever can reach the port and speaks these messages can take part. Whatever else connects
//! is left out, and cannot end the job.

mod cluster;
mod dial;
mod door;
mod hello;
mod hub;
pub mod interfaces;
mod meet;
mod message;
mod queue;
mod roll;
mod verdict;
mod wire;

pub use cluster::{Agreed, Begun, Cluster, Meeting};
pub use meet::{Met, meet};
